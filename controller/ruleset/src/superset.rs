//! What static rules may accept of new egress: the table by which the early drop lets packets pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fw_policy::{DNS_PORT, DOH_PORT, DOT_PORT, Encrypted, Peers, PolicySet, Protocol};
use ipnet::IpNet;

use crate::compile::policies::claimed_prefixes;
use crate::compile::{ports, prefixes};
use crate::ir::Family;

/// Ranges of ports by prefix, both ends included, sorted by protocol and port, disjoint and not adjacent. The entry of
/// the longest prefix that holds an address says all that may be accepted for it.
pub type Superset = BTreeMap<IpNet, Vec<Cell>>;

/// Protocol, first and last port.
type Cell = (Protocol, u16, u16);

/// Ranges that one prefix has at most; past it the nearest ones of a protocol are joined.
pub const MAX_SUPERSET_CELLS: usize = 128;

const EVERY_PORT: [Cell; 2] = [(Protocol::Tcp, 0, u16::MAX), (Protocol::Udp, 0, u16::MAX)];

/// Where the early drop never drops anything: multicast, broadcast and link-local, which only the kernel can judge.
const NOT_FORWARDED: [&str; 5] =
    ["224.0.0.0/4", "255.255.255.255/32", "169.254.0.0/16", "fe80::/10", "ff00::/8"];

/// Every destination and port that [`PolicySet::decide`] may accept as egress, and whatever may be meant for the box
/// (`own_addresses`), the cluster or its Services. More than that where a prefix has too many ranges; never less.
///
/// An entry that says what the one around it says is left out. Redirected DNS is not in it: it goes to any address.
pub fn superset(set: &PolicySet, own_addresses: &BTreeSet<IpAddr>) -> Superset {
    let mut claims = Superset::new();
    for rule in set.policies.values().flat_map(|policy| &policy.egress) {
        if matches!(rule.peers, Peers::Names(_)) {
            continue;
        }
        let cells: Vec<Cell> = Protocol::ALL
            .into_iter()
            .flat_map(|protocol| {
                ports::ranges(&rule.ports, protocol).into_iter().map(move |r| (protocol, r.0, r.1))
            })
            .collect();
        for prefix in claimed_prefixes(&rule.peers) {
            claims.entry(prefix).or_default().extend(&cells);
        }
    }
    add_dns(&mut claims, set);
    for prefix in always_passed(set, own_addresses) {
        claims.entry(prefix).or_default().extend(EVERY_PORT);
    }
    with_those_around(claims)
}

fn always_passed(set: &PolicySet, own_addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpNet> {
    let services = set.services.values().flat_map(|service| &service.addresses);
    let addresses = own_addresses.iter().chain(&set.load_balancer_addresses).chain(services);
    let addresses = addresses.map(|address| IpNet::from(*address));
    let constant = NOT_FORWARDED.iter().filter_map(|text| text.parse().ok());
    addresses.chain(set.firewall.inside.prefixes.iter().copied()).chain(constant).collect()
}

/// Encrypted DNS that is allowed without a policy, and the resolvers for the time the proxy is away.
fn add_dns(claims: &mut Superset, set: &PolicySet) {
    let dns = &set.firewall.dns;
    let both = |port| Protocol::ALL.map(|protocol| (protocol, port, port));
    if dns.dot == Encrypted::Allow {
        for family in Family::ALL {
            claims.entry(prefixes::everything(family)).or_default().extend(both(DOT_PORT));
        }
    }
    if dns.doh == Encrypted::Allow {
        for net in &dns.doh_endpoints {
            claims.entry(*net).or_default().extend(both(DOH_PORT));
        }
    }
    if dns.fallback && set.intercepts_dns() {
        for resolver in dns.fallback_resolvers() {
            claims.entry(IpNet::from(resolver)).or_default().extend(both(DNS_PORT));
        }
    }
}

/// Gives every prefix what the prefixes around it have, since the longest match hides them.
fn with_those_around(claims: Superset) -> Superset {
    let mut result = Superset::new();
    // Prefixes around the current one, each inside the one before. The order of IpNet is by address, then by length,
    // so that a prefix comes after all those around it.
    let mut around: Vec<(IpNet, Vec<Cell>)> = Vec::new();
    for (prefix, mut cells) in claims {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&prefix)) {
            around.pop();
        }
        let outer = around.last().map_or(&[][..], |(_, cells)| &cells[..]);
        cells.extend(outer);
        let cells = bounded(merged(cells));
        if cells != outer {
            around.push((prefix, cells.clone()));
            result.insert(prefix, cells);
        }
    }
    result
}

/// Sorted, overlapping and adjacent ranges as one.
fn merged(mut cells: Vec<Cell>) -> Vec<Cell> {
    cells.sort_unstable();
    let mut result: Vec<Cell> = Vec::new();
    for (protocol, first, last) in cells {
        match result.last_mut() {
            Some((before, _, end)) if *before == protocol && first <= end.saturating_add(1) => {
                *end = (*end).max(last);
            }
            _ => result.push((protocol, first, last)),
        }
    }
    result
}

/// At most [`MAX_SUPERSET_CELLS`] ranges that hold all the ports; the smallest gaps are filled.
fn bounded(cells: Vec<Cell>) -> Vec<Cell> {
    let Some(excess) = cells.len().checked_sub(MAX_SUPERSET_CELLS).filter(|excess| *excess > 0) else {
        return cells;
    };
    let mut gaps: Vec<(u16, usize)> = cells
        .windows(2)
        .enumerate()
        .filter_map(|(at, pair)| match pair {
            [(a, _, end), (b, first, _)] if a == b => Some((first.saturating_sub(*end), at + 1)),
            _ => None,
        })
        .collect();
    gaps.sort_unstable();
    let joined: BTreeSet<usize> = gaps.into_iter().take(excess).map(|(_, at)| at).collect();
    let mut result: Vec<Cell> = Vec::new();
    for (at, cell) in cells.into_iter().enumerate() {
        match result.last_mut() {
            Some((_, _, end)) if joined.contains(&at) => *end = cell.2,
            _ => result.push(cell),
        }
    }
    result
}
