//! The standard lab: cluster machines, the firewall, the internet.
//!
//! ```text
//!  cluster ns  eth0 ──── vrf104009  firewall ns  vlan179 ──── eth0  internet ns
//!  10.0.16.2             10.0.16.1               203.0.113.1        203.0.113.2
//!  + LoadBalancer IPs    forwards                                   + any other address asked for
//! ```
//!
//! Interfaces are plain veths; no name is shared outside the lab's namespaces, so labs run side by side.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use fw_policy::IfName;
use ipnet::IpNet;

use crate::Netns;
use crate::dns::{Authority, Resolver, Software, Stub, Zone, awkward};

/// The first cluster machine's network: `10.0.16.0/22` and `2001:db8:10::/48` are the cluster's prefixes.
pub const CLUSTER_PREFIXES: [&str; 2] = ["10.0.16.0/22", "2001:db8:10::/48"];
/// LoadBalancer addresses of the standard lab, on the first cluster machine.
pub const LOAD_BALANCER_ADDRESSES: [&str; 2] = ["198.51.100.10", "2001:db8:1b::10"];

/// Where the internet's authoritative server answers in a lab with DNS.
pub const AUTHORITY_ADDRESSES: [&str; 2] = ["203.0.113.52", "2001:db8:179::52"];
/// Where resolvers believe the servers of [`SCRIPTED_ZONE`] to be; a test starts a [`crate::dns::Scripted`] there.
pub const SCRIPTED_ADDRESSES: [&str; 2] = ["203.0.113.51", "2001:db8:179::51"];
/// The zone that resolvers ask at [`SCRIPTED_ADDRESSES`].
pub const SCRIPTED_ZONE: &str = "scripted.test";
/// Where the first resolver answers in a lab with DNS.
pub const RESOLVER_ADDRESSES: [&str; 2] = ["203.0.113.53", "2001:db8:179::53"];
/// Where the second resolver answers: an address of its own, and those of the public resolvers that real clusters ask.
pub const PUBLIC_RESOLVER_ADDRESSES: [&str; 10] = [
    "203.0.113.54",
    "2001:db8:179::54",
    "8.8.8.8",
    "8.8.4.4",
    "1.1.1.1",
    "1.0.0.1",
    "2001:4860:4860::8888",
    "2001:4860:4860::8844",
    "2606:4700:4700::1111",
    "2606:4700:4700::1001",
];

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct LabSpec {
    /// Goes into the namespaces' names.
    pub label: String,
    /// Cluster side; at least one.
    pub inside: Vec<Link>,
    /// Internet side; at least one. Packets to addresses in no other network go to the first.
    pub outside: Vec<Link>,
    /// How neighbours find each other.
    pub neighbours: Neighbours,
    /// Zones of the internet's DNS; `None`: there is no DNS.
    pub zones: Option<Vec<Zone>>,
}

/// A machine and its cable to the firewall.
#[derive(Clone, Debug)]
pub struct Link {
    /// Goes into the namespace's name, e.g. `cluster`.
    pub label: String,
    /// Name of the firewall's end, e.g. `vrf104009`.
    pub interface: IfName,
    /// The firewall's addresses on this link.
    pub gateway: (Ipv4Addr, Ipv6Addr),
    /// The machine's addresses on this link.
    pub machine: (Ipv4Addr, Ipv6Addr),
    /// Networks that the firewall routes to the machine.
    pub networks: Vec<IpNet>,
    /// More addresses of the machine (on its `lo`), routed to it.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of which the machine has every address, routed to it. To answer from such an address, a UDP server
    /// must choose its source ([`crate::traffic::any`] does); TCP does so by itself.
    pub any: Vec<IpNet>,
}

/// How neighbours find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbours {
    /// Permanent entries and no link-local addresses: not one packet flows that the test did not send.
    Static,
    /// ARP and neighbour discovery as in life, link-local addresses included.
    Discovered,
}

impl LabSpec {
    /// One machine on each side: `vrf104009` (10.0.16.0/22, 2001:db8:10::/48, LoadBalancer addresses
    /// 198.51.100.10 and 2001:db8:1b::10) and `vlan179` (203.0.113.0/24, 2001:db8:179::/64, and everything else).
    pub fn standard(label: &str) -> Result<Self> {
        let mut cluster =
            Link::new("cluster", "vrf104009", "10.0.16.1", "2001:db8:10:16::1", &CLUSTER_PREFIXES)?;
        for address in LOAD_BALANCER_ADDRESSES {
            cluster.addresses.push(address.parse()?);
        }
        let internet =
            Link::new("internet", "vlan179", "203.0.113.1", "2001:db8:179::1", &["0.0.0.0/0", "::/0"])?;
        Ok(Self {
            label: label.to_owned(),
            inside: vec![cluster],
            outside: vec![internet],
            neighbours: Neighbours::Static,
            zones: None,
        })
    }

