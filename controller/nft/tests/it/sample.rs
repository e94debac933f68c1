//! A ruleset that uses every statement, test, selector and kind of set once at least.

mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use fw_policy::{ConntrackState, IfName, Origin, Protocol};
use fw_ruleset::Ruleset;
use fw_ruleset::ir::{
    Chain, ChainKind, Family, Field, Hook, HookPoint, Key, Limit, LimitUnit, LogTarget, NamedCounter, Rule,
    Selector, Set, SetKind, Side, Statement, Test, Value, Verdict,
};

pub(crate) fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

pub(crate) fn v4(text: &str) -> Value {
    Value::Ipv4(text.parse().unwrap())
}

pub(crate) fn v6(text: &str) -> Value {
    Value::Ipv6(text.parse().unwrap())
}

pub(crate) fn jump(chain: &str) -> Option<Verdict> {
    Some(Verdict::Jump(chain.to_owned()))
}

pub(crate) fn set(key: &[Field], kind: SetKind, map: bool, elements: Vec<(Key, Option<Verdict>)>) -> Set {
    Set { key: key.to_vec(), kind, elements: elements.into_iter().collect(), map, origin: None }
}

pub(crate) fn rule(body: Vec<Statement>, comment: &str) -> Rule {
    Rule { body, comment: (!comment.is_empty()).then(|| comment.to_owned()) }
}

pub(crate) fn chain(rules: Vec<Rule>) -> Chain {
    Chain { hook: None, rules, origin: None }
}

pub(crate) fn base(
    kind: ChainKind,
    point: HookPoint,
    priority: i32,
    policy_drop: bool,
    rules: Vec<Rule>,
) -> Chain {
    Chain { hook: Some(Hook { kind, point, priority, policy_drop }), rules, origin: None }
}

pub(crate) fn address(side: Side, family: Family, prefix: u8) -> Selector {
    Selector::Address { side, family, prefix }
}

pub(crate) fn port(side: Side, protocol: Option<Protocol>) -> Selector {
    Selector::Port { side, protocol }
}

pub(crate) fn exact(values: &[Value]) -> Key {
    Key::Exact(values.to_vec())
}

/// One policy's chain.
pub(crate) fn policy_chain(name: &str) -> Chain {
    let comment = format!("accept traffic for np {name} tcp");
    let rules = vec![rule(vec![Statement::Counter, Statement::Verdict(Verdict::Accept)], &comment)];
    Chain { origin: Some(Origin::policy(name, "spec.egress[0]")), ..chain(rules) }
}

pub(crate) fn sample() -> Ruleset {
    let counters = ["drop_total", "internal_in"];
    Ruleset {
        counters: counters.iter().map(|name| ((*name).to_owned(), NamedCounter {})).collect(),
        timeouts: names::timeouts(),
        sets: sets().into_iter().chain(names::sets()).collect(),
        chains: chains().into_iter().chain(names::chains()).collect(),
    }
}

