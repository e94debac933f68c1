//! What always stands, also with no object at all: accounting, rate limits, connection states, spoofing, pings,
//! protocols, the dispatch to policies and Services, the final count and the limited log.
//!
//! The chain `forward` itself never changes, because its rules carry anonymous counters; what an operator can
//! configure lives in chains that it jumps to, in sets and in maps.

use std::collections::{BTreeMap, BTreeSet};

use fw_policy::{ConntrackState, DropLogTarget, Firewall, IcmpEcho, RateLimit};

use super::{names, prefixes};
use crate::ir::{
    Chain, ChainKind, Family, Field, Hook, HookPoint, Key, Limit, LimitUnit, LogTarget, NamedCounter, Rule,
    Ruleset, Selector, Set, SetKind, Side, Statement, Test, Value, Verdict,
};

/// Bytes of a dropped packet that are copied to user space: the longest IPv4 header, or IPv6 with extension headers,
/// and a TCP header with options.
const SNAPLEN: u32 = 160;

/// Named counters: the six of the field (compat.md section 3), then ours.
const COUNTERS: [&str; 13] = [
    "internal_in",
    "internal_out",
    "external_in",
    "external_out",
    "drop_total",
    "drop_ratelimit",
    "drop_invalid",
    "drop_spoofed",
    "drop_ping_flood",
    "drop_unsupported_protocol",
    "drop_host",
    "drop_bgp",
    "drop_logged",
];

/// The ruleset of a Firewall without policies, Services, NAT and host protection.
pub(super) fn ruleset(firewall: &Firewall) -> Ruleset {
    let mut ruleset = Ruleset::default();
    for name in COUNTERS {
        ruleset.counters.insert(name.to_owned(), NamedCounter {});
    }
    add_sets(&mut ruleset, firewall);
    ruleset.chains.insert("forward".to_owned(), forward());
    add_accounting(&mut ruleset);
    add_rate_limits(&mut ruleset, &firewall.rate_limits);
    ruleset.chains.insert("related".to_owned(), related());
    add_spoofing(&mut ruleset, firewall);
    add_pings(&mut ruleset, firewall.icmp_echo);
    add_drop_chains(&mut ruleset, firewall);
    add_dispatch(&mut ruleset, firewall.host.is_some());
    if firewall.log_accepted {
        add_accept_log(&mut ruleset, firewall);
    }
    ruleset
}

/// A rule without comment.
pub(super) fn rule(body: impl Into<Vec<Statement>>) -> Rule {
    Rule { body: body.into(), comment: None }
}

/// A rule with a comment.
pub(super) fn commented(body: impl Into<Vec<Statement>>, comment: &str) -> Rule {
    Rule { body: body.into(), comment: Some(comment.to_owned()) }
}

/// A chain that is not a base chain.
pub(super) fn chain(rules: Vec<Rule>) -> Chain {
    Chain { hook: None, rules, origin: None }
}

pub(super) fn jump(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.to_owned()))
}

pub(super) fn goto(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.to_owned()))
}

pub(super) fn accept() -> Statement {
    Statement::Verdict(Verdict::Accept)
}

pub(super) fn named(counter: &str) -> Statement {
    Statement::NamedCounter(counter.to_owned())
}

pub(super) fn state(state: ConntrackState) -> Statement {
    Statement::State(BTreeSet::from([state]))
}

pub(super) fn in_set(selector: Selector, set: &str) -> Statement {
    Statement::Match(selector, Test::InSet(set.to_owned()))
}

pub(super) fn icmp_type(family: Family, kind: u8) -> Statement {
    Statement::Match(Selector::IcmpType(family), Test::Equal(Value::IcmpType(kind)))
}

pub(super) fn source(family: Family) -> Selector {
    Selector::Address { side: Side::Source, family, prefix: family.bits() }
}

pub(super) fn destination(family: Family) -> Selector {
    Selector::Address { side: Side::Destination, family, prefix: family.bits() }
}

/// A set of single keys.
pub(super) fn exact(key: Vec<Field>, map: bool, elements: BTreeMap<Key, Option<Verdict>>) -> Set {
    Set { key, kind: SetKind::Exact, elements, map, origin: None }
}

/// The set of both families is two sets: `NAME` and `NAME6`, since a set has one type of key.
pub(super) fn of_family(name: &str, family: Family) -> String {
    match family {
        Family::V4 => name.to_owned(),
        Family::V6 => format!("{name}6"),
    }
}

pub(super) fn address_field(family: Family) -> Field {
    match family {
        Family::V4 => Field::Ipv4,
        Family::V6 => Field::Ipv6,
    }
}

