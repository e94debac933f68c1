//! Fields of packets by where they stand.

use crate::nft::matching::{Meta, Payload};

/// What kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressKind {
    /// 4 bytes.
    V4,
    /// 16 bytes.
    V6,
    /// 6 bytes of Ethernet.
    Mac,
}

/// A field that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// Name of the interface it came in by: 16 bytes, padded with NUL.
    InputName,
    /// Name of the interface it goes out by.
    OutputName,
    /// Number of the interface it came in by: 4 bytes in host order.
    InputIndex,
    /// Number of the interface it goes out by.
    OutputIndex,
    /// Source address, of the sender in ARP.
    Source(AddressKind),
    /// Destination address, of the target in ARP.
    Destination(AddressKind),
    /// Source port: 2 bytes in network order.
    SourcePort,
    /// Destination port.
    DestinationPort,
}

/// Where a register's value is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// NFT_META_*
    Meta(u32),
    /// Bytes of the packet.
    Payload {
        /// NFT_PAYLOAD_*
        base: u32,
        /// From there.
        offset: u32,
    },
}

/// A field, or the beginning of one, in what was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) field: Field,
    /// Byte of the load at which it begins.
    pub(super) at: usize,
    /// Bytes of the whole field.
    pub(super) len: usize,
}

impl Span {
    /// True when a load of this length holds nothing behind the field.
    pub(super) fn covers(&self, len: usize) -> bool {
        self.at + self.len >= len
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    V4,
    V6,
    Arp,
    Other,
}

/// What the rule has asked so far of the packet's headers: it tells what bytes of them mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layers {
    network: Option<Network>,
    /// IPPROTO_*
    transport: Option<u8>,
}

/// NFPROTO_*
const IPV4: u8 = 2;
const ARP: u8 = 3;
const IPV6: u8 = 10;
/// NFT_PAYLOAD_LL_HEADER
const LINK: u32 = 0;
/// NFT_META_PROTOCOL, NFT_META_IIF, NFT_META_OIF
const PROTOCOL: u32 = 1;
const IIF: u32 = 4;
const OIF: u32 = 5;
/// DCCP, SCTP, TCP, UDP, UDP-Lite: their headers begin with two ports.
const WITH_PORTS: [u8; 5] = [33, 132, 6, 17, 136];

impl Layers {
    pub(super) fn of_family(family: u8) -> Self {
        let network = match family {
            IPV4 => Some(Network::V4),
            IPV6 => Some(Network::V6),
            ARP => Some(Network::Arp),
            _ => None,
        };
        Self { network, transport: None }
    }

    /// A comparison `source == value`.
    pub(super) fn learn(&mut self, source: Source, value: &[u8]) {
        match (source, value) {
            (Source::Meta(Meta::NFPROTO), [protocol, ..]) => {
                self.network = Some(match *protocol {
                    IPV4 => Network::V4,
                    IPV6 => Network::V6,
                    _ => Network::Other,
                });
            }
            (Source::Meta(PROTOCOL) | Source::Payload { base: LINK, offset: 12 | 16 }, [high, low, ..]) => {
                self.network = Some(match u16::from_be_bytes([*high, *low]) {
                    0x0800 => Network::V4,
                    0x86dd => Network::V6,
                    0x0806 => Network::Arp,
                    _ => Network::Other,
                });
            }
            (Source::Meta(Meta::L4PROTO), [protocol, ..]) => self.transport = Some(*protocol),
            (Source::Payload { base: Payload::NETWORK, offset }, value) => self.learn_protocol(offset, value),
            _ => {}
        }
    }

    /// The protocol's byte stands at 9 in IPv4 and at 6 in IPv6; it may be in a load that began before it.
    fn learn_protocol(&mut self, offset: u32, value: &[u8]) {
        let place = match self.network {
            Some(Network::V4) => 9_u32,
            Some(Network::V6) => 6,
            _ => return,
        };
        let at = place.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
        if let Some(protocol) = at.and_then(|at| value.get(at)) {
            self.transport = Some(*protocol);
        }
    }

    /// The fields in what was loaded, in order. A field whose beginning is not in it is left out.
    pub(super) fn fields(&self, source: Source, len: usize) -> Vec<Span> {
        match source {
            Source::Meta(key) => {
                let (field, len) = match key {
                    Meta::IIFNAME => (Field::InputName, 16),
                    Meta::OIFNAME => (Field::OutputName, 16),
                    IIF => (Field::InputIndex, 4),
                    OIF => (Field::OutputIndex, 4),
                    _ => return Vec::new(),
                };
                vec![Span { field, at: 0, len }]
            }
            Source::Payload { base, offset } => {
                let Ok(offset) = usize::try_from(offset) else { return Vec::new() };
                let table = self.table(base, offset, len);
                let inside = table.iter().filter_map(|(start, length, field)| {
                    let at = start.checked_sub(offset).filter(|at| *at < len)?;
                    Some(Span { field: *field, at, len: *length })
                });
                inside.collect()
            }
        }
    }

    /// Start, length and meaning of the fields of a header.
    fn table(&self, base: u32, offset: usize, len: usize) -> &'static [(usize, usize, Field)] {
        use AddressKind::{Mac, V4, V6};
        use Field::{Destination, DestinationPort, Source, SourcePort};
        match base {
            LINK => &[(0, 6, Destination(Mac)), (6, 6, Source(Mac))],
            Payload::NETWORK => match self.network.unwrap_or(guess(offset, len)) {
                Network::V4 => &[(12, 4, Source(V4)), (16, 4, Destination(V4))],
                Network::V6 => &[(8, 16, Source(V6)), (24, 16, Destination(V6))],
                // RFC 826 with Ethernet and IPv4: sender and target, hardware and protocol.
                Network::Arp => &[
                    (8, 6, Source(Mac)),
                    (14, 4, Source(V4)),
                    (18, 6, Destination(Mac)),
                    (24, 4, Destination(V4)),
                ],
                Network::Other => &[],
            },
            Payload::TRANSPORT if self.transport.is_none_or(|it| WITH_PORTS.contains(&it)) => {
                &[(0, 2, SourcePort), (2, 2, DestinationPort)]
            }
            _ => &[],
        }
    }
}

/// Which network header a load is of when the rule does not say: that whose fields it fits.
fn guess(offset: usize, len: usize) -> Network {
    match (offset, len) {
        (12 | 16, 1..=4) | (12, 8) => Network::V4,
        (8, 5..=32) | (24, 1..=16) | (8, 1..=4) => Network::V6,
        _ => Network::Other,
    }
}
