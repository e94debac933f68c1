//! Pieces of packets.

use std::net::IpAddr;

use crate::traffic::corpus::{Ends, Flow, Sample};
use crate::traffic::craft::{Tag, add_words, finish};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SYN: u8 = 0x02;
pub(super) const ETHER_V4: u16 = 0x0800;
pub(super) const ETHER_V6: u16 = 0x86dd;

/// What a sample is expected to be.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    /// Read by single frames too, and forwarded.
    Whole,
    /// Forwarded; the first frame alone does not have the whole transport header.
    Scattered,
    /// Has a flow that a single frame shows, and is not forwarded.
    Refused,
    /// Not forwarded, and not readable.
    Dropped,
}

pub(super) struct Builder {
    pub(super) ends: Ends,
    pub(super) samples: Vec<Sample>,
    run: u32,
}

impl Builder {
    pub(super) fn new(ends: Ends, run: u32) -> Self {
        Self { ends, samples: Vec::new(), run }
    }

    /// Adds a sample of one family; `frames` gets what is to be put into frames.
    pub(super) fn add(
        &mut self,
        v6: bool,
        protocol: u8,
        name: impl Into<String>,
        fate: Fate,
        frames: impl FnOnce(&Seed) -> Vec<Vec<u8>>,
    ) {
        let id = u32::try_from(self.samples.len()).unwrap_or(u32::MAX);
        let seed = Seed { ends: self.ends, v6, protocol, tag: Tag { run: self.run, id } };
        let transport = if protocol == TCP { "tcp" } else { "udp" };
        let family = if v6 { "v6" } else { "v4" };
        let readable = !matches!(fate, Fate::Dropped);
        self.samples.push(Sample {
            name: format!("{family} {transport}: {}", name.into()),
            frames: frames(&seed),
            tag: seed.tag,
            flow: readable.then(|| Flow { destination: seed.ends().1, protocol, port: self.ends.port }),
            complete: matches!(fate, Fate::Whole | Fate::Refused),
            forwarded: matches!(fate, Fate::Whole | Fate::Scattered),
        });
    }
}

/// Everything a sample is made from.
pub(super) struct Seed {
    pub(super) ends: Ends,
    pub(super) v6: bool,
    pub(super) protocol: u8,
    pub(super) tag: Tag,
}

impl Seed {
    pub(super) fn ends(&self) -> (IpAddr, IpAddr) {
        if self.v6 {
            (self.ends.v6.0.into(), self.ends.v6.1.into())
        } else {
            (self.ends.v4.0.into(), self.ends.v4.1.into())
        }
    }

    fn identification(&self) -> [u8; 4] {
        (self.tag.id + 1).to_be_bytes()
    }

    /// The transport header and 8 tags, with a right checksum.
    pub(super) fn segment(&self) -> Vec<u8> {
        self.segment_with(SYN)
    }

    /// As [`Seed::segment`], with other TCP flags.
    pub(super) fn segment_with(&self, flags: u8) -> Vec<u8> {
        let payload = self.tag.bytes(false).repeat(8);
        let source = u16::try_from(10_000 + self.tag.id).unwrap_or(u16::MAX);
        let mut bytes = [source.to_be_bytes(), self.ends.port.to_be_bytes()].concat();
        let checksum_at = if self.protocol == TCP {
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            16
        } else {
            bytes.extend(length_of(8 + payload.len()));
            bytes.extend([0, 0]);
            6
        };
        bytes.extend(payload);
        let checksum = finish(add_words(self.pseudo_header(bytes.len()), &bytes));
        // Zero would mean "none" (RFC 768).
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn pseudo_header(&self, length: usize) -> u64 {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let (source, destination) = self.ends();
        let addresses = add_words(add_words(0, &octets(source)), &octets(destination));
        addresses + u64::from(self.protocol) + u64::try_from(length).unwrap_or(0)
    }

    /// An IPv4 packet with options (a multiple of 4 bytes) and a fragment field (flags and offset in 8 bytes).
    pub(super) fn v4(&self, options: &[u8], fragment: u16, body: &[u8]) -> Vec<u8> {
        let header = 20 + options.len();
        let words = u8::try_from(header / 4).unwrap_or(15);
        let mut packet = vec![0x40 | words, 0];
        packet.extend(length_of(header + body.len()));
        packet.extend(&self.identification()[2..]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, self.protocol, 0, 0]);
        packet.extend(self.ends.v4.0.octets());
        packet.extend(self.ends.v4.1.octets());
        packet.extend(options);
        seal(&mut packet, header);
        packet.extend(body);
        packet
    }

