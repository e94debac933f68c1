//! What would have let a dropped packet pass: one entry of a policy, in words that can be pasted into its spec.
//!
//! The cost is bounded: policies are looked through for near misses only up to a number of entries. What names and
//! addresses a hint has come from packets and from DNS answers, which strangers write; so a name that is no host name
//! is not repeated.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    Block, DropReason, FqdnSelector, Packet, Peers, Policy, PolicySet, PortRange, Ports, Protocol, Rule,
    Transport,
};

/// Longest hint, in bytes.
pub const MAX_HINT: usize = 400;
/// Blocks, names and ports that are looked at for near misses.
const BUDGET: usize = 20_000;
/// Port ranges that a near miss lists.
const MAX_PORTS: usize = 3;
/// Longest name of a policy that a near miss shows whole.
const MAX_POLICY: usize = 63;

/// The hint for one dropped packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The entry that would allow it; `Err`: why no policy can.
    pub entry: Result<Entry, &'static str>,
    /// A policy that nearly allows it.
    pub near: Option<Near>,
}

/// An entry of `spec.egress` or `spec.ingress` that allows one service of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// True: of `spec.egress`.
    pub egress: bool,
    /// The other side.
    pub peer: Peer,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port, 1..=65535.
    pub port: u16,
}

/// The other side of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// One address.
    Address(IpAddr),
    /// One name, lower case, without trailing dot; egress only.
    Name(String),
}

/// A policy that nearly allows a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Near {
    /// Its name.
    pub policy: String,
    /// What keeps it from doing so.
    pub miss: Miss,
}

/// What keeps a policy from allowing a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It has the address, with other ports.
    Ports(Vec<PortRange>),
    /// It has the name, with other ports.
    PortsOfName(Vec<PortRange>),
    /// It has a block around the address, and excepts it.
    Excepted,
}

impl PolicySet {
    /// What would have allowed a packet that was dropped for this reason. `name` is the DNS name by which its
    /// destination is known, if it is; one that is no host name is not used.
    pub fn hint(&self, packet: &Packet, reason: DropReason, name: Option<&str>) -> Hint {
        let entry = match reason {
            DropReason::Policy => self.entry_for(packet, name),
            DropReason::Spoofed => Err("no policy allows a source that is not the cluster's"),
            DropReason::UnsupportedProtocol => Err("policies allow TCP and UDP only"),
            DropReason::EncryptedDns => {
                Err("spec.dns.dot or spec.dns.doh of the Firewall refuses encrypted DNS")
            }
            DropReason::Bgp => Err("BGP to the machines is not forwarded under host protection"),
            DropReason::Invalid => Err("no policy allows what conntrack calls invalid"),
        };
        let near = entry.as_ref().ok().and_then(|entry| self.near(entry, packet));
        Hint { entry, near }
    }

    fn entry_for(&self, packet: &Packet, name: Option<&str>) -> Result<Entry, &'static str> {
        let inside = &self.firewall.inside.interfaces;
        let egress = inside.contains(&packet.input);
        let ingress = !egress && inside.contains(&packet.output);
        if !egress && !ingress {
            return Err("no policy allows what neither comes from the cluster nor goes to it");
        }
        let (protocol, port) = match packet.transport {
            Transport::Tcp { destination, .. } => (Protocol::Tcp, destination),
            Transport::Udp { destination, .. } => (Protocol::Udp, destination),
            Transport::Icmp { kind: 8 | 128, .. } if egress => {
                return Err("icmpEcho: egress in the spec of the Firewall allows pings");
            }
            Transport::Icmp { kind: 8 | 128, .. } => {
                return Err("icmpEcho: both in the spec of the Firewall allows pings");
            }
            Transport::Icmp { .. } => return Err("of ICMP only pings and errors of connections can pass"),
            Transport::Other(_) => return Err("policies allow TCP and UDP only"),
        };
        if port == 0 {
            return Err("port 0 is nobody's");
        }
        let peer = match name.filter(|name| egress && is_host_name(name)) {
            Some(name) => Peer::Name(name.to_owned()),
            None => Peer::Address(if egress { packet.destination } else { packet.source }),
        };
        Ok(Entry { egress, peer, protocol, port })
    }

    /// The first policy that nearly allows the packet, within the budget.
    fn near(&self, entry: &Entry, packet: &Packet) -> Option<Near> {
        let address = if entry.egress { packet.destination } else { packet.source };
        let mut budget = BUDGET;
        for (name, policy) in &self.policies {
            for rule in rules(policy, entry.egress) {
                budget = budget.checked_sub(cost(rule))?;
                if let Some(miss) = miss(rule, entry, address) {
                    return Some(Near { policy: name.clone(), miss });
                }
            }
        }
        None
    }
}

fn rules(policy: &Policy, egress: bool) -> &[Rule] {
    if egress { &policy.egress } else { &policy.ingress }
}

