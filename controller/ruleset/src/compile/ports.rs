//! One-dimensional port tables: which policy counts a port where several rules meet on one prefix.

use std::collections::BTreeMap;

use fw_policy::{Origin, Ports, Protocol};

use crate::ir::{
    Chain, Field, Key, Rule, Ruleset, Selector, Set, SetKind, Side, Statement, Test, Value, Verdict,
};

/// Up to here ports are plain rules, which cost no set; the kernel finds sets by a linear search over their names
/// (nft_set_lookup(), net/netfilter/nf_tables_api.c), so that a set for each small chain would be quadratic.
const PLAIN_RULES_MAX: usize = 8;

/// One disjoint range of ports and the chain that counts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) target: String,
}

/// Ranges of one protocol, all of its ports for [`Ports::All`].
pub(crate) fn ranges(ports: &Ports, protocol: Protocol) -> Vec<(u16, u16)> {
    match ports {
        Ports::All => vec![(0, u16::MAX)],
        Ports::Ranges(ranges) => {
            ranges.iter().filter(|r| r.protocol == protocol).map(|r| (r.first, r.last)).collect()
        }
    }
}

/// Splits overlapping ranges into disjoint cells. Where claims overlap, the smallest claimant wins; neighbouring
/// cells of one claimant are merged. The result has at most twice as many cells as there are claims.
pub(super) fn cells<C: Ord + Clone>(claims: &[(u16, u16, C)]) -> Vec<(u16, u16, C)> {
    // Events at each boundary; u32 because a range may end at 65535.
    let mut events: BTreeMap<u32, (Vec<&C>, Vec<&C>)> = BTreeMap::new();
    for (first, last, claimant) in claims {
        events.entry(u32::from(*first)).or_default().0.push(claimant);
        events.entry(u32::from(*last) + 1).or_default().1.push(claimant);
    }
    let mut active: BTreeMap<&C, usize> = BTreeMap::new();
    let mut result: Vec<(u16, u16, C)> = Vec::new();
    let mut open: Option<(u32, &C)> = None;
    for (at, (starts, ends)) in &events {
        for claimant in starts {
            *active.entry(claimant).or_default() += 1;
        }
        for claimant in ends {
            if let Some(count) = active.get_mut(*claimant) {
                *count -= 1;
                if *count == 0 {
                    active.remove(*claimant);
                }
            }
        }
        let winner = active.keys().next().copied();
        if let Some((start, claimant)) = open
            && winner != Some(claimant)
        {
            result.push((port(start), port(at - 1), claimant.clone()));
            open = None;
        }
        if open.is_none() {
            open = winner.map(|claimant| (*at, claimant));
        }
    }
    result
}

/// Boundaries lie in 0..=65536 and the last one only ever ends a cell, so this never saturates.
fn port(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// Adds a chain that sends each cell's ports to its target and returns on a miss.
pub(super) fn add_port_chain(
    ruleset: &mut Ruleset,
    name: &str,
    cells: &BTreeMap<Protocol, Vec<Cell>>,
    origin: Option<Origin>,
) {
    let mut rules = Vec::new();
    for (protocol, cells) in cells {
        if cells.len() <= PLAIN_RULES_MAX {
            rules.extend(cells.iter().map(|cell| plain_rule(*protocol, cell)));
        } else {
            let map = format!("{name}-{protocol}");
            let key = vec![Selector::Port { side: Side::Destination, protocol: Some(*protocol) }];
            rules.push(Rule { body: vec![Statement::VerdictMap { key, map: map.clone() }], comment: None });
            ruleset.sets.insert(map, port_map(cells, origin.clone()));
        }
    }
    ruleset.chains.insert(name.to_owned(), Chain { hook: None, rules, origin });
}

/// `tcp dport 80-90 goto TARGET`, or `meta l4proto tcp goto TARGET` for all ports.
fn plain_rule(protocol: Protocol, cell: &Cell) -> Rule {
    let dport = Selector::Port { side: Side::Destination, protocol: Some(protocol) };
    let test = match (cell.first, cell.last) {
        (0, u16::MAX) => {
            Statement::Match(Selector::L4Protocol, Test::Equal(Value::Protocol(protocol.number())))
        }
        (first, last) if first == last => Statement::Match(dport, Test::Equal(Value::Port(first))),
        (first, last) => Statement::Match(dport, Test::Range(Value::Port(first), Value::Port(last))),
    };
    Rule { body: vec![test, Statement::Verdict(Verdict::Goto(cell.target.clone()))], comment: None }
}

fn port_map(cells: &[Cell], origin: Option<Origin>) -> Set {
    let elements = cells
        .iter()
        .map(|cell| {
            let key = Key::Range(Value::Port(cell.first), Value::Port(cell.last));
            (key, Some(Verdict::Goto(cell.target.clone())))
        })
        .collect();
    Set { key: vec![Field::Port], kind: SetKind::Interval, elements, map: true, origin }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_claimant_takes_the_ports_that_two_claim() {
        let cells = cells(&[(80, 90, "b"), (85, 100, "a"), (443, 443, "b")]);
        assert_eq!(cells, vec![(80, 84, "b"), (85, 100, "a"), (443, 443, "b")]);
    }

    #[test]
    fn a_claim_inside_another_of_the_same_claimant_changes_nothing() {
        assert_eq!(cells(&[(1, 65535, "a"), (80, 90, "a"), (91, 95, "a")]), vec![(1, 65535, "a")]);
    }

    proptest! {
        #[test]
        fn every_port_goes_to_its_smallest_claimant_and_cells_never_overlap(
            claims in proptest::collection::vec((any::<u16>(), any::<u16>(), 0u8..6), 0..20),
            probes in proptest::collection::vec(any::<u16>(), 50),
        ) {
            let claims: Vec<(u16, u16, u8)> =
                claims.into_iter().map(|(a, b, c)| (a.min(b), a.max(b), c)).collect();
            let result = cells(&claims);
            prop_assert!(result.windows(2).all(|pair| pair[0].1 < pair[1].0));
            let edges = claims.iter().flat_map(|(a, b, _)| {
                [a.saturating_sub(1), *a, *b, b.saturating_add(1)]
            });
            for port in edges.chain(probes) {
                let expected = claims.iter().filter(|(a, b, _)| (*a..=*b).contains(&port)).map(|c| c.2).min();
                let found = result.iter().find(|(a, b, _)| (*a..=*b).contains(&port)).map(|c| c.2);
                prop_assert_eq!(expected, found, "port {}", port);
            }
        }
    }
}
