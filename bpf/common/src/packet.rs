//! From the bytes of a frame to what the tables are asked.
//!
//! The parser is strict: whoever sends a frame chooses its bytes, and a mark opens the way past the port rules of
//! nftables. So a length that does not fit, a header that two readers could understand differently, and everything not
//! listed here make a frame unreadable, and an unreadable frame gains nothing.

/// Bytes that headers may take; what lies behind is unreadable. The verifier needs a bound for every offset.
pub const HEADERS_MAX: u32 = 512;
/// IPv6 extension headers before TCP or UDP that are followed.
pub const EXTENSIONS_MAX: usize = 6;
/// VLAN tags that are followed (802.1Q inside 802.1ad).
pub const TAGS_MAX: u32 = 2;
/// Bytes the longest readable headers of common frames take; what a program pulls together before it parses.
pub const HEADERS_USUAL: u32 = 192;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Bytes that may be there.
pub trait Frame {
    /// Length of the whole frame, also of what [`Frame::read`] cannot reach.
    fn length(&self) -> u32;
    /// `N` bytes from `offset` on, or `None` where they cannot be read. Asked only with an offset of at most
    /// [`HEADERS_MAX`].
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Frame for [u8] {
    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

/// An address as it stands in the packet, in words of the machine: taking it apart into bytes is what a packet would
/// cost most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// IPv4, see [`Address::v4`].
    V4(u32),
    /// IPv6, see [`Address::v6`].
    V6([u64; 2]),
}

impl Address {
    /// An IPv4 address of four bytes.
    #[inline(always)]
    #[must_use]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        Self::V4(u32::from_ne_bytes(bytes))
    }

    /// An IPv6 address of 16 bytes.
    #[inline(always)]
    #[must_use]
    pub const fn v6(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self::V6([u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])])
    }

    /// Multicast, broadcast and link-local: not routed, so no business of names or of the bouncer.
    #[inline(always)]
    #[must_use]
    pub fn stays_on_the_link(&self) -> bool {
        match self {
            Self::V4(word) => {
                let value = u32::from_be(*word);
                value >> 28 == 0xe || value >> 16 == 0xa9fe || value == u32::MAX
            }
            Self::V6([first, _]) => {
                let value = u64::from_be(*first);
                value >> 56 == 0xff || value >> 54 == 0x3fa
            }
        }
    }
}

/// The bytes of the two words of an IPv6 address.
#[inline(always)]
pub(crate) fn bytes_of(words: [u64; 2]) -> [u8; 16] {
    let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) =
        (words[0].to_ne_bytes(), words[1].to_ne_bytes());
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// A TCP or UDP packet, or the first fragment of one with its complete transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub port: u16,
    /// It may be the first of a connection by what stands in it: a whole segment of TCP with SYN and none of ACK, RST
    /// and FIN, or a whole datagram.
    pub opens: bool,
    /// Sent to a group of stations (group bit of the Ethernet destination).
    pub to_group: bool,
}

/// What follows an IP header: where, until where, and whether more fragments follow.
struct Payload {
    protocol: u8,
    start: u32,
    end: u32,
    fragment: bool,
}

/// Source and destination.
type Addresses = (Address, Address);

/// What a transport header says.
struct Ports {
    source: u16,
    destination: u16,
    opens: bool,
}

/// Reads a frame that starts with its Ethernet header. `tags` is how many VLAN tags may stand in the bytes: one fewer
/// than [`TAGS_MAX`] where the kernel has taken the outer one out already (`skb->vlan_tci`).
///
/// `None` is a frame that gains nothing: not IP, not TCP or UDP, a later fragment, cut, or with lengths that lie.
#[inline(always)]
pub fn parse(frame: &(impl Frame + ?Sized), tags: u32) -> Option<Packet> {
    let ethernet = frame.read::<14>(0)?;
    let to_group = ethernet[0] & 1 == 1;
    let mut ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    let mut offset = 14;
    let mut depth = 0;
    while depth < TAGS_MAX {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        if depth == tags {
            return None;
        }
        let tag = frame.read::<4>(offset)?;
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        offset += 4;
        depth += 1;
    }
    let ((source, destination), payload) = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, offset)?,
        ETHERTYPE_IPV6 => ipv6(frame, offset)?,
        _ => return None,
    };
    let Ports { source: source_port, destination: port, opens } = transport(frame, &payload)?;
    Some(Packet { source, destination, protocol: payload.protocol, source_port, port, opens, to_group })
}

/// How far into a frame [`parse`] reads: to the end of the TCP header where that follows Ethernet and an IP header
/// without options, which the first bytes show; else maybe as far as [`HEADERS_USUAL`].
#[inline(always)]
#[must_use]
pub fn reach(frame: &(impl Frame + ?Sized)) -> u32 {
    let Some(start) = frame.read::<24>(0) else { return HEADERS_USUAL };
    let ethertype = u16::from_be_bytes([start[12], start[13]]);
    let is_usual = |protocol| protocol == TCP || protocol == UDP;
    if ethertype == ETHERTYPE_IPV4 && start[14] == 0x45 && is_usual(start[23]) {
        return 14 + 20 + 20;
    }
    if ethertype == ETHERTYPE_IPV6 && is_usual(start[20]) {
        return 14 + 40 + 20;
    }
    HEADERS_USUAL
}

