//! Self-tests of the testkit: they need root, `ip`, `nft` and `conntrack`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "the seed and the mix of generated tests")]

mod cluster;
mod corpus;
mod dns;
mod faults;
mod generated;
mod kubelet;
mod lab;
mod load;
mod namespaces;
mod packets;
mod scripted;
mod sockets;
