//! Statuses and events at a real API server.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops where it fails and says what it saw"
)]

mod machine;
mod statuses;