    /// An IPv6 packet with extension headers: kind and bytes, whose first byte (the next header) is filled in.
    pub(super) fn v6(&self, headers: &[(u8, Vec<u8>)], body: &[u8]) -> Vec<u8> {
        let kinds: Vec<u8> = headers.iter().map(|(kind, _)| *kind).chain([self.protocol]).collect();
        let length: usize = headers.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(length_of(length + body.len()));
        packet.extend([kinds[0], 64]);
        packet.extend(self.ends.v6.0.octets());
        packet.extend(self.ends.v6.1.octets());
        for ((_, bytes), next) in headers.iter().zip(&kinds[1..]) {
            packet.push(*next);
            packet.extend(&bytes[1..]);
        }
        packet.extend(body);
        packet
    }

    /// A fragment header (RFC 8200 section 4.5); the offset in bytes.
    pub(super) fn fragment(&self, offset: u16, more: bool) -> (u8, Vec<u8>) {
        let field = (offset & 0xfff8) | u16::from(more);
        (44, [&[0, 0][..], &field.to_be_bytes(), &self.identification()].concat())
    }

    /// In an Ethernet frame.
    pub(super) fn frame(&self, packet: &[u8]) -> Vec<u8> {
        self.frame_of(&[], if self.v6 { ETHER_V6 } else { ETHER_V4 }, packet)
    }

