//! The part for names: marks, sets that user space fills, DNS turned to the proxy.

use std::collections::BTreeMap;

use fw_policy::Protocol;
use fw_ruleset::ir::{
    Chain, ChainKind, CtTimeout, Family, Field, HookPoint, Selector, Set, SetKind, Side, Statement, Test,
    Value, Verdict,
};

use super::{address, base, chain, exact, port, rule, set};

pub(super) fn timeouts() -> BTreeMap<String, CtTimeout> {
    [("dns".to_owned(), CtTimeout { seconds: 3 })].into()
}

pub(super) fn sets() -> BTreeMap<String, Set> {
    let timed = |size| SetKind::Learned { size };
    let verdict = |index, verdict| (exact(&[Value::Mark(index)]), Some(verdict));
    let list = [
        ("fqdn4-0", set(&[Field::Ipv4], timed(20_000), true, vec![])),
        ("fqdn6-0", set(&[Field::Ipv6], timed(20_000), true, vec![])),
        ("dns_armed", set(&[Field::Protocol], timed(2), false, vec![])),
        ("learned_pairs", set(&[Field::Ipv4, Field::Port], timed(4), false, vec![])),
        (
            "fqdn_cells",
            set(
                &[Field::Mark, Field::Protocol, Field::Port],
                SetKind::LearnedBoxes { size: 1000 },
                true,
                vec![],
            ),
        ),
        (
            "fqdn",
            set(
                &[Field::Mark],
                SetKind::Exact,
                true,
                vec![
                    verdict(7, Verdict::Goto("egress-web-tcp".to_owned())),
                    verdict(0x8000_0001, Verdict::Drop),
                ],
            ),
        ),
        (
            "marks",
            set(
                &[Field::Mark, Field::Protocol],
                SetKind::Exact,
                false,
                vec![(exact(&[Value::Mark(0x0102_0304), Value::Protocol(6)]), None)],
            ),
        ),
    ];
    list.into_iter().map(|(name, set)| (name.to_owned(), set)).collect()
}

pub(super) fn chains() -> BTreeMap<String, Chain> {
    use HookPoint::Prerouting;
    use Statement::{ConcatInSet, Match, SetMarkByMap, VerdictMap};
    let udp_dns = || Match(port(Side::Destination, Some(Protocol::Udp)), Test::Equal(Value::Port(53)));
    let armed = || Match(Selector::L4Protocol, Test::InSet("dns_armed".to_owned()));
    let go = |chain: &str| Statement::Verdict(Verdict::Goto(chain.to_owned()));
    let by_address = |family: Family, map: &str| {
        let key = vec![address(Side::Destination, family, family.bits())];
        rule(vec![SetMarkByMap { key, map: map.to_owned() }, go("fqdn_ports")], "")
    };
    let redirect = rule(vec![udp_dns(), armed(), Statement::Redirect(5353)], "dns of names");
    let timeout = rule(vec![udp_dns(), armed(), Statement::CtTimeout("dns".to_owned())], "");
    let ports = SetMarkByMap {
        key: vec![Selector::Mark(u32::MAX), Selector::L4Protocol, port(Side::Destination, None)],
        map: "fqdn_cells".to_owned(),
    };
    let by_index = VerdictMap { key: vec![Selector::Mark(0x0000_ffff)], map: "fqdn".to_owned() };
    let accept = || Statement::Verdict(Verdict::Accept);
    let mark = Value::Mark;
    let marks = vec![
        by_address(Family::V4, "fqdn4-0"),
        by_address(Family::V6, "fqdn6-0"),
        rule(vec![Match(Selector::Mark(u32::MAX), Test::Equal(mark(7))), accept()], ""),
        rule(vec![Match(Selector::Mark(0xff00), Test::NotEqual(mark(0x100))), accept()], ""),
        rule(vec![Match(Selector::Mark(u32::MAX), Test::Range(mark(7), mark(0x100))), accept()], ""),
        rule(
            vec![
                ConcatInSet {
                    key: vec![Selector::Mark(u32::MAX), Selector::L4Protocol],
                    set: "marks".to_owned(),
                },
                accept(),
            ],
            "",
        ),
    ];
    let list = [
        ("dns", base(ChainKind::Nat, Prerouting, -100, false, vec![redirect])),
        ("dns_timeout", base(ChainKind::Filter, Prerouting, -150, false, vec![timeout])),
        ("fqdn", chain(marks)),
        ("fqdn_ports", chain(vec![rule(vec![ports, by_index], "")])),
    ];
    list.into_iter().map(|(name, chain)| (name.to_owned(), chain)).collect()
}
