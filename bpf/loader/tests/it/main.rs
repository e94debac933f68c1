//! The programs in the kernel, and the life of what is pinned. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "tests end where something is wrong"
)]

mod inventory;
mod judged;
mod live;
#[path = "../../../common/tests/it/model.rs"]
mod model;
mod pins;
mod support;
mod traffic;
