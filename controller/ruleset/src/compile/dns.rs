//! DNS from inside: the redirection to the proxy, the guard of its port, encrypted DNS, and what holds while the
//! proxy is away.
//!
//! ```text
//! chain dns_timeout  { iifname @inside … meta l4proto @dns_armed udp dport 53 ct timeout set "dns" }   # prerouting
//! chain dns_redirect { iifname @inside … meta l4proto @dns_armed udp dport 53 goto dns_redirect-udp }  # prerouting
//! chain dns_redirect-udp { meta l4proto 17 counter redirect to :5353 comment "dnat to dns proxy udp" }
//! chain dns_guard { udp dport 5353 jump dns_guarded tcp dport 853 jump dns_guarded }                   # input
//! ```
//! The sets `dns_armed` and `dns_armed6` hold a protocol for as long as the proxy answers on it: user space renews
//! the element, and its timeout disarms the redirection when user space is gone.
//!
//! Both prerouting chains may see a packet twice, on the port and on the master of a VRF. Nothing happens the second
//! time: NAT chains see only the first packet of a connection that has no translation yet (nf_nat_inet_fn(),
//! net/netfilter/nf_nat_core.c), and a timeout policy is only ever set to the same one.
//!
//! There is no `escape snat for dns proxy`, which today's product needs because it redirects in the output path. What
//! our proxy asks is the box's own traffic, it never passes `forward`, and source NAT is for what has an address of
//! the cluster.

use std::collections::BTreeMap;

use fw_policy::{ConntrackState, DNS_PORT, DOH_PORT, DOT_PORT, Dns, Encrypted, PolicySet, Protocol, comment};

use super::base::{
    accept, add_prefix_sets, address_field, chain, commented, destination, exact, goto, in_set, jump, named,
    of_family, rule, state,
};
use super::prefixes;
use crate::ir::{
    Chain, ChainKind, CtTimeout, Family, Field, Hook, HookPoint, Key, NamedCounter, Rule, Ruleset, Selector,
    Set, SetKind, Side, Statement, Test, Value, Verdict,
};

/// Name of the timeout policy of redirected DNS over UDP.
const TIMEOUT: &str = "dns";
/// Seconds after which a client that asks again from the same port is judged anew: redirected once the proxy answers
/// again, or not any more once it is gone.
const TIMEOUT_SECONDS: u32 = 3;
/// Chain of host protection that lets the cluster reach the proxy.
const INPUT: &str = "dns_input";
const GUARDED: &str = "dns_guarded";
const ENCRYPTED: &str = "encrypted_dns";
const ENDPOINTS: &str = "doh_endpoints";
const FALLBACK: &str = "dns_fallback";

/// The set that arms the redirection of a family: `dns_armed`, `dns_armed6`. Its elements are protocol numbers.
pub fn dns_armed(family: Family) -> String {
    of_family("dns_armed", family)
}

/// Adds what the Firewall and the policies ask for; without names and by default that is nothing.
pub(super) fn add(ruleset: &mut Ruleset, set: &PolicySet) {
    let dns = &set.firewall.dns;
    let encrypted = add_encrypted(ruleset, dns);
    let fallback = if set.intercepts_dns() { add_interception(ruleset, dns) } else { Vec::new() };
    if let Some(egress) = ruleset.chains.get_mut("egress") {
        egress.rules.splice(0..0, encrypted);
        egress.rules.extend(fallback);
    }
}

/// The rule of host protection that lets intercepted DNS in.
pub(super) fn input_rule() -> Rule {
    rule([in_set(Selector::InputInterface, "inside"), jump(INPUT)])
}

