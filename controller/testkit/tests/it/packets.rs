//! Crafted packets, their senders and sniffers, against a hand-written ruleset.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fw_policy::Transport;
use fw_testkit::r#gen::Rng;
use fw_testkit::nft;
use fw_testkit::topology::{Lab, LabSpec};
use fw_testkit::traffic::conntrack;
use fw_testkit::traffic::craft::{Body, Crafted, Tag, flags, recognise};
use fw_testkit::traffic::inject::Injector;
use fw_testkit::traffic::live::{Live, Then};
use fw_testkit::traffic::range::{Range, Shot};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const CLUSTER: usize = 0;
const INTERNET: usize = 1;

fn out(packet: Crafted) -> Shot {
    Shot { from: CLUSTER, packet }
}

#[test]
fn what_arrives_is_told_from_what_is_dropped() {
    let lab = Lab::standard("told").unwrap();
    load_forward(
        &lab,
        &[
            "ct state established,related counter accept",
            "ct state invalid counter drop",
            r#"ip daddr 192.0.2.0/24 tcp dport 80-90 counter accept comment "web""#,
            r#"ip6 daddr 2001:db8:5::/48 udp dport 53 counter accept comment "dns""#,
            r#"icmp type echo-request counter accept comment "ping""#,
            r#"ip protocol gre counter accept comment "gre""#,
        ],
    );
    let mut range = Range::new(&lab).unwrap();
    let shots_and_fates: Vec<(Crafted, bool)> = vec![
        (Crafted::syn(at("10.0.16.9:1000"), at("192.0.2.0:80")), true),
        (Crafted::syn(at("10.0.16.9:1000"), at("192.0.2.255:90")), true),
        (Crafted::syn(at("10.0.16.9:1000"), at("192.0.2.1:91")), false),
        (Crafted::syn(at("10.0.16.9:1000"), at("192.0.3.0:80")), false),
        (Crafted::udp(at("10.0.16.9:1000"), at("192.0.2.1:80")), false),
        (Crafted::udp(at("[2001:db8:10::9]:1000"), at("[2001:db8:5::1]:53")), true),
        (Crafted::udp(at("[2001:db8:10::9]:1000"), at("[2001:db8:6::1]:53")), false),
        (Crafted::syn(at("[2001:db8:10::9]:1000"), at("[2001:db8:5::1]:53")), false),
        (Crafted::echo(ip("8.8.8.8"), ip("9.9.9.9"), 5), true),
        (Crafted::echo(ip("2001:db8:10::9"), ip("2001:db8:5::1"), 5), false),
        (Crafted::new(ip("10.0.16.9"), ip("9.9.9.9"), Body::Other { protocol: 47 }), true),
        (Crafted::new(ip("10.0.16.9"), ip("9.9.9.9"), Body::Other { protocol: 253 }), false),
        (Crafted { bad_checksum: true, ..Crafted::syn(at("10.0.16.9:1"), at("192.0.2.1:80")) }, false),
    ];
    let shots: Vec<Shot> = shots_and_fates.iter().map(|(packet, _)| out(packet.clone())).collect();
    let fates = range.fire(&shots).unwrap();
    for ((packet, passes), arrivals) in shots_and_fates.iter().zip(&fates) {
        assert_eq!(arrivals.len(), usize::from(*passes), "{packet:?}: {arrivals:?}");
        if let [arrival] = &arrivals[..] {
            assert_eq!(arrival.at, INTERNET);
            assert_eq!((arrival.seen.source, arrival.seen.destination), (packet.source, packet.destination));
            assert_eq!(arrival.seen.hops, packet.hops - 1);
        }
    }
    assert_eq!(fates[1][0].seen.transport, Transport::Tcp { source: 1000, destination: 90 });
    let counters = nft::counters(&lab.firewall).unwrap();
    let counted = ["web", "dns", "ping", "gre"].map(|comment| counters.comment(comment));
    assert_eq!(counted, [2, 1, 1, 1]);
}

#[test]
fn crafted_packets_are_recognised_and_cut_or_foreign_ones_do_no_harm() {
    for (number, (name, packet)) in (0_u32..).zip(lone_packets()) {
        let tag = Tag { run: 5, id: number };
        let bytes = packet.encode(tag).unwrap().remove(0);
        let seen = recognise(&bytes).unwrap();
        assert_eq!(
            (seen.tag, seen.source, seen.destination),
            (tag, packet.source, packet.destination),
            "{name}"
        );
        // Only the tag's end completes it.
        assert!((0..bytes.len()).all(|length| recognise(&bytes[..length]).is_none()), "{name}");
    }
    let mut rng = Rng::new(1);
    for _ in 0..10_000 {
        let length = rng.below(100);
        let mut bytes: Vec<u8> = (0..length).map(|_| rng.bits().to_be_bytes()[0]).collect();
        bytes.splice(..0, [if rng.percent(50) { 0x45 } else { 0x60 }]);
        assert_eq!(recognise(&bytes), None);
    }
}

