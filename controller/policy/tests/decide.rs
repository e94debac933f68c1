//! The reference decision, bullet by bullet of BEHAVIOUR.md.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends at the first thing that is not as it must be"
)]

use std::net::IpAddr;

use fw_policy::{
    Block, ConntrackState, Decision, DropReason, Encrypted, Firewall, FqdnSelector, HostProtection, IcmpEcho,
    Inside, InsideBasis, Intercept, Learned, Packet, Peers, Policy, PolicySet, PortRange, Ports, Protocol,
    Rule, Service, ServiceName, Sources, Transport, Why,
};

const INSIDE: &str = "vrf104009";
const OUTSIDE: &str = "vlan179";

fn firewall() -> Firewall {
    let inside = Inside {
        interfaces: ["vrf104009", "vlan104009"].map(|name| name.parse().expect("a name")).into(),
        prefixes: ["10.0.16.0/22", "2001:db8:16::/48"].map(|net| net.parse().expect("a prefix")).into(),
        basis: InsideBasis::Explicit,
    };
    Firewall { inside, ..Firewall::default() }
}

fn block(net: &str, except: &[&str]) -> Block {
    let except = except.iter().map(|net| net.parse().expect("a prefix")).collect();
    Block { index: 0, net: net.parse().expect("a prefix"), except }
}

fn blocks(nets: &[&str]) -> Peers {
    Peers::Blocks(nets.iter().enumerate().map(|(index, net)| Block { index, ..block(net, &[]) }).collect())
}

fn tcp(first: u16, last: u16) -> Ports {
    Ports::Ranges(vec![PortRange { index: 0, protocol: Protocol::Tcp, first, last }])
}

fn egress(peers: Peers, ports: Ports) -> Policy {
    Policy { ingress: vec![], egress: vec![Rule { index: 0, peers, ports }] }
}

fn ingress(peers: Peers, ports: Ports) -> Policy {
    Policy { ingress: vec![Rule { index: 0, peers, ports }], egress: vec![] }
}