    /// With tags (ethertype and VLAN id) and any ethertype.
    pub(super) fn frame_of(&self, tags: &[(u16, u16)], ethertype: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = [self.ends.gateway_mac, self.ends.mac].concat();
        for (kind, id) in tags {
            frame.extend(kind.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        frame
    }

    /// The ordinary packet.
    pub(super) fn plain(&self, body: &[u8]) -> Vec<u8> {
        if self.v6 { self.v6(&[], body) } else { self.v4(&[], 0, body) }
    }

    /// The ordinary frame after a change of the packet; the IPv4 header's checksum is made right again.
    pub(super) fn changed(&self, change: impl FnOnce(&mut Vec<u8>)) -> Vec<Vec<u8>> {
        let mut packet = self.plain(&self.segment());
        change(&mut packet);
        if !self.v6 {
            seal(&mut packet, 20);
        }
        vec![self.frame(&packet)]
    }

    /// The segment in pieces (first byte, end, whether more follow), in this order.
    pub(super) fn pieces(&self, pieces: &[(usize, usize, bool)]) -> Vec<Vec<u8>> {
        let segment = self.segment();
        let frame = |(start, end, more): &(usize, usize, bool)| {
            let body = segment.get(*start..(*end).min(segment.len())).unwrap_or_default();
            let offset = u16::try_from(*start).unwrap_or(u16::MAX);
            self.frame(&if self.v6 {
                self.v6(&[self.fragment(offset, *more)], body)
            } else {
                self.v4(&[], (offset / 8) | if *more { 0x2000 } else { 0 }, body)
            })
        };
        pieces.iter().map(frame).collect()
    }
}

pub(super) fn length_of(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// Makes the checksum of an IPv4 header right.
pub(super) fn seal(packet: &mut [u8], header: usize) {
    packet[10..12].fill(0);
    let checksum = finish(add_words(0, &packet[..header]));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// What both families have: tags, fragments, lengths, TCP flags.
pub(super) fn add_common(builder: &mut Builder, v6: bool) {
    use Fate::{Dropped, Refused, Scattered, Whole};
    for protocol in [TCP, UDP] {
        let header = if protocol == TCP { 20 } else { 8 };
        let all = header + 8 * Tag::LENGTH;
        let mut add = |name: &str, fate: Fate, frames: &dyn Fn(&Seed) -> Vec<Vec<u8>>| {
            builder.add(v6, protocol, name, fate, frames);
        };
        add("ordinary", Whole, &|seed| seed.changed(|_| {}));
        add("bytes behind the packet", Whole, &|seed| {
            let mut frames = seed.changed(|_| {});
            frames[0].extend([0xaa; 30]);
            frames
        });
        let tagged = |tags: &'static [(u16, u16)]| {
            move |seed: &Seed| {
                let ethertype = if seed.v6 { ETHER_V6 } else { ETHER_V4 };
                vec![seed.frame_of(tags, ethertype, &seed.plain(&seed.segment()))]
            }
        };
        add("802.1Q priority tag, VLAN 0", Whole, &tagged(&[(0x8100, 0)]));
        add("802.1ad priority tag, VLAN 0", Whole, &tagged(&[(0x88a8, 0x2000)]));
        add("QinQ, VLAN 0 twice", Whole, &tagged(&[(0x88a8, 0), (0x8100, 0)]));
        add("802.1Q, a VLAN that nobody has", Refused, &tagged(&[(0x8100, 5)]));
        add("QinQ, VLANs that nobody has", Refused, &tagged(&[(0x88a8, 5), (0x8100, 6)]));
        add(
            "QinQ, VLAN 0 outside and one that nobody has inside",
            Refused,
            &tagged(&[(0x8100, 0), (0x8100, 6)]),
        );
        add("a tag and nothing behind it", Dropped, &|seed| vec![seed.frame_of(&[], 0x8100, &[0, 0])]);
        add("an ethertype of nobody", Dropped, &|seed| {
            vec![seed.frame_of(&[], 0x88b5, &seed.plain(&seed.segment()))]
        });
        add("an 802.3 length and SNAP", Dropped, &|seed| {
            let packet = seed.plain(&seed.segment());
            let body = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &packet].concat();
            vec![seed.frame_of(&[], u16::try_from(body.len()).unwrap_or(0), &body)]
        });
        add("the ethertype of the other family", Dropped, &|seed| {
            let other = if seed.v6 { ETHER_V4 } else { ETHER_V6 };
            vec![seed.frame_of(&[], other, &seed.plain(&seed.segment()))]
        });
        for length in [14, 15, 33, 34, 53, 54, 57] {
            // At 54 and 57 bytes an IPv4 packet has a transport header, and a length that says more than there is.
            add(&format!("a runt of {length} bytes"), Dropped, &move |seed| {
                let mut frames = seed.changed(|_| {});
                frames[0].truncate(length);
                frames
            });
        }
        add("fragments, in order", Whole, &|seed| seed.pieces(&[(0, 40, true), (40, all, false)]));
        add("fragments, last first", Scattered, &|seed| seed.pieces(&[(40, all, false), (0, 40, true)]));
        add("fragments, three of them, the middle one last", Whole, &|seed| {
            seed.pieces(&[(0, 40, true), (80, all, false), (40, 80, true)])
        });
        // IPv6 takes no first fragment without the whole header (ipv6frag_thdr_truncated(), RFC 8200 section 4.5).
        let tiny = match (protocol, v6) {
            (UDP, _) => Whole,
            (_, false) => Scattered,
            (_, true) => Dropped,
        };
        add("fragments, eight bytes in the first", tiny, &|seed| {
            seed.pieces(&[(0, 8, true), (8, all, false)])
        });
        add("fragments, the second begins inside the first", Refused, &|seed| {
            seed.pieces(&[(0, 48, true), (24, all, false)])
        });
        add("fragments, the second replaces the ports", Dropped, &|seed| {
            seed.pieces(&[(40, all, false), (0, 40, true), (0, 48, true)])
                .into_iter()
                .enumerate()
                .map(|(number, mut frame)| {
                    // The first that comes for the ports has other ones.
                    let at = frame.len() - 40;
                    if number == 1 {
                        frame[at + 2..at + 4].copy_from_slice(&[0xff, 0xff]);
                    }
                    frame
                })
                .collect()
        });
        add("fragments, only the first", Refused, &|seed| seed.pieces(&[(0, 40, true)]));
        add("fragments, only the last", Dropped, &|seed| seed.pieces(&[(40, all, false)]));
        add("fragments, only one at byte 8", Dropped, &|seed| seed.pieces(&[(8, all, false)]));
        add("fragments, past 65,535 bytes", Dropped, &|seed| {
            let mut frames = seed.pieces(&[(0, 40, true)]);
            let body = vec![0; 64];
            frames.push(seed.frame(&if seed.v6 {
                seed.v6(&[seed.fragment(0xfff8, false)], &body)
            } else {
                seed.v4(&[], 0x1fff, &body)
            }));
            frames
        });
    }
    for flags in 0..64 {
        // PSH and URG change nothing; an ACK on its own is NEW to conntrack (`nf_conntrack_tcp_loose`).
        let starts = matches!(flags & !0x28, SYN | 0x10);
        let fate = if starts { Whole } else { Refused };
        builder.add(v6, TCP, format!("flags {flags:#04x}"), fate, |seed| {
            vec![seed.frame(&seed.plain(&seed.segment_with(flags)))]
        });
    }
    for (name, at, value) in
        [("four words of header", 12, 0x40), ("a header longer than the packet", 12, 0xf0)]
    {
        builder.add(v6, TCP, name, Dropped, |seed| {
            let mut segment = seed.segment();
            segment[at] = value;
            // Nothing follows, so that sixty bytes are more than there are.
            segment.truncate(20 + 2 * Tag::LENGTH);
            vec![seed.frame(&seed.plain(&segment))]
        });
    }
    for (name, length) in [("a length below eight", 7), ("a length beyond the packet", 500_u16)] {
        builder.add(v6, UDP, name, Dropped, |seed| {
            let mut segment = seed.segment();
            segment[4..6].copy_from_slice(&length.to_be_bytes());
            vec![seed.frame(&seed.plain(&segment))]
        });
    }
    builder.add(v6, TCP, "a packet that ends inside its header", Dropped, |seed| {
        let mut segment = seed.segment();
        segment.truncate(12);
        vec![seed.frame(&seed.plain(&segment))]
    });
}
