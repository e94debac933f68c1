//! The maps, which user space pins and fills; layouts and meanings are those of `fw_bpf_common`.

use core::ptr;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use fw_bpf_common::{
    Address, Allow, Class, Config, NO_CLASS, Sample, Step, Tables, cell_index, counter, owner,
};

use crate::frame::opaque;
use crate::report::Rate;

const LAZY: usize = BPF_F_NO_PREALLOC as usize;

// The sizes of the hashes, the tries and the ring are those of the loader, which sets them before it loads.
#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();
// No LRU: an address must not lose what a name allows because others have come.
#[btf_map]
static ALLOW4: HashMap<[u8; 4], Allow, 131_072> = HashMap::new();
#[btf_map]
static ALLOW6: HashMap<[u8; 16], Allow, 131_072> = HashMap::new();
#[btf_map]
static CLASSES: Array<Class, 65_536> = Array::new();
#[btf_map]
static STATIC4: LpmTrie<[u8; 4], u32, 65_536, LAZY> = LpmTrie::new();
#[btf_map]
static STATIC6: LpmTrie<[u8; 16], u32, 65_536, LAZY> = LpmTrie::new();
#[btf_map]
pub(crate) static DROPS: PerCpuArray<u64, { counter::SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static RATES: PerCpuArray<Rate, 1> = PerCpuArray::new();
#[btf_map]
static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static SAMPLES: RingBuf<Sample, 262_144> = RingBuf::new();

/// What CPUs remember of the clock.
#[repr(C)]
pub struct Clock {
    tick: u64,
    now_ns: u64,
}

/// All maps, and the clock.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn config(&self) -> Config {
        CONFIG.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        now_ns()
    }

    #[inline(always)]
    fn allow4(&self, address: &[u8; 4]) -> Option<&Allow> {
        // Written in one piece: a hash that reads words of bytes just written waits for them.
        let key = opaque(u32::from_ne_bytes(*address) as usize) as u32;
        // SAFETY: a number seen as its bytes. The element may be replaced while it is read; `class_of` notices.
        unsafe { ALLOW4.get(*(&raw const key).cast::<[u8; 4]>()) }
    }

    #[inline(always)]
    fn allow6(&self, address: &[u8; 16]) -> Option<&Allow> {
        let [a, b, c, d, e, f, g, h, rest @ ..] = *address;
        let half = |bytes| opaque(u64::from_ne_bytes(bytes) as usize) as u64;
        let key = [half([a, b, c, d, e, f, g, h]), half(rest)];
        // SAFETY: as above.
        unsafe { ALLOW6.get(*(&raw const key).cast::<[u8; 16]>()) }
    }

    #[inline(always)]
    fn class(&self, slot: u32) -> Option<&Class> {
        CLASSES.get(slot)
    }

    #[inline(always)]
    fn static4(&self, address: &[u8; 4]) -> Option<u32> {
        STATIC4.get(&Key::new(32, *address)).copied()
    }

    #[inline(always)]
    fn static6(&self, address: &[u8; 16]) -> Option<u32> {
        STATIC6.get(&Key::new(128, *address)).copied()
    }

    #[inline(always)]
    fn class_of(&self, step: &Step, address: &Address) -> u32 {
        // SAFETY: the second half of a `Step` is `class` and `reserved`, 8 bytes at a multiple of 8.
        let word = unsafe { ptr::from_ref(step).cast::<u64>().add(1).read_volatile() };
        let half = |shift: u32| (word >> shift) as u32;
        let (class, tag) =
            if cfg!(target_endian = "little") { (half(0), half(32)) } else { (half(32), half(0)) };
        if tag == owner(address) { class } else { NO_CLASS }
    }

    #[inline(always)]
    fn index_in(&self, class: u32, protocol: u8, port: u16) -> Option<u32> {
        // Most classes are short, and a call costs as much as a look at the first cell.
        if let Some(content) = CLASSES.get(class) {
            let cell = &content.cells[0];
            if cell.protocol == protocol && cell.first <= port && port <= cell.last {
                return Some(cell.index);
            }
        }
        let found = fw_index_in(class, protocol.into(), port.into());
        if found == NOT_FOUND { None } else { Some(found as u32) }
    }
}

/// More than an index can be.
const NOT_FOUND: u64 = u64::MAX;

/// A global function: the verifier looks at it once, with any arguments.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn fw_index_in(class: u32, protocol: u32, port: u32) -> u64 {
    match cell_index(&Maps, class, protocol as u8, port as u16) {
        Some(index) => index.into(),
        None => NOT_FOUND,
    }
}

/// CLOCK_MONOTONIC in nanoseconds, at most one tick old (1 to 10 ms).
///
/// A call of the kernel is the most that a packet costs where returns are guarded against speculation; the kernel's own
/// coarse clock is two. The number of ticks is none: the verifier puts a load of `jiffies_64` in its place, and one of
/// this CPU's slot (kernel/bpf/verifier.c, do_misc_fixups(); kernel/bpf/arraymap.c, percpu_array_map_gen_lookup()).
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: takes nothing.
    let tick = unsafe { bpf_jiffies64() };
    // SAFETY: the slot of this CPU. Where another packet comes in between, both write the time of this tick.
    let clock = CLOCK.get_ptr_mut(0).map(|clock| unsafe { &mut *clock });
    if let Some(clock) = &clock
        && clock.tick == tick
    {
        return clock.now_ns;
    }
    // SAFETY: takes nothing.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if let Some(clock) = clock {
        *clock = Clock { tick, now_ns };
    }
    now_ns
}
