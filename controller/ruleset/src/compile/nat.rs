//! Source NAT of cluster traffic by the network it leaves by.
//!
//! ```text
//! chain postrouting { oifname vmap @snat_by_network }                       # "vlan179" : jump snat-internet
//! chain snat-internet { ip saddr @cluster_prefixes goto snat-internet-v4 }
//! chain snat-internet-v4 { jhash ip saddr . ip daddr . th sport mod 2 == 0 goto snat-internet-203.0.113.5 … }
//! chain snat-internet-203.0.113.5 { counter snat ip to 203.0.113.5 comment "snat for internet" }
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use fw_policy::{Firewall, ObjectKind, Origin, comment};

use super::base::{add_interface_map, chain, commented, goto, in_set, of_family, rule, source};
use super::names;
use crate::ir::{
    Chain, ChainKind, Family, Hook, HookPoint, Key, Rule, Ruleset, Selector, Side, Statement, Value, Verdict,
};

/// Adds the chain `postrouting`. Always there, because a NAT hook that comes and goes would lose translations.
pub(super) fn add(ruleset: &mut Ruleset, firewall: &Firewall) {
    let mut elements = BTreeMap::new();
    for (network, snat) in &firewall.snat {
        let target = format!("snat-{}", names::part(network));
        for interface in &snat.interfaces {
            elements.insert(interface_key(interface), Some(Verdict::Jump(target.clone())));
        }
        add_network(ruleset, network, &target, &snat.addresses.iter().copied().collect::<Vec<_>>());
    }
    for (network, masquerade) in firewall.masquerade.iter().filter(|_| firewall.host.is_some()) {
        let target = format!("masquerade-{}", names::part(network));
        for interface in &masquerade.interfaces {
            elements.entry(interface_key(interface)).or_insert_with(|| Some(Verdict::Jump(target.clone())));
        }
        add_masquerade(ruleset, network, &target);
    }
    add_interface_map(ruleset, "snat_by_network", elements);
    let lookup =
        Statement::VerdictMap { key: vec![Selector::OutputInterface], map: "snat_by_network".to_owned() };
    let hook =
        Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: 100, policy_drop: false };
    let postrouting = Chain { hook: Some(hook), rules: vec![rule([lookup])], origin: None };
    ruleset.chains.insert("postrouting".to_owned(), postrouting);
}

fn interface_key(interface: &fw_policy::IfName) -> Key {
    Key::Exact(vec![Value::IfName(interface.clone())])
}

fn origin(field: &str) -> Origin {
    Origin {
        kind: ObjectKind::Firewall,
        namespace: "firewall".to_owned(),
        name: "firewall".to_owned(),
        field: field.to_owned(),
    }
}

fn add_network(ruleset: &mut Ruleset, network: &str, name: &str, addresses: &[IpAddr]) {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let addresses: Vec<IpAddr> =
            addresses.iter().copied().filter(|address| Family::of(*address) == family).collect();
        if addresses.is_empty() {
            continue;
        }
        let of_this = format!("{name}-v{}", names::digit(family));
        rules.push(from_cluster(family, &of_this));
        let spread = addresses.iter().enumerate().map(|(bucket, address)| {
            let target = format!("{name}-{}", names::address(*address));
            let comment = comment::around("snat for ", network, "");
            let snat = commented([Statement::Counter, Statement::Snat(*address)], &comment);
            let counted = Chain { hook: None, rules: vec![snat], origin: Some(origin("spec.egressRules")) };
            ruleset.chains.insert(target.clone(), counted);
            bucket_rule(family, addresses.len(), bucket, &target)
        });
        let spread: Vec<Rule> = spread.collect();
        ruleset.chains.insert(of_this, chain(spread));
    }
    ruleset.chains.insert(name.to_owned(), chain(rules));
}

/// Only what the cluster sends is translated, not what the box itself sends.
fn from_cluster(family: Family, target: &str) -> Rule {
    rule([in_set(source(family), &of_family("cluster_prefixes", family)), goto(target)])
}

/// Conntrack keeps the translation of a flow; the hash only spreads new ones. `th sport` reads the type and code of an
/// ICMP echo, which are constant: pings between two hosts share an address.
fn bucket_rule(family: Family, buckets: usize, bucket: usize, target: &str) -> Rule {
    if buckets == 1 {
        return rule([goto(target)]);
    }
    let address = |side| Selector::Address { side, family, prefix: family.bits() };
    let key = vec![
        address(Side::Source),
        address(Side::Destination),
        Selector::Port { side: Side::Source, protocol: None },
    ];
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let hash = Statement::HashEquals { key, modulus: number(buckets), equals: number(bucket) };
    rule([hash, goto(target)])
}

fn add_masquerade(ruleset: &mut Ruleset, network: &str, name: &str) {
    let counted_name = format!("{name}-counted");
    let rules = Family::ALL.map(|family| from_cluster(family, &counted_name)).into();
    ruleset.chains.insert(name.to_owned(), chain(rules));
    let comment = comment::around("snat (networkid: ", network, ")");
    let counted = commented([Statement::Counter, Statement::Masquerade], &comment);
    ruleset.chains.insert(counted_name, chain(vec![counted]));
}
