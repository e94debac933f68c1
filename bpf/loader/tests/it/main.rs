//! The programs in the kernel, and the life of what is pinned. Needs root.

mod inventory;
mod judged;
#[path = "../../../common/tests/it/model.rs"]
mod model;
mod pins;
mod support;
mod traffic;
