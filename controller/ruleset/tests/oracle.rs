//! Two sides of the oracle without a kernel: the reference and the compiled ruleset agree on every packet, on the
//! verdict and on the counter.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends at the first thing that is not as it must be"
)]

#[path = "oracle/stages.rs"]
mod stages;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr as _;

use fw_policy::{
    Block, ConntrackState, Dns, Encrypted, Fastpath, Firewall, FqdnSelector, HostProtection, IcmpEcho,
    IfName, Inside, InsideBasis, Intercept, Learned, NameEntry, Packet, Peers, Policy, PolicySet, PortRange,
    Ports, Protocol, Rule, Service, ServiceName, Sources, Transport, Upstream,
};
use fw_ruleset::ir::{Family, Key, Value};
use fw_ruleset::{
    Counts, DEFAULT_CELL_LIMIT, Dynamic, FQDN_CELLS, FQDN_LEVELS, MAX_SUPERSET_CELLS, Names, Op, Stamp,
    Superset, compile, compile_with, evaluate_with, fqdn_map, plan, superset,
};
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

/// Few, so that policies share them; a name and a pattern with the same text are two.
fn selector() -> impl Strategy<Value = FqdnSelector> {
    prop_oneof![
        "[a-c]\\.example".prop_map(FqdnSelector::Name),
        "[ab]\\.example".prop_map(FqdnSelector::Pattern),
        Just(FqdnSelector::Regex(r"[a-z]+\.example".to_owned())),
    ]
}

/// What some addresses were learned for; also selectors that no policy has.
fn learned() -> impl Strategy<Value = Learned> {
    let selectors = proptest::collection::btree_set(selector(), 1..5);
    proptest::collection::btree_map(address(), selectors, 0..12).prop_map(|addresses| Learned { addresses })
}

fn encrypted() -> impl Strategy<Value = Encrypted> {
    prop_oneof![3 => Just(Encrypted::Policy), 1 => Just(Encrypted::Deny), 1 => Just(Encrypted::Allow)]
}

fn dns() -> impl Strategy<Value = Dns> {
    let upstreams = proptest::collection::vec(address(), 0..3);
    let endpoints = proptest::collection::btree_set(prefix(), 0..3);
    (upstreams, endpoints, encrypted(), encrypted(), any::<[bool; 2]>()).prop_map(
        |(upstreams, doh_endpoints, dot, doh, [always, fallback])| {
            let upstream = |address| Upstream { address: SocketAddr::new(address, 53), tls_name: None };
            Dns {
                intercept: if always { Intercept::Always } else { Intercept::WithNames },
                upstreams: upstreams.into_iter().map(upstream).collect(),
                doh_endpoints,
                fallback,
                dot,
                doh,
                ..Dns::default()
            }
        },
    )
}

/// Adjacent bits anywhere.
fn fastpath() -> impl Strategy<Value = Fastpath> {
    (8u32..=32, 0u32..=24).prop_map(|(width, shift)| Fastpath {
        mark_mask: (u32::MAX >> (32 - width)) << shift.min(32 - width),
        ..Fastpath::default()
    })
}

