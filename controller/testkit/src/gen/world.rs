//! The addresses and interfaces that policies and packets are about.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use fw_policy::{IfName, Packet};
use ipnet::IpNet;

use crate::r#gen::Rng;
use crate::topology::LabSpec;
use crate::traffic::craft::Crafted;
use crate::traffic::range::Shot;

/// A lab, as far as generators have to know it.
#[derive(Clone, Debug)]
pub struct World {
    links: Vec<Link>,
    gateways: BTreeSet<IpAddr>,
    /// Prefixes of the cluster's machines.
    pub cluster_prefixes: BTreeSet<IpNet>,
    /// Addresses that Services may have.
    pub load_balancer_addresses: Vec<IpAddr>,
    bases: Vec<IpNet>,
}

#[derive(Clone, Debug)]
struct Link {
    interface: IfName,
    inside: bool,
    networks: Vec<IpNet>,
}

/// Where generated blocks lie: few and small, so that they nest and overlap.
const BASES: [&str; 5] =
    ["1.2.0.0/21", "100.64.8.0/22", "203.0.113.0/24", "2001:db8:a::/117", "2001:db8:ffff::/64"];

/// Low bits of an address that vary.
const ROOM: u8 = 11;

impl World {
    /// What a lab will be.
    pub fn of(spec: &LabSpec) -> Result<Self> {
        let sides =
            spec.inside.iter().map(|link| (link, true)).chain(spec.outside.iter().map(|link| (link, false)));
        let mut world = Self {
            links: Vec::new(),
            gateways: BTreeSet::new(),
            cluster_prefixes: BTreeSet::new(),
            load_balancer_addresses: spec.inside.iter().flat_map(|link| link.addresses.clone()).collect(),
            bases: BASES.iter().map(|base| base.parse()).collect::<Result<_, _>>()?,
        };
        for (link, inside) in sides {
            let hosts = link.addresses.iter().copied().chain([link.machine.0.into(), link.machine.1.into()]);
            let networks = link.networks.iter().copied().chain(hosts.map(IpNet::from)).collect();
            world.links.push(Link { interface: link.interface.clone(), inside, networks });
            world.gateways.extend([IpAddr::from(link.gateway.0), link.gateway.1.into()]);
            if inside {
                world.cluster_prefixes.extend(&link.networks);
            } else {
                world.bases.extend(link.networks.iter().filter(|net| net.prefix_len() > 0));
            }
        }
        let all = world.cluster_prefixes.clone();
        world.cluster_prefixes.retain(|net| !all.iter().any(|other| other != net && other.contains(net)));
        Ok(world)
    }

    /// The names inside interfaces can have: `vrf<id>` and `vlan<id>` for each.
    pub fn inside_interfaces(&self) -> Result<BTreeSet<IfName>> {
        let mut names = BTreeSet::new();
        for link in self.links.iter().filter(|link| link.inside) {
            let name = link.interface.as_str();
            let id = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
            names.insert(link.interface.clone());
            if name.starts_with("vrf") || name.starts_with("vlan") {
                names.extend([format!("vrf{id}").parse::<IfName>()?, format!("vlan{id}").parse()?]);
            }
        }
        Ok(names)
    }

    /// The firewall's interfaces; `inside` tells which side.
    pub fn interfaces(&self, inside: bool) -> Vec<&IfName> {
        self.links.iter().filter(|link| link.inside == inside).map(|link| &link.interface).collect()
    }

    /// The interface by which a packet to `destination` leaves, and whether that is inside; `None` when the
    /// firewall does not forward it.
    pub fn route(&self, destination: IpAddr) -> Option<(&IfName, bool)> {
        if !self.is_forwarded(destination) {
            return None;
        }
        let routes = self.links.iter().flat_map(|link| link.networks.iter().map(move |net| (net, link)));
        let (_, link) =
            routes.filter(|(net, _)| net.contains(&destination)).max_by_key(|(net, _)| net.prefix_len())?;
        Some((&link.interface, link.inside))
    }