/// RFC 791, section 3.1.
#[inline(always)]
fn ipv4(frame: &(impl Frame + ?Sized), offset: u32) -> Option<(Addresses, Payload)> {
    let header = frame.read::<20>(offset)?;
    let header_length = u32::from(header[0] & 0x0f) * 4;
    let total = u32::from(u16::from_be_bytes([header[2], header[3]]));
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let (more, fragment_offset) = (flags & 0x2000 != 0, flags & 0x1fff);
    if header[0] >> 4 != 4
        || header_length < 20
        || total < header_length
        || offset + total > frame.length()
        || fragment_offset != 0
    {
        return None;
    }
    let source = Address::v4([header[12], header[13], header[14], header[15]]);
    let destination = Address::v4([header[16], header[17], header[18], header[19]]);
    let (start, end) = (offset + header_length, offset + total);
    Some(((source, destination), Payload { protocol: header[9], start, end, fragment: more }))
}

/// RFC 8200, sections 3 and 4.
#[inline(always)]
fn ipv6(frame: &(impl Frame + ?Sized), offset: u32) -> Option<(Addresses, Payload)> {
    let header = frame.read::<40>(offset)?;
    let length = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let end = offset + 40 + length;
    // Length 0 is a jumbogram (RFC 2675), whose true length stands in an option.
    if header[0] >> 4 != 6 || length == 0 || end > frame.length() {
        return None;
    }
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source.copy_from_slice(&header[8..24]);
    destination.copy_from_slice(&header[24..40]);
    let payload =
        extensions(frame, Payload { protocol: header[6], start: offset + 40, end, fragment: false })?;
    Some(((Address::v6(source), Address::v6(destination)), payload))
}

/// Follows extension headers until one is none.
#[inline(always)]
fn extensions(frame: &(impl Frame + ?Sized), first: Payload) -> Option<Payload> {
    let Payload { mut protocol, mut start, end, .. } = first;
    let mut fragment = false;
    let mut fragment_seen = false;
    let mut count = 0;
    while count < EXTENSIONS_MAX {
        // Hop-by-hop options stand first or are an error (RFC 8200, section 4.1).
        let known = match protocol {
            HOP_BY_HOP => count == 0,
            ROUTING | DESTINATION_OPTIONS => true,
            FRAGMENT => !fragment_seen,
            _ => break,
        };
        if !known || start > HEADERS_MAX || start + 8 > end {
            return None;
        }
        let header = frame.read::<8>(start)?;
        if protocol == FRAGMENT {
            let bits = u16::from_be_bytes([header[2], header[3]]);
            if bits & 0xfff8 != 0 {
                return None;
            }
            fragment_seen = true;
            fragment = bits & 1 == 1;
            start += 8;
        } else {
            // With segments left the address in the header is not where the packet ends.
            if protocol == ROUTING && header[3] != 0 {
                return None;
            }
            start += (u32::from(header[1]) + 1) * 8;
        }
        protocol = header[0];
        count += 1;
    }
    Some(Payload { protocol, start, end, fragment })
}

/// RFC 9293, section 3.1; RFC 768. A fragment opens nothing: were it bounced, the rest of its packet would wait for it in
/// the kernel until it times out.
#[inline(always)]
fn transport(frame: &(impl Frame + ?Sized), payload: &Payload) -> Option<Ports> {
    let Payload { protocol, start, end, fragment } = *payload;
    if start > HEADERS_MAX || start > end {
        return None;
    }
    let room = end - start;
    match protocol {
        TCP => {
            if room < 20 {
                return None;
            }
            let header = frame.read::<20>(start)?;
            let header_length = u32::from(header[12] >> 4) * 4;
            if header_length < 20 || header_length > room {
                return None;
            }
            let opens = !fragment && header[13] & (SYN | ACK | RST | FIN) == SYN;
            Some(ports([header[0], header[1], header[2], header[3]], opens))
        }
        UDP => {
            if room < 8 {
                return None;
            }
            let header = frame.read::<8>(start)?;
            let length = u32::from(u16::from_be_bytes([header[4], header[5]]));
            // In a first fragment the length is that of the whole datagram.
            if length < 8 || (!fragment && length > room) {
                return None;
            }
            Some(ports([header[0], header[1], header[2], header[3]], !fragment))
        }
        _ => None,
    }
}

/// The first four bytes of TCP's and UDP's headers.
#[inline(always)]
fn ports([a, b, c, d]: [u8; 4], opens: bool) -> Ports {
    Ports { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]), opens }
}
