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

mod layout;
mod packet;
mod verdict;

pub use layout::{
    ALL_PORTS_CLASS, Allow, CELLS_PER_CLASS, CLASS_HOPS, Cell, Class, Config, LAYOUT, NO_CLASS, Reason,
    STEPS, Sample, Step, call, counter, flag, owner,
};
pub use packet::{
    Address, EXTENSIONS_MAX, Frame, HEADERS_MAX, HEADERS_USUAL, Packet, TAGS_MAX, TCP, UDP, parse, reach,
};
pub use verdict::{Conntrack, Tables, Unasked, Verdict, cell_index, is_judged, verdict};

/// Judges the bytes of a frame; `tags` as in [`parse`]. One entry for tests and fuzzing.
#[inline(always)]
pub fn judge(
    frame: &(impl Frame + ?Sized),
    tags: u32,
    tables: &impl Tables,
    conntrack: &impl Conntrack,
) -> Verdict {
    match parse(frame, tags) {
        Some(packet) => verdict(&packet, tables, conntrack),
        None => Verdict::Pass,
    }
}
