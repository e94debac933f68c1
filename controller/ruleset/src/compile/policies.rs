//! Ingress and egress policies: one exact lookup per prefix length in use, longest first, then the ports.
//!
//! ```text
//! chain egress4 {
//!     ip daddr & 255.255.255.0 vmap @egress4-24      # 10.1.2.0 : jump egress-web-rule0
//!     jump egress4-0.0.0.0/0                         # or the rule's chain, when only one rule names the prefix
//! }
//! chain egress-web-rule0 { tcp dport 443 goto egress-web-tcp }
//! chain egress-web-tcp { counter accept comment "accept traffic for np web tcp" }
//! ```
//! A miss in a prefix's ports returns, so that a shorter prefix may still allow. The cost of a packet depends on the
//! number of different prefix lengths (at most 33, or 129), never on the number of policies.

use std::collections::{BTreeMap, BTreeSet};

use fw_policy::{Origin, Peers, Policy, PolicySet, Ports, Protocol, Rule as PolicyRule, comment};
use ipnet::IpNet;

use super::names::{self, Direction};
use super::ports::{self, Cell};
use super::prefixes;
use crate::ir::{Chain, Family, Field, Key, Rule, Ruleset, Selector, Set, SetKind, Side, Statement, Verdict};

/// What one rule claims at one prefix.
struct Claim<'a> {
    policy: &'a str,
    rule: &'a PolicyRule,
}

/// Everything claimed at each prefix of a direction.
type Claims<'a> = BTreeMap<IpNet, Vec<Claim<'a>>>;

pub(super) fn add(ruleset: &mut Ruleset, set: &PolicySet, left_out: &BTreeSet<String>) {
    for direction in [Direction::Ingress, Direction::Egress] {
        let mut claims = Claims::new();
        for (name, policy) in set.policies.iter().filter(|(name, _)| !left_out.contains(*name)) {
            // Names have chains and counters of their own.
            let of_prefixes = |rule: &&PolicyRule| !matches!(rule.peers, Peers::Names(_));
            for rule in rules(policy, direction).iter().filter(of_prefixes) {
                add_counter_chains(ruleset, direction, name, rule);
                for prefix in claimed_prefixes(&rule.peers) {
                    claims.entry(prefix).or_default().push(Claim { policy: name, rule });
                }
            }
        }
        for family in Family::ALL {
            add_lookups(ruleset, direction, family, &claims);
        }
    }
}

/// An upper bound of the elements and port ranges a policy needs.
pub(super) fn cells_of(policy: &Policy) -> usize {
    let size = |rule: &PolicyRule| {
        let ports = match &rule.ports {
            Ports::All => 2,
            Ports::Ranges(ranges) => ranges.len(),
        };
        let peers = match &rule.peers {
            // An element and a counter chain for each protocol.
            Peers::Names(selectors) => selectors.len().saturating_mul(2),
            peers => claimed_prefixes(peers).len(),
        };
        peers.saturating_mul(1 + ports)
    };
    policy.ingress.iter().chain(&policy.egress).fold(0, |sum: usize, rule| sum.saturating_add(size(rule)))
}

fn rules(policy: &Policy, direction: Direction) -> &[PolicyRule] {
    match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    }
}

pub(crate) fn claimed_prefixes(peers: &Peers) -> BTreeSet<IpNet> {
    match peers {
        Peers::Any => Family::ALL.map(prefixes::everything).into(),
        Peers::Blocks(blocks) => blocks.iter().flat_map(prefixes::remaining).collect(),
        Peers::Names(_) => BTreeSet::new(),
    }
}

/// One chain per policy, direction and protocol, whose only rule counts. It never changes while the policy has
/// a rule with that protocol, so its counter survives every edit.
fn add_counter_chains(ruleset: &mut Ruleset, direction: Direction, policy: &str, rule: &PolicyRule) {
    for protocol in Protocol::ALL {
        if ports::ranges(&rule.ports, protocol).is_empty() {
            continue;
        }
        let comment = match direction {
            Direction::Ingress => comment::ingress(policy, protocol),
            Direction::Egress => comment::egress(policy, protocol),
        };
        let body = vec![Statement::Counter, Statement::Verdict(Verdict::Accept)];
        let chain = Chain {
            hook: None,
            rules: vec![Rule { body, comment: Some(comment) }],
            origin: Some(Origin::policy(policy, format!("spec.{}", direction.as_str()))),
        };
        ruleset.chains.insert(names::policy_chain(direction, policy, protocol), chain);
    }
}

