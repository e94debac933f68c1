//! Self-tests of the testkit: they need root, `ip`, `nft` and `conntrack`.

mod lab;
mod namespaces;
mod packets;