fn peers() -> impl Strategy<Value = Peers> {
    prop_oneof![
        1 => Just(Peers::Any),
        6 => proptest::collection::vec(block(), 0..4).prop_map(|blocks| {
            Peers::Blocks(blocks.into_iter().enumerate().map(|(index, b)| Block { index, ..b }).collect())
        }),
        2 => proptest::collection::btree_set(selector(), 0..4)
            .prop_map(|selectors| Peers::Names(selectors.into_iter().collect())),
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

/// Names are for egress only.
fn without_names(rules: Vec<Rule>) -> Vec<Rule> {
    rules.into_iter().filter(|rule| !matches!(rule.peers, Peers::Names(_))).collect()
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
    (policies, services, echo, prefixes, any::<[bool; 3]>(), dns(), fastpath()).prop_map(
        |(policies, services, icmp_echo, prefixes, [known, log_accepted, host], dns, fastpath)| {
            let interfaces =
                if known { ["in0", "in1"].map(|n| n.parse().expect("a name")).into() } else { [].into() };
            let inside = Inside { interfaces, prefixes, basis: InsideBasis::Explicit };
            let host = host.then(HostProtection::default);
            PolicySet {
                policies: policies
                    .into_iter()
                    .map(|(name, (ingress, egress))| {
                        (name, Policy { ingress: without_names(ingress), egress })
                    })
                    .collect(),
                load_balancer_addresses: services.values().flat_map(|s| s.addresses.clone()).collect(),
                services: services
                    .into_iter()
                    .map(|(name, s)| (ServiceName { namespace: "ns".to_owned(), name }, s))
                    .collect(),
                firewall: Firewall {
                    inside,
                    icmp_echo,
                    log_accepted,
                    host,
                    dns,
                    fastpath,
                    ..Firewall::default()
                },
            }
        },
    )
}

/// DNS, BGP, encrypted DNS and the last one.
const SPECIAL_PORTS: [u16; 5] = [53, 179, 443, 853, 65_535];

fn packet() -> impl Strategy<Value = Packet> {
    let interface =
        || prop_oneof![Just("in0"), Just("in1"), Just("out0")].prop_map(|n| n.parse().expect("a name"));
    let state = prop_oneof![
        8 => Just(ConntrackState::New),
        1 => Just(ConntrackState::Established),
        1 => Just(ConntrackState::Related),
        1 => Just(ConntrackState::Invalid),
    ];
    let port = || prop_oneof![8 => 0u16..60, 3 => proptest::sample::select(&SPECIAL_PORTS[..])];
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

/// The entry that a learned address and a port belong to.
fn entry_of<'a>(
    entries: &'a BTreeMap<NameEntry, Vec<(u16, u16)>>,
    selectors: &BTreeSet<FqdnSelector>,
    protocol: Protocol,
    port: u16,
) -> Option<&'a NameEntry> {
    let holds = |ranges: &[(u16, u16)]| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port));
    let mut entries = entries.iter().filter(|(entry, _)| entry.protocol == protocol);
    entries
        .find(|(entry, ranges)| selectors.contains(&entry.selector) && holds(ranges))
        .map(|(entry, _)| entry)
}

/// What the program at ingress writes, in the bits of the mask; the other bits of the mark are somebody else's.
fn stamped(set: &PolicySet, names: &Names, learned: &Learned, packet: &Packet, other: u32) -> u32 {
    let fastpath = &set.firewall.fastpath;
    let index = packet.transport.service().and_then(|(protocol, port)| {
        let selectors = learned.addresses.get(&packet.destination)?;
        names.indexes.get(entry_of(&set.name_entries(), selectors, protocol, port)?)
    });
    index.and_then(|index| fastpath.mark_of(*index)).unwrap_or(0) | (other & !fastpath.mark_mask)
}

/// What user space puts into the sets: a class per set of selectors, and an address at one or more levels, of which
/// the first one counts.
fn filled(set: &PolicySet, names: &Names, learned: &Learned) -> BTreeMap<String, BTreeMap<Key, Option<u32>>> {
    let entries = set.name_entries();
    let mut sets: BTreeMap<String, BTreeMap<Key, Option<u32>>> = BTreeMap::new();
    let nothing_more = BTreeSet::new();
    for (number, (address, selectors)) in learned.addresses.iter().enumerate() {
        let class = 2 + u32::try_from(number).expect("few");
        let value = match address {
            IpAddr::V4(v4) => Value::Ipv4(*v4),
            IpAddr::V6(v6) => Value::Ipv6(*v6),
        };
        // What is left of the class at the last level must not matter while an earlier level holds the address.
        let levels =
            [(number % FQDN_LEVELS, class, selectors), (FQDN_LEVELS - 1, 1000 + class, &nothing_more)];
        for (level, class, selectors) in levels {
            let map = sets.entry(fqdn_map(Family::of(*address), level)).or_default();
            map.entry(Key::Exact(vec![value.clone()])).or_insert(Some(class));
            for protocol in Protocol::ALL {
                // The ports that packets have.
                for port in (0..60).chain(SPECIAL_PORTS) {
                    let Some(entry) = entry_of(&entries, selectors, protocol, port) else { continue };
                    let mark = set.firewall.fastpath.mark_of(names.indexes[entry]).expect("few entries");
                    let values = |port| {
                        vec![Value::Mark(class), Value::Protocol(protocol.number()), Value::Port(port)]
                    };
                    let cells = sets.entry(FQDN_CELLS.to_owned()).or_default();
                    cells.insert(Key::Box(values(port), values(port)), Some(mark));
                }
            }
        }
    }
    sets
}

