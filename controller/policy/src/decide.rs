//! The reference: what a forwarded packet's fate must be, written for reading and not for speed.

use std::cmp::Reverse;
use std::fmt;
use std::net::IpAddr;

use crate::{
    ConntrackState, DNS_PORT, Encrypted, FqdnSelector, IcmpEcho, Learned, Packet, Peers, Policy, PolicySet,
    Protocol, Rule, ServiceName, Transport,
};

/// Verdict of the reference and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// True: the packet passes.
    pub accepted: bool,
    /// What decided.
    pub why: Why,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// `accept established connections`
    Established,
    /// `accept icmp`: an error about an established connection, or an echo request that `icmpEcho` lets pass.
    Icmp,
    /// An ingress policy entry, counted under `accept traffic for k8s network policy NAME PROTOCOL`.
    Ingress {
        /// Policy name.
        policy: String,
        /// Protocol of the counter.
        protocol: Protocol,
        /// The entry, as a field path such as `spec.ingress[0].from[1]`.
        field: String,
    },
    /// An egress policy entry, counted under `accept traffic for np NAME PROTOCOL`.
    Egress {
        /// Policy name.
        policy: String,
        /// Protocol of the counter.
        protocol: Protocol,
        /// The entry, as a field path such as `spec.egress[0].to[1]`.
        field: String,
    },
    /// An egress policy entry by name, whose address was learned; counted under
    /// `accept traffic for np NAME PROTOCOL, fqdn: SELECTOR`.
    Name {
        /// Policy name.
        policy: String,
        /// The selector.
        selector: FqdnSelector,
        /// Protocol of the counter.
        protocol: Protocol,
    },
    /// `dns.dot` or `dns.doh` allows it, counted under `accept encrypted dns PROTOCOL`.
    EncryptedDns {
        /// Protocol of the counter.
        protocol: Protocol,
    },
    /// DNS that was not redirected, to a well-known or configured resolver; counted under
    /// `accept dns while the proxy is away PROTOCOL`.
    DnsFallback {
        /// Protocol of the counter.
        protocol: Protocol,
    },
    /// A LoadBalancer Service.
    Service(ServiceName),
    /// Dropped.
    Drop(DropReason),
}

/// Why a packet is dropped; each reason has a counter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// Conntrack says invalid.
    Invalid,
    /// Entered by inside with a source that is neither the cluster's nor a LoadBalancer address.
    Spoofed,
    /// Neither TCP, UDP, ICMP nor ICMPv6.
    UnsupportedProtocol,
    /// BGP towards the machines, refused by host protection.
    Bgp,
    /// DNS past the proxy, refused by `dns.dot` or `dns.doh`.
    EncryptedDns,
    /// No policy and no Service allows it.
    Policy,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid ct state",
            Self::Spoofed => "spoofed source",
            Self::UnsupportedProtocol => "unsupported protocol",
            Self::Bgp => "bgp to machines",
            Self::EncryptedDns => "encrypted dns",
            Self::Policy => "no policy allows it",
        })
    }
}

impl PolicySet {
    /// The verdict on a forwarded packet while nothing is learned from DNS, rate limits and ping limits aside.
    pub fn decide(&self, packet: &Packet) -> Decision {
        self.decide_with(packet, &Learned::default())
    }

    /// The verdict on a forwarded packet, rate limits and ping limits aside.
    ///
    /// A learned address counts as a host route: its names win over prefixes, and of several names that allow a port
    /// the smallest policy and selector. The counter of overlapping prefixes goes to the longest, then to the first
    /// policy.
    pub fn decide_with(&self, packet: &Packet, learned: &Learned) -> Decision {
        let why = self.why(packet, learned);
        Decision { accepted: !matches!(why, Why::Drop(_)), why }
    }

    fn why(&self, packet: &Packet, learned: &Learned) -> Why {
        match packet.state {
            ConntrackState::Established => return Why::Established,
            ConntrackState::Invalid => return Why::Drop(DropReason::Invalid),
            ConntrackState::Related if is_icmp_error(packet) => return Why::Icmp,
            ConntrackState::Related if !matches!(packet.transport, Transport::Icmp { .. }) => {
                return Why::Established;
            }
            ConntrackState::Related => return Why::Drop(DropReason::Policy),
            ConntrackState::New => {}
        }
        let inside = &self.firewall.inside.interfaces;
        let enters_by_inside = inside.contains(&packet.input);
        let leaves_by_inside = inside.contains(&packet.output);
        if enters_by_inside && self.is_spoofed(packet.source) {
            return Why::Drop(DropReason::Spoofed);
        }
        if is_echo_request(packet) && self.echo_passes(enters_by_inside, leaves_by_inside) {
            return Why::Icmp;
        }
        let Some((protocol, port)) = packet.transport.service() else {
            return Why::Drop(match packet.transport {
                Transport::Other(_) => DropReason::UnsupportedProtocol,
                _ => DropReason::Policy,
            });
        };
        if enters_by_inside {
            return self.egress(packet.destination, protocol, port, learned);
        }
        if !leaves_by_inside {
            return Why::Drop(DropReason::Policy);
        }
        if self.firewall.host.is_some() && (protocol, port) == (Protocol::Tcp, 179) {
            return Why::Drop(DropReason::Bgp);
        }
        if let Some((policy, entry)) =
            self.best_entry(|policy| &policy.ingress, packet.source, protocol, port)
        {
            let field = format!("spec.ingress{}", entry.replace("PEER", "from"));
            return Why::Ingress { policy, protocol, field };
        }
        self.service_for(packet, protocol, port)
    }

