//! What the eBPF programs and user space share: map layouts, the packet parser and the verdict; `no_std`, pure.
//!
//! ```text
//! destination ─ALLOW4/6─▶ Allow{steps} ─first step not over─▶ class ─CLASSES─▶ cells ─protocol, port─▶ index
//! destination ─STATIC4/6 (longest prefix)──────────────────▶ class ─CLASSES─▶ cells ─protocol, port─▶ pass
//! ```
//! An *index* stands for one policy, selector and protocol; the stamp writes it into the packet's mark, nftables
//! accepts by it. A *class* is a set of ports with their indexes; thousands of addresses share one. Everything is in
//! the byte order of the machine: it is written and read on the same one.

#![no_std]
#![forbid(unsafe_code)]

mod layout;

pub use layout::{
    ALL_PORTS_CLASS, Allow, CELLS_PER_CLASS, CLASS_HOPS, Cell, Class, Config, NO_CLASS, Reason, STEPS,
    Sample, Step, flag,
};
