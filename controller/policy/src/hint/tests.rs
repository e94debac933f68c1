use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{ConntrackState, Learned, Why};

fn packet(path: (&str, &str), addresses: (&str, &str), port: u16) -> Packet {
    Packet {
        input: path.0.parse().unwrap(),
        output: path.1.parse().unwrap(),
        source: addresses.0.parse().unwrap(),
        destination: addresses.1.parse().unwrap(),
        transport: Transport::Tcp { source: 1, destination: port },
        state: ConntrackState::New,
    }
}

fn inside() -> PolicySet {
    let mut set = PolicySet::default();
    set.firewall.inside.interfaces.insert("in0".parse().unwrap());
    set
}

fn egress(set: &mut PolicySet, name: &str, rule: Rule) {
    set.policies.entry(name.to_owned()).or_default().egress.push(rule);
}

fn blocks(net: &str, except: &[&str]) -> Peers {
    let except = except.iter().map(|net| net.parse().unwrap()).collect();
    Peers::Blocks(vec![Block { index: 0, net: net.parse().unwrap(), except }])
}

fn tcp(ports: &[(u16, u16)]) -> Ports {
    let range = |(first, last): &(u16, u16)| PortRange {
        index: 0,
        protocol: Protocol::Tcp,
        first: *first,
        last: *last,
    };
    Ports::Ranges(ports.iter().map(range).collect())
}

const OUT: (&str, &str) = ("in0", "out0");

#[test]
fn a_hint_is_an_entry_that_can_be_pasted() {
    let set = inside();
    let text = |packet: &Packet, name| set.hint(packet, DropReason::Policy, name).text();
    let v4 = packet(OUT, ("10.0.0.1", "203.0.113.7"), 443);
    assert_eq!(
        text(&v4, None),
        "egress: [{to: [{cidr: 203.0.113.7/32}], ports: [{protocol: TCP, port: 443}]}]"
    );
    assert_eq!(
        text(&v4, Some("www.example.com")),
        "egress: [{toFQDNs: [{matchName: www.example.com}], ports: [{protocol: TCP, port: 443}]}]"
    );
    assert!(text(&v4, Some("1e3")).contains("matchName: '1e3'"));
    let v6 = packet(("out0", "in0"), ("2001:db8::1", "2001:db8::2"), 80);
    assert_eq!(
        text(&v6, Some("ignored.example")),
        "ingress: [{from: [{cidr: '2001:db8::1/128'}], ports: [{protocol: TCP, port: 80}]}]"
    );
}

#[test]
fn near_misses_are_named() {
    let mut set = inside();
    let ranges = tcp(&[(80, 80), (8000, 8010), (1, 1), (2, 2)]);
    egress(
        &mut set,
        "web",
        Rule { index: 0, peers: blocks("192.0.2.0/24", &["192.0.2.128/25"]), ports: ranges },
    );
    let hint =
        |to, port, name| set.hint(&packet(OUT, ("10.0.0.1", to), port), DropReason::Policy, name).text();
    assert!(
        hint("192.0.2.7", 443, None)
            .ends_with("; policy web allows this address on TCP 80, TCP 8000-8010, TCP 1, more only")
    );
    assert!(hint("192.0.2.129", 80, None).ends_with("; policy web excepts this address"));
    assert!(!hint("192.0.2.129", 443, None).contains("policy"));
    let names = Peers::Names(vec![FqdnSelector::Name("a.example".to_owned())]);
    egress(&mut set, "named", Rule { index: 0, peers: names, ports: tcp(&[(443, 443)]) });
    let hint =
        set.hint(&packet(OUT, ("10.0.0.1", "5.5.5.5"), 80), DropReason::Policy, Some("a.example")).text();
    assert!(hint.ends_with("; policy named allows this name on TCP 443 only"), "{hint}");
}

#[test]
fn where_no_policy_helps_the_reason_is_said() {
    let set = inside();
    let forwarded = packet(OUT, ("10.0.0.1", "192.0.2.1"), 0);
    for reason in
        [DropReason::Spoofed, DropReason::UnsupportedProtocol, DropReason::EncryptedDns, DropReason::Policy]
    {
        let hint = set.hint(&forwarded, reason, None);
        assert!(hint.entry.is_err() && hint.text().starts_with("none: "), "{reason}: {}", hint.text());
    }
    let beside = packet(("out0", "out1"), ("10.0.0.1", "192.0.2.1"), 80);
    assert!(set.hint(&beside, DropReason::Policy, None).entry.is_err());
    let ping = Packet {
        transport: Transport::Icmp { kind: 8, code: 0 },
        ..packet(OUT, ("10.0.0.1", "192.0.2.1"), 1)
    };
    assert!(set.hint(&ping, DropReason::Policy, None).text().contains("icmpEcho: egress"));
}

#[test]
fn hostile_names_and_long_policies_never_reach_a_hint() {
    let mut set = inside();
    let ports = tcp(&[(1, 1)]);
    egress(&mut set, &"p".repeat(253), Rule { index: 0, peers: blocks("0.0.0.0/0", &[]), ports });
    let dropped = packet(OUT, ("10.0.0.1", "192.0.2.1"), 443);
    let long = format!("{}.example", "a".repeat(63)).repeat(5);
    for name in [
        "",
        ".",
        "a..b",
        "x\\010y",
        "A.example",
        "a b",
        "'; x: '",
        "-a.b",
        "a-.b",
        "a_b.c",
        "ä.de",
        &long,
        &"a".repeat(64),
    ] {
        let text = set.hint(&dropped, DropReason::Policy, Some(name)).text();
        assert!(text.starts_with("egress: [{to: [{cidr: 192.0.2.1/32}]"), "{name}: {text}");
        assert!(text.len() <= MAX_HINT, "{text}");
    }
    let longest = vec!["a".repeat(60); 4].join(".");
    let text = set.hint(&dropped, DropReason::Policy, Some(&longest)).text();
    assert!(text.contains(&longest) && text.len() <= MAX_HINT, "{text}");
}

