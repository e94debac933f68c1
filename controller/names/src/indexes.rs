//! Which mark index stands for which entry.

use std::collections::{BTreeMap, BTreeSet};

use fw_policy::NameEntry;

use crate::change::Nanos;

/// Nanoseconds between the last side's letting go of an index and its next use.
pub const COOL_DOWN: Nanos = 1_000_000_000;

/// The side of the kernel that knows of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// eBPF maps, or the sets that stand in for them.
    DataPath,
    /// The verdict map and chains of nftables.
    Nft,
}

/// Indexes, their entries, and those that are on their way out.
///
/// An index goes through: assigned -> retired -> dropped by both sides -> cooled down for a second -> free. Until it
/// is free nobody else gets it, so that a packet marked for the old entry is never counted or accepted for a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexes {
    assigned: BTreeMap<NameEntry, u32>,
    retired: BTreeMap<u32, Retired>,
    last: u32,
}

/// What still knows of a retired index, and since when nobody does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Retired {
    sides: BTreeSet<Side>,
    dropped: Option<Nanos>,
}

impl Indexes {
    /// Takes over what the kernel has: entries that nftables' chains were recognised for, all indexes in its verdict
    /// map, all indexes in the data path. `mark_mask` bounds the indexes: 1 up to all its bits.
    ///
    /// What is in the kernel and belongs to no known entry is retired, and so is an index that two entries claim.
    pub fn adopt(
        mark_mask: u32,
        known: BTreeMap<NameEntry, u32>,
        nft: &BTreeSet<u32>,
        data_path: &BTreeSet<u32>,
    ) -> Self {
        let bits = mark_mask.count_ones();
        let last = u32::try_from((1_u64 << bits) - 1).unwrap_or(u32::MAX);
        let mut claims: BTreeMap<u32, u32> = BTreeMap::new();
        for index in known.values() {
            *claims.entry(*index).or_default() += 1;
        }
        let is_sound =
            |index: &u32| (1..=last).contains(index) && claims.get(index).is_some_and(|claims| *claims == 1);
        let assigned: BTreeMap<NameEntry, u32> =
            known.into_iter().filter(|(_, index)| is_sound(index)).collect();
        let taken: BTreeSet<u32> = assigned.values().copied().collect();
        let everywhere: BTreeSet<u32> = nft.iter().chain(data_path).chain(claims.keys()).copied().collect();
        let retire = |index: u32| {
            let mut sides = BTreeSet::new();
            // A claim that nftables does not confirm may still be in it.
            if nft.contains(&index) || claims.contains_key(&index) {
                sides.insert(Side::Nft);
            }
            if data_path.contains(&index) {
                sides.insert(Side::DataPath);
            }
            (index, Retired { sides, dropped: None })
        };
        let retired = everywhere.into_iter().filter(|index| !taken.contains(index)).map(retire).collect();
        Self { assigned, retired, last }
    }

    /// The index of each entry. Those that have one keep it; others get the lowest free ones in the order of the
    /// entries. An entry that is missing in the result found none free.
    pub fn assign(&mut self, entries: &BTreeSet<NameEntry>) -> BTreeMap<NameEntry, u32> {
        let mut taken: BTreeSet<u32> = self.assigned.values().chain(self.retired.keys()).copied().collect();
        let mut next = 1;
        for entry in entries {
            if self.assigned.contains_key(entry) {
                continue;
            }
            while taken.contains(&next) {
                next += 1;
            }
            if next > self.last {
                break;
            }
            taken.insert(next);
            self.assigned.insert(entry.clone(), next);
        }
        let kept = entries.iter().filter_map(|entry| Some((entry.clone(), *self.assigned.get(entry)?)));
        kept.collect()
    }

    /// Retires the indexes of all entries that are not in `entries`; from now on both sides are to drop them.
    pub fn retire(&mut self, entries: &BTreeSet<NameEntry>) -> BTreeSet<u32> {
        let gone: Vec<NameEntry> =
            self.assigned.keys().filter(|entry| !entries.contains(*entry)).cloned().collect();
        let mut indexes = BTreeSet::new();
        for entry in gone {
            if let Some(index) = self.assigned.remove(&entry) {
                let sides = BTreeSet::from([Side::DataPath, Side::Nft]);
                self.retired.insert(index, Retired { sides, dropped: None });
                indexes.insert(index);
            }
        }
        indexes
    }

    /// One side knows of these indexes no more. Those that are not retired do not care.
    pub fn dropped(&mut self, side: Side, indexes: &BTreeSet<u32>, now: Nanos) {
        for index in indexes {
            if let Some(retired) = self.retired.get_mut(index) {
                retired.sides.remove(&side);
                if retired.sides.is_empty() && retired.dropped.is_none() {
                    retired.dropped = Some(now);
                }
            }
        }
    }

    /// Frees what both sides dropped a second ago; returns it.
    pub fn free(&mut self, now: Nanos) -> BTreeSet<u32> {
        // Adopted with no side at all: nobody said when it went, so the second begins now.
        for retired in self.retired.values_mut().filter(|retired| retired.sides.is_empty()) {
            retired.dropped.get_or_insert(now);
        }
        let is_cool = |retired: &Retired| {
            retired.dropped.is_some_and(|dropped| now.saturating_sub(dropped) >= COOL_DOWN)
        };
        let free: BTreeSet<u32> =
            self.retired.iter().filter(|(_, retired)| is_cool(retired)).map(|(index, _)| *index).collect();
        self.retired.retain(|index, _| !free.contains(index));
        free
    }

    /// Retired indexes that a side still has to drop.
    pub fn pending(&self, side: Side) -> BTreeSet<u32> {
        let waits = self.retired.iter().filter(|(_, retired)| retired.sides.contains(&side));
        waits.map(|(index, _)| *index).collect()
    }

    /// What is assigned now.
    pub fn assigned(&self) -> &BTreeMap<NameEntry, u32> {
        &self.assigned
    }

    /// How many indexes there can be.
    pub fn capacity(&self) -> u32 {
        self.last
    }
}
