//! IP packets made to order, each with a tag by which it is known again.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use fw_policy::{ConntrackState, Packet, Transport};

/// TCP flags in the order of the header's bits.
pub mod flags {
    /// FIN
    pub const FIN: u8 = 0x01;
    /// SYN
    pub const SYN: u8 = 0x02;
    /// RST
    pub const RST: u8 = 0x04;
    /// PSH
    pub const PSH: u8 = 0x08;
    /// ACK
    pub const ACK: u8 = 0x10;
    /// URG
    pub const URG: u8 = 0x20;
}

/// ICMPv4 echo request.
pub const ECHO_V4: u8 = 8;
/// ICMPv6 echo request.
pub const ECHO_V6: u8 = 128;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const GRE: u8 = 47;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;
const V6_FRAGMENT: u8 = 44;

/// Marks a packet: which run sent it, and which packet of the run it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    /// Tells runs apart.
    pub run: u32,
    /// Tells the packets of a run apart.
    pub id: u32,
}

impl Tag {
    /// Bytes of a tag on the wire.
    pub const LENGTH: usize = 12;
    /// Begins the tag of an ordinary packet.
    const ORDINARY: [u8; 4] = *b"FWtk";
    /// Begins the tag of an ICMP error: another one, since the packet that it quotes may have its own.
    const ERROR: [u8; 4] = *b"FWte";

    pub(crate) fn bytes(self, error: bool) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(if error { &Self::ERROR } else { &Self::ORDINARY });
        bytes[4..8].copy_from_slice(&self.run.to_be_bytes());
        bytes[8..].copy_from_slice(&self.id.to_be_bytes());
        bytes
    }

    /// Finds a tag in what follows an IP header.
    pub(crate) fn find(bytes: &[u8], error: bool) -> Option<Self> {
        let magic = if error { Self::ERROR } else { Self::ORDINARY };
        let tag = bytes.windows(Self::LENGTH).find(|window| window.starts_with(&magic))?;
        let word = |at: usize| Some(u32::from_be_bytes(tag.get(at..at + 4)?.try_into().ok()?));
        Some(Self { run: word(4)?, id: word(8)? })
    }
}

/// What follows the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// TCP with any flags; the tag is its payload, also of a SYN.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// See [`flags`].
        flags: u8,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier of an echo, or whatever else is in the header's second word.
        identifier: u16,
    },
    /// An ICMP or ICMPv6 error that quotes the beginning of a packet.
    Error {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// What it quotes: an IP header and 8 bytes at least.
        quoted: Vec<u8>,
    },
    /// Any other protocol. SCTP (132) is an INIT chunk with a right checksum and GRE (47) has a header, since
    /// conntrack would call anything else invalid (as it does with UDP-Lite, 136, here). ICMP in IPv6 and ICMPv6 in IPv4 look like an echo request.
    Other {
        /// IP protocol number.
        protocol: u8,
    },
}

/// A packet to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crafted {
    /// Source address, spoofed if you like.
    pub source: IpAddr,
    /// Destination address of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// What follows the IP header.
    pub body: Body,
    /// True: a wrong transport checksum (TCP, UDP, ICMP, SCTP).
    pub bad_checksum: bool,
    /// Zero bytes after the tag.
    pub padding: usize,
    /// Cut into fragments with so many bytes after the IP header; a multiple of 8.
    pub fragment_bytes: Option<usize>,
}

impl Crafted {
    /// A packet with an ordinary header.
    pub fn new(source: IpAddr, destination: IpAddr, body: Body) -> Self {
        Self { source, destination, hops: 64, body, bad_checksum: false, padding: 0, fragment_bytes: None }
    }

    /// A TCP SYN.
    pub fn syn(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::tcp(source, destination, flags::SYN)
    }

    /// A TCP segment.
    pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Self {
        let body = Body::Tcp { source: source.port(), destination: destination.port(), flags };
        Self::new(source.ip(), destination.ip(), body)
    }

