//! Opt-in protection of the box itself: the chain `input`.

use fw_policy::{ConntrackState, HostProtection, Protocol};
use std::collections::BTreeMap;

use super::base::{
    accept, add_prefix_sets, address_field, chain, commented, destination, exact, goto, icmp_type, in_set,
    jump, named, of_family, rule, source, state,
};
use super::prefixes;
use crate::ir::{
    Chain, ChainKind, Family, Field, Hook, HookPoint, Key, Limit, LimitUnit, Rule, Ruleset, Selector, Side,
    Statement, Test, Value, Verdict,
};

/// fe80::/64, the sources of BGP unnumbered (RFC 5549 over link-local addresses).
const LINK_LOCAL: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

pub(super) fn add(ruleset: &mut Ruleset, host: &HostProtection, intercepts_dns: bool) {
    let ports = host.ssh_ports.iter().map(|port| (Key::Exact(vec![Value::Port(*port)]), None)).collect();
    ruleset.sets.insert("ssh_ports".to_owned(), exact(vec![Field::Port], false, ports));
    add_prefix_sets(ruleset, "underlay_prefixes", &host.underlay_prefixes);
    add_live_sessions(ruleset, host);
    ruleset.chains.insert("bgp_to_machines".to_owned(), bgp_to_machines());
    ruleset.chains.insert("input_icmp".to_owned(), icmp());
    let hook = Hook { kind: ChainKind::Filter, point: HookPoint::Input, priority: 0, policy_drop: true };
    ruleset
        .chains
        .insert("input".to_owned(), Chain { hook: Some(hook), rules: input(intercepts_dns), origin: None });
}

/// Sessions that stood when protection was switched on. Conntrack may never have seen them; their next packet is
/// NEW to it (nf_conntrack_tcp_loose) and must not be taken for a stranger's.
fn add_live_sessions(ruleset: &mut Ruleset, host: &HostProtection) {
    for family in Family::ALL {
        let mut elements = BTreeMap::new();
        for (remote, remote_port, local, local_port) in &host.live_sessions {
            if Family::of(*remote) == family && Family::of(*local) == family {
                let key = vec![
                    prefixes::value(*remote),
                    Value::Port(*remote_port),
                    prefixes::value(*local),
                    Value::Port(*local_port),
                ];
                elements.insert(Key::Exact(key), None);
            }
        }
        let address = address_field(family);
        let key = vec![address, Field::Port, address, Field::Port];
        ruleset.sets.insert(of_family("live_sessions", family), exact(key, false, elements));
    }
}

fn bgp_to_machines() -> Chain {
    let body = [named("drop_bgp"), Statement::Counter, Statement::Verdict(Verdict::Drop)];
    chain(vec![commented(body, "block bgp forward to machines")])
}

fn tcp_to(port: u16) -> Statement {
    let dport = Selector::Port { side: Side::Destination, protocol: Some(Protocol::Tcp) };
    Statement::Match(dport, Test::Equal(Value::Port(port)))
}

