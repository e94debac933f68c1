//! Packet memory.

use fw_bpf_common::{Frame, HEADERS_MAX};

/// The bytes of a frame that can be read directly.
pub(crate) struct Linear {
    data: usize,
    data_end: usize,
    length: u32,
}

impl Linear {
    /// `data` and `data_end` of a context, and the length of the whole frame.
    #[inline(always)]
    pub(crate) fn new(data: usize, data_end: usize, length: u32) -> Self {
        Self { data, data_end, length }
    }
}

/// Keeps the compiler from computing a value twice: the verifier knows the bounds of the register that was compared,
/// not those of another one with the same value.
#[inline(always)]
pub(crate) fn opaque(mut value: usize) -> usize {
    // Without an instruction two lines of the debug information would name the same place, which the kernel refuses.
    // SAFETY: moves a register to itself.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        value = core::hint::black_box(value);
    }
    value
}

impl Frame for Linear {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.length
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = if offset == 0 {
            self.data
        } else {
            let offset = opaque(offset as usize);
            if offset > HEADERS_MAX as usize {
                return None;
            }
            opaque(self.data + offset)
        };
        if start + N > self.data_end {
            return None;
        }
        let mut bytes = [0; N];
        let mut at = 0;
        while at + 4 <= N {
            let [a, b, c, d] = word(start, at).to_ne_bytes();
            (bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]) = (a, b, c, d);
            at += 4;
        }
        while at < N {
            // SAFETY: the byte lies between `data` and `data_end`; the verifier proves it.
            bytes[at] = unsafe { ((start + at) as *const u8).read() };
            at += 1;
        }
        Some(bytes)
    }
}

/// Four bytes in one load: the compiler makes four of what may be unaligned, which the machine does not mind.
#[inline(always)]
fn word(start: usize, at: usize) -> u32 {
    let value: u64;
    // SAFETY: reads four bytes between `data` and `data_end`; the verifier proves it.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!(
            "{0} = *(u32 *)({1} + 0)",
            out(reg) value,
            in(reg) start + at,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        // SAFETY: never run; the programs are only looked at on this target.
        value = unsafe { ((start + at) as *const u32).read_unaligned() }.into();
    }
    value as u32
}
