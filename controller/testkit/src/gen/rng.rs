//! A random number generator of our own, so that a seed means the same on every machine and in every version.

use std::time::{SystemTime, UNIX_EPOCH};

/// The seed of a run: `FW_SEED` from the environment if it is set, else another one each time. Print it.
pub fn seed() -> u64 {
    let given = std::env::var("FW_SEED").ok().and_then(|text| text.trim().parse().ok());
    given.unwrap_or_else(|| {
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
        let mixed = nanoseconds ^ (u128::from(std::process::id()) << 40);
        // Short enough to be typed again.
        u64::try_from(mixed % 1_000_000_007).unwrap_or(0)
    })
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A generator that starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..bound`; 0 when the bound is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // 128 bits: the product of two 64-bit figures. The bias is at most bound / 2^64.
        let scaled = (u128::from(self.bits()) * bound as u128) >> 64;
        usize::try_from(scaled).unwrap_or(0)
    }

    /// One of `first..=last`.
    pub fn between(&mut self, first: u16, last: u16) -> u16 {
        let span = usize::from(last.saturating_sub(first)) + 1;
        first.saturating_add(u16::try_from(self.below(span)).unwrap_or(0))
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    /// One of the items; `None` when there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    /// Shuffles the items.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
