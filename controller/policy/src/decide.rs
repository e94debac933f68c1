//! The reference: what a forwarded packet's fate must be, written for reading and not for speed.

use std::cmp::Reverse;
use std::fmt;
use std::net::IpAddr;

use crate::{
    ConntrackState, IcmpEcho, Packet, Peers, Policy, PolicySet, Protocol, Rule, ServiceName, Transport,
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
            Self::Policy => "no policy allows it",
        })
    }
}

impl PolicySet {
    /// The verdict on a forwarded packet, rate limits and ping limits aside.
    ///
    /// The counter of overlapping policies goes to the longest prefix, then to the first name.
    pub fn decide(&self, packet: &Packet) -> Decision {
        let why = self.why(packet);
        Decision { accepted: !matches!(why, Why::Drop(_)), why }
    }

    fn why(&self, packet: &Packet) -> Why {
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
            return match self.best_entry(|policy| &policy.egress, packet.destination, protocol, port) {
                Some((policy, entry)) => Why::Egress {
                    policy,
                    protocol,
                    field: format!("spec.egress{}", entry.replace("PEER", "to")),
                },
                None => Why::Drop(DropReason::Policy),
            };
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