/// Adds the redirection; returns the rules for the time it is disarmed, which stand last in `egress`.
fn add_interception(ruleset: &mut Ruleset, dns: &Dns) -> Vec<Rule> {
    for family in Family::ALL {
        // Two protocols; the kernel rounds nothing up, and an element that expires may stand beside its successor.
        let kind = SetKind::Learned { size: 16 };
        let key = vec![Field::Protocol];
        let armed = Set { key, kind, elements: BTreeMap::new(), map: false, origin: None };
        ruleset.sets.insert(dns_armed(family), armed);
    }
    ruleset.timeouts.insert(TIMEOUT.to_owned(), CtTimeout { seconds: TIMEOUT_SECONDS });
    // After conntrack (-200, NF_IP_PRI_CONNTRACK) and before destination NAT (-100, NF_IP_PRI_NAT_DST).
    let timeouts = Family::ALL.map(|family| {
        let mut body = armed(family, Protocol::Udp);
        body.push(Statement::CtTimeout(TIMEOUT.to_owned()));
        rule(body)
    });
    add_base(ruleset, "dns_timeout", ChainKind::Filter, HookPoint::Prerouting, -150, timeouts.into());
    let mut redirects = Vec::new();
    for protocol in Protocol::ALL {
        let target = format!("dns_redirect-{protocol}");
        let body = [of_protocol(protocol), Statement::Counter, Statement::Redirect(dns.port)];
        let redirect = commented(body, &format!("dnat to dns proxy {protocol}"));
        ruleset.chains.insert(target.clone(), chain(vec![redirect]));
        redirects.extend(Family::ALL.map(|family| {
            let mut body = armed(family, protocol);
            body.push(goto(&target));
            rule(body)
        }));
    }
    add_base(ruleset, "dns_redirect", ChainKind::Nat, HookPoint::Prerouting, -100, redirects);
    add_input(ruleset, dns);
    if dns.fallback { add_fallback(ruleset, dns) } else { Vec::new() }
}

/// DNS of one family and protocol from inside, while the proxy answers on it.
fn armed(family: Family, protocol: Protocol) -> Vec<Statement> {
    vec![
        in_set(Selector::InputInterface, "inside"),
        Statement::Family(family),
        in_set(Selector::L4Protocol, &dns_armed(family)),
        to_port(protocol, DNS_PORT),
    ]
}

/// The proxy's ports, also those for TLS, closed to everybody but the cluster and the box itself; and what host protection lets in.
fn add_input(ruleset: &mut Ruleset, dns: &Dns) {
    let encrypted = dns.tls_ports();
    let ports = Protocol::ALL.map(|protocol| (protocol, dns.port)).into_iter();
    let ports = ports.chain(encrypted.iter().map(|port| (Protocol::Tcp, *port)));
    let jumps: Vec<Rule> =
        ports.map(|(protocol, port)| rule([to_port(protocol, port), jump(GUARDED)])).collect();
    // Before the chain `input` of host protection (0).
    add_base(ruleset, "dns_guard", ChainKind::Filter, HookPoint::Input, -1, jumps);
    let back = || Statement::Verdict(Verdict::Return);
    let mut rules = vec![rule([state(ConntrackState::Established), back()])];
    let lo = "lo".parse().map(Value::IfName);
    rules.extend(lo.map(|lo| rule([Statement::Match(Selector::InputInterface, Test::Equal(lo)), back()])));
    rules.push(rule([in_set(Selector::InputInterface, "inside"), back()]));
    ruleset.counters.insert("drop_dns_proxy".to_owned(), NamedCounter {});
    let body = [named("drop_dns_proxy"), Statement::Counter, Statement::Verdict(Verdict::Drop)];
    rules.push(commented(body, "drop dns to the proxy from elsewhere"));
    ruleset.chains.insert(GUARDED.to_owned(), chain(rules));
    let accepted = |protocol, port, what: &str| {
        let body = [to_port(protocol, port), Statement::Counter, accept()];
        commented(body, &format!("accept {what} traffic for dns cache {protocol}"))
    };
    let mut rules: Vec<Rule> =
        Protocol::ALL.map(|protocol| accepted(protocol, dns.port, "intercepted")).into();
    rules.extend(encrypted.iter().map(|port| accepted(Protocol::Tcp, *port, "encrypted")));
    ruleset.chains.insert(INPUT.to_owned(), chain(rules));
}

