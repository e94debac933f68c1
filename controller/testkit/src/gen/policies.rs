//! Policies and Services that overlap.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use fw_policy::{
    Block, Firewall, IcmpEcho, Inside, InsideBasis, Peers, Policy, PolicySet, PortRange, Ports, Protocol,
    Rule, Service, ServiceName, Sources,
};
use ipnet::IpNet;

use crate::r#gen::world::add;
use crate::r#gen::{Rng, World};

/// Policies and Services of a world. All of it can be written as manifests without a finding, except that an
/// `except` may cover its block.
pub fn policy_set(rng: &mut Rng, world: &World, policies: usize, services: usize) -> Result<PolicySet> {
    let mut set = PolicySet {
        firewall: Firewall {
            inside: Inside {
                interfaces: world.inside_interfaces()?,
                prefixes: world.cluster_prefixes.clone(),
                basis: InsideBasis::Explicit,
            },
            icmp_echo: *rng.pick(&[IcmpEcho::Deny, IcmpEcho::Egress, IcmpEcho::Both]).context("three")?,
            log_accepted: rng.percent(50),
            ..Firewall::default()
        },
        ..PolicySet::default()
    };
    for number in 0..policies {
        set.policies.insert(policy_name(number), policy(rng, world)?);
    }
    for number in 0..services {
        let name = ServiceName { namespace: format!("ns-{}", number % 3), name: format!("service-{number}") };
        let service = service(rng, world)?;
        set.load_balancer_addresses.extend(&service.addresses);
        set.services.insert(name, service);
    }
    Ok(set)
}

/// Names that Kubernetes allows and nft would trip over, then ordinary ones.
fn policy_name(number: usize) -> String {
    match number {
        0 => "1abc".to_owned(),
        1 => "all".to_owned(),
        2 => "fwd".to_owned(),
        // 253 characters, the most there may be; they differ in the last one.
        3 => format!("{}.abc", ["long"; 50].join(".")),
        4 => format!("{}.abd", ["long"; 50].join(".")),
        _ => format!("policy-{number}"),
    }
}

/// One policy: egress, ingress or both.
pub fn policy(rng: &mut Rng, world: &World) -> Result<Policy> {
    let directions = rng.below(4);
    let mut policy = Policy::default();
    if directions != 0 {
        policy.egress = rules(rng, world)?;
    }
    if directions != 1 {
        policy.ingress = rules(rng, world)?;
    }
    Ok(policy)
}

fn rules(rng: &mut Rng, world: &World) -> Result<Vec<Rule>> {
    let count = 1 + rng.below(2);
    (0..count).map(|index| Ok(Rule { index, peers: peers(rng, world)?, ports: ports(rng) })).collect()
}

fn peers(rng: &mut Rng, world: &World) -> Result<Peers> {
    if rng.percent(2) {
        return Ok(Peers::Any);
    }
    let count = 1 + rng.below(4);
    Ok(Peers::Blocks((0..count).map(|index| block(rng, world, index)).collect::<Result<_>>()?))
}

fn block(rng: &mut Rng, world: &World, index: usize) -> Result<Block> {
    let net = world.block(rng)?;
    let mut except = BTreeSet::new();
    if rng.percent(40) {
        for _ in 0..=rng.below(3) {
            except.insert(exception(rng, world, net)?);
        }
    }
    Ok(Block { index, net, except: except.into_iter().collect() })
}

/// A part of the block, often at one of its ends; rarely all of it and more.
fn exception(rng: &mut Rng, world: &World, net: IpNet) -> Result<IpNet> {
    let shortest = usize::from(net.prefix_len());
    let longer = 1 + rng.below(usize::from(net.max_prefix_len()) - shortest + 1);
    let length = u8::try_from((shortest + longer).min(usize::from(net.max_prefix_len())))?;
    let address = match rng.below(10) {
        0 => return Ok(IpNet::new(net.addr(), net.prefix_len().saturating_sub(1))?.trunc()),
        1..4 => net.network(),
        4..7 => net.broadcast(),
        _ => world.address_in(rng, net),
    };
    Ok(IpNet::new(address, length)?.trunc())
}

fn protocol(rng: &mut Rng) -> Protocol {
    if rng.percent(65) { Protocol::Tcp } else { Protocol::Udp }
}

pub(crate) fn ports(rng: &mut Rng) -> Ports {
    if rng.percent(4) {
        return Ports::All;
    }
    let count = 1 + rng.below(4);
    Ports::Ranges(
        (0..count)
            .map(|index| {
                let (first, last) = range(rng);
                PortRange { index, protocol: protocol(rng), first, last }
            })
            .collect(),
    )
}