/// Turns some packets to learned addresses and to resolvers.
fn aimed(mut packet: Packet, set: &PolicySet, learned: &Learned, aim: usize) -> Packet {
    let resolvers = set.firewall.dns.upstreams.iter().map(|upstream| upstream.address.ip());
    let known = learned.addresses.keys().copied().chain(resolvers);
    let same: Vec<IpAddr> = known.filter(|address| address.is_ipv4() == packet.source.is_ipv4()).collect();
    if let Some(address) = same.get(aim % (2 * same.len()).max(1)) {
        packet.destination = *address;
    }
    packet
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_reference_and_the_compiled_ruleset_agree_on_verdict_and_counter(
        set in policy_set(),
        learned in learned(),
        by_sets in any::<bool>(),
        packets in proptest::collection::vec((packet(), any::<usize>(), any::<u32>()), 100),
    ) {
        let stamp = if by_sets { Stamp::Sets } else { Stamp::Program };
        let names = Names { stamp, ..Names::fresh(&set) };
        let compiled = compile_with(&set, &names, DEFAULT_CELL_LIMIT);
        prop_assert!(compiled.problems.is_empty(), "{:?}", compiled.problems);
        let elements = if by_sets { filled(&set, &names, &learned) } else { BTreeMap::new() };
        let mut dynamic = Dynamic { mark: 0, elements };
        for (packet, aim, other) in packets {
            let packet = aimed(packet, &set, &learned, aim);
            // Without the program a packet may come with any mark, that of an entry above all.
            dynamic.mark = match stamp {
                Stamp::Program => stamped(&set, &names, &learned, &packet, other),
                Stamp::Sets => set.firewall.fastpath.mark_of(other % 8).unwrap_or(other),
            };
            let decision = set.decide_with(&packet, &learned);
            let evaluation = evaluate_with(&compiled.ruleset, &packet, &dynamic);
            prop_assert_eq!(decision.accepted, evaluation.accepted, "{} {:?}", &packet, &decision);
            let counted = evaluation
                .counted
                .iter()
                .rfind(|(chain, _)| chain != "accepted" && chain != "drop_log")
                .and_then(|(chain, position)| compiled.ruleset.chains[chain].rules[*position].comment.clone());
            prop_assert_eq!(Some(decision.why.counter()), counted, "{} {:?}", &packet, &decision);
        }
    }

    #[test]
    fn the_superset_holds_all_that_static_rules_accept_and_only_that_where_nothing_was_joined(
        set in policy_set(),
        own in proptest::collection::btree_set(address(), 0..3),
        packets in proptest::collection::vec(packet(), 100),
    ) {
        let table = superset(&set, &own);
        prop_assert!(table.values().all(|cells| cells.len() <= MAX_SUPERSET_CELLS));
        for packet in packets {
            let Some((protocol, port)) = packet.transport.service() else { continue };
            let inside = set.firewall.inside.interfaces.iter().next().cloned();
            let Some(input) = inside else { continue };
            // Encrypted DNS that is denied is not taken out: only nftables says no to it.
            let mut lenient = set.clone();
            for choice in [&mut lenient.firewall.dns.dot, &mut lenient.firewall.dns.doh] {
                if *choice == Encrypted::Deny {
                    *choice = Encrypted::Policy;
                }
            }
            lenient.firewall.inside.prefixes.clear();
            let packet = Packet { input, state: ConntrackState::New, ..packet };
            let accepted = lenient.decide(&packet).accepted;
            let always = own.contains(&packet.destination)
                || set.load_balancer_addresses.contains(&packet.destination)
                || set.firewall.inside.prefixes.iter().any(|net| net.contains(&packet.destination));
            let held = holds(&table, packet.destination, protocol, port);
            prop_assert_eq!(accepted || always, held, "{}", &packet);
        }
    }
}

/// Longest match.
fn holds(table: &Superset, address: IpAddr, protocol: Protocol, port: u16) -> bool {
    let longest =
        table.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
    longest.is_some_and(|(_, cells)| {
        cells.iter().any(|(of, first, last)| *of == protocol && (*first..=*last).contains(&port))
    })
}

