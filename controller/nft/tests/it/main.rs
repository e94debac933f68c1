//! The real kernel, in network namespaces of the test's own. Needs root, `ip` and `nft`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints what a person needs to judge it"
)]

mod apply;
mod elements;
mod faults;
mod foreign;
mod interferers;
mod kill;
mod log;
mod owner;
mod refuse;
mod sample;
mod scale;
mod torn;
mod twin;
