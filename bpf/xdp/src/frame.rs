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
        let offset = opaque(offset as usize);
        if offset > HEADERS_MAX as usize {
            return None;
        }
        let start = opaque(self.data + offset);
        if start + N > self.data_end {
            return None;
        }
        // SAFETY: the bytes lie between `data` and `data_end`; the verifier proves it.
        Some(unsafe { (start as *const [u8; N]).read_unaligned() })
    }
}
