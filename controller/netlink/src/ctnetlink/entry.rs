//! Entries and tuples, pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::attr::{Attr, Attrs, DecodeError, Writer};

/// Bits of [`Entry::status`] (enum ip_conntrack_status).
pub mod status {
    /// Packets went both ways.
    pub const SEEN_REPLY: u32 = 0x2;
    /// Not thrown away early when the table is full.
    pub const ASSURED: u32 = 0x4;
    /// The source was translated.
    pub const SOURCE_NAT: u32 = 0x10;
    /// The destination was translated.
    pub const DESTINATION_NAT: u32 = 0x20;
}

/// IPPROTO_ICMP and IPPROTO_ICMPV6.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// CTA_TUPLE_ORIG and CTA_TUPLE_REPLY.
pub(super) const ORIGINAL: u16 = 1;
pub(super) const REPLY: u16 = 2;
/// CTA_ID and CTA_ZONE.
pub(super) const ID: u16 = 12;
pub(super) const ZONE: u16 = 18;

/// What a packet of one direction looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// What the protocol adds.
    pub transport: Transport,
}

/// The part of a tuple that depends on the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP, UDP, SCTP, DCCP; of GRE the keys.
    Ports {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// Identifier of an echo.
        id: u16,
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Any other protocol: nothing.
    None,
}

/// State of a TCP connection (enum tcp_conntrack); any number, since kernels may add some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TcpState(pub u8);

impl TcpState {
    /// SYN seen.
    pub const SYN_SENT: Self = Self(1);
    /// SYN and its answer seen.
    pub const SYN_RECEIVED: Self = Self(2);
    /// Open.
    pub const ESTABLISHED: Self = Self(3);
    /// FIN seen.
    pub const FIN_WAIT: Self = Self(4);
    /// FIN seen and acknowledged; the other side may go on sending.
    pub const CLOSE_WAIT: Self = Self(5);
    /// FIN of both sides seen.
    pub const LAST_ACK: Self = Self(6);
    /// Over, kept for stragglers.
    pub const TIME_WAIT: Self = Self(7);
    /// Reset.
    pub const CLOSE: Self = Self(8);

    /// True from the answer to the SYN until both sides have said that they are done.
    pub fn is_open(self) -> bool {
        (Self::SYN_RECEIVED..=Self::CLOSE_WAIT).contains(&self)
    }
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Packets of whoever began, before translation.
    pub original: Tuple,
    /// Packets that answer, as they come in: after translation this is not the reverse of `original`.
    pub reply: Tuple,
    /// Bits of [`status`] and others.
    pub status: u32,
    /// For TCP.
    pub tcp_state: Option<TcpState>,
    /// Seconds until it goes, unless packets come; none for one without end.
    pub timeout: Option<u32>,
    /// Its mark.
    pub mark: u32,
    /// Its zone.
    pub zone: u16,
    /// A number that tells it from a later entry with the same tuples.
    pub id: Option<u32>,
}

impl Tuple {
    /// Of TCP, UDP and the like.
    pub fn with_ports(protocol: u8, source: std::net::SocketAddr, destination: std::net::SocketAddr) -> Self {
        let transport = Transport::Ports { source: source.port(), destination: destination.port() };
        Self { source: source.ip(), destination: destination.ip(), protocol, transport }
    }

    /// The destination port of protocols that have one.
    pub fn destination_port(&self) -> Option<u16> {
        match self.transport {
            Transport::Ports { destination, .. } => Some(destination),
            Transport::Icmp { .. } | Transport::None => None,
        }
    }

    /// AF_INET (2) or AF_INET6 (10), for the header of a request.
    pub(super) fn family(&self) -> u8 {
        if self.source.is_ipv4() { 2 } else { 10 }
    }

    /// Writes CTA_TUPLE_ORIG (1) or CTA_TUPLE_REPLY (2).
    pub fn encode(&self, w: &mut Writer<'_>, kind: u16) {
        w.nested(kind, |w| {
            w.nested(1, |w| {
                encode_address(w, self.source, 1, 3);
                encode_address(w, self.destination, 2, 4);
            });
            w.nested(2, |w| {
                w.u8(1, self.protocol);
                match self.transport {
                    Transport::Ports { source, destination } => {
                        w.be16(2, source);
                        w.be16(3, destination);
                    }
                    Transport::Icmp { id, kind, code } => {
                        let first = if self.protocol == ICMPV6 { 7 } else { 4 };
                        w.be16(first, id);
                        w.u8(first + 1, kind);
                        w.u8(first + 2, code);
                    }
                    Transport::None => {}
                }
            });
        });
    }

    /// Reads the attributes inside one of them.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let (mut addresses, mut protocol) = (None, None);
        for attr in attrs {
            let attr = attr?;
            match attr.kind {
                1 => addresses = Some(decode_addresses(attr.nested())?),
                2 => protocol = Some(decode_transport(attr.nested())?),
                _ => {}
            }
        }
        let (source, destination) = addresses.ok_or(DecodeError::Missing(1))?;
        let (protocol, transport) = protocol.ok_or(DecodeError::Missing(2))?;
        Ok(Self { source, destination, protocol, transport })
    }
}