fn sets() -> BTreeMap<String, Set> {
    use Field::{IfName, Ipv4, Ipv6, Port, Protocol};
    let web = || jump("egress-web-tcp");
    let range = |a: u16, b: u16| Key::Range(Value::Port(a), Value::Port(b));
    let list = [
        (
            "inside",
            set(
                &[IfName],
                SetKind::Exact,
                false,
                vec![
                    (exact(&[Value::IfName(name("vrf104009"))]), None),
                    (exact(&[Value::IfName(name("vlan104009"))]), None),
                ],
            ),
        ),
        (
            "cluster_prefixes",
            set(
                &[Ipv4],
                SetKind::Interval,
                false,
                vec![
                    (Key::Range(v4("10.0.0.0"), v4("10.255.255.255")), None),
                    (Key::Range(v4("11.0.0.0"), v4("11.0.0.0")), None),
                    (Key::Range(v4("255.0.0.0"), v4("255.255.255.255")), None),
                ],
            ),
        ),
        (
            "cluster_prefixes6",
            set(
                &[Ipv6],
                SetKind::Interval,
                false,
                vec![(Key::Range(v6("2001:db8::"), v6("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")), None)],
            ),
        ),
        (
            "egress4-24",
            set(
                &[Ipv4],
                SetKind::Exact,
                true,
                vec![
                    (exact(&[v4("1.2.3.0")]), web()),
                    (exact(&[v4("1.2.4.0")]), Some(Verdict::Goto("egress-web-tcp".to_owned()))),
                ],
            ),
        ),
        (
            "egress4-0",
            set(&[Ipv4], SetKind::Exact, true, vec![(exact(&[v4("0.0.0.0")]), Some(Verdict::Return))]),
        ),
        ("egress6-48", set(&[Ipv6], SetKind::Exact, true, vec![(exact(&[v6("2001:db8:1::")]), web())])),
        (
            "ports",
            set(
                &[Port],
                SetKind::Interval,
                true,
                vec![
                    (range(80, 90), web()),
                    (range(91, 100), Some(Verdict::Drop)),
                    (range(443, 443), Some(Verdict::Accept)),
                    (range(60000, 65535), web()),
                ],
            ),
        ),
        (
            "services",
            set(
                &[Ipv4, Protocol, Port],
                SetKind::Exact,
                true,
                vec![(exact(&[v4("1.2.3.4"), Value::Protocol(6), Value::Port(80)]), web())],
            ),
        ),
        (
            "services6",
            set(
                &[Ipv6, Protocol, Port],
                SetKind::Exact,
                true,
                vec![(exact(&[v6("2001:db8::1"), Value::Protocol(17), Value::Port(53)]), web())],
            ),
        ),
        (
            "pairs",
            set(&[Ipv4, Port], SetKind::Exact, false, vec![(exact(&[v4("1.2.3.4"), Value::Port(53)]), None)]),
        ),
        (
            "interfaces",
            set(
                &[IfName, IfName],
                SetKind::Exact,
                true,
                vec![(exact(&[Value::IfName(name("a")), Value::IfName(name("b"))]), Some(Verdict::Accept))],
            ),
        ),
        ("ping4", set(&[Ipv4], SetKind::Dynamic { size: 1000, timeout_ms: 1500 }, false, vec![])),
        ("ping6", set(&[Ipv6, Port], SetKind::Dynamic { size: 10, timeout_ms: 60_000 }, false, vec![])),
    ];
    list.into_iter().map(|(name, set)| (name.to_owned(), set)).collect()
}

fn chains() -> BTreeMap<String, Chain> {
    let list = [
        ("forward", base(ChainKind::Filter, HookPoint::Forward, 1, true, forward())),
        ("postrouting", base(ChainKind::Nat, HookPoint::Postrouting, 100, false, postrouting())),
        ("input", base(ChainKind::Filter, HookPoint::Input, -5, false, vec![])),
        ("egress-web-tcp", policy_chain("web")),
        ("empty", chain(vec![])),
    ];
    list.into_iter().map(|(name, chain)| (name.to_owned(), chain)).collect()
}

