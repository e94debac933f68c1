//! What the objects mean. Every collection is ordered, every value is parsed and typed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Dns, Fastpath, IfName};

/// Everything the firewall enforces.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PolicySet {
    /// ClusterwideNetworkPolicies by name. Those with state `ignored` are not here.
    pub policies: BTreeMap<String, Policy>,
    /// LoadBalancer Services that open something.
    pub services: BTreeMap<ServiceName, Service>,
    /// Every assigned LoadBalancer address, also of Services that open nothing: sources that may enter by inside.
    pub load_balancer_addresses: BTreeSet<IpAddr>,
    /// The Firewall object, or its defaults.
    pub firewall: Firewall,
}

/// One ClusterwideNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    /// What may enter: NEW packets that leave by inside and came from outside.
    pub ingress: Vec<Rule>,
    /// What may leave: NEW packets that entered by inside.
    pub egress: Vec<Rule>,
}

/// One entry of `spec.ingress` or `spec.egress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its index in the list as written (entries lost to findings leave gaps).
    pub index: usize,
    /// Sources (ingress) or destinations (egress).
    pub peers: Peers,
    /// Destination ports.
    pub ports: Ports,
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Written empty or missing: everyone, IPv4 and IPv6.
    Any,
    /// Address blocks. An empty list (all entries lost to findings) matches nothing.
    Blocks(Vec<Block>),
    /// DNS names; egress only. An empty list matches nothing.
    Names(Vec<FqdnSelector>),
}

/// An address block less its exceptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its index in the list as written.
    pub index: usize,
    /// The block, host bits cleared.
    pub net: IpNet,
    /// What is taken out of THIS block; same family, host bits cleared, each one inside `net` or covering it.
    pub except: Vec<IpNet>,
}

/// A selector of `toFQDNs`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FqdnSelector {
    /// One exact name, lower case, without trailing dot.
    Name(String),
    /// A pattern with `*`, lower case, without trailing dot.
    Pattern(String),
    /// A regular expression over the whole lower-case name without trailing dot, anchored at both ends.
    Regex(String),
}

impl FqdnSelector {
    /// The name, pattern or expression: what comments and the status call it by.
    pub fn text(&self) -> &str {
        match self {
            Self::Name(text) | Self::Pattern(text) | Self::Regex(text) => text,
        }
    }
}

/// Destination ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Written empty or missing: all of TCP and UDP.
    All,
    /// Ranges. An empty list (all entries lost to findings) matches nothing.
    Ranges(Vec<PortRange>),
}

/// Ports `first..=last` of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// Its index in the list as written.
    pub index: usize,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// 1..=65535.
    pub first: u16,
    /// `first..=65535`.
    pub last: u16,
}

/// Protocols that policies can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

impl Protocol {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Namespace and name of a Service; prints as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a LoadBalancer Service opens: exactly these addresses and ports, to these sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Assigned addresses (`status.loadBalancer.ingress[].ip`) inside the allowed networks; never empty.
    pub addresses: BTreeSet<IpAddr>,
    /// Protocol and port; never empty.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// Who may come.
    pub sources: Sources,
}

/// `spec.loadBalancerSourceRanges`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// Written empty or missing.
    Any,
    /// These blocks, host bits cleared. Never empty: a Service whose ranges are all invalid opens nothing.
    Blocks(BTreeSet<IpNet>),
}

/// What the Firewall object asks for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Firewall {
    /// Which side is inside.
    pub inside: Inside,
    /// `internalprefixes`: what accounting counts as internal traffic. Host bits cleared.
    pub internal_prefixes: BTreeSet<IpNet>,
    /// Rate limits by name (interface or network id).
    pub rate_limits: BTreeMap<String, RateLimit>,
    /// Source NAT by network id.
    pub snat: BTreeMap<String, Snat>,
    /// Networks with `nat: true` and no addresses in `egressRules`: masquerading, part of host protection.
    pub masquerade: BTreeMap<String, Masquerade>,
    /// Whether pings pass.
    pub icmp_echo: IcmpEcho,
    /// The limited drop log.
    pub drop_log: DropLog,
    /// `logAcceptedConnections`.
    pub log_accepted: bool,
    /// `dryrun`: compile and check, apply nothing.
    pub dry_run: bool,
    /// Opt-in protection of the box itself.
    pub host: Option<HostProtection>,
    /// The DNS proxy and what is learned from its answers.
    pub dns: Dns,
    /// Where packets are stamped and dropped early.
    pub fastpath: Fastpath,
}

