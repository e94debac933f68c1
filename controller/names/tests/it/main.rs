//! What names mean, from octets to cells.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

mod answers;
mod bounds;
mod indexes;
mod journal;
mod learning;
mod matching;
mod messages;
mod model;
mod names;
mod oracle;
mod sim;
