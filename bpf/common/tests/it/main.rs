//! The parser and the verdict, against readers and tables that are as plain as can be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "tests end where something is wrong"
)]

mod model;

use fw_bpf_common::{
    Address, Config, Conntrack as _, Frame, HEADERS_USUAL, Packet, Reason, TAGS_MAX, TCP, UDP, Unasked,
    Verdict, flag, judge, owner, parse, reach,
};
use model::{ACK, FIN, Model, RST, Random, SOURCE, SYN, Spec, cell, frame, read};
use proptest::prelude::*;

const V4: [u8; 4] = [10, 0, 0, 1];
const V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A frame of which only the first bytes can be reached, as in a program of the kernel.
struct Part<'a>(&'a [u8], u32);
impl Frame for Part<'_> {
    fn length(&self) -> u32 {
        self.1
    }
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.read(offset)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn made_frames_are_read_as_a_plain_reader_reads_them(seed: u64, tags in 0..=2_u32) {
        let frame = frame(&mut Random(seed));
        prop_assert_eq!(parse(&frame[..], tags), read(&frame, tags), "{:02x?}", frame);
    }

    #[test]
    fn any_bytes_are_read_as_a_plain_reader_reads_them(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        prop_assert_eq!(parse(&bytes[..], 2), read(&bytes, 2));
    }

    #[test]
    fn packets_are_judged_as_the_plain_tables_say(seed: u64) {
        let mut random = Random(seed);
        let model = Model::random(&mut random, 1_000_000);
        for _ in 0..32 {
            let frame = frame(&mut random);
            let expected = read(&frame, 2).map_or(Verdict::Pass, |packet| model.expected(&packet));
            prop_assert_eq!(judge(&frame[..], 2, &model, &model), expected, "{:02x?}\n{:#?}", frame, model);
        }
    }

    #[test]
    fn only_what_opens_is_ever_bounced_and_datagrams_only_where_conntrack_is_asked(seed: u64) {
        let mut random = Random(seed);
        let model = Model::random(&mut random, 1_000_000);
        for _ in 0..32 {
            let frame = frame(&mut random);
            if let Verdict::Bounce(_) = judge(&frame[..], 2, &model, &model) {
                let packet = read(&frame, 2).unwrap();
                prop_assert!(packet.opens && (packet.protocol == TCP || model.asks));
                prop_assert!(!(model.asks && model.knows(&packet)), "it lives");
            }
        }
    }

    #[test]
    fn a_reader_without_the_last_bytes_reads_the_same_or_nothing(seed: u64, cut in 0..200_usize) {
        let frame = frame(&mut Random(seed));
        let part = Part(&frame[..cut.min(frame.len())], frame.len() as u32);
        prop_assert!(parse(&part, 2).is_none_or(|packet| Some(packet) == read(&frame, 2)));
    }

    #[test]
    fn usual_frames_are_read_no_further_than_their_transport_header(seed: u64) {
        let frame = frame(&mut Random(seed));
        let reach = reach(&frame[..]);
        if reach < HEADERS_USUAL {
            let part = Part(&frame[..frame.len().min(reach as usize)], frame.len() as u32);
            prop_assert_eq!(parse(&part, 2), read(&frame, 2), "{:02x?}", frame);
        }
    }
}

fn packet(spec: &Spec) -> Option<Packet> {
    parse(&spec.encode()[..], TAGS_MAX)
}

fn syn(destination: impl Into<std::net::IpAddr>) -> Spec {
    Spec::to(destination, TCP, 443, SYN)
}

#[test]
fn a_plain_opening_is_read() {
    let (v4, v6, source_port) = SOURCE;
    let expected = Packet {
        source: Address::v4(v4.parse::<std::net::Ipv4Addr>().unwrap().octets()),
        destination: Address::v4(V4),
        protocol: TCP,
        source_port,
        port: 443,
        opens: true,
        to_group: false,
    };
    assert_eq!(packet(&syn(V4)), Some(expected));
    let source = Address::v6(v6.parse::<std::net::Ipv6Addr>().unwrap().octets());
    assert_eq!(packet(&syn(V6)), Some(Packet { source, destination: Address::v6(V6), ..expected }));
}

