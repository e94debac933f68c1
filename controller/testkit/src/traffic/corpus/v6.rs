//! What only IPv6 has.

use crate::traffic::corpus::build::{Builder, Fate, TCP, UDP, add_common, length_of};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const NO_NEXT: u8 = 59;
const DESTINATION: u8 = 60;

/// Extension headers: kind and bytes of each.
type Chain = Vec<(u8, Vec<u8>)>;

/// A header of options: next header, length in 8 bytes beyond the first 8, and one PadN that fills it.
fn padding(kind: u8, extra: u8) -> (u8, Vec<u8>) {
    let length = 8 + 8 * usize::from(extra);
    let mut bytes = vec![0, extra, 1, u8::try_from(length - 4).unwrap_or(0)];
    bytes.resize(length, 0);
    (kind, bytes)
}

fn routing(kind: u8, left: u8) -> (u8, Vec<u8>) {
    let mut bytes = vec![0, 2, kind, left, 0, 0, 0, 0];
    bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    (ROUTING, bytes)
}

/// 24 bytes: its length is in words of 4, without the first two (RFC 4302 section 2.2).
fn authentication() -> (u8, Vec<u8>) {
    let mut bytes = vec![0, 4];
    bytes.resize(24, 1);
    (AUTHENTICATION, bytes)
}

pub(super) fn add(builder: &mut Builder) {
    add_common(builder, true);
    extensions(builder);
    headers(builder);
}

fn extensions(builder: &mut Builder) {
    use Fate::{Dropped, Refused, Whole};
    let all: Vec<(&str, Chain, Fate)> = vec![
        ("hop-by-hop", vec![padding(HOP_BY_HOP, 0)], Whole),
        ("destination options", vec![padding(DESTINATION, 0)], Whole),
        ("destination options of 72 bytes", vec![padding(DESTINATION, 8)], Whole),
        ("destination options of 264 bytes", vec![padding(DESTINATION, 32)], Whole),
        ("a routing header that is done", vec![routing(0, 0)], Whole),
        ("a routing header with one to go", vec![routing(0, 1)], Whole),
        ("a routing header of type 2", vec![routing(2, 1)], Whole),
        // nftables' `meta l4proto` ends there: 51 (nft_set_pktinfo_ipv6() asks for IP6_FH_F_AUTH).
        ("an authentication header", vec![authentication()], Dropped),
        (
            "all in the order of RFC 8200",
            vec![padding(HOP_BY_HOP, 0), padding(DESTINATION, 0), routing(0, 0), padding(DESTINATION, 1)],
            Whole,
        ),
        (
            "hop-by-hop behind destination options",
            vec![padding(DESTINATION, 0), padding(HOP_BY_HOP, 0)],
            Whole,
        ),
        ("eight destination options", vec![padding(DESTINATION, 0); 8], Whole),
        ("an unknown option that says drop", vec![(HOP_BY_HOP, vec![0, 0, 0x7e, 4, 0, 0, 0, 0])], Refused),
        ("an unknown option that says skip", vec![(HOP_BY_HOP, vec![0, 0, 0x3e, 4, 0, 0, 0, 0])], Whole),
    ];
    for (name, headers, fate) in all {
        for protocol in [TCP, UDP] {
            builder.add(true, protocol, name, fate, |seed| {
                vec![seed.frame(&seed.v6(&headers, &seed.segment()))]
            });
        }
    }
    builder.add(true, TCP, "an atomic fragment", Whole, |seed| {
        vec![seed.frame(&seed.v6(&[seed.fragment(0, false)], &seed.segment()))]
    });
    builder.add(true, UDP, "hop-by-hop before an atomic fragment", Whole, |seed| {
        vec![seed.frame(&seed.v6(&[padding(HOP_BY_HOP, 0), seed.fragment(0, false)], &seed.segment()))]
    });
    builder.add(true, UDP, "destination options in fragments", Whole, |seed| {
        let segment = seed.segment();
        let options = padding(DESTINATION, 0);
        let first = seed.v6(&[seed.fragment(0, true), options], &segment[..40]);
        // Behind a fragment header that is not the first there is no header but data; it begins with byte 48.
        let rest = seed.v6(&[seed.fragment(48, false)], &segment[40..]);
        vec![seed.frame(&first), seed.frame(&rest)]
    });
}

fn headers(builder: &mut Builder) {
    use Fate::{Dropped, Refused};
    builder.add(true, TCP, "an extension header longer than the packet", Dropped, |seed| {
        let (kind, mut bytes) = padding(DESTINATION, 0);
        bytes[1] = 200;
        vec![seed.frame(&seed.v6(&[(kind, bytes)], &seed.segment()))]
    });
    builder.add(true, TCP, "hop-by-hop longer than the packet", Dropped, |seed| {
        let (kind, mut bytes) = padding(HOP_BY_HOP, 0);
        bytes[1] = 200;
        vec![seed.frame(&seed.v6(&[(kind, bytes)], &seed.segment()))]
    });
    builder.add(true, TCP, "no next header, and a segment behind it", Dropped, |seed| {
        seed.changed(|packet| packet[6] = NO_NEXT)
    });
    builder.add(true, TCP, "a fragment header and nothing behind it", Dropped, |seed| {
        vec![seed.frame(&seed.v6(&[seed.fragment(0, false)], &[]))]
    });
    builder.add(true, TCP, "a first fragment of no multiple of eight bytes", Refused, |seed| {
        let segment = seed.segment();
        let first = seed.v6(&[seed.fragment(0, true)], &segment[..44]);
        vec![seed.frame(&first), seed.frame(&seed.v6(&[seed.fragment(40, false)], &segment[40..]))]
    });
    let changes: Vec<(&str, Fate, usize, Vec<u8>)> = vec![
        ("no payload length", Dropped, 4, length_of(0).to_vec()),
        ("a payload length inside the ports", Dropped, 4, length_of(3).to_vec()),
        ("a payload length beyond the frame", Dropped, 4, length_of(1000).to_vec()),
        ("version 4", Dropped, 0, vec![0x40]),
        ("version 7", Dropped, 0, vec![0x70]),
        ("one hop left", Refused, 7, vec![1]),
        ("no hop left", Refused, 7, vec![0]),
    ];
    for (name, fate, at, bytes) in changes {
        builder.add(true, TCP, name, fate, |seed| {
            seed.changed(|packet| packet[at..at + bytes.len()].copy_from_slice(&bytes))
        });
    }
}