fn cost(rule: &Rule) -> usize {
    let peers = match &rule.peers {
        Peers::Any => 1,
        Peers::Blocks(blocks) => blocks.iter().map(|block| 1 + block.except.len()).sum(),
        Peers::Names(names) => names.len(),
    };
    let ports = match &rule.ports {
        Ports::All => 1,
        Ports::Ranges(ranges) => ranges.len(),
    };
    1 + peers + ports
}

fn miss(rule: &Rule, entry: &Entry, address: IpAddr) -> Option<Miss> {
    let has_port = rule.ports.contains(entry.protocol, entry.port);
    let other_ports = || match &rule.ports {
        Ports::Ranges(ranges) if !ranges.is_empty() => {
            Some(ranges.iter().take(MAX_PORTS + 1).copied().collect())
        }
        _ => None,
    };
    match &rule.peers {
        // A rule for everyone is near everything.
        Peers::Any => None,
        Peers::Blocks(blocks) if has_port => {
            blocks.iter().any(|block| excepts(block, address)).then_some(Miss::Excepted)
        }
        Peers::Blocks(blocks) => {
            let has = blocks.iter().any(|block| block.net.contains(&address) && !excepts(block, address));
            if has { other_ports().map(Miss::Ports) } else { None }
        }
        Peers::Names(names) if !has_port => {
            let Peer::Name(wanted) = &entry.peer else { return None };
            let has = names.iter().any(|name| matches!(name, FqdnSelector::Name(name) if name == wanted));
            if has { other_ports().map(Miss::PortsOfName) } else { None }
        }
        Peers::Names(_) => None,
    }
}

fn excepts(block: &Block, address: IpAddr) -> bool {
    block.net.contains(&address) && block.except.iter().any(|except| except.contains(&address))
}

impl Entry {
    /// The entry as a rule, first in a list.
    pub fn rule(&self) -> Rule {
        let peers = match &self.peer {
            Peer::Address(address) => {
                Peers::Blocks(vec![Block { index: 0, net: IpNet::from(*address), except: Vec::new() }])
            }
            Peer::Name(name) => Peers::Names(vec![FqdnSelector::Name(name.clone())]),
        };
        let range = PortRange { index: 0, protocol: self.protocol, first: self.port, last: self.port };
        Rule { index: 0, peers, ports: Ports::Ranges(vec![range]) }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (list, peers) = if self.egress { ("egress", "to") } else { ("ingress", "from") };
        write!(f, "{list}: [{{")?;
        match &self.peer {
            Peer::Address(IpAddr::V4(address)) => write!(f, "{peers}: [{{cidr: {address}/32}}]")?,
            // A colon in a flow mapping of YAML wants quotes.
            Peer::Address(IpAddr::V6(address)) => write!(f, "{peers}: [{{cidr: '{address}/128'}}]")?,
            // Numbers such as 1e3 and words such as `no` are no text without quotes.
            Peer::Name(name) if name.contains('.') && name.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                write!(f, "toFQDNs: [{{matchName: {name}}}]")?;
            }
            Peer::Name(name) => write!(f, "toFQDNs: [{{matchName: '{name}'}}]")?,
        }
        let protocol = self.protocol.to_string().to_ascii_uppercase();
        write!(f, ", ports: [{{protocol: {protocol}, port: {}}}]}}]", self.port)
    }
}

impl fmt::Display for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut: String = self.policy.chars().take(MAX_POLICY).collect();
        let more = if cut.len() < self.policy.len() { "…" } else { "" };
        match &self.miss {
            Miss::Ports(ports) => {
                write!(f, "policy {cut}{more} allows this address on {} only", listed(ports))
            }
            Miss::PortsOfName(ports) => {
                write!(f, "policy {cut}{more} allows this name on {} only", listed(ports))
            }
            Miss::Excepted => write!(f, "policy {cut}{more} excepts this address"),
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            Ok(entry) => write!(f, "{entry}")?,
            Err(why) => return write!(f, "none: {why}"),
        }
        self.near.as_ref().map_or(Ok(()), |near| write!(f, "; {near}"))
    }
}

impl Hint {
    /// The hint on one line of at most [`MAX_HINT`] bytes; what the near miss does not fit into is left out.
    pub fn text(&self) -> String {
        let whole = self.to_string();
        if whole.len() <= MAX_HINT {
            return whole;
        }
        Self { entry: self.entry.clone(), near: None }.to_string()
    }
}

fn listed(ports: &[PortRange]) -> String {
    let one = |range: &PortRange| {
        let protocol = range.protocol.to_string().to_ascii_uppercase();
        if range.first == range.last {
            format!("{protocol} {}", range.first)
        } else {
            format!("{protocol} {}-{}", range.first, range.last)
        }
    };
    let mut texts: Vec<String> = ports.iter().take(MAX_PORTS).map(one).collect();
    if ports.len() > MAX_PORTS {
        texts.push("more".to_owned());
    }
    texts.join(", ")
}

/// RFC 1123 section 2.1, in lower case: labels of letters, digits and inner hyphens.
fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests;