    fn egress(&self, destination: IpAddr, protocol: Protocol, port: u16, learned: &Learned) -> Why {
        let dns = &self.firewall.dns;
        match dns.encrypted(destination, port) {
            Encrypted::Deny => return Why::Drop(DropReason::EncryptedDns),
            Encrypted::Allow => return Why::EncryptedDns { protocol },
            Encrypted::Policy => {}
        }
        if let Some((policy, selector)) = self.best_name(destination, protocol, port, learned) {
            return Why::Name { policy, selector, protocol };
        }
        if let Some((policy, entry)) = self.best_entry(|policy| &policy.egress, destination, protocol, port) {
            let field = format!("spec.egress{}", entry.replace("PEER", "to"));
            return Why::Egress { policy, protocol, field };
        }
        // Redirected DNS never gets here: the proxy does not answer now.
        let falls_back = dns.fallback && self.intercepts_dns() && port == DNS_PORT;
        if falls_back && dns.fallback_resolvers().contains(&destination) {
            return Why::DnsFallback { protocol };
        }
        Why::Drop(DropReason::Policy)
    }

    /// The first policy, and its first selector, that allow a learned address.
    fn best_name(
        &self,
        destination: IpAddr,
        protocol: Protocol,
        port: u16,
        learned: &Learned,
    ) -> Option<(String, FqdnSelector)> {
        let selectors = learned.addresses.get(&destination)?;
        self.policies.iter().find_map(|(name, policy)| {
            let rules = policy.egress.iter().filter(|rule| rule.ports.contains(protocol, port));
            let named = rules.filter_map(|rule| match &rule.peers {
                Peers::Names(names) => Some(names),
                Peers::Any | Peers::Blocks(_) => None,
            });
            let selector = named.flatten().filter(|selector| selectors.contains(selector)).min()?;
            Some((name.clone(), selector.clone()))
        })
    }

    fn is_spoofed(&self, source: IpAddr) -> bool {
        let prefixes = &self.firewall.inside.prefixes;
        !prefixes.is_empty()
            && !prefixes.iter().any(|prefix| prefix.contains(&source))
            && !self.load_balancer_addresses.contains(&source)
    }

    fn echo_passes(&self, enters_by_inside: bool, leaves_by_inside: bool) -> bool {
        match self.firewall.icmp_echo {
            IcmpEcho::Deny => false,
            IcmpEcho::Egress => enters_by_inside,
            IcmpEcho::Both => enters_by_inside || leaves_by_inside,
        }
    }

    /// The policy and the entry (`[0].PEER[1]`) that match with the longest prefix, then the first name.
    fn best_entry(
        &self,
        rules: impl Fn(&Policy) -> &Vec<Rule>,
        peer: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Option<(String, String)> {
        let mut matches = Vec::new();
        for (name, policy) in &self.policies {
            for rule in rules(policy).iter().filter(|rule| rule.ports.contains(protocol, port)) {
                for (length, entry) in matching_peers(rule, peer) {
                    matches.push((Reverse(length), name.clone(), rule.index, entry));
                }
            }
        }
        let (_, name, index, entry) = matches.into_iter().min()?;
        Some((name, format!("[{index}]{}", entry.map(|i| format!(".PEER[{i}]")).unwrap_or_default())))
    }

    fn service_for(&self, packet: &Packet, protocol: Protocol, port: u16) -> Why {
        let opened = self.services.iter().find(|(_, service)| {
            service.addresses.contains(&packet.destination)
                && service.ports.contains(&(protocol, port))
                && service.sources.contains(packet.source)
        });
        match opened {
            Some((name, _)) => Why::Service(name.clone()),
            None => Why::Drop(DropReason::Policy),
        }
    }
}

/// Prefix length and index of each peer of the rule that holds the address.
fn matching_peers(rule: &Rule, peer: IpAddr) -> Vec<(u8, Option<usize>)> {
    match &rule.peers {
        Peers::Any => vec![(0, None)],
        Peers::Blocks(blocks) => blocks
            .iter()
            .filter_map(|block| Some((block.covering_prefix_len(peer)?, Some(block.index))))
            .collect(),
        Peers::Names(_) => Vec::new(),
    }
}

/// Errors that conntrack can tie to a connection: destination unreachable, (packet too big,) time exceeded,
/// parameter problem. RFC 792 types 3, 11, 12; RFC 4443 types 1 to 4.
fn is_icmp_error(packet: &Packet) -> bool {
    match (packet.transport, packet.source) {
        (Transport::Icmp { kind, .. }, IpAddr::V4(_)) => matches!(kind, 3 | 11 | 12),
        (Transport::Icmp { kind, .. }, IpAddr::V6(_)) => matches!(kind, 1..=4),
        _ => false,
    }
}

fn is_echo_request(packet: &Packet) -> bool {
    match (packet.transport, packet.source) {
        (Transport::Icmp { kind, .. }, IpAddr::V4(_)) => kind == 8,
        (Transport::Icmp { kind, .. }, IpAddr::V6(_)) => kind == 128,
        _ => false,
    }
}
