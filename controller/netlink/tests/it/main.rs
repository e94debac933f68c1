//! The wire format against itself, libnftnl and rustables.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "libnftnl is C; a test fails by panicking; libnftnl numbers attributes as u32 and takes them as u16"
)]

mod conntrack;
mod libnftnl;
mod roundtrip;
mod rustables;
mod strategy;
