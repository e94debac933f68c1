//! Two sides of the oracle without a kernel: the reference and the compiled ruleset agree on every packet, on the
//! verdict and on the counter.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends at the first thing that is not as it must be"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_policy::{
    Block, ConntrackState, Firewall, HostProtection, IcmpEcho, Inside, InsideBasis, Packet, Peers, Policy,
    PolicySet, PortRange, Ports, Protocol, Rule, Service, ServiceName, Sources, Transport,
};
use fw_ruleset::{DEFAULT_CELL_LIMIT, compile, evaluate};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

/// Few addresses, so that blocks nest and packets hit them: 10.0.0.0 to 10.0.7.255, and the same under 2001:db8::.
fn address() -> impl Strategy<Value = IpAddr> {
    (any::<bool>(), 0u16..2048).prop_map(|(v4, low)| match v4 {
        true => IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + u32::from(low))),
        false => IpAddr::V6(Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(low))),
    })
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (address(), prop_oneof![4 => 20u8..=32, 1 => 0u8..=20]).prop_map(|(address, length)| match address {
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new(v4, length).expect("<= 32").trunc()),
        IpAddr::V6(v6) => {
            let length = if length == 0 { 0 } else { length + 96 };
            IpNet::V6(Ipv6Net::new(v6, length).expect("<= 128").trunc())
        }
    })
}

fn block() -> impl Strategy<Value = Block> {
    (prefix(), proptest::collection::vec(prefix(), 0..3)).prop_map(|(net, except)| {
        let related = |e: &IpNet| net.contains(e) || e.contains(&net);
        Block { index: 0, net, except: except.into_iter().filter(related).collect() }
    })
}

fn peers() -> impl Strategy<Value = Peers> {
    prop_oneof![
        1 => Just(Peers::Any),
        6 => proptest::collection::vec(block(), 0..4).prop_map(|blocks| {
            Peers::Blocks(blocks.into_iter().enumerate().map(|(index, b)| Block { index, ..b }).collect())
        }),
        1 => Just(Peers::Names(vec![])),
    ]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
}

fn ports() -> impl Strategy<Value = Ports> {
    let range = (protocol(), 1u16..40, 0u16..15).prop_map(|(protocol, first, more)| PortRange {
        index: 0,
        protocol,
        first,
        last: first + more,
    });
    prop_oneof![
        1 => Just(Ports::All),
        5 => proptest::collection::vec(range, 0..14).prop_map(Ports::Ranges),
    ]
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    proptest::collection::vec((peers(), ports()), 0..3).prop_map(|rules| {
        let rule = |(index, (peers, ports))| Rule { index, peers, ports };
        rules.into_iter().enumerate().map(rule).collect()
    })
}

fn service() -> impl Strategy<Value = Service> {
    let sources = prop_oneof![
        Just(Sources::Any),
        proptest::collection::btree_set(prefix(), 1..12).prop_map(Sources::Blocks),
    ];
    let ports = proptest::collection::btree_set((protocol(), 1u16..40), 1..4);
    (proptest::collection::btree_set(address(), 1..3), ports, sources)
        .prop_map(|(addresses, ports, sources)| Service { addresses, ports, sources })
}

fn policy_set() -> impl Strategy<Value = PolicySet> {
    let policies = proptest::collection::btree_map("[a-e]{1,2}", (rules(), rules()), 0..6);
    let services = proptest::collection::btree_map("[a-c]", service(), 0..4);
    let echo = prop_oneof![Just(IcmpEcho::Deny), Just(IcmpEcho::Egress), Just(IcmpEcho::Both)];
    let prefixes = proptest::collection::btree_set(prefix(), 0..4);
    (policies, services, echo, prefixes, any::<[bool; 3]>()).prop_map(
        |(policies, services, icmp_echo, prefixes, [known, log_accepted, host])| {
            let interfaces =
                if known { ["in0", "in1"].map(|n| n.parse().expect("a name")).into() } else { [].into() };
            let inside = Inside { interfaces, prefixes, basis: InsideBasis::Explicit };
            let host = host.then(HostProtection::default);
            PolicySet {
                policies: policies
                    .into_iter()
                    .map(|(name, (ingress, egress))| (name, Policy { ingress, egress }))
                    .collect(),
                load_balancer_addresses: services.values().flat_map(|s| s.addresses.clone()).collect(),
                services: services
                    .into_iter()
                    .map(|(name, s)| (ServiceName { namespace: "ns".to_owned(), name }, s))
                    .collect(),
                firewall: Firewall { inside, icmp_echo, log_accepted, host, ..Firewall::default() },
            }
        },
    )
}

