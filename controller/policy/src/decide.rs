//! The reference.

use crate::{Packet, PolicySet, Protocol, ServiceName};

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
    /// No policy and no Service allows it.
    Policy,
}

impl PolicySet {
    /// The verdict on a forwarded packet, rate limits and ping limits aside.
    pub fn decide(&self, packet: &Packet) -> Decision {
        let _ = packet;
        Decision { accepted: false, why: Why::Drop(DropReason::Policy) }
    }
}
