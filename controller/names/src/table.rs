//! What is enforced, as far as names go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fw_policy::{Dns, NameEntry, PolicySet};
use ipnet::IpNet;

/// The part of a policy set that the learner needs, with the mark index of each entry.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Table {
    /// Every entry: its index and its ports (disjoint, sorted, both ends included).
    pub entries: BTreeMap<NameEntry, (u32, Vec<(u16, u16)>)>,
    /// Clamps, bounds and private prefixes.
    pub dns: Dns,
    /// Addresses that are never learned beside the constant ones: the box's own.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Prefixes that are never learned: the cluster's.
    pub cluster_prefixes: BTreeSet<IpNet>,
}

impl Table {
    /// The entries of a policy set that have an index.
    pub fn new(set: &PolicySet, indexes: &BTreeMap<NameEntry, u32>, own_addresses: BTreeSet<IpAddr>) -> Self {
        let with_index = |(entry, ports): (NameEntry, Vec<(u16, u16)>)| {
            let index = *indexes.get(&entry)?;
            Some((entry, (index, ports)))
        };
        Self {
            entries: set.name_entries().into_iter().filter_map(with_index).collect(),
            dns: set.firewall.dns.clone(),
            own_addresses,
            cluster_prefixes: set.firewall.inside.prefixes.clone(),
        }
    }
}