fn forward() -> Vec<Rule> {
    use Side::{Destination, Source};
    use Statement::{Counter, LimitPerKey, Log, Match, VerdictMap};
    let accept = || Statement::Verdict(Verdict::Accept);
    let drop = || Statement::Verdict(Verdict::Drop);
    let tcp = Some(Protocol::Tcp);
    let udp = Some(Protocol::Udp);
    let packets = Limit { unit: LimitUnit::Packets, rate: 10, burst: 7, over: true };
    let bytes = Limit { unit: LimitUnit::Bytes, rate: 12_500_000, burst: 1_250_000, over: true };
    let in_set = |name: &str| Test::InSet(name.to_owned());
    let vmap = |key: Vec<Selector>, map: &str| VerdictMap { key, map: map.to_owned() };
    let states = |list: &[ConntrackState]| Statement::State(list.iter().copied().collect::<BTreeSet<_>>());
    vec![
        rule(
            vec![
                Match(Selector::InputInterface, in_set("inside")),
                Statement::NamedCounter("internal_in".to_owned()),
            ],
            "count internal traffic incoming",
        ),
        rule(
            vec![states(&[ConntrackState::Established, ConntrackState::Related]), Counter, accept()],
            "accept established connections",
        ),
        rule(vec![states(&[ConntrackState::Invalid]), Counter, drop()], "drop packets with invalid ct state"),
        rule(
            vec![
                Match(Selector::OutputInterface, Test::NotInSet("inside".to_owned())),
                Statement::Limit(bytes),
                drop(),
            ],
            "",
        ),
        rule(
            vec![
                Match(Selector::InputInterface, Test::Equal(Value::IfName(name("vlan179")))),
                Match(Selector::OutputInterface, Test::NotEqual(Value::IfName(name("lo")))),
                drop(),
            ],
            "names",
        ),
        rule(vec![Match(address(Source, Family::V4, 32), in_set("cluster_prefixes")), Counter], ""),
        rule(
            vec![
                Match(address(Source, Family::V6, 128), Test::NotInSet("cluster_prefixes6".to_owned())),
                drop(),
            ],
            "spoof",
        ),
        rule(vec![vmap(vec![address(Destination, Family::V4, 24)], "egress4-24")], ""),
        rule(vec![vmap(vec![address(Destination, Family::V4, 0)], "egress4-0")], ""),
        rule(vec![vmap(vec![address(Destination, Family::V6, 48)], "egress6-48")], ""),
        rule(
            vec![vmap(
                vec![address(Destination, Family::V4, 32), Selector::L4Protocol, port(Destination, None)],
                "services",
            )],
            "",
        ),
        rule(
            vec![vmap(
                vec![address(Destination, Family::V6, 128), Selector::L4Protocol, port(Destination, None)],
                "services6",
            )],
            "",
        ),
        rule(
            vec![
                Match(Selector::L4Protocol, Test::Equal(Value::Protocol(17))),
                Statement::ConcatInSet {
                    key: vec![address(Source, Family::V4, 32), port(Source, None)],
                    set: "pairs".to_owned(),
                },
                accept(),
            ],
            "pairs",
        ),
        rule(vec![vmap(vec![Selector::InputInterface, Selector::OutputInterface], "interfaces")], ""),
        rule(vec![vmap(vec![port(Destination, tcp)], "ports")], ""),
        rule(
            vec![Match(port(Destination, tcp), Test::Range(Value::Port(8000), Value::Port(8080))), accept()],
            "",
        ),
        rule(
            vec![
                Match(port(Source, udp), Test::Equal(Value::Port(53))),
                Match(port(Destination, udp), Test::NotEqual(Value::Port(53))),
                accept(),
            ],
            "",
        ),
        rule(vec![Match(address(Source, Family::V4, 20), Test::Equal(v4("172.16.0.0"))), accept()], "masked"),
        rule(
            vec![
                Match(address(Destination, Family::V4, 32), Test::Range(v4("9.0.0.1"), v4("9.0.0.7"))),
                accept(),
            ],
            "",
        ),
        rule(
            vec![
                Match(Selector::IcmpType(Family::V4), Test::Equal(Value::IcmpType(8))),
                Statement::Limit(packets),
                Counter,
                drop(),
            ],
            "drop ping floods",
        ),
        rule(
            vec![
                Match(
                    Selector::IcmpType(Family::V6),
                    Test::Range(Value::IcmpType(133), Value::IcmpType(136)),
                ),
                accept(),
            ],
            "accept icmp",
        ),
        rule(
            vec![
                Statement::Family(Family::V6),
                Match(Selector::L4Protocol, Test::NotEqual(Value::Protocol(58))),
                Counter,
            ],
            "",
        ),
        rule(
            vec![
                LimitPerKey {
                    set: "ping4".to_owned(),
                    key: vec![address(Source, Family::V4, 32)],
                    limit: packets,
                },
                drop(),
            ],
            "",
        ),
        rule(
            vec![
                LimitPerKey {
                    set: "ping6".to_owned(),
                    key: vec![address(Source, Family::V6, 128), port(Destination, udp)],
                    limit: bytes,
                },
                drop(),
            ],
            "",
        ),
        rule(
            vec![
                Statement::Limit(Limit { over: false, ..packets }),
                Log {
                    prefix: "nftables-firewall-dropped: ".to_owned(),
                    target: LogTarget::Nflog { group: 2, snaplen: 256 },
                },
            ],
            "",
        ),
        rule(vec![Log { prefix: "nftables-firewall-dropped: ".to_owned(), target: LogTarget::Kernel }], ""),
        rule(vec![Statement::NamedCounter("drop_total".to_owned())], "final count"),
    ]
}

fn postrouting() -> Vec<Rule> {
    let key = |family| {
        vec![address(Side::Source, family, family.bits()), address(Side::Destination, family, family.bits())]
    };
    let hash = |family, equals| Statement::HashEquals { key: key(family), modulus: 3, equals };
    let snat = |text: &str| Statement::Snat(text.parse::<IpAddr>().unwrap());
    let out = Statement::Match(Selector::OutputInterface, Test::Equal(Value::IfName(name("vlan179"))));
    vec![
        rule(vec![out.clone(), hash(Family::V4, 1), snat("192.0.2.1")], "snat"),
        rule(vec![out.clone(), hash(Family::V6, 2), snat("2001:db8::9")], ""),
        rule(
            vec![
                out.clone(),
                Statement::Family(Family::V4),
                Statement::Snat(Ipv4Addr::new(192, 0, 2, 2).into()),
            ],
            "",
        ),
        rule(vec![out, Statement::Masquerade], ""),
    ]
}
