//! LoadBalancer Services: exactly their assigned addresses and ports, to their sources.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fw_policy::{ObjectKind, Origin, PolicySet, Protocol, ServiceName, Sources, comment};
use ipnet::IpNet;

use super::names;
use super::prefixes;
use crate::ir::{
    Chain, Family, Field, Key, Rule, Ruleset, Selector, Set, SetKind, Side, Statement, Test, Value, Verdict,
};

/// Up to here source ranges are plain rules; see `PLAIN_RULES_MAX` of the port chains.
const PLAIN_SOURCES_MAX: usize = 8;

/// Fills the maps `services4` and `services6` of the base ruleset.
pub(super) fn add(ruleset: &mut Ruleset, set: &PolicySet) {
    let mut openers: BTreeMap<(IpAddr, Protocol, u16), Vec<String>> = BTreeMap::new();
    for (name, service) in &set.services {
        let target = add_service(ruleset, name, &service.sources);
        for address in &service.addresses {
            for (protocol, port) in &service.ports {
                openers.entry((*address, *protocol, *port)).or_default().push(target.clone());
            }
        }
    }
    for ((address, protocol, port), targets) in openers {
        let target = add_shared(ruleset, address, protocol, port, targets);
        let map = format!("services{}", names::digit(Family::of(address)));
        let key =
            Key::Exact(vec![prefixes::value(address), Value::Protocol(protocol.number()), Value::Port(port)]);
        if let Some(map) = ruleset.sets.get_mut(&map) {
            map.elements.insert(key, Some(Verdict::Jump(target)));
        }
    }
}

/// Fills the sets of addresses that may also be sources from inside.
pub(super) fn add_addresses(ruleset: &mut Ruleset, addresses: &BTreeSet<IpAddr>) {
    for address in addresses {
        let name = super::base::of_family("load_balancer_addresses", Family::of(*address));
        if let Some(set) = ruleset.sets.get_mut(&name) {
            set.elements.insert(Key::Exact(vec![prefixes::value(*address)]), None);
        }
    }
}

/// The counting chain of a Service and, where sources are limited, the chain that checks them. Returns the one to
/// jump to.
fn add_service(ruleset: &mut Ruleset, name: &ServiceName, sources: &Sources) -> String {
    let origin = Origin {
        kind: ObjectKind::Service,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        field: String::new(),
    };
    let accept = names::service_chain(name);
    let comment = comment::service(name);
    let body = vec![Statement::Counter, Statement::Verdict(Verdict::Accept)];
    let rules = vec![Rule { body, comment: Some(comment) }];
    ruleset.chains.insert(accept.clone(), Chain { hook: None, rules, origin: Some(origin.clone()) });
    let Sources::Blocks(blocks) = sources else { return accept };
    let checked = format!("{accept}/sources");
    let mut rules = Vec::new();
    for family in Family::ALL {
        rules.extend(source_rules(ruleset, &checked, family, blocks, &accept, &origin));
    }
    ruleset.chains.insert(checked.clone(), Chain { hook: None, rules, origin: Some(origin) });
    checked
}

fn source_rules(
    ruleset: &mut Ruleset,
    chain: &str,
    family: Family,
    blocks: &BTreeSet<IpNet>,
    accept: &str,
    origin: &Origin,
) -> Vec<Rule> {
    let goto =
        |test| Rule { body: vec![test, Statement::Verdict(Verdict::Goto(accept.to_owned()))], comment: None };
    let address = |prefix| Selector::Address { side: Side::Source, family, prefix };
    let blocks: Vec<&IpNet> = blocks.iter().filter(|net| Family::of(net.addr()) == family).collect();
    if blocks.is_empty() {
        return Vec::new();
    }
    if blocks.len() <= PLAIN_SOURCES_MAX {
        let test = |net: &IpNet| match net.prefix_len() {
            0 => Statement::Family(family),
            length => Statement::Match(address(length), Test::Equal(prefixes::value(net.addr()))),
        };
        return blocks.into_iter().map(|net| goto(test(net))).collect();
    }
    let name = format!("{chain}{}", names::digit(family));
    let elements = prefixes::ranges(blocks.into_iter(), family).into_iter().map(|key| (key, None)).collect();
    let key = match family {
        Family::V4 => vec![Field::Ipv4],
        Family::V6 => vec![Field::Ipv6],
    };
    let set = Set { key, kind: SetKind::Interval, elements, map: false, origin: Some(origin.clone()) };
    ruleset.sets.insert(name.clone(), set);
    vec![goto(Statement::Match(address(family.bits()), Test::InSet(name)))]
}

/// Where several Services name one address and port, a chain that tries each, first name first.
fn add_shared(
    ruleset: &mut Ruleset,
    address: IpAddr,
    protocol: Protocol,
    port: u16,
    targets: Vec<String>,
) -> String {
    if let [one] = targets.as_slice() {
        return one.clone();
    }
    let name = format!("services-{}-{protocol}-{port}", names::address(address));
    let jump = |target| Rule { body: vec![Statement::Verdict(Verdict::Jump(target))], comment: None };
    let rules = targets.into_iter().map(jump).collect();
    ruleset.chains.insert(name.clone(), Chain { hook: None, rules, origin: None });
    name
}