#[test]
fn packets_come_out_at_the_machine_that_has_the_address() {
    let spec = LabSpec::standard("where")
        .and_then(LabSpec::with_second_inside)
        .and_then(LabSpec::with_second_outside);
    let lab = Lab::new(&spec.unwrap()).unwrap();
    let mut range = Range::new(&lab).unwrap();
    let there = ["10.0.16.0", "10.0.17.255", "1.1.1.1", "192.0.2.255", "198.51.100.10"];
    let shots: Vec<Shot> =
        there.iter().map(|to| Shot { from: 2, packet: Crafted::echo(ip("9.9.9.9"), ip(to), 1) }).collect();
    let machines: Vec<Vec<usize>> = range
        .fire(&shots)
        .unwrap()
        .iter()
        .map(|fate| fate.iter().map(|arrival| arrival.at).collect())
        .collect();
    assert_eq!(machines, [vec![0], vec![1], vec![2], vec![3], vec![0]]);
}

/// A firewall of a few rules; what none of them accepts is dropped.
fn load_forward(lab: &Lab, rules: &[&str]) {
    let rules = rules.join("\n");
    let chain = "chain forward {\ntype filter hook forward priority 0; policy drop;\n";
    nft::load(&lab.firewall, &format!("table inet t {{\n{chain}{rules}\n}}\n}}\n")).unwrap();
}

/// Asks the kernel's conntrack of packets that belong to nothing: of five rulesets, each lets one state pass.
#[test]
fn conntrack_agrees_on_the_state_of_lone_packets() {
    let lab = Lab::standard("state").unwrap();
    let mut range = Range::new(&lab).unwrap();
    range.silence_machines().unwrap();
    let packets = lone_packets();
    let shots: Vec<Shot> = packets.iter().map(|(_, packet)| out(packet.clone())).collect();
    let mut states: Vec<Vec<&str>> = vec![Vec::new(); packets.len()];
    for state in ["new", "established", "related", "invalid", "untracked"] {
        load_forward(&lab, &[&format!("ct state {state} accept")]);
        for (states, arrivals) in states.iter_mut().zip(range.fire(&shots).unwrap()) {
            states.extend(arrivals.iter().map(|_| state));
        }
        nft::load(&lab.firewall, "flush ruleset").unwrap();
        conntrack::flush(&lab.firewall).unwrap();
    }
    for ((name, packet), states) in packets.iter().zip(states) {
        let expected =
            packet.first_state().map_or("untracked".to_owned(), |state| format!("{state:?}").to_lowercase());
        assert_eq!(states, [expected], "{name}: {packet:?}");
    }
}

/// Each with a source address of its own, so that none belongs to another's connection.
fn lone_packets() -> Vec<(String, Crafted)> {
    let mut bodies: Vec<(String, Body)> =
        vec![("udp".to_owned(), Body::Udp { source: 1000, destination: 80 })];
    for flags in 0..=255 {
        bodies.push((format!("tcp {flags:#x}"), Body::Tcp { source: 1000, destination: 80, flags }));
    }
    for kind in 0..=255 {
        bodies.push((format!("icmp {kind}"), Body::Icmp { kind, code: 0, identifier: 1 }));
    }
    for protocol in [1, 2, 4, 33, 41, 47, 50, 58, 89, 132, 136, 253] {
        bodies.push((format!("protocol {protocol}"), Body::Other { protocol }));
    }
    let mut packets = Vec::new();
    for (number, (name, body)) in (0_u16..).zip(bodies) {
        for (family, source, destination) in
            [("v4", "10.0.17.0", "192.0.2.1"), ("v6", "2001:db8:10:17::", "2001:db8:5::1")]
        {
            for bad_checksum in [false, true] {
                let number = number * 2 + u16::from(bad_checksum);
                let source: IpAddr = match ip(source) {
                    IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() + u32::from(number)).into(),
                    IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + u128::from(number)).into(),
                };
                let packet = Crafted { bad_checksum, ..Crafted::new(source, ip(destination), body.clone()) };
                packets.push((format!("{family} {name}, bad checksum {bad_checksum}"), packet));
            }
        }
    }
    packets
}

