//! The socket and the file, with a suricata that is scripted.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not so"
)]

mod client;
mod directory;
mod follower;