    /// Adds a second cluster machine: `vlan104009`, 10.0.17.0/24 and 2001:db8:10:17::/64 out of the cluster's
    /// prefixes. (Both names are inside, as on a real box whose VRF master is `vrf104009`.)
    pub fn with_second_inside(mut self) -> Result<Self> {
        let networks = ["10.0.17.0/24", "2001:db8:10:17::/64"];
        self.inside.push(Link::new("cluster2", "vlan104009", "10.0.17.1", "2001:db8:10:17::1", &networks)?);
        Ok(self)
    }

    /// Adds a second outside network: `vlan178`, 192.0.2.0/24 and 2001:db8:178::/64.
    pub fn with_second_outside(mut self) -> Result<Self> {
        let networks = ["192.0.2.0/24", "2001:db8:178::/64"];
        self.outside.push(Link::new("internet2", "vlan178", "192.0.2.1", "2001:db8:178::1", &networks)?);
        Ok(self)
    }

    /// Adds addresses to the first outside machine, e.g. those that example policies name.
    pub fn with_internet_addresses(mut self, addresses: &[IpAddr]) -> Self {
        if let Some(internet) = self.outside.first_mut() {
            internet.addresses.extend(addresses);
        }
        self
    }

    /// The first outside machine has every address of these prefixes, e.g. [`awkward::V4`] and [`awkward::V6`].
    pub fn with_any_internet(mut self, prefixes: &[IpNet]) -> Self {
        if let Some(internet) = self.outside.first_mut() {
            internet.any.extend(prefixes);
        }
        self
    }

    /// DNS on the first outside machine: an authoritative server with the zones of [`awkward`], two resolvers at
    /// [`RESOLVER_ADDRESSES`] and [`PUBLIC_RESOLVER_ADDRESSES`], and the addresses that the zones name.
    pub fn with_dns(self) -> Result<Self> {
        self.with_zones(awkward::zones()?)
    }

    /// As [`LabSpec::with_dns`], with zones of your own; have one for the root.
    pub fn with_zones(mut self, zones: Vec<Zone>) -> Result<Self> {
        let lists = [&AUTHORITY_ADDRESSES, &SCRIPTED_ADDRESSES, &RESOLVER_ADDRESSES];
        let texts = lists.into_iter().flatten().chain(&PUBLIC_RESOLVER_ADDRESSES);
        let addresses = texts.map(|text| text.parse()).collect::<Result<Vec<IpAddr>, _>>()?;
        self.zones = Some(zones);
        let prefixes = [awkward::V4.parse()?, awkward::V6.parse()?];
        Ok(self.with_internet_addresses(&addresses).with_any_internet(&prefixes))
    }
}

impl Link {
    /// A link whose firewall end has the given addresses, and the machine the next ones.
    pub fn new(
        label: &str,
        interface: &str,
        gateway_v4: &str,
        gateway_v6: &str,
        networks: &[&str],
    ) -> Result<Self> {
        let gateway: (Ipv4Addr, Ipv6Addr) = (gateway_v4.parse()?, gateway_v6.parse()?);
        let machine = (
            Ipv4Addr::from_bits(gateway.0.to_bits().wrapping_add(1)),
            Ipv6Addr::from_bits(gateway.1.to_bits().wrapping_add(1)),
        );
        Ok(Self {
            label: label.to_owned(),
            interface: interface.parse()?,
            gateway,
            machine,
            networks: networks.iter().map(|net| net.parse::<IpNet>()).collect::<Result<_, _>>()?,
            addresses: Vec::new(),
            any: Vec::new(),
        })
    }
}

/// A running lab; everything goes with it.
#[derive(Debug)]
pub struct Lab {
    /// The internet's DNS, if the [`LabSpec`] has it. (First, so that the programs end before their namespace goes.)
    pub dns: Option<Dns>,
    /// The firewall: forwards IPv4 and IPv6, has no rules.
    pub firewall: Netns,
    /// Cluster side, in the order of the [`LabSpec`].
    pub inside: Vec<Machine>,
    /// Internet side, in the order of the [`LabSpec`].
    pub outside: Vec<Machine>,
}

/// The DNS of a lab's internet.
#[derive(Debug)]
pub struct Dns {
    /// Serves the zones.
    pub authority: Authority,
    /// Two recursive resolvers.
    pub resolvers: [Resolver; 2],
}