/// Adds `NAME` and `NAME6` with the merged ranges of the prefixes.
pub(super) fn add_prefix_sets(ruleset: &mut Ruleset, name: &str, nets: &BTreeSet<ipnet::IpNet>) {
    for family in Family::ALL {
        let elements = prefixes::ranges(nets.iter(), family).into_iter().map(|key| (key, None)).collect();
        let key = vec![address_field(family)];
        let set = Set { key, kind: SetKind::Interval, elements, map: false, origin: None };
        ruleset.sets.insert(of_family(name, family), set);
    }
}

/// Adds `NAME`, a set or map keyed by interface name.
pub(super) fn add_interface_map(ruleset: &mut Ruleset, name: &str, elements: BTreeMap<Key, Option<Verdict>>) {
    ruleset.sets.insert(name.to_owned(), exact(vec![Field::IfName], true, elements));
}

fn add_sets(ruleset: &mut Ruleset, firewall: &Firewall) {
    let interfaces = firewall.inside.interfaces.iter();
    let inside = interfaces.map(|name| (Key::Exact(vec![Value::IfName(name.clone())]), None)).collect();
    ruleset.sets.insert("inside".to_owned(), exact(vec![Field::IfName], false, inside));
    add_prefix_sets(ruleset, "internal_prefixes", &firewall.internal_prefixes);
    add_prefix_sets(ruleset, "cluster_prefixes", &firewall.inside.prefixes);
    // TCP, UDP, ICMP, ICMPv6: what conntrack and the policies can judge.
    let supported = [1, 6, 17, 58].map(|number| (Key::Exact(vec![Value::Protocol(number)]), None));
    let supported = exact(vec![Field::Protocol], false, supported.into());
    ruleset.sets.insert("supported_protocols".to_owned(), supported);
    for family in Family::ALL {
        let key = vec![address_field(family)];
        let none = BTreeMap::new();
        ruleset
            .sets
            .insert(of_family("load_balancer_addresses", family), exact(key.clone(), false, none.clone()));
        let service = vec![address_field(family), Field::Protocol, Field::Port];
        ruleset.sets.insert(format!("services{}", names::digit(family)), exact(service, true, none.clone()));
        let kind = SetKind::Dynamic { size: 65_536, timeout_ms: 60_000 };
        let sources = Set { key, kind, elements: none, map: false, origin: None };
        ruleset.sets.insert(of_family("ping_sources", family), sources);
    }
}

fn forward() -> Chain {
    use ConntrackState::{Established, Invalid, New, Related};
    let inside_in = || in_set(Selector::InputInterface, "inside");
    let inside_out = || in_set(Selector::OutputInterface, "inside");
    let outside_in = || Statement::Match(Selector::InputInterface, Test::NotInSet("inside".to_owned()));
    let unsupported =
        Statement::Match(Selector::L4Protocol, Test::NotInSet("supported_protocols".to_owned()));
    let rules = vec![
        rule([inside_out(), jump("account_in")]),
        rule([inside_in(), jump("account_out")]),
        rule([jump("ratelimit")]),
        commented([state(Established), Statement::Counter, accept()], "accept established connections"),
        rule([state(Related), jump("related")]),
        commented(
            [state(Invalid), named("drop_invalid"), Statement::Counter, Statement::Verdict(Verdict::Drop)],
            "drop packets with invalid ct state",
        ),
        rule([state(New), inside_in(), jump("spoofing")]),
        rule([state(New), icmp_type(Family::V4, 8), jump("ping")]),
        rule([state(New), icmp_type(Family::V6, 128), jump("ping6")]),
        rule([unsupported, goto("unsupported_protocol")]),
        rule([state(New), inside_out(), outside_in(), jump("ingress")]),
        rule([state(New), inside_in(), jump("egress")]),
        commented([named("drop_total"), Statement::Counter], "count and log dropped packets"),
        rule([jump("drop_log")]),
    ];
    let hook = Hook { kind: ChainKind::Filter, point: HookPoint::Forward, priority: 1, policy_drop: true };
    Chain { hook: Some(hook), rules, origin: None }
}