fn with(policies: &[(&str, Policy)]) -> PolicySet {
    PolicySet {
        policies: policies.iter().map(|(name, policy)| ((*name).to_owned(), policy.clone())).collect(),
        firewall: firewall(),
        ..PolicySet::default()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn packet(input: &str, output: &str, source: &str, destination: &str, transport: Transport) -> Packet {
    Packet {
        input: input.parse().expect("a name"),
        output: output.parse().expect("a name"),
        source: ip(source),
        destination: ip(destination),
        transport,
        state: ConntrackState::New,
    }
}

fn out(destination: &str, port: u16) -> Packet {
    let source = if ip(destination).is_ipv4() { "10.0.16.5" } else { "2001:db8:16::5" };
    let transport = Transport::Tcp { source: 40_000, destination: port };
    packet(INSIDE, OUTSIDE, source, destination, transport)
}

fn into(source: &str, destination: &str, port: u16) -> Packet {
    packet(OUTSIDE, INSIDE, source, destination, Transport::Tcp { source: 40_000, destination: port })
}

fn counted_by(decision: &Decision) -> Option<&str> {
    match &decision.why {
        Why::Egress { policy, .. } | Why::Ingress { policy, .. } => Some(policy),
        _ => None,
    }
}

#[test]
fn without_any_object_only_established_and_related_traffic_passes() {
    let set = PolicySet::default();
    let mut packet = out("1.1.1.1", 443);
    assert!(!set.decide(&packet).accepted);
    packet.state = ConntrackState::Established;
    assert!(set.decide(&packet).accepted);
    packet.state = ConntrackState::Related;
    assert!(set.decide(&packet).accepted, "what a helper announced");
    packet.transport = Transport::Icmp { kind: 3, code: 4 };
    assert_eq!(set.decide(&packet).why, Why::Icmp);
    packet.transport = Transport::Icmp { kind: 5, code: 0 };
    assert!(!set.decide(&packet).accepted, "a redirect is no error about a connection");
}

#[test]
fn written_empty_peers_and_ports_mean_everyone_and_all_of_tcp_and_udp_in_both_families() {
    let set = with(&[("all", egress(Peers::Any, Ports::All))]);
    for destination in ["1.2.3.4", "2001:db8:ffff::1"] {
        for port in [0, 1, 53, 65_535] {
            assert!(set.decide(&out(destination, port)).accepted, "{destination} {port}");
        }
    }
    let sctp = packet(INSIDE, OUTSIDE, "10.0.16.5", "1.2.3.4", Transport::Other(132));
    assert_eq!(set.decide(&sctp).why, Why::Drop(DropReason::UnsupportedProtocol));
}

#[test]
fn lists_that_lost_all_their_entries_match_nothing() {
    let nobody = with(&[("a", egress(Peers::Blocks(vec![]), Ports::All))]);
    let nothing = with(&[("a", egress(Peers::Any, Ports::Ranges(vec![])))]);
    let names = with(&[("a", egress(Peers::Names(vec![]), Ports::All))]);
    for set in [nobody, nothing, names] {
        assert!(!set.decide(&out("1.2.3.4", 443)).accepted);
    }
}

#[test]
fn an_ingress_allow_never_opens_egress_and_the_other_way_round() {
    let set = with(&[("in", ingress(Peers::Any, tcp(443, 443)))]);
    assert!(set.decide(&into("198.51.100.7", "10.0.16.5", 443)).accepted);
    assert!(!set.decide(&out("198.51.100.7", 443)).accepted);
    let set = with(&[("out", egress(Peers::Any, tcp(443, 443)))]);
    assert!(set.decide(&out("198.51.100.7", 443)).accepted);
    assert!(!set.decide(&into("198.51.100.7", "10.0.16.5", 443)).accepted);
}

#[test]
fn inside_to_inside_needs_an_egress_allow() {
    let through =
        packet(INSIDE, INSIDE, "10.0.16.5", "10.0.17.5", Transport::Tcp { source: 1, destination: 80 });
    assert!(!with(&[("in", ingress(Peers::Any, Ports::All))]).decide(&through).accepted);
    assert!(with(&[("out", egress(Peers::Any, Ports::All))]).decide(&through).accepted);
}

#[test]
fn outside_to_outside_never_passes() {
    let set = with(&[(
        "all",
        Policy {
            ingress: ingress(Peers::Any, Ports::All).ingress,
            egress: egress(Peers::Any, Ports::All).egress,
        },
    )]);
    let through =
        packet(OUTSIDE, OUTSIDE, "192.0.2.1", "10.0.16.5", Transport::Tcp { source: 1, destination: 80 });
    assert_eq!(set.decide(&through).why, Why::Drop(DropReason::Policy));
}

#[test]
fn an_exception_is_taken_out_of_its_own_block_only() {
    let mut first = block("10.0.0.0/8", &["10.1.0.0/16"]);
    first.index = 0;
    let mut second = block("10.1.0.0/16", &["10.1.2.0/24"]);
    second.index = 1;
    let set = with(&[("a", egress(Peers::Blocks(vec![first, second]), tcp(80, 80)))]);
    assert!(
        set.decide(&out("10.1.1.1", 80)).accepted,
        "excepted from the first block, allowed by the second"
    );
    assert!(!set.decide(&out("10.1.2.1", 80)).accepted, "excepted from both");
    let covering =
        with(&[("a", egress(Peers::Blocks(vec![block("1.1.0.0/24", &["1.1.0.0/16"])]), Ports::All))]);
    assert!(!covering.decide(&out("1.1.0.1", 80)).accepted);
}

#[test]
fn what_any_policy_allows_is_allowed() {
    let set = with(&[
        ("a", egress(Peers::Blocks(vec![block("0.0.0.0/0", &["1.2.3.0/24"])]), tcp(443, 443))),
        ("b", egress(blocks(&["1.2.3.4/32"]), tcp(443, 443))),
    ]);
    assert!(
        set.decide(&out("1.2.3.4", 443)).accepted,
        "the exception of one policy denies nothing to another"
    );
    assert!(!set.decide(&out("1.2.3.5", 443)).accepted);
}

#[test]
fn the_counter_of_overlapping_policies_goes_to_the_longest_prefix_then_to_the_first_name() {
    let set = with(&[
        ("a-wide", egress(blocks(&["10.0.0.0/8"]), tcp(1, 1000))),
        ("b", egress(blocks(&["10.1.0.0/16"]), tcp(80, 90))),
        ("c", egress(blocks(&["10.1.0.0/16"]), tcp(85, 100))),
    ]);
    for (destination, port, expected) in
        [("10.1.1.1", 80, "b"), ("10.1.1.1", 85, "b"), ("10.1.1.1", 95, "c"), ("10.1.1.1", 200, "a-wide")]
    {
        let decision = set.decide(&out(destination, port));
        assert_eq!(counted_by(&decision), Some(expected), "{destination} {port}");
    }
}

#[test]
fn the_deciding_entry_is_named_by_its_field_path() {
    let set = with(&[("a", egress(blocks(&["10.9.0.0/16", "1.2.3.0/24"]), tcp(80, 90)))]);
    let Why::Egress { field, protocol, .. } = set.decide(&out("1.2.3.4", 85)).why else { panic!("accepted") };
    assert_eq!((field.as_str(), protocol), ("spec.egress[0].to[1]", Protocol::Tcp));
}

#[test]
fn a_port_range_includes_both_ends() {
    let set = with(&[("a", egress(Peers::Any, tcp(8000, 8080)))]);
    for (port, accepted) in [(7999, false), (8000, true), (8080, true), (8081, false)] {
        assert_eq!(set.decide(&out("1.2.3.4", port)).accepted, accepted, "{port}");
    }
}

#[test]
fn spoofed_sources_are_dropped_before_any_policy_but_load_balancer_addresses_are_not() {
    let mut set = with(&[("all", egress(Peers::Any, Ports::All))]);
    set.load_balancer_addresses.insert(ip("198.51.100.10"));
    let mut packet = out("1.2.3.4", 443);
    packet.source = ip("192.0.2.66");
    assert_eq!(set.decide(&packet).why, Why::Drop(DropReason::Spoofed));
    packet.source = ip("198.51.100.10");
    assert!(set.decide(&packet).accepted);
    set.firewall.inside.prefixes.clear();
    packet.source = ip("192.0.2.66");
    assert!(set.decide(&packet).accepted, "no prefixes known, no spoofing check");
}

#[test]
fn a_service_opens_exactly_its_addresses_and_ports_to_its_sources() {
    let mut set = with(&[]);
    let name = ServiceName { namespace: "default".to_owned(), name: "web".to_owned() };
    let sources = Sources::Blocks(["192.0.2.0/24".parse().expect("a prefix")].into());
    let service =
        Service { addresses: [ip("198.51.100.10")].into(), ports: [(Protocol::Tcp, 443)].into(), sources };
    set.services.insert(name.clone(), service);
    assert_eq!(set.decide(&into("192.0.2.9", "198.51.100.10", 443)).why, Why::Service(name));
    assert!(!set.decide(&into("192.0.2.9", "198.51.100.10", 80)).accepted);
    assert!(!set.decide(&into("192.0.2.9", "198.51.100.11", 443)).accepted);
    assert!(!set.decide(&into("203.0.113.9", "198.51.100.10", 443)).accepted);
    assert!(!set.decide(&out("198.51.100.10", 443)).accepted, "no egress");
}

#[test]
fn pings_pass_only_where_icmp_echo_says_so() {
    let mut set = with(&[]);
    let ping = |input, output, source, kind| {
        packet(input, output, source, "10.0.16.9", Transport::Icmp { kind, code: 0 })
    };
    let leaving = ping(INSIDE, OUTSIDE, "10.0.16.5", 8);
    let entering = ping(OUTSIDE, INSIDE, "192.0.2.1", 8);
    let cases =
        [(IcmpEcho::Deny, false, false), (IcmpEcho::Egress, true, false), (IcmpEcho::Both, true, true)];
    for (echo, out, into) in cases {
        set.firewall.icmp_echo = echo;
        assert_eq!((set.decide(&leaving).accepted, set.decide(&entering).accepted), (out, into), "{echo:?}");
    }
    let timestamp = ping(INSIDE, OUTSIDE, "10.0.16.5", 13);
    assert_eq!(set.decide(&timestamp).why, Why::Drop(DropReason::Policy));
}

#[test]
fn host_protection_keeps_bgp_from_the_machines() {
    let mut set = with(&[("all", ingress(Peers::Any, Ports::All))]);
    assert!(set.decide(&into("192.0.2.1", "10.0.16.5", 179)).accepted);
    set.firewall.host = Some(HostProtection::default());
    assert_eq!(set.decide(&into("192.0.2.1", "10.0.16.5", 179)).why, Why::Drop(DropReason::Bgp));
}

fn name(text: &str) -> FqdnSelector {
    FqdnSelector::Name(text.to_owned())
}

fn names(texts: &[&str], ports: Ports) -> Policy {
    egress(Peers::Names(texts.iter().map(|text| name(text)).collect()), ports)
}

fn learned(addresses: &[(&str, &[&str])]) -> Learned {
    let of =
        |(address, texts): &(&str, &[&str])| (ip(address), texts.iter().map(|text| name(text)).collect());
    Learned { addresses: addresses.iter().map(of).collect() }
}

fn by_name(policy: &str, selector: &str) -> Why {
    Why::Name { policy: policy.to_owned(), selector: name(selector), protocol: Protocol::Tcp }
}

#[test]
fn a_learned_address_is_open_for_its_names_ports_and_nothing_else() {
    let set = with(&[("a", names(&["a.example", "b.example"], tcp(443, 443)))]);
    let view = learned(&[("192.0.2.1", &["b.example", "c.example"]), ("2001:db8::1", &["c.example"])]);
    assert_eq!(set.decide_with(&out("192.0.2.1", 443), &view).why, by_name("a", "b.example"));
    assert!(!set.decide(&out("192.0.2.1", 443)).accepted, "nothing is learned");
    for (destination, port) in [("192.0.2.1", 80), ("192.0.2.2", 443), ("2001:db8::1", 443)] {
        assert!(!set.decide_with(&out(destination, port), &view).accepted, "{destination} {port}");
    }
    let mut udp = out("192.0.2.1", 443);
    udp.transport = Transport::Udp { source: 40_000, destination: 443 };
    assert!(!set.decide_with(&udp, &view).accepted);
    let answer = into("192.0.2.1", "10.0.16.5", 443);
    assert!(!set.decide_with(&answer, &view).accepted, "names open egress only");
}

#[test]
fn names_win_over_prefixes_and_the_smallest_policy_and_selector_over_other_names() {
    let set = with(&[
        ("a", egress(blocks(&["192.0.2.1/32"]), tcp(80, 443))),
        ("b", names(&["b.example", "a.example"], tcp(443, 443))),
        ("c", names(&["a.example"], tcp(80, 80))),
    ]);
    let view = learned(&[("192.0.2.1", &["a.example", "b.example"])]);
    assert_eq!(set.decide_with(&out("192.0.2.1", 443), &view).why, by_name("b", "a.example"));
    assert_eq!(set.decide_with(&out("192.0.2.1", 80), &view).why, by_name("c", "a.example"));
    assert_eq!(counted_by(&set.decide_with(&out("192.0.2.1", 81), &view)), Some("a"));
}

#[test]
fn encrypted_dns_is_denied_or_allowed_before_policies_and_names() {
    let mut set = with(&[("a", egress(Peers::Any, Ports::All)), ("b", names(&["a.example"], Ports::All))]);
    let view = learned(&[("192.0.2.1", &["a.example"])]);
    set.firewall.dns.doh_endpoints =
        ["192.0.2.0/28", "2001:db8:d::/48"].map(|n| n.parse().expect("a prefix")).into();
    for (dot, doh) in [(Encrypted::Deny, Encrypted::Allow), (Encrypted::Allow, Encrypted::Deny)] {
        (set.firewall.dns.dot, set.firewall.dns.doh) = (dot, doh);
        let why = |choice| match choice {
            Encrypted::Deny => Why::Drop(DropReason::EncryptedDns),
            _ => Why::EncryptedDns { protocol: Protocol::Tcp },
        };
        for destination in ["192.0.2.1", "2001:db8:d::1"] {
            assert_eq!(set.decide_with(&out(destination, 853), &view).why, why(dot));
            assert_eq!(set.decide_with(&out(destination, 443), &view).why, why(doh));
        }
        assert_eq!(set.decide(&out("203.0.113.1", 853)).why, why(dot), "to every destination");
        assert_eq!(counted_by(&set.decide(&out("203.0.113.1", 443))), Some("a"), "no endpoint");
        let mut running = out("192.0.2.1", 853);
        running.state = ConntrackState::Established;
        assert_eq!(set.decide(&running).why, Why::Established);
        let from_outside = into("192.0.2.1", "10.0.16.5", 853);
        assert_eq!(set.decide(&from_outside).why, Why::Drop(DropReason::Policy), "never as ingress");
    }
    (set.firewall.dns.dot, set.firewall.dns.doh) = (Encrypted::Policy, Encrypted::Policy);
    assert_eq!(set.decide_with(&out("192.0.2.1", 853), &view).why, by_name("b", "a.example"));
}

#[test]
fn without_the_proxy_dns_falls_back_to_known_resolvers_where_it_would_have_been_redirected() {
    let dns = |destination: &str| Packet {
        transport: Transport::Udp { source: 40_000, destination: 53 },
        ..out(destination, 53)
    };
    let mut set = with(&[("a", names(&["a.example"], tcp(443, 443)))]);
    let falls_back = Why::DnsFallback { protocol: Protocol::Udp };
    for resolver in ["8.8.8.8", "2606:4700:4700::1111"] {
        assert_eq!(set.decide(&dns(resolver)).why, falls_back);
        assert_eq!(set.decide(&out(resolver, 53)).why, Why::DnsFallback { protocol: Protocol::Tcp });
        assert!(!set.decide(&out(resolver, 443)).accepted);
    }
    assert!(!set.decide(&dns("9.9.9.9")).accepted);
    set.firewall.dns.upstreams =
        vec![fw_policy::Upstream { address: "9.9.9.9:5300".parse().expect("an address"), tls_name: None }];
    assert_eq!(set.decide(&dns("9.9.9.9")).why, falls_back, "configured");
    set.firewall.dns.fallback = false;
    assert!(!set.decide(&dns("8.8.8.8")).accepted, "dnsFallback: deny");
    set.firewall.dns.fallback = true;
    set.policies.clear();
    assert!(!set.decide(&dns("8.8.8.8")).accepted, "nothing is redirected, so nothing falls back");
    set.firewall.dns.intercept = Intercept::Always;
    assert!(set.decide(&dns("8.8.8.8")).accepted);
    set.policies.insert("b".to_owned(), egress(blocks(&["8.8.8.8/32"]), Ports::All));
    assert_eq!(counted_by(&set.decide(&dns("8.8.8.8"))), Some("b"), "a policy that allows it counts it");
}

#[test]
fn an_index_stands_in_the_bits_of_the_mask_or_nowhere() {
    let with_mask = |mark_mask| fw_policy::Fastpath { mark_mask, ..fw_policy::Fastpath::default() };
    assert_eq!(with_mask(0x00ff_ffff).mark_of(1), Some(1));
    assert_eq!(with_mask(0xff00).mark_of(255), Some(0xff00));
    assert_eq!(with_mask(0xff00).mark_of(256), None);
    assert_eq!(with_mask(0xff00).mark_of(0), None, "0 is no index");
    assert_eq!(with_mask(0).mark_of(1), None);
    assert_eq!(with_mask(0xff00_0000).mark_of(256), None);
}