/// Ranges that meet: around a few ports, nested, and at both ends of what there is.
fn range(rng: &mut Rng) -> (u16, u16) {
    let first = match rng.below(10) {
        0 => 1,
        1 => rng.between(65_530, 65_535),
        2..6 => rng.between(75, 95),
        6..8 => rng.between(438, 448),
        _ => rng.between(1_000, 1_100),
    };
    let longer = match rng.below(1_000) {
        0..400 => 0,
        400..960 => rng.between(0, 12),
        960..990 => rng.between(0, 1_000),
        _ => 65_535,
    };
    (first, first.saturating_add(longer))
}

/// A Service with some of the world's LoadBalancer addresses, which others may have too.
pub fn service(rng: &mut Rng, world: &World) -> Result<Service> {
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for _ in 0..=rng.below(2) {
        addresses.insert(*rng.pick(&world.load_balancer_addresses).context("no LoadBalancer address")?);
    }
    let count = 1 + rng.below(3);
    let ports = (0..count).map(|_| (protocol(rng), range(rng).0)).collect();
    let sources = if rng.percent(40) {
        Sources::Any
    } else {
        let count = 1 + rng.below(4);
        Sources::Blocks((0..count).map(|_| world.block(rng)).collect::<Result<_>>()?)
    };
    Ok(Service { addresses, ports, sources })
}

/// An address at or next to an end of a block, of its exceptions, or within it.
pub(crate) fn address_around(rng: &mut Rng, world: &World, block: &Block) -> IpAddr {
    let net = rng.pick(&block.except).copied().filter(|_| rng.percent(50)).unwrap_or(block.net);
    match rng.below(8) {
        0 => net.network(),
        1 => net.broadcast(),
        2 => add(net.network(), -1),
        3 => add(net.broadcast(), 1),
        _ => world.address_in(rng, net),
    }
}

/// Policies by name in which something is in common with another policy: direction, protocol, an address and a
/// port that both match.
pub(crate) fn overlapping(policies: &BTreeMap<String, Policy>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let all: Vec<(&String, &Policy)> = policies.iter().collect();
    for (number, (name, policy)) in all.iter().enumerate() {
        for (other_name, other) in &all[number + 1..] {
            if meet(&policy.egress, &other.egress) || meet(&policy.ingress, &other.ingress) {
                found.extend([(*name).clone(), (*other_name).clone()]);
            }
        }
    }
    found
}

fn meet(rules: &[Rule], others: &[Rule]) -> bool {
    rules
        .iter()
        .any(|a| others.iter().any(|b| peers_meet(&a.peers, &b.peers) && ports_meet(&a.ports, &b.ports)))
}

fn peers_meet(a: &Peers, b: &Peers) -> bool {
    match (a, b) {
        (Peers::Names(a), Peers::Names(b)) => a.iter().any(|selector| b.contains(selector)),
        (Peers::Names(_), _) | (_, Peers::Names(_)) => false,
        (Peers::Any, Peers::Any) => true,
        (Peers::Any, Peers::Blocks(blocks)) | (Peers::Blocks(blocks), Peers::Any) => {
            blocks.iter().any(|block| first_address(block).is_some())
        }
        // Sound, not complete: the first address that the smaller block leaves is in the other block too.
        (Peers::Blocks(a), Peers::Blocks(b)) => {
            a.iter().any(|a| b.iter().any(|b| holds_first_of(a, b) || holds_first_of(b, a)))
        }
    }
}

fn holds_first_of(block: &Block, other: &Block) -> bool {
    first_address(other).is_some_and(|address| block.covering_prefix_len(address).is_some())
}

/// The first address of a block that no exception takes.
fn first_address(block: &Block) -> Option<IpAddr> {
    let mut address = block.net.network();
    while let Some(except) = block.except.iter().find(|except| except.contains(&address)) {
        if except.contains(&block.net.broadcast()) {
            return None;
        }
        address = add(except.broadcast(), 1);
    }
    Some(address)
}

fn ports_meet(a: &Ports, b: &Ports) -> bool {
    match (a, b) {
        (Ports::All, Ports::All) => true,
        (Ports::All, Ports::Ranges(ranges)) | (Ports::Ranges(ranges), Ports::All) => !ranges.is_empty(),
        (Ports::Ranges(a), Ports::Ranges(b)) => a
            .iter()
            .any(|a| b.iter().any(|b| a.protocol == b.protocol && a.first <= b.last && b.first <= a.last)),
    }
}