/// Which interfaces and prefixes are the cluster's side.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Inside {
    /// Interfaces towards the cluster. Empty: nothing is opened.
    pub interfaces: BTreeSet<IfName>,
    /// Prefixes of the cluster's machines, host bits cleared. Empty: unknown, no spoofing check.
    pub prefixes: BTreeSet<IpNet>,
    /// How the interfaces were found, for the status.
    pub basis: InsideBasis,
}

/// Where the knowledge of the inside comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum InsideBasis {
    /// Nothing known: nothing is opened.
    #[default]
    Unknown,
    /// `insideInterfaces` in the Firewall.
    Explicit,
    /// The private primary network of `firewallNetworks`.
    FirewallNetworks,
    /// Routes towards `clusterPrefixes` at start.
    Routes,
}

/// One token bucket per direction of one interface (or of the names one interface can have).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The names it can have, `vlan<id>` and `vrf<id>`.
    pub interfaces: BTreeSet<IfName>,
    /// Bytes per second; never 0.
    pub bytes_per_second: u64,
}

impl RateLimit {
    /// Bucket size in bytes: what passes in 100 ms, at least 256 KiB (semantics.md section 5).
    pub fn burst_bytes(&self) -> u64 {
        (self.bytes_per_second / 10).max(256 * 1024)
    }
}

/// Source NAT of cluster traffic that leaves by one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snat {
    /// The names of the outgoing interface, `vlan<vrf>` and `vrf<vrf>`.
    pub interfaces: BTreeSet<IfName>,
    /// The addresses, each inside one of the network's prefixes; both families may be there.
    pub addresses: BTreeSet<IpAddr>,
    /// The interface the addresses are put on, `vlan<vrf>`.
    pub device: IfName,
}

/// Masquerading of cluster traffic that leaves by one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The names of the outgoing interface.
    pub interfaces: BTreeSet<IfName>,
}

/// Which new echo requests pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum IcmpEcho {
    /// None, as in today's product.
    #[default]
    Deny,
    /// Those entering by inside.
    Egress,
    /// Those entering or leaving by inside.
    Both,
}

/// The drop log's limiter and target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropLog {
    /// Lines per second; 0 = unlimited.
    pub rate: u32,
    /// Lines above the rate that may come at once.
    pub burst: u32,
    /// Where the lines go.
    pub to: DropLogTarget,
    /// NFLOG group.
    pub group: u16,
}

impl PortRange {
    /// True when the port is one of the range.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && (self.first..=self.last).contains(&port)
    }
}

impl Ports {
    /// True when a rule with these ports lets the port through.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Ranges(ranges) => ranges.iter().any(|range| range.contains(protocol, port)),
        }
    }
}

impl Block {
    /// Length of the largest prefix around `address` that this block covers whole: the block's own length where
    /// nothing is excepted, more where it had to be cut; `None` outside the block and inside an `except`.
    ///
    /// So a block with exceptions counts as the prefixes it leaves, and the longest of all blocks wins a packet.
    pub fn covering_prefix_len(&self, address: IpAddr) -> Option<u8> {
        if !self.net.contains(&address) {
            return None;
        }
        (self.net.prefix_len()..=self.net.max_prefix_len()).find(|length| {
            let Ok(around) = IpNet::new(address, *length) else { return false };
            let around = around.trunc();
            !self.except.iter().any(|except| except.contains(&around) || around.contains(except))
        })
    }
}

impl Sources {
    /// True when the address may come.
    pub fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Blocks(blocks) => blocks.iter().any(|block| block.contains(&address)),
        }
    }
}

impl Default for DropLog {
    fn default() -> Self {
        Self { rate: 10, burst: 1, to: DropLogTarget::Nflog, group: 1 }
    }
}

/// Where logged packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropLogTarget {
    /// nfnetlink_log.
    Nflog,
    /// The kernel's message log.
    Kernel,
    /// Both.
    Both,
}

/// Opt-in protection of the box itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HostProtection {
    /// TCP ports on which SSH is reached, from `sshPorts` or from what sshd listens on; never empty.
    pub ssh_ports: BTreeSet<u16>,
    /// TCP sessions of the box that conntrack may not have seen yet: (remote address, remote port, local
    /// address, local port). They survive the moment host protection is switched on.
    pub live_sessions: BTreeSet<(IpAddr, u16, IpAddr, u16)>,
    /// Sources of VXLAN (UDP 4789): the prefixes of the underlay network. Without them the box would lose its own
    /// overlay the moment host protection is switched on.
    pub underlay_prefixes: BTreeSet<IpNet>,
}
