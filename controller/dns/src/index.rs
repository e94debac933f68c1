//! Finds values by hashes that are computed once a question, however often it is looked up, put and removed.

#![expect(clippy::disallowed_types, reason = "looked up once a question and never iterated")]

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};

/// Values by keyed hashes (SipHash with a key of this process, so that nobody outside can make two meet). Whoever finds
/// a value compares what it was found for: of two things with one hash the later one is found.
#[derive(Debug)]
pub(crate) struct Index<T> {
    state: RandomState,
    map: HashMap<u64, T, BuildHasherDefault<AlreadyHashed>>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { state: RandomState::new(), map: HashMap::default() }
    }
}

impl<T: Copy + PartialEq> Index<T> {
    pub(crate) fn hash(&self, bytes: &[u8]) -> u64 {
        self.state.hash_one(bytes)
    }

    pub(crate) fn get(&self, hash: u64) -> Option<T> {
        self.map.get(&hash).copied()
    }

    pub(crate) fn insert(&mut self, hash: u64, value: T) {
        self.map.insert(hash, value);
    }

    /// Removes the value if it is the one found by the hash.
    pub(crate) fn remove(&mut self, hash: u64, value: T) {
        if self.map.get(&hash) == Some(&value) {
            self.map.remove(&hash);
        }
    }
}

/// Hashes a hash.
#[derive(Debug, Default)]
pub(crate) struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