#[test]
fn the_reach_of_usual_frames_ends_with_their_headers() {
    for (spec, expected) in [
        (syn(V4), 54),
        (syn(V6), 74),
        (Spec { tags: vec![0x8100], ..syn(V4) }, HEADERS_USUAL),
        (Spec { fragment: Some((0, true)), ..syn(V6) }, HEADERS_USUAL),
    ] {
        assert_eq!(reach(&spec.encode()[..]), expected);
    }
}

#[test]
fn an_opening_has_syn_and_none_of_ack_rst_and_fin() {
    for flags in 0..=u8::MAX {
        let opens = packet(&Spec::to(V4, TCP, 1, flags)).unwrap().opens;
        assert_eq!(opens, flags & SYN != 0 && flags & (ACK | RST | FIN) == 0, "{flags:#x}");
    }
}

#[test]
fn a_whole_datagram_may_open_and_a_fragment_may_not() {
    let datagram = Spec::to(V4, UDP, 1, 0);
    assert!(packet(&datagram).unwrap().opens);
    assert!(!packet(&Spec { fragment: Some((0, true)), ..datagram }).unwrap().opens);
}

#[test]
fn a_live_connection_is_never_bounced_and_a_datagram_only_where_conntrack_is_asked() {
    let mut model = Model { config: Config { flags: flag::BOUNCE, ..Config::default() }, ..Model::default() };
    model.arrange();
    model.connections = [(TCP, V4.into(), 443), (UDP, V4.into(), 443)].into();
    let bounced = Verdict::Bounce(Reason::Policy);
    for (asks, protocol, port, expected) in [
        (false, TCP, 443, bounced),
        (false, UDP, 443, Verdict::Pass),
        (false, UDP, 444, Verdict::Pass),
        (true, TCP, 443, Verdict::Pass),
        (true, TCP, 444, bounced),
        (true, UDP, 443, Verdict::Pass),
        (true, UDP, 444, bounced),
        (true, UDP, 68, Verdict::Pass),
    ] {
        model.asks = asks;
        let frame = Spec::to(V4, protocol, port, SYN).encode();
        assert_eq!(judge(&frame[..], 2, &model, &model), expected, "{asks} {protocol} {port}");
        assert_eq!(judge(&frame[..], 2, &model, &Unasked) == bounced, protocol == TCP);
    }
}

#[test]
fn up_to_two_tags_are_followed_and_one_less_where_the_kernel_took_one() {
    for (tags, read2, read1) in [
        (vec![0x8100], true, true),
        (vec![0x88a8, 0x8100], true, false),
        (vec![0x88a8, 0x8100, 0x8100], false, false),
    ] {
        let frame = Spec { tags, ..syn(V4) }.encode();
        assert_eq!(parse(&frame[..], 2).is_some(), read2);
        assert_eq!(parse(&frame[..], 1).is_some(), read1);
    }
}

#[test]
fn a_first_fragment_counts_only_with_its_whole_transport_header() {
    for destination in [std::net::IpAddr::from(V4), V6.into()] {
        let first = Spec { fragment: Some((0, true)), ..syn(destination) };
        let read = packet(&first).expect("a whole header");
        assert!(!read.opens, "the early drop passes fragments");
        assert!(packet(&Spec { fragment: Some((1, true)), ..first.clone() }).is_none());
        assert!(packet(&Spec { fragment: Some((185, false)), ..first.clone() }).is_none());
        let mut cut = first.encode();
        cut.truncate(cut.len() - 1);
        // The IP length says what is there: a fragment that ends inside of the TCP header.
        let at = if destination.is_ipv4() { 16 } else { 18 };
        cut[at + 1] -= 1;
        assert_eq!(parse(&cut[..], 2), None);
    }
    // Of a datagram in fragments UDP's length says more than the first one has.
    let mut datagram = Spec { fragment: Some((0, true)), ..Spec::to(V4, UDP, 443, 0) }.encode();
    datagram[38] = 5;
    assert!(parse(&datagram[..], 2).is_some());
    datagram[20] = 0;
    assert!(parse(&datagram[..], 2).is_none());
}

