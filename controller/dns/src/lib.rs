//! The DNS proxy: sockets, upstreams, cache, and the decision that every answer waits for.
//!
//! Everything runs on one thread (a current-thread tokio runtime with a `LocalSet`), so that a question costs no lock.

pub mod decision;

pub use decision::{Ask, Decision, Release};
