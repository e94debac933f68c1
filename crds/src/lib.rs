//! The metal-stack.io/v1 objects ClusterwideNetworkPolicy and Firewall as Rust types

mod bounds;
pub use bounds::{
    MAX_ADDRESSES, MAX_EXCEPTS, MAX_LOG_RATE, MAX_NETWORKS, MAX_PEERS, MAX_PORTS, MAX_PREFIXES, MAX_RULES,
    MAX_SELECTORS, MAX_SSH_PORTS,
};