#[test]
fn errors_about_known_flows_are_related_and_others_invalid() {
    let lab = Lab::standard("related").unwrap();
    load_forward(
        &lab,
        &[
            r#"ct state related counter accept comment "related""#,
            r#"ct state established counter accept comment "established""#,
            r#"ct state invalid counter drop comment "invalid""#,
            r#"iifname vrf104009 counter accept comment "new""#,
        ],
    );
    let mut range = Range::new(&lab).unwrap();
    range.silence_machines().unwrap();
    let known4 = Crafted::udp(at("10.0.16.9:1000"), at("192.0.2.1:53"));
    let known6 = Crafted::udp(at("[2001:db8:10::9]:1000"), at("[2001:db8:5::1]:53"));
    let unknown = Crafted::udp(at("10.0.16.9:1001"), at("192.0.2.1:53"));
    let answer = Crafted::udp(at("192.0.2.1:53"), at("10.0.16.9:1000"));
    let back = |packet| Shot { from: INTERNET, packet };
    let shots = [
        out(known4.clone()),
        out(known6.clone()),
        back(Crafted::error_about(&known4, ip("203.0.113.77"), 3, 3).unwrap()),
        back(Crafted::error_about(&known6, ip("2001:db8:179::77"), 1, 4).unwrap()),
        back(Crafted::error_about(&unknown, ip("203.0.113.77"), 3, 3).unwrap()),
        back(answer),
        back(Crafted::udp(at("192.0.2.1:53"), at("10.0.16.9:1002"))),
        out(known4),
    ];
    let arrived: Vec<usize> = range.fire(&shots).unwrap().iter().map(Vec::len).collect();
    assert_eq!(arrived, [1, 1, 1, 1, 0, 1, 0, 1]);
    let counters = nft::counters(&lab.firewall).unwrap();
    let counted = ["new", "related", "invalid", "established"].map(|comment| counters.comment(comment));
    assert_eq!(counted, [2, 2, 1, 2]);
}

#[test]
fn fragments_are_one_packet_to_the_firewall() {
    let lab = Lab::standard("fragments").unwrap();
    load_forward(&lab, &[r#"ct state new udp dport 53 counter accept comment "whole""#]);
    let mut range = Range::new(&lab).unwrap();
    let cut = |packet: Crafted| out(Crafted { padding: 200, fragment_bytes: Some(64), ..packet });
    let fates = range
        .fire(&[
            cut(Crafted::udp(at("10.0.16.9:1000"), at("192.0.2.1:53"))),
            cut(Crafted::udp(at("[2001:db8:10::9]:1000"), at("[2001:db8:5::1]:53"))),
            cut(Crafted::udp(at("10.0.16.9:1000"), at("192.0.2.1:54"))),
        ])
        .unwrap();
    assert_eq!(fates.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(nft::counters(&lab.firewall).unwrap().comment("whole"), 2);
}

#[test]
fn a_hundred_thousand_packets_at_full_speed_are_all_counted() {
    const PACKETS: u32 = 100_000;
    let lab = Lab::standard("flood").unwrap();
    load_forward(&lab, &["counter comment \"all\""]);
    let packets: Vec<Vec<u8>> = (0..PACKETS)
        .map(|id| {
            let port = u16::try_from(id % 60_000).unwrap() + 1;
            let to = SocketAddr::new(ip("192.0.2.1"), port);
            Crafted::udp(at("10.0.16.9:1000"), to).encode(Tag { run: 0, id }).unwrap().remove(0)
        })
        .collect();
    Injector::on(lab.cluster()).unwrap().send(&packets).unwrap();
    assert_eq!(nft::counters(&lab.firewall).unwrap().comment("all"), u64::from(PACKETS));
}

#[test]
fn thousands_of_packets_through_an_open_firewall_all_arrive_once() {
    let lab = Lab::standard("open").unwrap();
    let mut range = Range::new(&lab).unwrap();
    range.silence_machines().unwrap();
    let shots: Vec<Shot> = (0..20_000_u16)
        .map(|number| match number % 4 {
            0 => out(Crafted::tcp(at("10.0.16.9:1000"), SocketAddr::new(ip("7.7.7.7"), number), flags::ACK)),
            1 => out(Crafted::udp(at("[2001:db8:10::9]:9"), SocketAddr::new(ip("2001:db8:7::7"), number))),
            2 => Shot { from: INTERNET, packet: Crafted::echo(ip("9.9.9.9"), ip("10.0.18.1"), number) },
            _ => out(Crafted::new(ip("10.0.16.9"), ip("7.7.7.7"), Body::Other { protocol: 132 })),
        })
        .collect();
    let fates = range.fire(&shots).unwrap();
    assert!(fates.iter().all(|arrivals| arrivals.len() == 1));
}

#[test]
fn live_frames_reach_the_stack_whole_each_time_or_not_at_all() {
    const FRAMES: u64 = 20_000;
    let lab = Lab::standard("live").unwrap();
    // What arrived with another TTL would have been forwarded before.
    load_forward(&lab, &["ip ttl 63 counter comment \"fresh\"", "counter drop comment \"all\""]);
    let packet = Crafted::syn(at("10.0.16.9:1000"), at("192.0.2.1:80"));
    let send = |then| {
        let live = Live::new(&lab.firewall, lab.cluster(), &packet, then).unwrap();
        lab.firewall.run(|| live.send(FRAMES)).unwrap().unwrap();
        let counters = nft::counters(&lab.firewall).unwrap();
        (counters.comment("fresh"), counters.comment("all"))
    };
    assert_eq!(send(Then::Drop), (0, 0));
    assert_eq!(send(Then::Pass), (FRAMES, FRAMES));
}