/// "in" is what leaves towards the cluster, "out" what comes from it; internal is what has its other end in
/// `internalprefixes`.
fn add_accounting(ruleset: &mut Ruleset) {
    for (direction, word, peer) in
        [("in", "incoming", source as fn(Family) -> Selector), ("out", "outgoing", destination)]
    {
        let internal = format!("count_internal_{direction}");
        let external = format!("count_external_{direction}");
        let mut rules: Vec<Rule> = Family::ALL
            .map(|family| {
                rule([in_set(peer(family), &of_family("internal_prefixes", family)), goto(&internal)])
            })
            .into();
        rules.push(rule([goto(&external)]));
        ruleset.chains.insert(format!("account_{direction}"), chain(rules));
        for (name, kind) in [(internal, "internal"), (external, "external")] {
            let comment = format!("count {kind} traffic {word}");
            let count = commented([named(&format!("{kind}_{direction}"))], &comment);
            ruleset.chains.insert(name, chain(vec![count]));
        }
    }
}

/// One bucket per direction and network, whatever name its interface has.
fn add_rate_limits(ruleset: &mut Ruleset, limits: &BTreeMap<String, RateLimit>) {
    let mut rules = Vec::new();
    if !limits.is_empty() {
        for (direction, selector) in [("in", Selector::InputInterface), ("out", Selector::OutputInterface)] {
            let map = format!("ratelimit_{direction}");
            let mut elements = BTreeMap::new();
            for (name, limit) in limits {
                let target = format!("ratelimit-{direction}-{}", names::part(name));
                for interface in &limit.interfaces {
                    let key = Key::Exact(vec![Value::IfName(interface.clone())]);
                    elements.insert(key, Some(Verdict::Jump(target.clone())));
                }
                ruleset.chains.insert(target, rate_limit_chain(limit));
            }
            add_interface_map(ruleset, &map, elements);
            rules.push(rule([Statement::VerdictMap { key: vec![selector], map }]));
        }
    }
    ruleset.chains.insert("ratelimit".to_owned(), chain(rules));
}

fn rate_limit_chain(limit: &RateLimit) -> Chain {
    let bucket = Limit {
        unit: LimitUnit::Bytes,
        rate: limit.bytes_per_second,
        // nf_tables takes bursts of 32 bits (NFTA_LIMIT_BURST); 4 GiB at once is beyond any link this limits.
        burst: u32::try_from(limit.burst_bytes()).unwrap_or(u32::MAX),
        over: true,
    };
    chain(vec![rule([Statement::Limit(bucket), named("drop_ratelimit"), Statement::Verdict(Verdict::Drop)])])
}

/// ICMP errors about connections that pass (RFC 792 types 3, 11, 12; RFC 4443 types 1 to 4), and what a conntrack
/// helper that the operator configured announced. Other ICMP that conntrack calls related (redirects) goes on.
fn related() -> Chain {
    let error =
        |family, kind| commented([icmp_type(family, kind), Statement::Counter, accept()], "accept icmp");
    let mut rules: Vec<Rule> = [3, 11, 12].map(|kind| error(Family::V4, kind)).into();
    rules.extend([1, 2, 3, 4].map(|kind| error(Family::V6, kind)));
    for icmp in [1, 58] {
        let is_icmp = Statement::Match(Selector::L4Protocol, Test::Equal(Value::Protocol(icmp)));
        rules.push(rule([is_icmp, Statement::Verdict(Verdict::Return)]));
    }
    rules.push(commented([Statement::Counter, accept()], "accept established connections"));
    chain(rules)
}

/// Sources that may enter by inside; the check stands only where the cluster's prefixes are known.
fn add_spoofing(ruleset: &mut Ruleset, firewall: &Firewall) {
    let mut rules = Vec::new();
    if !firewall.inside.prefixes.is_empty() {
        for name in ["cluster_prefixes", "load_balancer_addresses"] {
            rules.extend(Family::ALL.map(|family| {
                let known = in_set(source(family), &of_family(name, family));
                rule([known, Statement::Verdict(Verdict::Return)])
            }));
        }
        rules.push(rule([goto("spoofed")]));
    }
    ruleset.chains.insert("spoofing".to_owned(), chain(rules));
}

/// New echo requests: a bucket per source, one for all, then whether they may pass at all.
fn add_pings(ruleset: &mut Ruleset, echo: IcmpEcho) {
    let bucket = |rate, burst| Limit { unit: LimitUnit::Packets, rate, burst, over: true };
    for family in Family::ALL {
        let per_source = Statement::LimitPerKey {
            set: of_family("ping_sources", family),
            key: vec![source(family)],
            limit: bucket(10, 4),
        };
        let mut rules = vec![
            rule([per_source, goto("ping_flood")]),
            rule([Statement::Limit(bucket(1000, 100)), goto("ping_flood")]),
        ];
        if echo != IcmpEcho::Deny {
            rules.push(rule([in_set(Selector::InputInterface, "inside"), goto("accept_icmp")]));
        }
        if echo == IcmpEcho::Both {
            rules.push(rule([in_set(Selector::OutputInterface, "inside"), goto("accept_icmp")]));
        }
        ruleset.chains.insert(of_family("ping", family), chain(rules));
    }
    let accepted = commented([Statement::Counter, accept()], "accept icmp");
    ruleset.chains.insert("accept_icmp".to_owned(), chain(vec![accepted]));
    let flood = [named("drop_ping_flood"), Statement::Counter, Statement::Verdict(Verdict::Drop)];
    ruleset.chains.insert("ping_flood".to_owned(), chain(vec![commented(flood, "drop ping floods")]));
}