#[test]
fn lengths_that_lie_gain_nothing() {
    let frame = syn(V4).encode();
    for (position, value) in [(14, 0x44), (14, 0x46), (14, 0x65), (17, 39), (17, 41), (46, 0x40), (46, 0x60)]
    {
        let mut bad = frame.clone();
        bad[position] = value;
        assert_eq!(parse(&bad[..], 2), None, "byte {position} = {value:#x}");
    }
    for length in 0..frame.len() {
        assert_eq!(parse(&frame[..length], 2), None, "{length} bytes");
    }
    // What Ethernet pads with is no part of the packet.
    let padded = Spec { padding: 6, ..syn(V4) }.encode();
    assert!(parse(&padded[..], 2).is_some());
}

#[test]
fn a_jumbogram_and_a_source_route_gain_nothing() {
    let mut jumbo = syn(V6).encode();
    jumbo[18..20].copy_from_slice(&[0, 0]);
    assert_eq!(parse(&jumbo[..], 2), None);
    let routed = Spec { extensions: vec![(43, 2)], ..syn(V6) };
    assert!(packet(&routed).is_some());
    assert!(packet(&Spec { segments_left: 1, ..routed }).is_none());
}

#[test]
fn extension_headers_are_followed_to_a_bound() {
    for count in 0..10 {
        let spec = Spec { extensions: vec![(60, 0); count], ..syn(V6) };
        assert_eq!(packet(&spec).is_some(), count <= 6, "{count}");
    }
    assert!(packet(&Spec { extensions: vec![(0, 1), (60, 0)], ..syn(V6) }).is_some());
    assert!(
        packet(&Spec { extensions: vec![(60, 0), (0, 1)], ..syn(V6) }).is_none(),
        "hop-by-hop stands first"
    );
    assert!(
        packet(&Spec { extensions: vec![(60, 80)], ..syn(V6) }).is_none(),
        "longer than headers are read"
    );
}

#[test]
fn what_is_neither_a_name_s_nor_a_prefix_s_is_bounced_and_interception_passes() {
    let judged = |flags: u32, port: u16| {
        let mut model = Model { config: Config { flags, ..Config::default() }, ..Model::default() };
        model.arrange();
        judge(&Spec::to(V4, TCP, port, SYN).encode()[..], 2, &model, &model)
    };
    let bounced = Verdict::Bounce(Reason::Policy);
    assert_eq!(judged(0, 443), Verdict::Pass);
    assert_eq!(judged(flag::BOUNCE, 443), bounced);
    assert_eq!(judged(flag::BOUNCE, 53), bounced);
    assert_eq!(judged(flag::BOUNCE | flag::DNS, 53), Verdict::Pass);
    assert_eq!(judged(flag::BOUNCE | flag::DNS, 853), bounced);
    assert_eq!(judged(flag::BOUNCE | flag::DOT, 853), Verdict::Pass);
}

#[test]
fn the_default_gateway_of_ports_is_the_prefix_table() {
    let mut model = Model { config: Config { flags: flag::BOUNCE, ..Config::default() }, ..Model::default() };
    model.prefixes.insert((std::net::IpAddr::from([10, 0, 0, 0]), 8), vec![cell(TCP, 440, 450, 0)]);
    model.arrange();
    let judged = |port: u16| judge(&Spec::to(V4, TCP, port, SYN).encode()[..], 2, &model, &model);
    assert_eq!(judged(439), Verdict::Bounce(Reason::Policy));
    assert_eq!(judged(440), Verdict::Pass);
    assert_eq!(judged(450), Verdict::Pass);
    assert_eq!(judged(451), Verdict::Bounce(Reason::Policy));
}

#[test]
fn addresses_that_differ_in_one_bit_have_different_owners() {
    for bit in 0..128 {
        let other = (u128::from_be_bytes(V6) ^ (1 << bit)).to_be_bytes();
        assert_ne!(owner(&Address::v6(V6)), owner(&Address::v6(other)));
    }
}
