//! The metal-stack.io/v1 objects ClusterwideNetworkPolicy and Firewall as Rust types
