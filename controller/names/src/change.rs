//! What the data path (eBPF maps or nftables sets) is told.

use std::net::IpAddr;

use fw_bpf_common::{Allow, Cell};

/// CLOCK_MONOTONIC in nanoseconds, the clock of the eBPF programs.
pub type Nanos = u64;

/// One change of the data path's tables. In a list they stand in the order in which they must happen: a class exists
/// before an address names it, and is named by none when it goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A class with its cells, disjoint and sorted; the content of an id never changes while it is in use.
    PutClass {
        /// 2 and up ([`fw_bpf_common::NO_CLASS`], [`fw_bpf_common::ALL_PORTS_CLASS`] are taken).
        id: u32,
        /// At most `CELLS_PER_CLASS * CLASS_HOPS`.
        cells: Vec<Cell>,
    },
    /// What an address is allowed for; replaces what it was.
    Put {
        /// The address.
        address: IpAddr,
        /// Until when and for which classes.
        allow: Allow,
    },
    /// An address that is allowed no more.
    Remove(IpAddr),
    /// A class no address names any more.
    DropClass(u32),
}
