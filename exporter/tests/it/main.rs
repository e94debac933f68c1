//! The exporter against nft's own listing, under edits, with hostile names and hostile neighbours.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints its seed"
)]

mod listing;
mod live;
mod oracle;
mod program;
mod rig;
mod sources;
mod table;
mod writer;