fn input(intercepts_dns: bool) -> Vec<Rule> {
    use ConntrackState::{Established, Invalid};
    let counted = |mut body: Vec<Statement>, comment: &str| {
        body.extend([Statement::Counter, accept()]);
        commented(body, comment)
    };
    let lo = || "lo".parse().map(Value::IfName);
    let mut rules = Vec::new();
    rules.extend(lo().map(|lo| {
        counted(vec![Statement::Match(Selector::InputInterface, Test::Equal(lo))], "accept loopback")
    }));
    rules.push(counted(vec![state(Established)], "accept established connections of the firewall"));
    rules.push(commented(
        [state(Invalid), named("drop_host"), Statement::Counter, Statement::Verdict(Verdict::Drop)],
        "drop invalid packets",
    ));
    for icmp in [1, 58] {
        let is_icmp = Statement::Match(Selector::L4Protocol, Test::Equal(Value::Protocol(icmp)));
        rules.push(rule([is_icmp, jump("input_icmp")]));
    }
    let link_local = Selector::Address { side: Side::Source, family: Family::V6, prefix: 64 };
    let neighbour = Statement::Match(link_local, Test::Equal(Value::Ipv6(LINK_LOCAL)));
    rules.push(counted(vec![neighbour, tcp_to(179)], "BGP unnumbered"));
    rules.extend(Family::ALL.map(|family| {
        let dport = Selector::Port { side: Side::Destination, protocol: Some(Protocol::Udp) };
        let vxlan = Statement::Match(dport, Test::Equal(Value::Port(4789)));
        let from = in_set(source(family), &of_family("underlay_prefixes", family));
        counted(vec![from, vxlan], "VXLAN from the underlay")
    }));
    let dport = Selector::Port { side: Side::Destination, protocol: Some(Protocol::Tcp) };
    rules.push(counted(vec![in_set(dport, "ssh_ports")], "SSH incoming connections"));
    rules.extend(Family::ALL.map(|family| live_session_rule(family, &counted)));
    let inside = || in_set(Selector::InputInterface, "inside");
    rules.push(counted(vec![inside(), tcp_to(9100)], "node metrics"));
    rules.push(counted(vec![inside(), tcp_to(9630)], "nftables metrics"));
    if intercepts_dns {
        rules.push(super::dns::input_rule());
    }
    rules.push(commented([named("drop_host"), Statement::Counter], "drop packets to the firewall"));
    rules.push(rule([jump("drop_log")]));
    rules
}

fn live_session_rule(family: Family, counted: &impl Fn(Vec<Statement>, &str) -> Rule) -> Rule {
    let port = |side| Selector::Port { side, protocol: None };
    let key = vec![source(family), port(Side::Source), destination(family), port(Side::Destination)];
    let tcp = Statement::Match(Selector::L4Protocol, Test::Equal(Value::Protocol(Protocol::Tcp.number())));
    let known = Statement::ConcatInSet { key, set: of_family("live_sessions", family) };
    counted(vec![tcp, known], "accept sessions older than host protection")
}

/// Errors about own connections, neighbour and multicast listener discovery, and limited pings.
fn icmp() -> Chain {
    let related = |family, kind| {
        let body = [state(ConntrackState::Related), icmp_type(family, kind), Statement::Counter, accept()];
        commented(body, "accept icmp to the firewall")
    };
    let plain = |kind| {
        let body = [icmp_type(Family::V6, kind), Statement::Counter, accept()];
        commented(body, "accept icmp to the firewall")
    };
    let mut rules: Vec<Rule> = [3, 11, 12].map(|kind| related(Family::V4, kind)).into();
    rules.extend([1, 2, 3, 4].map(|kind| related(Family::V6, kind)));
    // RFC 4890 section 4.4.1: neighbour discovery 133-136 and multicast listener discovery 130-132, 143.
    rules.extend([130, 131, 132, 133, 134, 135, 136, 143].map(plain));
    let flood = Limit { unit: LimitUnit::Packets, rate: 100, burst: 20, over: true };
    for (family, kind) in [(Family::V4, 8), (Family::V6, 128)] {
        rules.push(rule([icmp_type(family, kind), Statement::Limit(flood), goto("ping_flood")]));
        let pass = [icmp_type(family, kind), Statement::Counter, accept()];
        rules.push(commented(pass, "accept icmp to the firewall"));
    }
    chain(rules)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn sessions_of_mixed_families_are_left_out() {
        let mut ruleset = Ruleset::default();
        let v4: IpAddr = "192.0.2.1".parse().expect("an address");
        let v6: IpAddr = "2001:db8::1".parse().expect("an address");
        let live_sessions = [(v4, 1, v6, 2), (v4, 1, v4, 2)].into();
        add_live_sessions(&mut ruleset, &HostProtection { live_sessions, ..HostProtection::default() });
        assert_eq!(ruleset.sets["live_sessions"].elements.len(), 1);
        assert_eq!(ruleset.sets["live_sessions6"].elements.len(), 0);
    }
}
