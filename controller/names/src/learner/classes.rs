//! What the data path holds as far as it has said so, and what is under way to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use fw_bpf_common::{Allow, Cell, NO_CLASS};

use crate::change::Change;

/// Ids of the learner's classes; 1 is [`fw_bpf_common::ALL_PORTS_CLASS`], those above are the loader's.
const FIRST: u32 = 2;
const LAST: u32 = 16_383;
/// How many classes there can be.
pub(super) const MAX_CLASSES: usize = (LAST - FIRST + 1) as usize;

/// Whether the data path has a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    No,
    Yes,
    /// A list that had it was not taken, or only a part of it.
    Unknown,
}

#[derive(Clone, Debug)]
struct Class {
    cells: Vec<Cell>,
    present: Presence,
    /// Steps of confirmed allows that name it.
    references: u32,
    /// Lists under way that put or drop it, and those that drop it.
    pending: u32,
    drops: u32,
}

#[derive(Debug, Default)]
pub(super) struct DataPath {
    installed: BTreeMap<IpAddr, Allow>,
    /// Lists under way that have the address.
    pending: BTreeMap<IpAddr, u32>,
    /// Addresses to be written whatever they are: their list was not taken, and nobody knows what they are allowed.
    unknown: BTreeSet<IpAddr>,
    classes: BTreeMap<u32, Class>,
    by_cells: BTreeMap<Vec<Cell>, u32>,
    /// Free ids below `next`, the longest free one first.
    free: VecDeque<u32>,
    /// Offset from [`FIRST`] of the ids that never had a class.
    next: u32,
    /// Classes that may have lost their last reference.
    idle: BTreeSet<u32>,
}

/// A list in the making.
#[derive(Debug, Default)]
pub(super) struct List {
    classes: BTreeSet<u32>,
    addresses: Vec<(IpAddr, Option<Allow>)>,
    /// References that confirmed allows lose by it.
    lost: BTreeMap<u32, u32>,
}

impl DataPath {
    /// Takes what was found there.
    pub(super) fn install(&mut self, allows: BTreeMap<IpAddr, Allow>, classes: BTreeMap<u32, Vec<Cell>>) {
        *self = Self::default();
        for (id, cells) in classes.into_iter().filter(|(id, _)| (FIRST..=LAST).contains(id)) {
            self.by_cells.entry(cells.clone()).or_insert(id);
            self.classes.insert(id, Class::new(cells, Presence::Yes));
        }
        for (address, allow) in allows {
            for id in references(&allow) {
                // Named but not there: nobody gets the id before it was dropped.
                let class =
                    self.classes.entry(id).or_insert_with(|| Class::new(Vec::new(), Presence::Unknown));
                class.references += 1;
            }
            self.installed.insert(address, allow);
        }
        self.idle = self.classes.keys().copied().collect();
        self.next = self.classes.keys().next_back().map_or(0, |last| last - FIRST + 1);
        self.free = (FIRST..FIRST + self.next).filter(|id| !self.classes.contains_key(id)).collect();
    }

    pub(super) fn installed(&self) -> &BTreeMap<IpAddr, Allow> {
        &self.installed
    }

    /// The class with these cells; a new one if there is none, `None` if there is no id left. Second: it is new.
    pub(super) fn class(&mut self, cells: &[Cell]) -> Option<(u32, bool)> {
        if let Some(id) = self.by_cells.get(cells) {
            return Some((*id, false));
        }
        // A program may be reading what an id was a moment ago, so it comes back as late as it can: ids that were
        // never used first, then the one that has been free for longest.
        let id = if FIRST + self.next <= LAST {
            self.next += 1;
            FIRST + self.next - 1
        } else {
            self.free.pop_front()?
        };
        self.by_cells.insert(cells.to_vec(), id);
        self.classes.insert(id, Class::new(cells.to_vec(), Presence::No));
        self.idle.insert(id);
        Some((id, true))
    }

    pub(super) fn len(&self) -> usize {
        self.classes.len()
    }

    /// Ids that are free.
    pub(super) fn room(&self) -> usize {
        MAX_CLASSES.saturating_sub(self.classes.len())
    }

    /// True when the data path is known to hold exactly this and nothing is under way; `now` trims what is over.
    pub(super) fn holds(&self, address: IpAddr, allow: Option<&Allow>, now: u64) -> bool {
        if self.pending.contains_key(&address) || self.unknown.contains(&address) {
            return false;
        }
        match (self.installed.get(&address), allow) {
            (None, None) => true,
            (Some(installed), Some(allow)) => installed == allow || trimmed(installed, now) == *allow,
            _ => false,
        }
    }

    /// Adds what an address becomes to a list.
    pub(super) fn add(&mut self, list: &mut List, address: IpAddr, allow: Option<Allow>) {
        for id in self.installed.get(&address).into_iter().flat_map(references) {
            *list.lost.entry(id).or_default() += 1;
            self.idle.insert(id);
        }
        list.classes.extend(allow.iter().flat_map(references));
        list.addresses.push((address, allow));
    }

