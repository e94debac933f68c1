//! Keys and values of the maps. All of them are `repr(C)` without padding that is not named, so that their bytes are
//! fully written: the verifier refuses to copy uninitialised ones.

use crate::packet::Address;

/// Version of all that is laid out here. A loader adopts pinned maps of this version only; raise it with every new map
/// and every change of a key, a value or the meaning of either.
pub const LAYOUT: u32 = 3;
/// Steps of an [`Allow`].
pub const STEPS: usize = 4;
/// Cells of one [`Class`] slot.
pub const CELLS_PER_CLASS: usize = 8;
/// Slots that one class may be chained over; with [`CELLS_PER_CLASS`] the bound of its cells.
pub const CLASS_HOPS: usize = 16;
/// Not a class: the end of a chain, and what an unused [`Step`] names. Slot 0 is never written.
pub const NO_CLASS: u32 = 0;
/// The class with every port of TCP and UDP at index 0: what the prefix table gives to everything that only nftables
/// can judge.
pub const ALL_PORTS_CLASS: u32 = 1;

/// Bits of [`Config::flags`].
pub mod flag {
    /// Drop new egress that nothing allows.
    pub const BOUNCE: u32 = 1;
    /// DNS (53) from inside is redirected to the proxy: pass it whatever its destination.
    pub const DNS: u32 = 2;
    /// DNS over TLS (853) is judged by nftables alone.
    pub const DOT: u32 = 4;
}

/// Value of `CONFIG[0]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// See [`flag`].
    pub flags: u32,
    /// Bits of the mark that are ours; always overwritten by the stamp.
    pub mark_mask: u32,
    /// Samples of dropped packets per second and CPU that go to user space.
    pub samples_per_second: u32,
    /// Number of the lowest bit of `mark_mask`: where the index stands in the mark.
    pub mark_shift: u32,
}

/// For how long an address belongs to a class.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// CLOCK_MONOTONIC in nanoseconds; over when the clock has reached it.
    pub until_ns: u64,
    /// The class until then, or [`NO_CLASS`].
    pub class: u32,
    /// Zero for all but the loader, which writes [`owner`] of the address here: the kernel gives the memory of a
    /// removed element to the next one at once, and a program that is reading it notices by this. It shares a word of
    /// 64 bits with `class`, which the kernel copies in one piece.
    pub reserved: u32,
}

/// What [`Step::reserved`] holds in the kernel: the IPv4 address, or the words of an IPv6 address folded.
#[inline(always)]
#[must_use]
pub fn owner(address: &Address) -> u32 {
    match address {
        Address::V4(word) => *word,
        #[expect(clippy::cast_possible_truncation, reason = "the upper half is folded into the lower one")]
        Address::V6([first, second]) => {
            let mixed = first ^ second.rotate_left(19);
            (mixed ^ (mixed >> 32)) as u32
        }
    }
}

/// Value of `ALLOW4` (key: 4 bytes of address) and `ALLOW6` (16 bytes), in network byte order.
///
/// Several names lead to one address, each until its own time. The steps are sorted by time, and each class holds
/// what all later ones hold as well; so the first step that is not over says all that is allowed now.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allow {
    /// Sorted by `until_ns`; unused ones are zero and come last.
    pub steps: [Step; STEPS],
}

/// Ports of one protocol and the index they carry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// IP protocol number (6 or 17); 0 ends the list.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// First port.
    pub first: u16,
    /// Last port, included.
    pub last: u16,
    /// Mark index; 0 in classes of the prefix table.
    pub index: u32,
}

/// Value of the array `CLASSES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// Disjoint, sorted by protocol and port; the first with protocol 0 ends the list.
    pub cells: [Cell; CELLS_PER_CLASS],
    /// Slot with more cells, or [`NO_CLASS`].
    pub next: u32,
}

/// Why a packet was bounced; index into the per-CPU array `DROPS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No name and no prefix holds the destination with that port.
    Policy = 0,
    /// A name held it and its time is over.
    Expired = 1,
}

impl Reason {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Policy, Self::Expired];
}

/// Slots of the per-CPU array `DROPS` (values: u64).
pub mod counter {
    /// Plus the number of the [`super::Reason`]: dropped by XDP.
    pub const XDP: u32 = 0;
    /// Plus the number of the [`super::Reason`]: dropped by TCX.
    pub const TCX: u32 = 4;
    /// Dropped packets of which no sample was sent: above the rate, or the ring was full.
    pub const UNSAMPLED: u32 = 8;
    /// Of these, those that found the ring full.
    pub const RING_FULL: u32 = 9;
    /// Slots in all.
    pub const SLOTS: u32 = 10;
}

/// Helpers that do not exist, which the programs call; the loader puts something else in their place.
pub mod call {
    /// A move of 1 into the result where conntrack is asked, else of 0.
    pub const CAN_BE_ASKED: u32 = 0x7fca_0000;
    /// `bpf_xdp_ct_lookup`, or a move of 0.
    pub const XDP_LOOKUP: u32 = 0x7fca_0001;
    /// `bpf_skb_ct_lookup`, or a move of 0.
    pub const SKB_LOOKUP: u32 = 0x7fca_0002;
    /// `bpf_ct_release`, or a move of 0.
    pub const RELEASE: u32 = 0x7fca_0003;
}

/// What the ring buffer `SAMPLES` carries of a dropped packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// CLOCK_MONOTONIC in nanoseconds, at most a tick old.
    pub at_ns: u64,
    /// Interface it came in by.
    pub ifindex: u32,
    /// See [`Reason`].
    pub reason: u32,
    /// Length of the frame on the wire.
    pub length: u32,
    /// Bytes of `head` that are filled.
    pub filled: u32,
    /// The frame from its Ethernet header on.
    pub head: [u8; Sample::HEAD],
}

impl Sample {
    /// Ethernet with two tags, the longest IPv4 header and a TCP header with options.
    pub const HEAD: usize = 144;
}
