//! The abstract packet shared by the reference, the ruleset evaluator, the tests and `explain`.

use std::fmt;
use std::net::IpAddr;

use crate::{IfName, Protocol};

/// What conntrack says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConntrackState {
    /// First packet of a connection.
    New,
    /// Belongs to a connection seen in both directions.
    Established,
    /// Belongs to something an established connection announced, ICMP errors above all.
    Related,
    /// Conntrack refuses it: out of window, bad checksum, not a start.
    Invalid,
}

/// The transport header, as far as rules look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP ports.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// UDP ports.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP (with IPv4) or ICMPv6 (with IPv6) type and code.
    Icmp {
        /// Type, e.g. 8 (IPv4) or 128 (IPv6) for an echo request.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Any other IP protocol number.
    Other(u8),
}

impl Transport {
    /// Protocol and destination port, for those that have ports.
    pub fn service(&self) -> Option<(Protocol, u16)> {
        match self {
            Self::Tcp { destination, .. } => Some((Protocol::Tcp, *destination)),
            Self::Udp { destination, .. } => Some((Protocol::Udp, *destination)),
            Self::Icmp { .. } | Self::Other(_) => None,
        }
    }
}

/// One forwarded packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Interface it entered by.
    pub input: IfName,
    /// Interface it leaves by.
    pub output: IfName,
    /// Source address. Source and destination are of the same family.
    pub source: IpAddr,
    /// Destination address, as it is in the forward hook: after DNAT, before SNAT.
    pub destination: IpAddr,
    /// Transport header.
    pub transport: Transport,
    /// Conntrack's word.
    pub state: ConntrackState,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, .. } = self;
        match self.transport {
            Transport::Tcp { source: s, destination: d } => {
                write!(f, "tcp {} -> {}", with_port(*source, s), with_port(*destination, d))?;
            }
            Transport::Udp { source: s, destination: d } => {
                write!(f, "udp {} -> {}", with_port(*source, s), with_port(*destination, d))?;
            }
            Transport::Icmp { kind, code } => write!(f, "icmp {kind}/{code} {source} -> {destination}")?,
            Transport::Other(number) => write!(f, "proto {number} {source} -> {destination}")?,
        }
        write!(f, " in {} out {}", self.input, self.output)
    }
}

fn with_port(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