    /// Whether the kernel forwards packets from and to an address: not the firewall's own, nor multicast,
    /// loopback, link-local and the like.
    pub fn is_forwarded(&self, address: IpAddr) -> bool {
        let ordinary = match address {
            IpAddr::V4(v4) => (1..224).contains(&v4.octets()[0]) && !v4.is_loopback(),
            // Global unicast and unique local; nothing else is in use.
            IpAddr::V6(v6) => matches!(v6.segments()[0] >> 13, 1) || v6.is_unique_local(),
        };
        ordinary && !self.gateways.contains(&address)
    }

    /// A block: mostly a small one in one of few places, sometimes a part of the cluster, sometimes everything.
    pub(crate) fn block(&self, rng: &mut Rng) -> Result<IpNet> {
        let cluster: Vec<IpNet> = self.cluster_prefixes.iter().copied().collect();
        let bases = if rng.percent(6) { &cluster } else { &self.bases };
        let base = *rng.pick(bases).context("no base")?;
        let most = base.max_prefix_len();
        let length = match rng.below(100) {
            0 => u8::try_from(rng.below(usize::from(base.prefix_len()) + 1))?,
            1..10 => base.prefix_len(),
            _ => most - u8::try_from(rng.below(usize::from(self.room(base)) + 1))?,
        };
        Ok(IpNet::new(self.address_in(rng, base), length)?.trunc())
    }

    /// An address of a network; only the lowest bits vary.
    pub(crate) fn address_in(&self, rng: &mut Rng, net: IpNet) -> IpAddr {
        let room = (net.max_prefix_len() - net.prefix_len()).min(ROOM);
        add(net.network(), i128::from(u32::try_from(rng.below(1 << room)).unwrap_or(0)))
    }

    /// An address somewhere outside, near generated blocks.
    pub(crate) fn outside_address(&self, rng: &mut Rng) -> Result<IpAddr> {
        let base = *rng.pick(&self.bases).context("no base")?;
        Ok(self.address_in(rng, base))
    }

    /// An address of a cluster machine.
    pub(crate) fn cluster_address(&self, rng: &mut Rng, v4: bool) -> Result<IpAddr> {
        let prefixes: Vec<IpNet> =
            self.cluster_prefixes.iter().copied().filter(|net| net.addr().is_ipv4() == v4).collect();
        let prefix = *rng.pick(&prefixes).context("the cluster has no prefix of this family")?;
        Ok(self.address_in(rng, prefix))
    }

    fn room(&self, base: IpNet) -> u8 {
        (base.max_prefix_len() - base.prefix_len()).min(ROOM)
    }

    /// What sends a generated packet in the lab: the machine at its input interface. `number` makes the flow of
    /// an echo its own.
    pub fn shot(&self, packet: &Packet, number: usize) -> Result<Shot> {
        let from = self.links.iter().position(|link| link.interface == packet.input);
        let from = from.with_context(|| format!("no machine is at {}", packet.input))?;
        Ok(Shot { from, packet: Crafted::of(packet, u16::try_from(number & 0xffff)?)? })
    }

    /// The machine at which a packet comes out if it is accepted, as an index into the lab's machines.
    pub fn target(&self, packet: &Packet) -> Option<usize> {
        self.links.iter().position(|link| link.interface == packet.output)
    }
}

/// The address so many after (or before) another one; wraps around.
pub(crate) fn add(address: IpAddr, distance: i128) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let moved = (i128::from(v4.to_bits()) + distance).rem_euclid(1 << 32);
            Ipv4Addr::from_bits(u32::try_from(moved).unwrap_or(0)).into()
        }
        IpAddr::V6(v6) => {
            let distance = distance.cast_unsigned();
            Ipv6Addr::from_bits(v6.to_bits().wrapping_add(distance)).into()
        }
    }
}