fn packet() -> impl Strategy<Value = Packet> {
    let interface =
        || prop_oneof![Just("in0"), Just("in1"), Just("out0")].prop_map(|n| n.parse().expect("a name"));
    let state = prop_oneof![
        8 => Just(ConntrackState::New),
        1 => Just(ConntrackState::Established),
        1 => Just(ConntrackState::Related),
        1 => Just(ConntrackState::Invalid),
    ];
    let port = || prop_oneof![8 => 0u16..60, 1 => Just(179u16), 1 => Just(65_535u16)];
    let transport = prop_oneof![
        6 => (port(), port()).prop_map(|(source, destination)| Transport::Tcp { source, destination }),
        3 => (port(), port()).prop_map(|(source, destination)| Transport::Udp { source, destination }),
        2 => (prop_oneof![0u8..14, 128u8..130], 0u8..2).prop_map(|(kind, code)| Transport::Icmp { kind, code }),
        1 => prop_oneof![Just(2u8), Just(47), Just(132)].prop_map(Transport::Other),
    ];
    (interface(), interface(), address(), address(), transport, state).prop_map(
        |(input, output, source, destination, transport, state)| {
            // Both of the source's family.
            let low = match destination {
                IpAddr::V4(v4) => u128::from(u32::from(v4) & 0xffff),
                IpAddr::V6(v6) => u128::from(v6) & 0xffff,
            };
            let destination = match source {
                IpAddr::V4(_) => {
                    IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + u32::try_from(low).expect("16 bits")))
                }
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from((0x2001_0db8_u128 << 96) + low)),
            };
            Packet { input, output, source, destination, transport, state }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_reference_and_the_compiled_ruleset_agree_on_verdict_and_counter(
        set in policy_set(),
        packets in proptest::collection::vec(packet(), 100),
    ) {
        let compiled = compile(&set, DEFAULT_CELL_LIMIT);
        prop_assert!(compiled.problems.is_empty());
        for packet in packets {
            let decision = set.decide(&packet);
            let evaluation = evaluate(&compiled.ruleset, &packet);
            prop_assert_eq!(decision.accepted, evaluation.accepted, "{} {:?}", &packet, &decision);
            let counted = evaluation
                .counted
                .iter()
                .rfind(|(chain, _)| chain != "accepted" && chain != "drop_log")
                .and_then(|(chain, position)| compiled.ruleset.chains[chain].rules[*position].comment.clone());
            prop_assert_eq!(Some(decision.why.counter()), counted, "{} {:?}", &packet, &decision);
        }
    }
}

#[test]
fn past_the_cell_limit_the_largest_policies_are_left_out_and_named() {
    let many = |count: u32| {
        let blocks = (0..count).map(|n| Block {
            index: 0,
            net: IpNet::V4(Ipv4Net::new(Ipv4Addr::from(n << 8), 24).expect("<= 32")),
            except: vec![],
        });
        let rule = Rule { index: 0, peers: Peers::Blocks(blocks.collect()), ports: Ports::All };
        Policy { ingress: vec![], egress: vec![rule] }
    };
    let policies = [("big", many(500)), ("small", many(10))];
    let set = PolicySet {
        policies: policies.into_iter().map(|(name, policy)| (name.to_owned(), policy)).collect(),
        ..PolicySet::default()
    };
    let compiled = compile(&set, 1000);
    let left_out: Vec<&str> = compiled.problems.iter().map(|p| p.origin.name.as_str()).collect();
    assert_eq!(left_out, ["big"]);
    assert!(compiled.ruleset.chains.contains_key("egress-small-rule0"));
    assert!(!compiled.ruleset.chains.contains_key("egress-big-rule0"));
}