fn egress_to(net: &str, ports: Ports) -> Policy {
    let block = Block { index: 0, net: net.parse().expect("a prefix"), except: vec![] };
    let rule = Rule { index: 0, peers: Peers::Blocks(vec![block]), ports };
    Policy { ingress: vec![], egress: vec![rule] }
}

fn every_other_port(count: u16) -> Ports {
    let range = |number: u16| PortRange {
        index: 0,
        protocol: Protocol::Tcp,
        first: 10 + 2 * number,
        last: 10 + 2 * number,
    };
    Ports::Ranges((0..count).map(range).collect())
}

#[test]
fn a_superset_with_too_many_ports_joins_the_nearest_and_loses_none() {
    let policies = [
        ("a", egress_to("192.0.2.0/24", every_other_port(300))),
        ("b", egress_to("192.0.2.1/32", every_other_port(3))),
    ];
    let policies = policies.map(|(name, policy)| (name.to_owned(), policy)).into();
    let set = PolicySet { policies, ..PolicySet::default() };
    let table = superset(&set, &BTreeSet::new());
    let net: IpNet = "192.0.2.0/24".parse().expect("a prefix");
    assert_eq!(table[&net].len(), MAX_SUPERSET_CELLS);
    let inner: IpNet = "192.0.2.1/32".parse().expect("a prefix");
    assert!(!table.contains_key(&inner), "it says what the prefix around it says");
    let address = net.network();
    for number in 0..300 {
        assert!(holds(&table, address, Protocol::Tcp, 10 + 2 * number), "{number}");
    }
    assert!(!holds(&table, address, Protocol::Udp, 10) && !holds(&table, address, Protocol::Tcp, 9));
    assert!(!holds(&table, address, Protocol::Tcp, 609));
}

#[test]
fn a_longer_prefix_has_the_ports_of_all_around_it() {
    let range =
        |protocol, port| Ports::Ranges(vec![PortRange { index: 0, protocol, first: port, last: port }]);
    let policies = [
        ("a", egress_to("0.0.0.0/0", range(Protocol::Udp, 123))),
        ("b", egress_to("192.0.2.0/24", range(Protocol::Tcp, 80))),
        ("c", egress_to("192.0.2.0/28", range(Protocol::Tcp, 81))),
        ("d", egress_to("192.0.2.64/26", range(Protocol::Udp, 123))),
    ];
    let policies = policies.map(|(name, policy)| (name.to_owned(), policy)).into();
    let set = PolicySet { policies, ..PolicySet::default() };
    let table = superset(&set, &BTreeSet::new());
    let of =
        |net: &str| table.get(&net.parse::<IpNet>().expect("a prefix")).map(|cells| format!("{cells:?}"));
    assert_eq!(of("192.0.2.0/24").as_deref(), Some("[(Tcp, 80, 80), (Udp, 123, 123)]"));
    assert_eq!(of("192.0.2.0/28").as_deref(), Some("[(Tcp, 80, 81), (Udp, 123, 123)]"));
    assert_eq!(of("192.0.2.64/26"), None, "the /24 says more already");
}

/// One policy with a name for TCP and UDP.
fn by_name(policy: &str) -> PolicySet {
    let peers = Peers::Names(vec![FqdnSelector::Name("a.example".to_owned())]);
    let rule = Rule { index: 0, peers, ports: Ports::All };
    let policies = [(policy.to_owned(), Policy { ingress: vec![], egress: vec![rule] })].into();
    let interfaces = [IfName::from_str("in0").expect("a name")].into();
    let inside = Inside { interfaces, prefixes: [].into(), basis: InsideBasis::Explicit };
    PolicySet { policies, firewall: Firewall { inside, ..Firewall::default() }, ..PolicySet::default() }
}

fn to_a_name() -> Packet {
    let address = |text: &str| text.parse().expect("an address");
    Packet {
        input: "in0".parse().expect("a name"),
        output: "out0".parse().expect("a name"),
        source: address("10.0.0.1"),
        destination: address("192.0.2.1"),
        transport: Transport::Tcp { source: 40_000, destination: 443 },
        state: ConntrackState::New,
    }
}

