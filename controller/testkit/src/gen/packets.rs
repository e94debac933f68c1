//! Packets that try the edges of policies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use fw_policy::{
    Block, ConntrackState, DNS_PORT, Learned, Packet, Peers, PolicySet, PortRange, Ports, Protocol, Rule,
    Service, Sources, Transport,
};

use crate::r#gen::policies::address_around;
use crate::r#gen::{Rng, World};

/// Echo requests among any number of packets, and those of one source: the firewall limits them in all and per
/// source, which the reference leaves out.
const MOST_ECHOS: usize = 40;
const MOST_ECHOS_OF_ONE: usize = 2;

/// Packets that the firewall's kernel would forward if no rule were there, most of them NEW, each of a flow of its
/// own (up to 60,000), the others INVALID. Biased towards what the policies mention and its edges.
pub fn packets(rng: &mut Rng, world: &World, set: &PolicySet, count: usize) -> Result<Vec<Packet>> {
    packets_with(rng, world, set, &Learned::default(), count)
}

/// As [`packets`], some of them to learned addresses. Without DNS from inside where that is redirected: it never
/// reaches the rules that the reference is about.
pub fn packets_with(
    rng: &mut Rng,
    world: &World,
    set: &PolicySet,
    learned: &Learned,
    count: usize,
) -> Result<Vec<Packet>> {
    let mut packets = Vec::with_capacity(count);
    let mut echo_sources: BTreeMap<IpAddr, usize> = BTreeMap::new();
    // Most tries succeed; the bound only keeps a world without forwardable addresses from going on for ever.
    for _ in 0..count.saturating_mul(20) {
        if packets.len() == count {
            break;
        }
        let number = packets.len();
        let Some(packet) = one(rng, world, set, learned, number)? else { continue };
        let is_dns = packet.transport.service().is_some_and(|(_, port)| port == DNS_PORT);
        if is_dns && set.intercepts_dns() && set.firewall.inside.interfaces.contains(&packet.input) {
            continue;
        }
        if matches!(packet.transport, Transport::Icmp { kind: 8 | 128, .. }) {
            let all: usize = echo_sources.values().sum();
            let of_source = echo_sources.entry(packet.source).or_default();
            if all >= MOST_ECHOS || *of_source >= MOST_ECHOS_OF_ONE {
                continue;
            }
            *of_source += 1;
        }
        packets.push(packet);
    }
    (packets.len() == count).then_some(packets).context("the world has too few addresses that are forwarded")
}

/// A packet, or `None` when the kernel would not forward it.
fn one(
    rng: &mut Rng,
    world: &World,
    set: &PolicySet,
    learned: &Learned,
    number: usize,
) -> Result<Option<Packet>> {
    let (near, far) = (rng.below(100), rng.below(100));
    let (from_inside, source, destination, service) = match near {
        0..50 => egress(rng, world, set, learned)?,
        50..78 => ingress(rng, world, set)?,
        78..94 => to_service(rng, world, set)?,
        _ => anywhere(rng, world)?,
    };
    let interfaces = world.interfaces(from_inside);
    let input = (*rng.pick(&interfaces).context("a side without interface")?).clone();
    let Some((output, _)) = world.route(destination) else { return Ok(None) };
    if !world.is_forwarded(source) || source.is_ipv4() != destination.is_ipv4() {
        return Ok(None);
    }
    let source_port = 2_000 + u16::try_from(number % 60_000)?;
    let (protocol, port) = service;
    let transport = match (far, protocol) {
        (0..4, _) => return other(rng, input, output.clone(), source, destination).map(Some),
        (4..8, _) => Transport::Icmp { kind: if source.is_ipv4() { 8 } else { 128 }, code: 0 },
        (8..10, _) => Transport::Icmp { kind: if source.is_ipv4() { 13 } else { 139 }, code: 0 },
        (_, Protocol::Tcp) => Transport::Tcp { source: source_port, destination: port },
        (_, Protocol::Udp) => Transport::Udp { source: source_port, destination: port },
    };
    // Of ICMP only that which begins something is NEW.
    let state = if (10..14).contains(&far) { ConntrackState::Invalid } else { ConntrackState::New };
    Ok(Some(Packet { input, output: output.clone(), source, destination, transport, state }))
}

fn other(
    rng: &mut Rng,
    input: fw_policy::IfName,
    output: fw_policy::IfName,
    source: IpAddr,
    destination: IpAddr,
) -> Result<Packet> {
    let transport = Transport::Other(*rng.pick(&[2, 4, 47, 50, 132, 253]).context("six")?);
    Ok(Packet { input, output, source, destination, transport, state: ConntrackState::New })
}

/// Enters by inside, source, destination, protocol and port.
type Aim = (bool, IpAddr, IpAddr, (Protocol, u16));