    /// Ends a list: classes first, addresses, then classes that nobody names when all of it is applied.
    pub(super) fn finish(&mut self, list: List) -> Vec<Change> {
        let mut changes = Vec::new();
        for id in &list.classes {
            let Some(class) = self.classes.get(id) else { continue };
            if class.present != Presence::Yes || class.drops > 0 {
                changes.push(Change::PutClass { id: *id, cells: class.cells.clone() });
            }
        }
        for (address, allow) in list.addresses {
            changes.push(match allow {
                Some(allow) => Change::Put { address, allow },
                None => Change::Remove(address),
            });
        }
        for id in std::mem::take(&mut self.idle) {
            let Some(class) = self.classes.get(&id) else { continue };
            let left = class.references - list.lost.get(&id).copied().unwrap_or(0).min(class.references);
            if left > 0 {
                continue;
            }
            // Until the references are really gone it is looked at again with each list.
            self.idle.insert(id);
            if class.present != Presence::No && !list.classes.contains(&id) {
                changes.push(Change::DropClass(id));
            }
        }
        self.begin(&changes);
        changes
    }

    fn begin(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutClass { id, .. } => self.classes.entry(*id).and_modify(|class| class.pending += 1),
                Change::DropClass(id) => self.classes.entry(*id).and_modify(|class| {
                    class.pending += 1;
                    class.drops += 1;
                }),
                Change::Put { address, .. } | Change::Remove(address) => {
                    *self.pending.entry(*address).or_default() += 1;
                    continue;
                }
            };
        }
        self.free_unused();
    }

    /// The list was applied.
    pub(super) fn confirm(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutClass { id, .. } => self.ended(*id, false, Presence::Yes),
                Change::DropClass(id) => self.ended(*id, true, Presence::No),
                Change::Put { address, allow } => self.now_is(*address, Some(*allow)),
                Change::Remove(address) => self.now_is(*address, None),
            }
        }
        self.free_unused();
    }

    /// The list was not applied, or nobody knows how far.
    pub(super) fn reject(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutClass { id, .. } => self.ended(*id, false, Presence::Unknown),
                Change::DropClass(id) => self.ended(*id, true, Presence::Unknown),
                Change::Put { address, .. } | Change::Remove(address) => {
                    self.no_longer_pending(*address);
                    self.unknown.insert(*address);
                }
            }
        }
    }

    /// Indexes in classes that the data path has, may have, or is about to get.
    pub(super) fn indexes(&self) -> BTreeSet<u32> {
        let there = self.classes.values().filter(|class| class.present != Presence::No || class.pending > 0);
        there.flat_map(|class| class.cells.iter().map(|cell| cell.index)).collect()
    }

    /// Has every address written anew whose confirmed allow has one of the indexes, also in a step that is over;
    /// returns them.
    pub(super) fn rewrite_with(&mut self, indexes: &BTreeSet<u32>) -> Vec<IpAddr> {
        let has_index = |class: &Class| class.cells.iter().any(|cell| indexes.contains(&cell.index));
        let classes: BTreeSet<u32> =
            self.classes.iter().filter(|(_, class)| has_index(class)).map(|(id, _)| *id).collect();
        let named =
            self.installed.iter().filter(|(_, allow)| references(allow).any(|id| classes.contains(&id)));
        let addresses: Vec<IpAddr> = named.map(|(address, _)| *address).collect();
        self.unknown.extend(&addresses);
        addresses
    }

    fn ended(&mut self, id: u32, was_drop: bool, present: Presence) {
        let Some(class) = self.classes.get_mut(&id) else { return };
        class.pending = class.pending.saturating_sub(1);
        class.drops = class.drops.saturating_sub(u32::from(was_drop));
        class.present = present;
        self.idle.insert(id);
    }

    fn no_longer_pending(&mut self, address: IpAddr) {
        if let Some(count) = self.pending.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.pending.remove(&address);
            }
        }
    }

    fn now_is(&mut self, address: IpAddr, allow: Option<Allow>) {
        self.no_longer_pending(address);
        self.unknown.remove(&address);
        for id in allow.iter().flat_map(references) {
            if let Some(class) = self.classes.get_mut(&id) {
                class.references += 1;
            }
        }
        let old = match allow {
            Some(allow) => self.installed.insert(address, allow),
            None => self.installed.remove(&address),
        };
        for id in old.iter().flat_map(references) {
            if let Some(class) = self.classes.get_mut(&id) {
                class.references = class.references.saturating_sub(1);
                if class.references == 0 {
                    self.idle.insert(id);
                }
            }
        }
    }

    /// Frees ids that nothing knows of.
    fn free_unused(&mut self) {
        let is_free =
            |class: &Class| class.present == Presence::No && class.references == 0 && class.pending == 0;
        let candidates: Vec<u32> = self.idle.iter().copied().collect();
        for id in candidates {
            let Some(class) = self.classes.get(&id).filter(|class| is_free(class)) else { continue };
            if self.by_cells.get(&class.cells) == Some(&id) {
                self.by_cells.remove(&class.cells);
            }
            self.classes.remove(&id);
            self.idle.remove(&id);
            self.free.push_back(id);
        }
    }
}

impl Class {
    fn new(cells: Vec<Cell>, present: Presence) -> Self {
        Self { cells, present, references: 0, pending: 0, drops: 0 }
    }
}

/// Classes of ours that an allow names, one per step.
fn references(allow: &Allow) -> impl Iterator<Item = u32> + use<> {
    let ids = allow.steps.map(|step| step.class);
    ids.into_iter().filter(|id| *id != NO_CLASS && (FIRST..=LAST).contains(id))
}

/// The same allow without the steps that are over.
fn trimmed(allow: &Allow, now: u64) -> Allow {
    let mut result = Allow::default();
    let left = allow.steps.iter().filter(|step| step.until_ns > now);
    for (slot, step) in result.steps.iter_mut().zip(left) {
        *slot = *step;
    }
    result
}