    /// A UDP datagram.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        let body = Body::Udp { source: source.port(), destination: destination.port() };
        Self::new(source.ip(), destination.ip(), body)
    }

    /// An echo request.
    pub fn echo(source: IpAddr, destination: IpAddr, identifier: u16) -> Self {
        let kind = if source.is_ipv4() { ECHO_V4 } else { ECHO_V6 };
        Self::new(source, destination, Body::Icmp { kind, code: 0, identifier })
    }

    /// An error that a router or host at `reporter` would send to the source of `original`. Conntrack calls it
    /// related if it knows the flow of `original` (accepted, and as it was on the side that `reporter` is on).
    pub fn error_about(original: &Self, reporter: IpAddr, kind: u8, code: u8) -> Result<Self> {
        let whole = Self { fragment_bytes: None, ..original.clone() }.encode(Tag { run: 0, id: 0 })?;
        let mut quoted = whole.into_iter().next().context("a packet encodes to at least one")?;
        quoted.truncate(if original.source.is_ipv4() { 20 + 8 } else { 40 + 8 });
        Ok(Self::new(reporter, original.source, Body::Error { kind, code, quoted }))
    }

    /// The packet that stands for an abstract one, with the conntrack state that it asks for where one packet
    /// can have it: NEW, or INVALID (TCP without any flag, bad checksum otherwise). `identifier` goes into
    /// echos, whose flows it tells apart.
    pub fn of(packet: &Packet, identifier: u16) -> Result<Self> {
        let body = match packet.transport {
            Transport::Tcp { source, destination } => {
                let flags = if packet.state == ConntrackState::Invalid { 0 } else { flags::SYN };
                Body::Tcp { source, destination, flags }
            }
            Transport::Udp { source, destination } => Body::Udp { source, destination },
            Transport::Icmp { kind, code } => Body::Icmp { kind, code, identifier },
            Transport::Other(protocol) => Body::Other { protocol },
        };
        let mut crafted = Self::new(packet.source, packet.destination, body);
        crafted.bad_checksum =
            packet.state == ConntrackState::Invalid && crafted.first_state() != Some(ConntrackState::Invalid);
        ensure!(
            crafted.first_state() == Some(packet.state),
            "one crafted packet cannot be {:?}: {packet}",
            packet.state
        );
        Ok(crafted)
    }

    /// What conntrack says of this packet when it knows nothing of its flow; `None` = untracked.
    ///
    /// From net/netfilter/nf_conntrack_proto_{tcp,udp,sctp,icmp,icmpv6,generic}.c, checked on a kernel by a
    /// self-test. (An ACK on its own is NEW: `nf_conntrack_tcp_loose` is on unless someone says otherwise.)
    pub fn first_state(&self) -> Option<ConntrackState> {
        use ConntrackState::{Invalid, New};
        let new_if = |good: bool| if good { New } else { Invalid };
        let v4 = self.source.is_ipv4();
        Some(match &self.body {
            Body::Tcp { flags, .. } => {
                // tcp_valid_flags() leaves PSH, ECE and CWR out; of what is valid, only these begin something.
                let start = matches!(flags & 0x37 & !flags::URG, flags::SYN | flags::ACK);
                new_if(start && !self.bad_checksum)
            }
            Body::Udp { .. } => new_if(!self.bad_checksum),
            // Errors about nothing that is known are invalid, as are answers to nothing.
            Body::Error { .. } => Invalid,
            _ if self.bad_checksum && self.has_checksum() => Invalid,
            Body::Icmp { kind, .. } if v4 => new_if(matches!(kind, 8 | 13 | 15 | 17)),
            // Multicast listener, neighbour and (on newer kernels) multicast router discovery.
            Body::Icmp { kind: 130..=136 | 143 | 151 | 152, .. } => return None,
            Body::Icmp { kind, .. } => new_if(matches!(kind, 128 | 139)),
            // Each ICMP is one only in its own family.
            Body::Other { protocol: ICMP } => new_if(v4),
            Body::Other { protocol: ICMPV6 } => new_if(!v4),
            Body::Other { protocol: UDPLITE } => Invalid,
            Body::Other { .. } => New,
        })
    }

    fn has_checksum(&self) -> bool {
        matches!(self.body, Body::Icmp { .. } | Body::Other { protocol: SCTP | ICMP | ICMPV6 })
    }

    /// The packet on the wire from the IP header on; several when it is to be fragmented.
    pub fn encode(&self, tag: Tag) -> Result<Vec<Vec<u8>>> {
        ensure!(
            self.source.is_ipv4() == self.destination.is_ipv4(),
            "source and destination differ in family"
        );
        let (protocol, body) = self.body_bytes(tag)?;
        let Some(size) = self.fragment_bytes else {
            return Ok(vec![self.with_ip_header(protocol, &body, tag, None)?]);
        };
        ensure!(size > 0 && size.is_multiple_of(8), "fragments have a multiple of 8 bytes, not {size}");
        let pieces = body.len().div_ceil(size);
        body.chunks(size)
            .enumerate()
            .map(|(number, piece)| {
                let fragment = Fragment { offset: number * size, more: number + 1 < pieces };
                self.with_ip_header(protocol, piece, tag, Some(fragment))
            })
            .collect()
    }

    fn body_bytes(&self, tag: Tag) -> Result<(u8, Vec<u8>)> {
        let v4 = self.source.is_ipv4();
        let icmp = if v4 { ICMP } else { ICMPV6 };
        let mut bytes = Vec::with_capacity(64 + self.padding);
        let (protocol, checksum_at) = match &self.body {
            Body::Tcp { source, destination, flags } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend(tag.id.to_be_bytes());
                bytes.extend([0; 4]);
                // 20 bytes of header, flags, window, checksum, urgent pointer.
                bytes.extend([0x50, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                (TCP, Some(16))
            }
            Body::Udp { source, destination } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend(u16::try_from(8 + Tag::LENGTH + self.padding)?.to_be_bytes());
                bytes.extend([0; 2]);
                (UDP, Some(6))
            }
            Body::Icmp { kind, code, identifier } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(identifier.to_be_bytes());
                bytes.extend([0, 1]);
                (icmp, Some(2))
            }
            Body::Error { kind, code, quoted } => {
                bytes.extend([*kind, *code, 0, 0, 0, 0, 0, 0]);
                bytes.extend(quoted);
                (icmp, Some(2))
            }
            Body::Other { protocol: SCTP } => return Ok((SCTP, sctp_init(tag, self.bad_checksum)?)),
            Body::Other { protocol: GRE } => {
                // No options, version 0, protocol type "experimental 1" (IEEE 802).
                bytes.extend([0, 0, 0x88, 0xb5]);
                (GRE, None)
            }
            Body::Other { protocol: protocol @ (ICMP | ICMPV6) } => {
                bytes.extend([if *protocol == ICMP { ECHO_V4 } else { ECHO_V6 }, 0, 0, 0, 0, 1, 0, 1]);
                (*protocol, Some(2))
            }
            Body::Other { protocol } => {
                bytes.extend([0; 8]);
                (*protocol, None)
            }
        };
        let error = match self.body {
            Body::Icmp { kind, .. } | Body::Error { kind, .. } => is_error(v4, kind),
            _ => false,
        };
        bytes.extend(tag.bytes(error));
        bytes.resize(bytes.len() + self.padding, 0);
        if let Some(at) = checksum_at {
            let pseudo = if v4 && protocol == ICMP { 0 } else { self.pseudo_header(protocol, bytes.len())? };
            let mut checksum = finish(add_words(pseudo, &bytes));
            // A zero UDP checksum would mean "none".
            if protocol == UDP && checksum == 0 {
                checksum = 0xffff;
            }
            if self.bad_checksum {
                // 0 would say that there is none (RFC 768), which is right again.
                checksum ^= if checksum == 0x5555 { 0x3333 } else { 0x5555 };
            }
            bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        Ok((protocol, bytes))
    }

    fn pseudo_header(&self, protocol: u8, length: usize) -> Result<u64> {
        let addresses = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                add_words(add_words(0, &source.octets()), &destination.octets())
            }
            (source, destination) => add_words(add_words(0, &v6(source)), &v6(destination)),
        };
        Ok(addresses + u64::from(protocol) + u64::try_from(length)?)
    }

    fn with_ip_header(
        &self,
        protocol: u8,
        body: &[u8],
        tag: Tag,
        fragment: Option<Fragment>,
    ) -> Result<Vec<u8>> {
        let mut packet = Vec::with_capacity(48 + body.len());
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                packet.extend([0x45, 0]);
                packet.extend(u16::try_from(20 + body.len()).context("packet too long")?.to_be_bytes());
                packet.extend(&tag.id.to_be_bytes()[2..]);
                // Don't fragment, unless it is one.
                packet.extend(fragment.map_or(Ok([0x40, 0]), Fragment::v4_field)?);
                packet.extend([self.hops, protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                let checksum = finish(add_words(0, &packet));
                packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            (source, destination) => {
                let extension = if fragment.is_some() { 8 } else { 0 };
                packet.extend([0x60, 0, 0, 0]);
                packet
                    .extend(u16::try_from(extension + body.len()).context("packet too long")?.to_be_bytes());
                packet.extend([if fragment.is_some() { V6_FRAGMENT } else { protocol }, self.hops]);
                packet.extend(v6(source));
                packet.extend(v6(destination));
                if let Some(fragment) = fragment {
                    packet.extend([protocol, 0]);
                    packet.extend(fragment.v6_field()?);
                    packet.extend(tag.id.to_be_bytes());
                }
            }
        }
        packet.extend(body);
        Ok(packet)
    }
}

