//! Ids that nobody can guess.

/// Bytes taken from the kernel at a time: one system call for 128 ids.
const CHUNK: usize = 256;

/// Random numbers from the kernel, read ahead.
#[derive(Debug)]
pub(crate) struct Random {
    chunk: [u8; CHUNK],
    used: usize,
}

impl Random {
    pub(crate) fn new() -> Self {
        Self { chunk: [0; CHUNK], used: CHUNK }
    }

    /// The next one; `None`: the kernel gives none.
    pub(crate) fn next(&mut self) -> Option<u16> {
        if self.used + 2 > CHUNK {
            getrandom::fill(&mut self.chunk).ok()?;
            self.used = 0;
        }
        let number = [*self.chunk.get(self.used)?, *self.chunk.get(self.used + 1)?];
        self.used += 2;
        Some(u16::from_be_bytes(number))
    }
}