fn egress(rng: &mut Rng, world: &World, set: &PolicySet, learned: &Learned) -> Result<Aim> {
    let rules: Vec<&Rule> = set.policies.values().flat_map(|policy| &policy.egress).collect();
    let (destination, service) = match to_a_name(rng, &rules, learned) {
        Some(aim) => aim,
        None => around_a_rule(rng, world, &rules)?,
    };
    let source = match rng.below(100) {
        // A spoofed one.
        0..5 => world.outside_address(rng)?,
        5..9 => *rng.pick(&world.load_balancer_addresses).context("no LoadBalancer address")?,
        _ => world.cluster_address(rng, destination.is_ipv4())?,
    };
    Ok((true, source, destination, service))
}

/// Half of the time, where something is learned: one of those addresses, mostly with ports of a rule that names it.
fn to_a_name(rng: &mut Rng, rules: &[&Rule], learned: &Learned) -> Option<(IpAddr, (Protocol, u16))> {
    if learned.addresses.is_empty() || rng.percent(50) {
        return None;
    }
    let addresses: Vec<_> = learned.addresses.iter().collect();
    let (address, selectors) = rng.pick(&addresses)?;
    let any = rng.percent(10);
    let named = rules.iter().copied().filter(|rule| match &rule.peers {
        Peers::Names(names) => any || names.iter().any(|name| selectors.contains(name)),
        Peers::Any | Peers::Blocks(_) => false,
    });
    let named: Vec<&Rule> = named.collect();
    let rule = *rng.pick(&named)?;
    Some((**address, around_ports(rng, &rule.ports)))
}

fn ingress(rng: &mut Rng, world: &World, set: &PolicySet) -> Result<Aim> {
    let rules: Vec<&Rule> = set.policies.values().flat_map(|policy| &policy.ingress).collect();
    let (source, service) = around_a_rule(rng, world, &rules)?;
    let destination = if rng.percent(10) {
        *rng.pick(&world.load_balancer_addresses).context("no LoadBalancer address")?
    } else {
        world.cluster_address(rng, source.is_ipv4())?
    };
    Ok((false, source, destination, service))
}

fn to_service(rng: &mut Rng, world: &World, set: &PolicySet) -> Result<Aim> {
    let services: Vec<&Service> = set.services.values().collect();
    let Some(service) = rng.pick(&services) else { return anywhere(rng, world) };
    let addresses: Vec<IpAddr> = service.addresses.iter().copied().collect();
    let ports: Vec<(Protocol, u16)> = service.ports.iter().copied().collect();
    let destination = *rng.pick(&addresses).context("a Service without address")?;
    let (protocol, mut port) = *rng.pick(&ports).context("a Service without port")?;
    if rng.percent(15) {
        port = port.wrapping_add(1).max(1);
    }
    let source = match &service.sources {
        Sources::Blocks(blocks) if rng.percent(85) => {
            let blocks: Vec<_> =
                blocks.iter().filter(|net| net.addr().is_ipv4() == destination.is_ipv4()).collect();
            match rng.pick(&blocks) {
                Some(net) => address_around(rng, world, &Block { index: 0, net: **net, except: Vec::new() }),
                None => world.outside_address(rng)?,
            }
        }
        _ => world.outside_address(rng)?,
    };
    Ok((false, source, destination, (protocol, port)))
}

fn anywhere(rng: &mut Rng, world: &World) -> Result<Aim> {
    let source = world.outside_address(rng)?;
    let destination = if rng.percent(50) {
        world.outside_address(rng)?
    } else {
        world.cluster_address(rng, source.is_ipv4())?
    };
    Ok((rng.percent(30), source, destination, (Protocol::Tcp, rng.between(75, 95))))
}

/// An address and a service that a rule mentions, or next to them.
fn around_a_rule(rng: &mut Rng, world: &World, rules: &[&Rule]) -> Result<(IpAddr, (Protocol, u16))> {
    let Some(rule) = rng.pick(rules) else {
        return Ok((world.outside_address(rng)?, (Protocol::Tcp, rng.between(75, 95))));
    };
    let address = match &rule.peers {
        Peers::Blocks(blocks) => match rng.pick(blocks) {
            Some(block) => address_around(rng, world, block),
            None => world.outside_address(rng)?,
        },
        Peers::Any | Peers::Names(_) => world.outside_address(rng)?,
    };
    Ok((address, around_ports(rng, &rule.ports)))
}

fn around_ports(rng: &mut Rng, ports: &Ports) -> (Protocol, u16) {
    match ports {
        Ports::Ranges(ranges) => match rng.pick(ranges) {
            Some(range) => around_a_range(rng, range),
            None => (Protocol::Tcp, rng.between(75, 95)),
        },
        Ports::All => (if rng.percent(50) { Protocol::Tcp } else { Protocol::Udp }, rng.between(1, 65_535)),
    }
}

fn around_a_range(rng: &mut Rng, range: &PortRange) -> (Protocol, u16) {
    let port = match rng.below(12) {
        0 => range.first.saturating_sub(1),
        1 => range.last.saturating_add(1),
        2 => range.last,
        3..6 => range.first,
        _ => rng.between(range.first, range.last),
    };
    let protocol = match (range.protocol, rng.percent(8)) {
        (Protocol::Tcp, true) | (Protocol::Udp, false) => Protocol::Udp,
        (Protocol::Udp, true) | (Protocol::Tcp, false) => Protocol::Tcp,
    };
    (protocol, port)
}