impl Dns {
    fn new(ns: &Netns, zones: &[Zone]) -> Result<Self> {
        let at_home = parse_all(&AUTHORITY_ADDRESSES)?;
        // Knot writes all names in lower case and follows five CNAMEs at a time; BIND keeps every letter and every hop.
        let authority = Authority::with(Software::Bind, ns, &at_home, zones)?;
        let stubs: Vec<Stub> = zones.iter().map(|zone| Stub::at(zone.origin(), &at_home)).collect();
        let later = [Stub::at(SCRIPTED_ZONE, &parse_all(&SCRIPTED_ADDRESSES)?)];
        let resolver = |addresses: &[&str]| Resolver::recursive(ns, &parse_all(addresses)?, &stubs, &later);
        let resolvers = [resolver(&RESOLVER_ADDRESSES)?, resolver(&PUBLIC_RESOLVER_ADDRESSES)?];
        Ok(Self { authority, resolvers })
    }
}

fn parse_all(texts: &[&str]) -> Result<Vec<IpAddr>> {
    Ok(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

/// A machine of the lab.
#[derive(Debug)]
pub struct Machine {
    /// Its namespace.
    pub ns: Netns,
    /// What it was made from.
    pub link: Link,
    /// Ethernet address of its `eth0`.
    pub mac: [u8; 6],
    /// Ethernet address of the firewall's end.
    pub gateway_mac: [u8; 6],
}

impl Machine {
    /// Name of every machine's interface.
    pub const INTERFACE: &'static str = "eth0";

    /// The machine's IPv4 address on its link.
    pub fn v4(&self) -> IpAddr {
        self.link.machine.0.into()
    }

    /// The machine's IPv6 address on its link.
    pub fn v6(&self) -> IpAddr {
        self.link.machine.1.into()
    }

    /// Name of the firewall's end.
    pub fn firewall_interface(&self) -> &IfName {
        &self.link.interface
    }
}

impl Lab {
    /// The standard lab.
    pub fn standard(label: &str) -> Result<Self> {
        Self::new(&LabSpec::standard(label)?)
    }

    /// Builds a lab and waits until its cables carry packets.
    pub fn new(spec: &LabSpec) -> Result<Self> {
        ensure!(
            !spec.inside.is_empty() && !spec.outside.is_empty(),
            "a lab has at least one machine on each side"
        );
        let firewall = Netns::new(&format!("{}-firewall", spec.label))?;
        let mut machines = Vec::new();
        for (number, link) in spec.inside.iter().chain(&spec.outside).enumerate() {
            let number = u8::try_from(number)?;
            machines.push(Machine {
                ns: Netns::new(&format!("{}-{}", spec.label, link.label))?,
                link: link.clone(),
                mac: [0x02, 0, 0, 0, number, 2],
                gateway_mac: [0x02, 0, 0, 0, number, 1],
            });
        }
        prepare_stack(&firewall, spec.neighbours, true)?;
        for machine in &machines {
            prepare_stack(&machine.ns, spec.neighbours, false)?;
        }
        firewall.ip(&firewall_batch(&machines, spec.neighbours)?)?;
        for machine in &machines {
            machine.ns.ip(&machine_batch(machine, spec.neighbours)?)?;
        }
        wait_for_carriers(&firewall)?;
        let outside = machines.split_off(spec.inside.len());
        let mut lab = Self { dns: None, firewall, inside: machines, outside };
        if let Some(zones) = &spec.zones {
            lab.dns = Some(Dns::new(&lab.internet().ns, zones)?);
        }
        Ok(lab)
    }

    /// The first cluster machine.
    pub fn cluster(&self) -> &Machine {
        &self.inside[0]
    }

    /// The first machine outside.
    pub fn internet(&self) -> &Machine {
        &self.outside[0]
    }

    /// All machines, inside first.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.inside.iter().chain(&self.outside)
    }

    /// How a person gets into the namespaces while they exist, one line each.
    pub fn hint(&self) -> String {
        let mut text = format!("{}\n", self.firewall.hint());
        for machine in self.machines() {
            text.push_str(&machine.ns.hint());
            text.push('\n');
        }
        text
    }
}

/// Before any interface exists, so that all of them begin like this.
fn prepare_stack(ns: &Netns, neighbours: Neighbours, forwards: bool) -> Result<()> {
    let mut settings = vec![
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
        // Errors are part of what is tested; the default lets one a second through to each destination.
        ("net.ipv4.icmp_ratelimit", "0"),
        ("net.ipv6.icmp.ratelimit", "0"),
        ("net.ipv6.conf.default.disable_ipv6", "0"),
        ("net.ipv6.conf.all.disable_ipv6", "0"),
        ("net.ipv6.conf.default.accept_dad", "0"),
        ("net.ipv6.conf.default.dad_transmits", "0"),
        ("net.ipv6.conf.default.accept_ra", "0"),
        ("net.ipv6.conf.default.autoconf", "0"),
        ("net.ipv6.conf.default.router_solicitations", "0"),
    ];
    if neighbours == Neighbours::Static {
        // 1 = no link-local address, hence no multicast listener reports either.
        settings.push(("net.ipv6.conf.default.addr_gen_mode", "1"));
    }
    if forwards {
        settings.push(("net.ipv4.ip_forward", "1"));
        settings.push(("net.ipv6.conf.all.forwarding", "1"));
        settings.push(("net.ipv6.conf.default.forwarding", "1"));
    }
    ns.sysctl(&settings)
}

/// Addresses are /32 and /128 and all routes have a next hop: every address of a network is reachable through
/// its machine, the first and last too, and none is taken for a broadcast address.
fn firewall_batch(machines: &[Machine], neighbours: Neighbours) -> Result<String> {
    let mut batch = String::from("link set lo up\n");
    for machine in machines {
        let Link { interface, gateway, .. } = &machine.link;
        let (mac, peer_mac) = (mac_text(machine.gateway_mac), mac_text(machine.mac));
        writeln!(
            batch,
            "link add {interface} address {mac} type veth peer name {} address {peer_mac} netns {}",
            Machine::INTERFACE,
            machine.ns.name()
        )?;
        writeln!(batch, "address add {}/32 dev {interface}", gateway.0)?;
        writeln!(batch, "address add {}/128 dev {interface} nodad", gateway.1)?;
        writeln!(batch, "link set {interface} up")?;
        if neighbours == Neighbours::Static {
            for address in [machine.v4(), machine.v6()] {
                writeln!(
                    batch,
                    "neighbour replace {address} lladdr {peer_mac} dev {interface} nud permanent"
                )?;
            }
        }
        for address in [machine.v4(), machine.v6()] {
            writeln!(batch, "route replace {} dev {interface}", IpNet::from(address))?;
        }
        let addresses = machine.link.addresses.iter().copied().map(IpNet::from);
        let any = machine.link.any.iter().copied();
        for net in machine.link.networks.iter().copied().chain(addresses).chain(any) {
            let via = if net.addr().is_ipv4() { machine.v4() } else { machine.v6() };
            writeln!(batch, "route replace {net} via {via} dev {interface} onlink")?;
        }
    }
    Ok(batch)
}

fn machine_batch(machine: &Machine, neighbours: Neighbours) -> Result<String> {
    let interface = Machine::INTERFACE;
    let Link { gateway, machine: own, addresses, any, .. } = &machine.link;
    let mut batch = String::from("link set lo up\n");
    writeln!(batch, "address add {}/32 dev {interface}", own.0)?;
    writeln!(batch, "address add {}/128 dev {interface} nodad", own.1)?;
    for address in addresses {
        let (bits, flags) = if address.is_ipv4() { (32, "") } else { (128, " nodad") };
        writeln!(batch, "address add {address}/{bits} dev lo{flags}")?;
    }
    for prefix in any {
        writeln!(batch, "route add local {prefix} dev lo")?;
    }
    writeln!(batch, "link set {interface} up")?;
    for gateway in [IpAddr::from(gateway.0), gateway.1.into()] {
        if neighbours == Neighbours::Static {
            let mac = mac_text(machine.gateway_mac);
            writeln!(batch, "neighbour replace {gateway} lladdr {mac} dev {interface} nud permanent")?;
        }
        let source = if gateway.is_ipv4() { machine.v4() } else { machine.v6() };
        writeln!(batch, "route replace {} dev {interface} src {source}", IpNet::from(gateway))?;
        let default = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        writeln!(batch, "route replace {default} via {gateway} dev {interface} onlink src {source}")?;
    }
    Ok(batch)
}

/// The second end of a veth to come up (the machine's) works at once. The first works only after the kernel's
/// link watcher has run: until then its queue is `noop`, which loses every packet (dev_activate() in
/// net/sched/sch_generic.c, linkwatch_do_dev() in net/core/link_watch.c). The machines' ends show `state DOWN`
/// for up to a second more, for their event is not urgent; they carry packets nevertheless.
fn wait_for_carriers(ns: &Netns) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let links = ns.output("ip", &["-o", "link", "show", "type", "veth"])?;
        if links.lines().all(|line| line.contains("state UP")) {
            // The watcher sets the state before it activates the queue, both under the RTNL: whoever has had
            // that lock after seeing the state sees an active queue.
            return ns.ip("link set lo up");
        }
        if Instant::now() > deadline {
            bail!("no carrier in {} after 10 s:\n{links}\n{}", ns.name(), ns.hint());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
