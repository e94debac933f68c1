//! Loads, attaches, pins and adopts the eBPF programs; reads and writes their maps.
//!
//! ```text
//! PINS/maps/NAME      the maps and `meta`: layout, sizes, hash of the object
//! PINS/programs/NAME  the programs
//! PINS/links/KIND-IFINDEX
//! ```
//! All of it is pinned in a bpffs, so that it lives on without this process: after a crash the programs go on judging
//! by what the maps hold, and [`Datapath::open`] of the next start finds them and goes on writing. Nothing is detached
//! and nothing is emptied by that. What is attached is a `bpf_link`; it goes when its pin does, or its interface.

#![allow(unsafe_code, reason = "bpf(2), ioctl(2) and the memory of maps; each block says why it is sound")]

mod bpffs;
mod classes;
mod datapath;
mod error;
mod inventory;
mod kfunc;
mod links;
mod map;
mod nic;
mod object;
mod open;
mod prefixes;
mod probe;
mod samples;
mod selftest;
mod sys;

pub use datapath::{Datapath, Opened, Options, Sizes, TestRun};
pub use error::{Error, Unavailable};
pub use inventory::{Drops, MapUse};
pub use links::{Attached, Mode};
pub use nic::{Nic, nic};
pub use object::{Program, object};
pub use probe::probe;
pub use samples::Samples;
pub use selftest::self_test;

/// First class id of the prefix table; the ids below are the learner's.
pub const FIRST_PREFIX_CLASS: u32 = 16_384;
/// First slot that continues long classes.
pub const FIRST_CHAIN_SLOT: u32 = 32_768;
/// Slots of `CLASSES`.
pub const CLASS_SLOTS: u32 = 65_536;
/// Cells a class can have.
pub const CELLS_MAX: usize = fw_bpf_common::CELLS_PER_CLASS * fw_bpf_common::CLASS_HOPS;
