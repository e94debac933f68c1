//! The DNS proxy: sockets, upstreams, cache, and the decision that every answer waits for.
//!
//! Everything runs on one thread (a current-thread tokio runtime with a `LocalSet`), so that a question costs no lock.
//!
//! ```text
//! client ─front─▶ Engine::ask ─┬─ cache ──────────────────────────────┐
//!                              └─ flight ─upstream─▶ checked answer ──┴─▶ Decision::release ─▶ every client that waits
//! ```

mod cache;
pub mod config;
pub mod decision;
#[cfg(feature = "encrypted")]
pub mod encrypted;
mod engine;
mod flight;
mod front;
mod handle;
pub mod health;
mod inbox;
mod index;
pub mod metrics;
mod outbox;
mod proxy;
mod random;
mod release;
mod sockets;
mod tries;
mod upstream;
mod wire;

pub use config::{Config, NoOriginal, OriginalDestination, Settings};
pub use decision::{Ask, Decision, Question, Release};
pub use handle::{Handle, HandleError};
pub use metrics::Metrics;
pub use proxy::Proxy;