/// The chain of one family with a lookup per prefix length, the maps, and the port chains they lead to.
fn add_lookups(ruleset: &mut Ruleset, direction: Direction, family: Family, claims: &Claims<'_>) {
    let mut by_length: BTreeMap<u8, BTreeMap<Key, Option<Verdict>>> = BTreeMap::new();
    for (prefix, claims) in claims.iter().filter(|(prefix, _)| Family::of(prefix.addr()) == family) {
        let target = add_target(ruleset, direction, *prefix, claims);
        let key = Key::Exact(vec![prefixes::value(prefix.addr())]);
        by_length.entry(prefix.prefix_len()).or_default().insert(key, Some(Verdict::Jump(target)));
    }
    let mut rules = Vec::new();
    for (length, elements) in by_length.into_iter().rev() {
        if length == 0 {
            // One element at most; a lookup would compare nothing.
            let verdicts = elements.into_values().flatten();
            rules.extend(verdicts.map(|v| Rule { body: vec![Statement::Verdict(v)], comment: None }));
            continue;
        }
        let map = names::prefix_map(direction, family, length);
        rules.push(lookup_rule(direction, family, length, &map));
        ruleset.sets.insert(map, prefix_map(family, elements));
    }
    let chain = Chain { hook: None, rules, origin: None };
    ruleset.chains.insert(names::family_chain(direction, family), chain);
}

fn lookup_rule(direction: Direction, family: Family, length: u8, map: &str) -> Rule {
    let side = match direction {
        Direction::Ingress => Side::Source,
        Direction::Egress => Side::Destination,
    };
    let key = vec![Selector::Address { side, family, prefix: length }];
    Rule { body: vec![Statement::VerdictMap { key, map: map.to_owned() }], comment: None }
}

fn prefix_map(family: Family, elements: BTreeMap<Key, Option<Verdict>>) -> Set {
    let field = match family {
        Family::V4 => Field::Ipv4,
        Family::V6 => Field::Ipv6,
    };
    Set { key: vec![field], kind: SetKind::Exact, elements, map: true, origin: None }
}

/// The port chain of a prefix: the rule's own where one rule alone claims the prefix, so that its ports stand once
/// however many blocks it lists; otherwise one of the prefix.
fn add_target(ruleset: &mut Ruleset, direction: Direction, prefix: IpNet, claims: &[Claim<'_>]) -> String {
    let name = match claims {
        [one] => names::rule_chain(direction, one.policy, one.rule.index),
        _ => names::prefix_chain(direction, prefix),
    };
    if ruleset.chains.contains_key(&name) {
        return name;
    }
    let origin = claims.first().map(|claim| {
        Origin::policy(claim.policy, format!("spec.{}[{}]", direction.as_str(), claim.rule.index))
    });
    ports::add_port_chain(ruleset, &name, &cells_by_protocol(direction, claims), origin);
    name
}

fn cells_by_protocol(direction: Direction, claims: &[Claim<'_>]) -> BTreeMap<Protocol, Vec<Cell>> {
    let mut result = BTreeMap::new();
    for protocol in Protocol::ALL {
        let ranges: Vec<(u16, u16, &str)> = claims
            .iter()
            .flat_map(|claim| ports::ranges(&claim.rule.ports, protocol).into_iter().map(move |r| (claim, r)))
            .map(|(claim, (first, last))| (first, last, claim.policy))
            .collect();
        let cells = ports::cells(&ranges).into_iter().map(|(first, last, policy)| Cell {
            first,
            last,
            target: names::policy_chain(direction, policy, protocol),
        });
        let cells: Vec<Cell> = cells.collect();
        if !cells.is_empty() {
            result.insert(protocol, cells);
        }
    }
    result
}