/// A packet to port 53 that reaches `egress` was not redirected.
fn add_fallback(ruleset: &mut Ruleset, dns: &Dns) -> Vec<Rule> {
    let resolvers = dns.fallback_resolvers();
    for family in Family::ALL {
        let of_this = resolvers.iter().filter(|address| Family::of(**address) == family);
        let elements = of_this.map(|address| (Key::Exact(vec![prefixes::value(*address)]), None)).collect();
        ruleset.sets.insert(of_family(FALLBACK, family), exact(vec![address_field(family)], false, elements));
    }
    let mut rules = Vec::new();
    for protocol in Protocol::ALL {
        let target = format!("{FALLBACK}-{protocol}");
        let counted = commented([Statement::Counter, accept()], &comment::dns_fallback(protocol));
        ruleset.chains.insert(target.clone(), chain(vec![counted]));
        rules.extend(Family::ALL.map(|family| {
            let resolver = in_set(destination(family), &of_family(FALLBACK, family));
            rule([resolver, to_port(protocol, DNS_PORT), goto(&target)])
        }));
    }
    rules
}

/// Adds what `dns.dot` and `dns.doh` ask for; returns the rules that stand first in `egress`.
fn add_encrypted(ruleset: &mut Ruleset, dns: &Dns) -> Vec<Rule> {
    if dns.doh != Encrypted::Policy {
        add_prefix_sets(ruleset, ENDPOINTS, &dns.doh_endpoints);
    }
    let targets = |ruleset: &mut Ruleset, choice, protocol| match choice {
        Encrypted::Policy => None,
        Encrypted::Deny => Some(add_drop(ruleset)),
        Encrypted::Allow => Some(add_accept(ruleset, protocol)),
    };
    let mut rules = Vec::new();
    for protocol in Protocol::ALL {
        if let Some(target) = targets(ruleset, dns.dot, protocol) {
            rules.push(rule([to_port(protocol, DOT_PORT), goto(&target)]));
        }
        if let Some(target) = targets(ruleset, dns.doh, protocol) {
            rules.extend(Family::ALL.map(|family| {
                let endpoint = in_set(destination(family), &of_family(ENDPOINTS, family));
                rule([endpoint, to_port(protocol, DOH_PORT), goto(&target)])
            }));
        }
    }
    rules
}

fn add_drop(ruleset: &mut Ruleset) -> String {
    ruleset.counters.insert("drop_encrypted_dns".to_owned(), NamedCounter {});
    let counted = [named("drop_encrypted_dns"), Statement::Counter];
    let rules = vec![
        commented(counted, fw_policy::DropReason::EncryptedDns.counter()),
        rule([jump("drop_log")]),
        rule([Statement::Verdict(Verdict::Drop)]),
    ];
    ruleset.chains.insert(ENCRYPTED.to_owned(), chain(rules));
    ENCRYPTED.to_owned()
}

fn add_accept(ruleset: &mut Ruleset, protocol: Protocol) -> String {
    let name = format!("{ENCRYPTED}-{protocol}");
    let counted = commented([Statement::Counter, accept()], &comment::encrypted_dns(protocol));
    ruleset.chains.insert(name.clone(), chain(vec![counted]));
    name
}

fn add_base(
    ruleset: &mut Ruleset,
    name: &str,
    kind: ChainKind,
    point: HookPoint,
    priority: i32,
    rules: Vec<Rule>,
) {
    let hook = Hook { kind, point, priority, policy_drop: false };
    ruleset.chains.insert(name.to_owned(), Chain { hook: Some(hook), rules, origin: None });
}

fn of_protocol(protocol: Protocol) -> Statement {
    Statement::Match(Selector::L4Protocol, Test::Equal(Value::Protocol(protocol.number())))
}

fn to_port(protocol: Protocol, port: u16) -> Statement {
    let dport = Selector::Port { side: Side::Destination, protocol: Some(protocol) };
    Statement::Match(dport, Test::Equal(Value::Port(port)))
}
