//! The table, made ready for lookups: which selectors match a name, and what each of them opens.

use std::collections::{BTreeMap, BTreeSet};

use fw_policy::{FqdnSelector, NameEntry};

use crate::layout::{Opening, SelectorId};
use crate::matcher::Matcher;
use crate::name::Name;
use crate::table::Table;

/// A selector of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Selected {
    pub(super) id: SelectorId,
    /// `matchName`, or a pattern without `*`.
    pub(super) exact: bool,
}

#[derive(Debug, Default)]
pub(super) struct Selectors {
    matcher: Matcher,
    /// By position in the matcher.
    selected: Vec<Selected>,
    ids: BTreeMap<FqdnSelector, SelectorId>,
    /// None is empty.
    openings: BTreeMap<SelectorId, Vec<Opening>>,
    /// Indexes that appear in no class any more, and the entries they stand for.
    withdrawn: BTreeMap<u32, NameEntry>,
}

/// How two sets of selectors differ.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Ids that names no longer have.
    pub(super) removed: BTreeSet<SelectorId>,
    /// To be tried on the known names.
    pub(super) added: Added,
    /// Ids that open something else than before.
    pub(super) changed: BTreeSet<SelectorId>,
}

/// New selectors alone: known names are not matched with all of them again.
#[derive(Debug, Default)]
pub(super) struct Added {
    matcher: Matcher,
    selected: Vec<Selected>,
}

impl Added {
    pub(super) fn select(&self, name: &Name) -> impl Iterator<Item = Selected> {
        self.matcher.positions(name).into_iter().filter_map(|position| self.selected.get(position).copied())
    }
}

impl Difference {
    /// True when names may match differently.
    pub(super) fn selects_differently(&self) -> bool {
        !self.removed.is_empty() || !self.added.selected.is_empty()
    }
}

impl Selectors {
    /// Compiles a table; selectors that stay keep their ids, and so do indexes that are withdrawn for the same entry.
    pub(super) fn replace(&mut self, table: &Table) -> Difference {
        let wanted: BTreeSet<&FqdnSelector> = table.entries.keys().map(|entry| &entry.selector).collect();
        let mut removed = BTreeSet::new();
        self.ids.retain(|selector, id| {
            let stays = wanted.contains(selector);
            if !stays {
                removed.insert(*id);
            }
            stays
        });
        // Names refer to removed ids until they are told; those are not given to others meanwhile.
        let mut taken: BTreeSet<SelectorId> = self.ids.values().chain(&removed).copied().collect();
        let new: Vec<FqdnSelector> = wanted
            .iter()
            .filter(|selector| !self.ids.contains_key(**selector))
            .map(|it| (*it).clone())
            .collect();
        let mut next = 0;
        for selector in &new {
            while !taken.insert(next) {
                next += 1;
            }
            self.ids.insert(selector.clone(), next);
        }
        if !new.is_empty() || !removed.is_empty() {
            self.matcher = Matcher::new(self.ids.keys().cloned());
            self.selected = self.positions_of(&self.matcher);
        }
        let matcher = Matcher::new(new);
        let added = Added { selected: self.positions_of(&matcher), matcher };
        self.withdrawn.retain(|index, entry| table.entries.get(entry).is_some_and(|(now, _)| now == index));
        let changed = self.open(table);
        Difference { removed, added, changed }
    }

    fn positions_of(&self, matcher: &Matcher) -> Vec<Selected> {
        let selected = |selector: &FqdnSelector| {
            let exact = match selector {
                FqdnSelector::Name(_) => true,
                FqdnSelector::Pattern(pattern) => !pattern.contains('*'),
                FqdnSelector::Regex(_) => false,
            };
            Selected { id: self.ids.get(selector).copied().unwrap_or_default(), exact }
        };
        matcher.selectors().iter().map(selected).collect()
    }

    /// Returns the selectors that open something else than before.
    fn open(&mut self, table: &Table) -> BTreeSet<SelectorId> {
        let mut openings: BTreeMap<SelectorId, Vec<Opening>> = BTreeMap::new();
        for (rank, (entry, (index, ports))) in table.entries.iter().enumerate() {
            let Some(selector) = self.ids.get(&entry.selector).copied() else { continue };
            if ports.is_empty() || self.withdrawn.contains_key(index) {
                continue;
            }
            let opening =
                Opening { rank, selector, protocol: entry.protocol, index: *index, ports: ports.clone() };
            openings.entry(selector).or_default().push(opening);
        }
        // Ranks alone move with every policy before; they matter where several selectors meet, and there the order of
        // those that stay is as it was.
        let same = |old: Option<&Vec<Opening>>, new: Option<&Vec<Opening>>| {
            let content = |opening: &Opening| (opening.protocol, opening.index, opening.ports.clone());
            let content = |openings: Option<&Vec<Opening>>| {
                openings.into_iter().flatten().map(content).collect::<Vec<_>>()
            };
            content(old) == content(new)
        };
        let ids: BTreeSet<SelectorId> = openings.keys().chain(self.openings.keys()).copied().collect();
        let changed = ids.into_iter().filter(|id| !same(self.openings.get(id), openings.get(id))).collect();
        self.openings = openings;
        changed
    }

    /// Keeps indexes out of all classes. Returns the selectors that opened something by them.
    pub(super) fn withdraw(&mut self, indexes: &BTreeSet<u32>, table: &Table) -> BTreeSet<SelectorId> {
        let with_index = table.entries.iter().filter(|(_, (index, _))| indexes.contains(index));
        self.withdrawn.extend(with_index.map(|(entry, (index, _))| (*index, entry.clone())));
        self.open(table)
    }

    pub(super) fn select(&self, name: &Name) -> Vec<Selected> {
        let positions = self.matcher.positions(name);
        positions.into_iter().filter_map(|position| self.selected.get(position).copied()).collect()
    }

    pub(super) fn openings(&self, id: SelectorId) -> &[Opening] {
        self.openings.get(&id).map(Vec::as_slice).unwrap_or_default()
    }

    /// By id.
    pub(super) fn by_id(&self) -> BTreeMap<SelectorId, &FqdnSelector> {
        self.ids.iter().map(|(selector, id)| (*id, selector)).collect()
    }

    pub(super) fn matcher(&self) -> &Matcher {
        &self.matcher
    }
}
