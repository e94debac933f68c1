//! Asking the kernel's conntrack, by its functions for eBPF (`net/netfilter/nf_conntrack_bpf.c`).
//!
//! The object cannot name functions of the kernel: the loader's library knows no `.ksyms`. So it calls helpers that do
//! not exist, by the numbers of [`call`], and the loader puts calls of the kernel's functions in their place; or, where
//! they are missing, moves of 0 into the result, and the verifier removes what never runs.

use core::ffi::c_void;
use core::mem::size_of;

use fw_bpf_common::{Address, Conntrack, Packet, call};

/// `struct bpf_ct_opts` as it was first: later fields are left out, and stand for the zone 0 that our rules use.
#[repr(C)]
struct Options {
    netns: i32,
    error: i32,
    protocol: u8,
    direction: u8,
    reserved: [u8; 2],
}

/// `bpf_sock_tuple.ipv4`; all fields are in network byte order.
#[repr(C)]
struct Tuple4 {
    source: u32,
    destination: u32,
    source_port: u16,
    port: u16,
}

/// `bpf_sock_tuple.ipv6`; four words of 32 bits for an address, and 64 at once where they are aligned to 32.
#[repr(C, packed(4))]
struct Tuple6 {
    source: [u64; 2],
    destination: [u64; 2],
    source_port: u16,
    port: u16,
}

type Lookup = unsafe extern "C" fn(*mut c_void, *const c_void, u32, *mut Options, u32) -> *mut c_void;

/// Conntrack of the network namespace in which a packet came in.
pub(crate) struct Of {
    context: *mut c_void,
    lookup: usize,
    can_be_asked: bool,
}

impl Of {
    /// For the context of an XDP program.
    #[inline(always)]
    pub(crate) fn xdp(context: *mut c_void) -> Self {
        Self::new(context, call::XDP_LOOKUP)
    }

    /// For the context of a TCX program.
    #[inline(always)]
    pub(crate) fn tcx(context: *mut c_void) -> Self {
        Self::new(context, call::SKB_LOOKUP)
    }

    #[inline(always)]
    fn new(context: *mut c_void, lookup: u32) -> Self {
        // SAFETY: the loader makes a constant of it.
        let can_be_asked: unsafe extern "C" fn() -> u64 =
            unsafe { core::mem::transmute(call::CAN_BE_ASKED as usize) };
        // SAFETY: as above.
        Self { context, lookup: lookup as usize, can_be_asked: unsafe { can_be_asked() } != 0 }
    }

    #[inline(always)]
    fn holds<T>(&self, tuple: &T, protocol: u8) -> bool {
        const THIS_NAMESPACE: i32 = -1;
        let mut options =
            Options { netns: THIS_NAMESPACE, error: 0, protocol, direction: 0, reserved: [0; 2] };
        // SAFETY: the loader puts calls of the kernel's functions here, whose arguments these are; the verifier checks
        // them, and that what was found is released.
        unsafe {
            let lookup: Lookup = core::mem::transmute(self.lookup);
            let release: unsafe extern "C" fn(*mut c_void) = core::mem::transmute(call::RELEASE as usize);
            let found = lookup(
                self.context,
                core::ptr::from_ref(tuple).cast(),
                size_of::<T>() as u32,
                &raw mut options,
                size_of::<Options>() as u32,
            );
            if found.is_null() {
                return false;
            }
            release(found);
        }
        true
    }
}

impl Conntrack for Of {
    #[inline(always)]
    fn can_be_asked(&self) -> bool {
        self.can_be_asked
    }

    #[inline(always)]
    fn knows(&self, packet: &Packet) -> bool {
        let (source_port, port) = (packet.source_port.to_be(), packet.port.to_be());
        match (packet.source, packet.destination) {
            (Address::V4(source), Address::V4(destination)) => {
                self.holds(&Tuple4 { source, destination, source_port, port }, packet.protocol)
            }
            (Address::V6(source), Address::V6(destination)) => {
                self.holds(&Tuple6 { source, destination, source_port, port }, packet.protocol)
            }
            _ => true,
        }
    }
}