#[test]
fn an_index_that_is_gone_leads_nowhere_and_never_to_another_policy() {
    let set = by_name("web");
    let mut names = Names::fresh(&set);
    let at = |mark| Dynamic { mark, elements: BTreeMap::new() };
    let before = compile_with(&set, &names, DEFAULT_CELL_LIMIT).ruleset;
    assert!(evaluate_with(&before, &to_a_name(), &at(1)).accepted);
    // The policy is replaced by another one while the program still stamps the old index.
    let other = by_name("other");
    names.indexes = other.name_entries().into_keys().zip(3..).collect();
    let after = compile_with(&other, &names, DEFAULT_CELL_LIMIT).ruleset;
    assert!(!evaluate_with(&after, &to_a_name(), &at(1)).accepted);
    assert!(evaluate_with(&after, &to_a_name(), &at(3)).accepted);
    names.indexes.clear();
    let without = compile_with(&other, &names, DEFAULT_CELL_LIMIT);
    assert!((0..10).all(|mark| !evaluate_with(&without.ruleset, &to_a_name(), &at(mark)).accepted));
}

#[test]
fn without_the_program_no_mark_opens_anything() {
    let set = by_name("web");
    let names = Names { stamp: Stamp::Sets, ..Names::fresh(&set) };
    let ruleset = compile_with(&set, &names, DEFAULT_CELL_LIMIT).ruleset;
    for mark in 0..10 {
        // An address whose class has no cells: the class's own number is no index either.
        let class = [(Key::Exact(vec![Value::Ipv4([192, 0, 2, 1].into())]), Some(mark))].into();
        let elements = [(fqdn_map(Family::V4, 0), class)].into();
        assert!(!evaluate_with(&ruleset, &to_a_name(), &Dynamic { mark, elements }).accepted, "{mark}");
    }
}

#[test]
fn names_that_the_mask_has_no_room_for_open_nothing_and_are_said() {
    let mut set = by_name("web");
    set.firewall.fastpath.mark_mask = 0xff00;
    let mut names = Names::fresh(&set);
    for (index, number) in names.indexes.values_mut().zip([255, 256]) {
        *index = number;
    }
    let compiled = compile_with(&set, &names, DEFAULT_CELL_LIMIT);
    assert_eq!(compiled.ruleset.sets["fqdn"].elements.len(), 1);
    let [problem] = &compiled.problems[..] else { panic!("{:?}", compiled.problems) };
    assert_eq!(problem.origin.name, "web");
    assert!(problem.message.contains("0x0000ff00 has room for 255"), "{}", problem.message);
}

#[test]
fn a_policy_with_too_many_names_is_left_out_like_one_with_too_many_prefixes() {
    let mut set = by_name("big");
    let selectors = (0..500).map(|n| FqdnSelector::Name(format!("n{n}.example"))).collect();
    let rule = Rule { index: 0, peers: Peers::Names(selectors), ports: Ports::All };
    set.policies.insert("big".to_owned(), Policy { ingress: vec![], egress: vec![rule] });
    set.policies.extend(by_name("small").policies);
    let compiled = compile(&set, 1000);
    let left_out: Vec<&str> = compiled.problems.iter().map(|p| p.origin.name.as_str()).collect();
    assert_eq!(left_out, ["big"]);
    assert_eq!(compiled.ruleset.sets["fqdn"].elements.len(), 2);
}

#[test]
fn without_names_nothing_of_them_stands_and_with_them_the_plan_back_is_complete() {
    let set = by_name("web");
    let plain = compile(&PolicySet { policies: [].into(), ..set.clone() }, DEFAULT_CELL_LIMIT).ruleset;
    assert!(plain.timeouts.is_empty());
    assert!(
        plain
            .sets
            .keys()
            .chain(plain.chains.keys())
            .all(|name| !name.contains("fqdn") && !name.contains("dns"))
    );
    for stamp in [Stamp::Program, Stamp::Sets] {
        let names = Names { stamp, ..Names::fresh(&set) };
        let with = compile_with(&set, &names, DEFAULT_CELL_LIMIT).ruleset;
        for (from, to) in [(&plain, &with), (&with, &plain)] {
            let plan = plan(Some(from), to, &Counts::default());
            assert!(!plan.ops.contains(&Op::DeleteTable));
            let forward = Op::FlushChain("forward".to_owned());
            assert!(!plan.ops.contains(&forward), "rules that count stay");
        }
        let gone = plan(Some(&with), &plain, &Counts::default());
        assert!(gone.ops.contains(&Op::DeleteTimeout("dns".to_owned())), "{gone:?}");
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