#[test]
fn the_search_for_near_misses_ends_at_its_budget() {
    let mut set = inside();
    for number in 0..BUDGET {
        egress(
            &mut set,
            "many",
            Rule { index: number, peers: blocks("198.51.100.0/24", &[]), ports: tcp(&[(1, 1)]) },
        );
    }
    egress(&mut set, "near", Rule { index: 0, peers: blocks("192.0.2.0/24", &[]), ports: tcp(&[(1, 1)]) });
    let hint = set.hint(&packet(OUT, ("10.0.0.1", "192.0.2.1"), 443), DropReason::Policy, None);
    assert!(hint.entry.is_ok() && hint.near.is_none(), "{hint:?}");
}

/// Few values, so that much overlaps.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u8..4, 0_u8..4).prop_map(|(a, b)| IpAddr::from([10, 0, a, b])),
        (0_u16..4).prop_map(|a| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, a])),
    ]
}

fn peers() -> impl Strategy<Value = Peers> {
    let block = (address(), 0_u8..=32, any::<bool>()).prop_map(|(address, length, excepts)| {
        let net = IpNet::new(address, length).unwrap().trunc();
        let except = if excepts { vec![IpNet::from(address)] } else { Vec::new() };
        Block { index: 0, net, except }
    });
    prop_oneof![
        Just(Peers::Any),
        proptest::collection::vec(block, 0..3).prop_map(Peers::Blocks),
        Just(Peers::Names(vec![FqdnSelector::Name("a.example".to_owned())])),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let range = (any::<bool>(), 1_u16..6, 0_u16..3).prop_map(|(udp, first, more)| PortRange {
        index: 0,
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        first,
        last: first + more,
    });
    (peers(), proptest::collection::vec(range, 0..3)).prop_map(|(peers, ranges)| Rule {
        index: 0,
        peers,
        ports: Ports::Ranges(ranges),
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let rules = || proptest::collection::vec(rule(), 0..3);
    (rules(), rules()).prop_map(|(ingress, egress)| Policy {
        ingress: ingress.into_iter().filter(|rule| !matches!(rule.peers, Peers::Names(_))).collect(),
        egress,
    })
}

fn set() -> impl Strategy<Value = PolicySet> {
    (proptest::collection::btree_map("[a-c]", policy(), 0..3), any::<bool>(), any::<bool>()).prop_map(
        |(policies, host, prefixes)| {
            let mut set = PolicySet { policies, ..inside() };
            set.firewall.host = host.then(crate::HostProtection::default);
            if prefixes {
                set.firewall.inside.prefixes.insert("10.0.0.0/23".parse().unwrap());
            }
            set
        },
    )
}

fn packets() -> impl Strategy<Value = Packet> {
    let interface = || prop_oneof![Just("in0"), Just("out0")];
    let transport = prop_oneof![
        4 => (0_u16..8).prop_map(|destination| Transport::Tcp { source: 1, destination }),
        2 => (0_u16..8).prop_map(|destination| Transport::Udp { source: 1, destination }),
        1 => Just(Transport::Tcp { source: 1, destination: 179 }),
        1 => Just(Transport::Tcp { source: 1, destination: 853 }),
        1 => Just(Transport::Icmp { kind: 8, code: 0 }),
        1 => Just(Transport::Other(47)),
    ];
    (interface(), interface(), address(), address(), transport)
        .prop_filter("one family", |(_, _, a, b, _)| a.is_ipv4() == b.is_ipv4())
        .prop_map(|(input, output, source, destination, transport)| Packet {
            input: input.parse().unwrap(),
            output: output.parse().unwrap(),
            source,
            destination,
            transport,
            state: ConntrackState::New,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// The oracle is `decide`: before, it drops; with the hinted entry in a policy of its own, it accepts.
    #[test]
    fn the_hinted_entry_makes_the_packet_pass(set in set(), packet in packets(), name in proptest::option::of("[a-c]\\.example")) {
        let learned = name.iter().map(|name| {
            let selector = FqdnSelector::Name(name.clone());
            (packet.destination, BTreeSet::from([selector]))
        });
        let learned = Learned { addresses: learned.collect() };
        let decision = set.decide_with(&packet, &learned);
        let Why::Drop(reason) = decision.why else { return Ok(()) };
        let hint = set.hint(&packet, reason, name.as_deref());
        prop_assert_eq!(&hint, &set.hint(&packet, reason, name.as_deref()));
        prop_assert!(hint.text().len() <= MAX_HINT);
        let mut with = set.clone();
        match &hint.entry {
            Ok(entry) => {
                let policy = with.policies.entry("hinted".to_owned()).or_default();
                if entry.egress { policy.egress.push(entry.rule()) } else { policy.ingress.push(entry.rule()) }
                prop_assert!(with.decide_with(&packet, &learned).accepted, "{} for {}", hint, packet);
            }
            Err(_) => {
                // Even a policy that allows everything would not help.
                let everything = Rule { index: 0, peers: Peers::Any, ports: Ports::All };
                let all = Policy { ingress: vec![everything.clone()], egress: vec![everything] };
                with.policies.insert("everything".to_owned(), all);
                let port_0 = matches!(packet.transport.service(), Some((_, 0)));
                prop_assert!(port_0 || !with.decide_with(&packet, &learned).accepted, "{} for {}", hint, packet);
            }
        }
    }
}
