//! Counting what is dropped, and showing some of it to user space.

use fw_bpf_common::{Reason, Sample, Tables as _, counter};

use crate::frame::opaque;
use crate::maps::{DROPS, Maps, RATES, SAMPLES, now_ns};

const SECOND: u64 = 1_000_000_000;

/// Samples this CPU has sent in its second.
#[repr(C)]
pub struct Rate {
    since_ns: u64,
    sent: u64,
}

/// A packet that is being dropped.
pub(crate) struct Dropped {
    pub(crate) reason: Reason,
    /// [`counter::XDP`] or [`counter::TCX`].
    pub(crate) at: u32,
    pub(crate) ifindex: u32,
    pub(crate) length: u32,
}

/// Counts a dropped packet and samples it unless there were too many. `read` copies that many bytes of the frame, at
/// least 1 and at most [`Sample::HEAD`], to a place with room for [`Sample::HEAD`], and says whether it could.
#[inline(always)]
pub(crate) fn report(dropped: &Dropped, read: impl Fn(*mut u8, u32) -> bool) {
    count(dropped.at + dropped.reason as u32);
    let now = now_ns();
    if !within_rate(now) || !send(now, dropped, read) {
        count(counter::UNSAMPLED);
    }
}

#[inline(always)]
fn count(slot: u32) {
    if let Some(value) = DROPS.get_ptr_mut(slot) {
        // SAFETY: the slot of this CPU; both programs run with bottom halves off, so nothing else on it counts.
        unsafe { *value += 1 };
    }
}

#[inline(always)]
fn within_rate(now: u64) -> bool {
    let Some(rate) = RATES.get_ptr_mut(0) else { return false };
    // SAFETY: the slot of this CPU, as above.
    let rate = unsafe { &mut *rate };
    if now.wrapping_sub(rate.since_ns) >= SECOND {
        rate.since_ns = now;
        rate.sent = 0;
    }
    if rate.sent >= u64::from(Maps.config().samples_per_second) {
        return false;
    }
    rate.sent += 1;
    true
}

#[inline(always)]
fn send(now: u64, dropped: &Dropped, read: impl Fn(*mut u8, u32) -> bool) -> bool {
    let Some(mut entry) = SAMPLES.reserve(0) else {
        count(counter::RING_FULL);
        return false;
    };
    let filled = if dropped.length < Sample::HEAD as u32 { dropped.length } else { Sample::HEAD as u32 };
    // Ring memory holds what was there before; all of it is written, so that no sample shows another one's bytes.
    let sample = entry.write(Sample {
        at_ns: now,
        ifindex: dropped.ifindex,
        reason: dropped.reason as u32,
        length: dropped.length,
        filled,
        head: [0; Sample::HEAD],
    });
    // The verifier wants the bounds of the very register that the call takes.
    let bytes = opaque(filled as usize);
    if bytes == 0 || bytes > Sample::HEAD || !read(sample.head.as_mut_ptr(), bytes as u32) {
        sample.filled = 0;
    }
    entry.submit(0);
    true
}