#[derive(Clone, Copy)]
struct Fragment {
    /// In bytes, a multiple of 8.
    offset: usize,
    more: bool,
}

impl Fragment {
    fn v4_field(self) -> Result<[u8; 2]> {
        let more = if self.more { 0x2000 } else { 0 };
        Ok((u16::try_from(self.offset / 8)? | more).to_be_bytes())
    }

    fn v6_field(self) -> Result<[u8; 2]> {
        Ok((u16::try_from(self.offset)? | u16::from(self.more)).to_be_bytes())
    }
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .octets()
}

/// Adds 16-bit words for the internet checksum (RFC 1071).
pub(crate) fn add_words(sum: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(2).fold(sum, |sum, pair| {
        sum + u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    })
}

pub(crate) fn finish(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// An INIT (RFC 9260 section 3.3.2) from port 1024 to port 1024; the tag is in a parameter that receivers skip.
fn sctp_init(tag: Tag, bad_checksum: bool) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.extend([4, 0, 4, 0]);
    // Verification tag 0, checksum.
    bytes.extend([0; 8]);
    let length = u16::try_from(20 + 4 + Tag::LENGTH)?;
    bytes.extend([1, 0]);
    bytes.extend(length.to_be_bytes());
    // Initiate tag, window, streams out and in, first sequence number.
    bytes.extend([0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1]);
    bytes.extend([0x80, 0x77]);
    bytes.extend(u16::try_from(4 + Tag::LENGTH)?.to_be_bytes());
    bytes.extend(tag.bytes(false));
    let mut checksum = crc32c(&bytes);
    if bad_checksum {
        checksum ^= 0x5555;
    }
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

/// CRC-32C (Castagnoli), bit by bit: it is only used on a few bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// Whether an ICMP message quotes a packet.
fn is_error(v4: bool, kind: u8) -> bool {
    if v4 { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { matches!(kind, 1..=4) }
}

/// A tagged packet as it was seen on a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its tag.
    pub tag: Tag,
    /// Source address, perhaps translated.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Transport header.
    pub transport: Transport,
    /// TTL or hop limit.
    pub hops: u8,
}

/// Reads a packet from its IP header on; `None` when it is not one of ours, or not a first fragment.
pub fn recognise(packet: &[u8]) -> Option<Seen> {
    let (protocol, source, destination, hops, rest) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0xf) * 4;
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
            if fragment != 0 {
                return None;
            }
            (*packet.get(9)?, address(12)?, address(16)?, *packet.get(8)?, packet.get(header..)?)
        }
        6 => {
            let address = |at: usize| {
                Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)))
            };
            let (mut protocol, mut rest) = (*packet.get(6)?, packet.get(40..)?);
            if protocol == V6_FRAGMENT {
                if u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]) & 0xfff8 != 0 {
                    return None;
                }
                (protocol, rest) = (*rest.first()?, rest.get(8..)?);
            }
            (protocol, address(8)?, address(24)?, *packet.get(7)?, rest)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
    let transport = match protocol {
        TCP => Transport::Tcp { source: port(0)?, destination: port(2)? },
        UDP => Transport::Udp { source: port(0)?, destination: port(2)? },
        ICMP if source.is_ipv4() => Transport::Icmp { kind: *rest.first()?, code: *rest.get(1)? },
        ICMPV6 if source.is_ipv6() => Transport::Icmp { kind: *rest.first()?, code: *rest.get(1)? },
        other => Transport::Other(other),
    };
    let error = matches!(transport, Transport::Icmp { kind, .. } if is_error(source.is_ipv4(), kind));
    Some(Seen { tag: Tag::find(rest, error)?, source, destination, transport, hops })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_checksum_never_says_that_there_is_none() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let good = Crafted::udp(address("10.0.0.1:1000"), address("10.0.0.2:2000"));
        let bad = Crafted { bad_checksum: true, ..good.clone() };
        // The checksum takes each of its values while the tag counts through 16 bits.
        let checksum = |packet: &Crafted, id| {
            let bytes = packet.encode(Tag { run: 0, id }).unwrap().remove(0);
            u16::from_be_bytes([bytes[26], bytes[27]])
        };
        assert!((0..65_536).any(|id| checksum(&good, id) == 0x5555), "the case occurs");
        for id in 0..65_536 {
            let (good, bad) = (checksum(&good, id), checksum(&bad, id));
            assert!(bad != 0 && bad != good, "{id}: {good:04x} became {bad:04x}");
        }
    }
}
