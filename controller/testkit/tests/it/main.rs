//! Self-tests of the testkit: they need root, `ip`, `nft` and `conntrack`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod lab;
mod namespaces;
mod packets;
mod sockets;