fn encode_address(w: &mut Writer<'_>, address: IpAddr, v4: u16, v6: u16) {
    match address {
        IpAddr::V4(address) => w.bytes(v4, &address.octets()),
        IpAddr::V6(address) => w.bytes(v6, &address.octets()),
    }
}

fn decode_addresses(attrs: Attrs<'_>) -> Result<(IpAddr, IpAddr), DecodeError> {
    let (mut source, mut destination) = (None, None);
    for attr in attrs {
        let attr = attr?;
        let v4 = |attr: &Attr<'_>| attr.array::<4>().map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
        let v6 = |attr: &Attr<'_>| attr.array::<16>().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
        match attr.kind {
            1 => source = Some(v4(&attr)?),
            2 => destination = Some(v4(&attr)?),
            3 => source = Some(v6(&attr)?),
            4 => destination = Some(v6(&attr)?),
            _ => {}
        }
    }
    let source = source.ok_or(DecodeError::Missing(1))?;
    let destination = destination.ok_or(DecodeError::Missing(2))?;
    if source.is_ipv4() == destination.is_ipv4() {
        Ok((source, destination))
    } else {
        Err(DecodeError::Value(1))
    }
}

fn decode_transport(attrs: Attrs<'_>) -> Result<(u8, Transport), DecodeError> {
    let mut slots: [Option<Attr<'_>>; 10] = [None; 10];
    for attr in attrs {
        let attr = attr?;
        if let Some(slot) = slots.get_mut(usize::from(attr.kind)) {
            *slot = Some(attr);
        }
    }
    let protocol = slots[1].ok_or(DecodeError::Missing(1))?.u8()?;
    let icmp = |first: usize| match (slots[first], slots[first + 1], slots[first + 2]) {
        (Some(id), Some(kind), Some(code)) => {
            Ok(Transport::Icmp { id: id.be16()?, kind: kind.u8()?, code: code.u8()? })
        }
        _ => Ok(Transport::None),
    };
    let transport = match (protocol, slots[2], slots[3]) {
        (ICMP, ..) => icmp(4)?,
        (ICMPV6, ..) => icmp(7)?,
        (_, Some(source), Some(destination)) => {
            Transport::Ports { source: source.be16()?, destination: destination.be16()? }
        }
        _ => Transport::None,
    };
    Ok((protocol, transport))
}

impl Entry {
    /// True when it is a connection that both sides use: an open TCP connection, or any other protocol's with packets
    /// both ways.
    pub fn is_live(&self) -> bool {
        match self.tcp_state {
            Some(state) => state.is_open(),
            None => self.status & (status::SEEN_REPLY | status::ASSURED) != 0,
        }
    }

    /// Writes the attributes of a CT_NEW message.
    pub fn encode(&self, w: &mut Writer<'_>) {
        self.original.encode(w, ORIGINAL);
        self.reply.encode(w, REPLY);
        w.be32(3, self.status);
        if let Some(state) = self.tcp_state {
            w.nested(4, |w| w.nested(1, |w| w.u8(1, state.0)));
        }
        if let Some(timeout) = self.timeout {
            w.be32(7, timeout);
        }
        if self.mark != 0 {
            w.be32(8, self.mark);
        }
        if let Some(id) = self.id {
            w.be32(ID, id);
        }
        if self.zone != 0 {
            w.be16(ZONE, self.zone);
        }
    }

    /// Reads the attributes of a CT_NEW message.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let (mut original, mut reply) = (None, None);
        let (mut status, mut mark, mut zone) = (0, 0, 0);
        let (mut tcp_state, mut timeout, mut id) = (None, None, None);
        for attr in attrs {
            let attr = attr?;
            match attr.kind {
                ORIGINAL => original = Some(Tuple::decode(attr.nested())?),
                REPLY => reply = Some(Tuple::decode(attr.nested())?),
                3 => status = attr.be32()?,
                4 => tcp_state = decode_tcp_state(attr.nested())?,
                7 => timeout = Some(attr.be32()?),
                8 => mark = attr.be32()?,
                ID => id = Some(attr.be32()?),
                ZONE => zone = attr.be16()?,
                _ => {}
            }
        }
        Ok(Self {
            original: original.ok_or(DecodeError::Missing(ORIGINAL))?,
            reply: reply.ok_or(DecodeError::Missing(REPLY))?,
            status,
            tcp_state,
            timeout,
            mark,
            zone,
            id,
        })
    }
}

/// CTA_PROTOINFO_TCP, and in it CTA_PROTOINFO_TCP_STATE.
fn decode_tcp_state(attrs: Attrs<'_>) -> Result<Option<TcpState>, DecodeError> {
    let mut state = None;
    for attr in attrs {
        let attr = attr?;
        if attr.kind != 1 {
            continue;
        }
        for inner in attr.nested() {
            let inner = inner?;
            if inner.kind == 1 {
                state = Some(TcpState(inner.u8()?));
            }
        }
    }
    Ok(state)
}
