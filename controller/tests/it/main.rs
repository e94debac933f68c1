//! The one integration binary: what can only be seen from outside a crate, the kernel above all.
//!
//! Everything here needs root, `ip` and `nft`; a test that lacks one of them fails with the reason.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]
#![allow(clippy::print_stderr, reason = "seeds and figures belong to the record of a run")]

mod bad_input;
mod cli;
mod daemon;
mod deploy;
mod docs;
mod drift;
mod droplog;
mod droptailer;
mod edits;
mod enrich;
mod exporter;
mod field;
mod golden;
mod ids;
mod kills;
mod kube;
mod layering;
mod metrics;
mod monitoring;
mod names;
mod oracle;
mod restart;
mod rig;
mod sources;
mod traffic;
mod tree;
