//! Which name was last answered for an address, also when no policy has the name: for logs, never for verdicts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::answer::Answer;
use crate::name::Name;

/// Addresses that a table remembers unless it is told otherwise.
pub const DEFAULT_BOUND: usize = 65_536;
/// Addresses of one answer that are noted: one answer must not make the table forget many others.
pub const MAX_PER_ANSWER: usize = 64;

/// See the module. Bounded: the address that was not answered for the longest time makes room.
#[derive(Debug)]
pub struct Reverse {
    bound: usize,
    entries: BTreeMap<IpAddr, Entry>,
    /// Addresses by the turn in which they were last answered.
    order: BTreeMap<u64, IpAddr>,
    turn: u64,
    counters: Counters,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    turn: u64,
}

/// What a table has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Addresses that made room for others.
    pub evicted: u64,
    /// Addresses of answers with more than [`MAX_PER_ANSWER`] that were not noted.
    pub left_out: u64,
}

impl Default for Reverse {
    fn default() -> Self {
        Self::new(DEFAULT_BOUND)
    }
}

impl Reverse {
    /// An empty table for so many addresses.
    pub fn new(bound: usize) -> Self {
        Self {
            bound,
            entries: BTreeMap::new(),
            order: BTreeMap::new(),
            turn: 0,
            counters: Counters::default(),
        }
    }

    /// Notes the addresses of an answer under the name that was asked for.
    pub fn note(&mut self, answer: &Answer) {
        let left_out = answer.addresses.len().saturating_sub(MAX_PER_ANSWER);
        let left_out = u64::try_from(left_out).unwrap_or(u64::MAX);
        self.counters.left_out = self.counters.left_out.saturating_add(left_out);
        for record in answer.addresses.iter().take(MAX_PER_ANSWER) {
            self.put(record.address, answer.question());
        }
    }

    /// Notes one address.
    pub fn put(&mut self, address: IpAddr, name: &Name) {
        if self.bound == 0 {
            return;
        }
        self.turn += 1;
        let entry = Entry { name: name.clone(), turn: self.turn };
        if let Some(old) = self.entries.insert(address, entry) {
            self.order.remove(&old.turn);
        } else if self.entries.len() > self.bound
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
            self.counters.evicted = self.counters.evicted.saturating_add(1);
        }
        self.order.insert(self.turn, address);
    }

    /// The name last answered for an address.
    pub fn get(&self, address: IpAddr) -> Option<&Name> {
        self.entries.get(&address).map(|entry| &entry.name)
    }

    /// Addresses it knows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when it knows none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Addresses it may know.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

#[cfg(test)]
mod tests;
