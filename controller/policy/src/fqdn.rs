//! Names as rules: what one counter stands for, and what is learned.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::{FqdnSelector, Peers, PolicySet, Ports, Protocol};

/// One policy, selector and protocol: what a mark index stands for and one counter counts,
/// `accept traffic for np POLICY PROTOCOL, fqdn: SELECTOR`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameEntry {
    /// Policy name.
    pub policy: String,
    /// The selector.
    pub selector: FqdnSelector,
    /// Protocol.
    pub protocol: Protocol,
}

/// Which selectors each address was learned for and is allowed by now.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Learned {
    /// By address; no set is empty.
    pub addresses: BTreeMap<IpAddr, BTreeSet<FqdnSelector>>,
}

impl PolicySet {
    /// Every entry with its ports: disjoint, sorted, merged, both ends included.
    pub fn name_entries(&self) -> BTreeMap<NameEntry, Vec<(u16, u16)>> {
        let mut entries: BTreeMap<NameEntry, Vec<(u16, u16)>> = BTreeMap::new();
        for (policy, rules) in self.policies.iter().map(|(name, policy)| (name, &policy.egress)) {
            for rule in rules {
                let Peers::Names(selectors) = &rule.peers else { continue };
                for protocol in Protocol::ALL {
                    let ranges = ranges(&rule.ports, protocol);
                    if ranges.is_empty() {
                        continue;
                    }
                    for selector in selectors {
                        let entry =
                            NameEntry { policy: policy.clone(), selector: selector.clone(), protocol };
                        entries.entry(entry).or_default().extend(&ranges);
                    }
                }
            }
        }
        for ranges in entries.values_mut() {
            *ranges = merged(std::mem::take(ranges));
        }
        entries
    }

    /// True when a policy has names, or lost all of them to findings: DNS is then redirected.
    pub fn has_names(&self) -> bool {
        let mut rules = self.policies.values().flat_map(|policy| &policy.egress);
        rules.any(|rule| matches!(&rule.peers, Peers::Names(_)))
    }

    /// True when DNS from inside is to be redirected to the proxy. It always is where the proxy is asked over TLS: the
    /// cluster's DNS must not end with the last policy that has names.
    pub fn intercepts_dns(&self) -> bool {
        let dns = &self.firewall.dns;
        self.has_names() || dns.intercept == crate::Intercept::Always || dns.tls.is_some()
    }
}

fn ranges(ports: &Ports, protocol: Protocol) -> Vec<(u16, u16)> {
    match ports {
        Ports::All => vec![(0, u16::MAX)],
        Ports::Ranges(ranges) => {
            ranges.iter().filter(|range| range.protocol == protocol).map(|r| (r.first, r.last)).collect()
        }
    }
}

fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut result: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match result.last_mut() {
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = (*end).max(last),
            _ => result.push((first, last)),
        }
    }
    result
}