/// A chain per logged reason, and the limited log they and the final count share.
fn add_drop_chains(ruleset: &mut Ruleset, firewall: &Firewall) {
    let reasons = [
        ("spoofed", "drop_spoofed", "drop spoofed packets"),
        ("unsupported_protocol", "drop_unsupported_protocol", "drop unsupported protocols"),
    ];
    for (name, counter, comment) in reasons {
        let rules = vec![
            commented([named(counter), Statement::Counter], comment),
            rule([jump("drop_log")]),
            rule([Statement::Verdict(Verdict::Drop)]),
        ];
        ruleset.chains.insert(name.to_owned(), chain(rules));
    }
    let log = log_rule(firewall, "nftables-firewall-dropped: ", "drop_logged");
    ruleset.chains.insert("drop_log".to_owned(), chain(vec![log]));
}

/// `limit rate 10/second burst 1 packets counter name drop_logged log prefix "…" group 1`: the counter says how
/// many lines there are, so that what the limiter keeps back is known exactly.
pub(super) fn log_rule(firewall: &Firewall, prefix: &str, counter: &str) -> Rule {
    let config = firewall.drop_log;
    let mut body = Vec::new();
    if config.rate > 0 {
        body.push(Statement::Limit(Limit {
            unit: LimitUnit::Packets,
            rate: u64::from(config.rate),
            burst: config.burst,
            over: false,
        }));
    }
    body.push(named(counter));
    let nflog = LogTarget::Nflog { group: config.group, snaplen: SNAPLEN };
    let targets = match config.to {
        DropLogTarget::Nflog => vec![nflog],
        DropLogTarget::Kernel => vec![LogTarget::Kernel],
        DropLogTarget::Both => vec![nflog, LogTarget::Kernel],
    };
    body.extend(targets.into_iter().map(|target| Statement::Log { prefix: prefix.to_owned(), target }));
    rule(body)
}

/// The chains `ingress` and `egress`, which hand over to the chains of each family and to Services.
fn add_dispatch(ruleset: &mut Ruleset, host_protection: bool) {
    let by_family = |direction: &str| {
        Family::ALL.map(|family| {
            rule([Statement::Family(family), jump(&format!("{direction}{}", names::digit(family)))])
        })
    };
    ruleset.chains.insert("egress".to_owned(), chain(by_family("egress").into()));
    let mut ingress = Vec::new();
    if host_protection {
        let bgp = Selector::Port { side: Side::Destination, protocol: Some(fw_policy::Protocol::Tcp) };
        ingress.push(rule([Statement::Match(bgp, Test::Equal(Value::Port(179))), goto("bgp_to_machines")]));
    }
    ingress.extend(by_family("ingress"));
    ingress.extend(Family::ALL.map(|family| {
        let dport = Selector::Port { side: Side::Destination, protocol: None };
        let key = vec![destination(family), Selector::L4Protocol, dport];
        rule([Statement::VerdictMap { key, map: format!("services{}", names::digit(family)) }])
    }));
    ruleset.chains.insert("ingress".to_owned(), chain(ingress));
}

/// A later base chain sees what `forward` accepted, so that no policy's own chain has to change for the log.
fn add_accept_log(ruleset: &mut Ruleset, firewall: &Firewall) {
    for name in ["accept_total", "accept_logged"] {
        ruleset.counters.insert(name.to_owned(), NamedCounter {});
    }
    let new = || state(ConntrackState::New);
    let mut log = log_rule(firewall, "nftables-firewall-accepted: ", "accept_logged");
    log.body.insert(0, new());
    let hook = Hook { kind: ChainKind::Filter, point: HookPoint::Forward, priority: 2, policy_drop: false };
    let rules = vec![rule([new(), named("accept_total")]), log];
    ruleset.chains.insert("accepted".to_owned(), Chain { hook: Some(hook), rules, origin: None });
}
