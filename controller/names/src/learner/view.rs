//! What status and the command `dns` show.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fw_policy::{FqdnSelector, Learned, Protocol};

use super::{Learner, MAX_ADDRESSES, MAX_CLASSES, Sizes};
use crate::change::Nanos;
use crate::layout::Opening;
use crate::name::Name;

/// Some of the names.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct View {
    /// By name.
    pub names: Vec<NameView>,
    /// Names that the limit left out.
    pub left_out: usize,
}

/// A name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameView {
    /// The name.
    pub name: Name,
    /// Selectors that match it, in order.
    pub selectors: Vec<FqdnSelector>,
    /// Policies that have these selectors, in order.
    pub policies: Vec<String>,
    /// When a client last asked.
    pub asked: Nanos,
    /// Its addresses and when they are over.
    pub addresses: BTreeMap<IpAddr, Nanos>,
}

/// An allowed address that a name beyond all policies has as well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedAddress {
    /// The address.
    pub address: IpAddr,
    /// A name it is allowed for.
    pub allowed: Name,
    /// A name that no policy allows.
    pub other: Name,
}

impl Learner {
    /// Which selectors each address is allowed by: what the data path lets pass once all changes are confirmed.
    pub fn learned(&self, now: Nanos) -> Learned {
        let by_id = self.selectors.by_id();
        let mut learned = Learned::default();
        for (address, record) in &self.store.addresses {
            let open = record
                .tops
                .iter()
                .filter(|(id, top)| top.until > now && !self.selectors.openings(*id).is_empty());
            let selectors: BTreeSet<FqdnSelector> =
                open.filter_map(|(id, _)| by_id.get(id).map(|selector| (*selector).clone())).collect();
            if !selectors.is_empty() {
                learned.addresses.insert(*address, selectors);
            }
        }
        learned
    }

    /// The mark index by which a port of an address is allowed, if it is.
    pub fn index_of(&self, now: Nanos, address: IpAddr, protocol: Protocol, port: u16) -> Option<u32> {
        let record = self.store.addresses.get(&address)?;
        let open = record.tops.iter().filter(|(_, top)| top.until > now);
        let openings = open.flat_map(|(id, _)| self.selectors.openings(*id));
        let has_port = |opening: &&Opening| {
            opening.protocol == protocol
                && opening.ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
        };
        // Of several entries the first one gets the port, as in the data path.
        openings.filter(has_port).min_by_key(|opening| opening.rank).map(|opening| opening.index)
    }

    /// Names in order, at most `limit` of them, those that contain `filter` only.
    pub fn view(&self, filter: Option<&str>, limit: usize) -> View {
        let by_id = self.selectors.by_id();
        let mut policies: BTreeMap<&FqdnSelector, BTreeSet<&String>> = BTreeMap::new();
        for entry in self.table.entries.keys() {
            policies.entry(&entry.selector).or_default().insert(&entry.policy);
        }
        let mut view = View::default();
        for (_, record) in self.store.names() {
            if filter.is_some_and(|filter| !record.name.as_str().contains(filter)) {
                continue;
            }
            if view.names.len() >= limit {
                view.left_out += 1;
                continue;
            }
            let selectors = record.selectors.iter().filter_map(|selected| by_id.get(&selected.id).copied());
            let selectors: BTreeSet<&FqdnSelector> = selectors.collect();
            let of_selectors: BTreeSet<&String> =
                selectors.iter().filter_map(|selector| policies.get(*selector)).flatten().copied().collect();
            view.names.push(NameView {
                name: record.name.clone(),
                selectors: selectors.into_iter().cloned().collect(),
                policies: of_selectors.into_iter().cloned().collect(),
                asked: record.asked,
                addresses: record.facts.iter().map(|(address, kept)| (*address, kept.until)).collect(),
            });
        }
        view
    }

    /// The names an address was learned from, in order, at most `limit`.
    pub fn names_of(&self, address: IpAddr, limit: usize) -> Vec<Name> {
        let ids =
            self.store.addresses.get(&address).map(|record| record.names.as_slice()).unwrap_or_default();
        let names: BTreeSet<Name> =
            ids.iter().filter_map(|id| self.store.get(*id)).map(|record| record.name.clone()).collect();
        names.into_iter().take(limit).collect()
    }

    /// How much there is, and how much there may be.
    pub fn sizes(&self) -> Sizes {
        let bound = |bound: u32| usize::try_from(bound).unwrap_or(usize::MAX);
        Sizes {
            names: self.store.by_name.len(),
            max_names: bound(self.table.dns.max_names),
            fullest_pattern: self.fullest_pattern(),
            max_names_per_pattern: bound(self.table.dns.max_names_per_pattern),
            longest_name: self.store.names().map(|(_, record)| record.facts.len()).max().unwrap_or(0),
            max_addresses_per_name: bound(self.table.dns.max_addresses_per_name),
            addresses: self.store.addresses.len(),
            max_addresses: MAX_ADDRESSES,
            facts: self.store.facts,
            classes: self.data_path.len(),
            max_classes: MAX_CLASSES,
        }
    }

    /// Allowed addresses that names beyond all policies have as well; the latest, bounded.
    pub fn shared(&self) -> Vec<SharedAddress> {
        self.shared.iter().cloned().collect()
    }
}
