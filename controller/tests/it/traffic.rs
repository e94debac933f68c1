//! Each bullet of BEHAVIOUR.md about packets, with real ones.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use fw_intake::HostFacts;
use fw_testkit::topology::{LabSpec, Neighbours};
use fw_testkit::traffic::craft::{Body, Crafted};
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::traffic::steady::Steady;
use fw_testkit::traffic::{meter, probe};

use crate::rig::{FIREWALL, From, Rig, at, documents, firewall_with, fresh_port, own, policy};

const PATIENCE: Duration = Duration::from_secs(5);
/// For probes that must stay silent: enough for many round trips, and a lost answer would fail another test.
const SILENCE: Duration = Duration::from_millis(300);
/// Addresses of the first machine inside.
pub(crate) const CLUSTER: [&str; 2] = ["10.0.16.2", "2001:db8:10:16::2"];
/// Addresses of the first machine outside.
pub(crate) const INTERNET: [&str; 2] = ["203.0.113.2", "2001:db8:179::2"];

/// A new TCP connection from the first cluster machine.
pub(crate) fn out(destination: &str, port: u16) -> (From, Crafted) {
    let destination = at(destination, port);
    let source = if destination.is_ipv4() { CLUSTER[0] } else { CLUSTER[1] };
    (From::Cluster, Crafted::syn(at(source, fresh_port()), destination))
}

/// The same with UDP.
pub(crate) fn udp_out(destination: &str, port: u16) -> (From, Crafted) {
    let destination = at(destination, port);
    let source = if destination.is_ipv4() { CLUSTER[0] } else { CLUSTER[1] };
    (From::Cluster, Crafted::udp(at(source, fresh_port()), destination))
}

/// A new TCP connection from the first machine outside, or from any other address behind it.
pub(crate) fn into(source: &str, destination: &str, port: u16) -> (From, Crafted) {
    (From::Internet, Crafted::syn(at(source, fresh_port()), at(destination, port)))
}

fn with_policies(policies: &[&str]) -> String {
    let mut parts = vec![FIREWALL];
    parts.extend(policies);
    documents(&parts)
}

#[test]
fn without_a_firewall_object_nothing_new_passes() -> Result<()> {
    let rig = Rig::new("nothing", &policy("all", "{egress: [{}], ingress: [{}]}"))?;
    let shots = [
        out("1.2.3.4", 443),
        out("2001:db8:ffff::1", 443),
        udp_out("1.2.3.4", 53),
        into("203.0.113.2", CLUSTER[0], 22),
        into(INTERNET[1], CLUSTER[1], 22),
    ];
    assert_eq!(rig.fire(&shots)?, [false; 5], "the inside is not known, so nothing is opened");
    assert_eq!(rig.counters()?.named("drop_total"), 5);
    Ok(())
}

#[test]
fn a_rule_without_peers_and_ports_opens_all_of_tcp_and_udp_in_both_families() -> Result<()> {
    let rig = Rig::new("all", &with_policies(&[&policy("all", "{egress: [{}]}")]))?;
    let shots = [
        out("1.2.3.4", 1),
        out("2001:db8:ffff::1", 65_535),
        udp_out("100.64.1.1", 65_535),
        udp_out("1.2.3.4", 1),
        udp_out("2001:db8:ffff::1", 4000),
    ];
    assert_eq!(rig.fire(&shots)?, [true; 5]);
    let counters = rig.counters()?;
    assert_eq!(counters.comment("accept traffic for np all tcp"), 2);
    assert_eq!(counters.comment("accept traffic for np all udp"), 3);
    Ok(())
}

#[test]
fn an_ingress_allow_never_opens_egress() -> Result<()> {
    let ingress = policy("web", "{ingress: [{ports: [{port: 443}]}]}");
    let egress = policy("out", "{egress: [{to: [{cidr: 1.2.3.0/24}], ports: [{port: 80}]}]}");
    let rig = Rig::new("direction", &with_policies(&[&ingress, &egress]))?;
    let shots = [
        into("198.18.0.1", CLUSTER[0], 443),
        into(INTERNET[1], CLUSTER[1], 443),
        out("198.18.0.1", 443),
        out(INTERNET[1], 443),
        out("1.2.3.4", 80),
        into("1.2.3.4", CLUSTER[0], 80),
    ];
    assert_eq!(rig.fire(&shots)?, [true, true, false, false, true, false]);
    assert_eq!(rig.counters()?.comment("accept traffic for k8s network policy web tcp"), 2);
    Ok(())
}

#[test]
fn inside_to_inside_needs_an_egress_allow() -> Result<()> {
    let spec = LabSpec::standard("inside")?.with_second_inside()?;
    let all_in = policy("all-in", "{ingress: [{}]}");
    let mut rig = Rig::on(&spec, &with_policies(&[&all_in]))?;
    assert_eq!(rig.fire(&[out("10.0.17.2", 80)])?, [false]);
    let east = policy("east", "{egress: [{to: [{cidr: 10.0.17.0/24}]}]}");
    rig.apply(&with_policies(&[&all_in, &east]))?;
    assert_eq!(rig.fire(&[out("10.0.17.2", 80)])?, [true]);
    Ok(())
}

#[test]
fn spoofed_sources_are_dropped_under_their_own_counter() -> Result<()> {
    let service = "
apiVersion: v1
kind: Service
metadata: {name: lb, namespace: default}
spec: {type: LoadBalancer, ports: [{port: 443}]}
status: {loadBalancer: {ingress: [{ip: 198.51.100.10}]}}";
    let rig = Rig::new("spoof", &with_policies(&[&policy("all", "{egress: [{}]}"), service]))?;
    let from = |source: &str, to: &str| (From::Cluster, Crafted::syn(at(source, fresh_port()), at(to, 443)));
    let shots = [
        from("192.0.2.66", "1.2.3.4"),
        from("2001:db8:bad::1", "2001:db8:ffff::1"),
        from("198.51.100.10", "1.2.3.4"),
        from("10.0.16.77", "1.2.3.4"),
    ];
    assert_eq!(rig.fire(&shots)?, [false, false, true, true]);
    let counters = rig.counters()?;
    assert_eq!((counters.named("drop_spoofed"), counters.named("drop_total")), (2, 0));
    Ok(())
}

#[test]
fn an_exception_is_taken_out_of_its_own_block_only() -> Result<()> {
    let spec = "{egress: [{to: [{cidr: 10.128.0.0/9, except: [10.129.0.0/16]}, \
                {cidr: 10.129.0.0/16, except: [10.129.2.0/24]}], ports: [{port: 80}]}]}";
    let rig = Rig::new("except", &with_policies(&[&policy("a", spec)]))?;
    let shots =
        [out("10.130.0.1", 80), out("10.129.1.1", 80), out("10.129.2.1", 80), out("10.127.255.255", 80)];
    assert_eq!(rig.fire(&shots)?, [true, true, false, false]);
    Ok(())
}

#[test]
fn a_port_range_includes_both_ends() -> Result<()> {
    let spec = "{egress: [{to: [{cidr: 1.2.3.4/32}], ports: [{port: 8000, endPort: 8080}, \
                {port: 65000, endPort: 65535, protocol: UDP}]}]}";
    let rig = Rig::new("ports", &with_policies(&[&policy("a", spec)]))?;
    let shots = [
        out("1.2.3.4", 7999),
        out("1.2.3.4", 8000),
        out("1.2.3.4", 8080),
        out("1.2.3.4", 8081),
        udp_out("1.2.3.4", 64_999),
        udp_out("1.2.3.4", 65_000),
        udp_out("1.2.3.4", 65_535),
        udp_out("1.2.3.4", 8000),
    ];
    assert_eq!(rig.fire(&shots)?, [false, true, true, false, false, true, true, false]);
    Ok(())
}

#[test]
fn both_families_are_judged_alike() -> Result<()> {
    let spec = "{egress: [{to: [{cidr: 1.2.3.0/24}, {cidr: '2001:db8:ffff::/64'}], ports: [{port: 443}]}]}";
    let rig = Rig::new("families", &with_policies(&[&policy("a", spec)]))?;
    let shots = [
        out("1.2.3.4", 443),
        out("2001:db8:ffff::4", 443),
        out("1.2.4.4", 443),
        out("2001:db8:ffff:1::4", 443),
        out("2001:db8:ffff::4", 444),
    ];
    assert_eq!(rig.fire(&shots)?, [true, true, false, false, false]);
    assert_eq!(rig.counters()?.comment("accept traffic for np a tcp"), 2);
    Ok(())
}

#[test]
fn unsupported_protocols_are_dropped_under_their_own_counter() -> Result<()> {
    let rig = Rig::new("protocols", &with_policies(&[&policy("all", "{egress: [{}]}")]))?;
    let other = |protocol| {
        let body = Body::Other { protocol };
        (From::Cluster, Crafted::new(at(CLUSTER[0], 0).ip(), at("1.2.3.4", 0).ip(), body))
    };
    assert_eq!(rig.fire(&[other(132), other(47), other(89)])?, [false; 3]);
    assert_eq!(rig.counters()?.named("drop_unsupported_protocol"), 3);
    Ok(())
}

#[test]
fn an_established_connection_outlives_its_policy() -> Result<()> {
    let allow = policy("web", "{egress: [{to: [{cidr: 203.0.113.2/32}], ports: [{port: 7000}]}]}");
    let mut rig = Rig::new("outlive", &with_policies(&[&allow]))?;
    let server = Server::tcp(&rig.lab.internet().ns, &[at(INTERNET[0], 7000)], Service::Echo)?;
    let steady =
        Steady::tcp(&rig.lab.cluster().ns, None, server.addresses()[0], 5, Duration::from_millis(10))?;
    rig.apply(FIREWALL)?;
    let outcome = probe::tcp(&rig.lab.cluster().ns, None, server.addresses()[0], SILENCE)?;
    assert!(!outcome.passed(), "a new connection after the policy went: {outcome:?}");
    let report = steady.stop()?;
    assert_eq!((report.flows, report.breaks.as_slice()), (5, &[][..]));
    Ok(())
}

#[test]
fn a_service_opens_exactly_its_addresses_and_ports_to_its_sources() -> Result<()> {
    let service = |name: &str, spec: &str, status: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{type: LoadBalancer, {spec}}}\nstatus: {status}"
        )
    };
    let web = service(
        "web",
        "ports: [{port: 443}, {port: 53, protocol: UDP}], \
         loadBalancerSourceRanges: [203.0.113.0/24, '2001:db8:179::/64']",
        "{loadBalancer: {ingress: [{ip: 198.51.100.10}, {ip: '2001:db8:1b::10'}]}}",
    );
    let pending = service("pending", "ports: [{port: 8443}]", "{loadBalancer: {}}");
    let rig = Rig::new("service", &with_policies(&[&web, &pending]))?;
    let shots = [
        into("203.0.113.2", "198.51.100.10", 443),
        into(INTERNET[1], "2001:db8:1b::10", 443),
        (From::Internet, Crafted::udp(at("203.0.113.2", fresh_port()), at("198.51.100.10", 53))),
        into("203.0.113.2", "198.51.100.10", 53),
        into("198.18.0.1", "198.51.100.10", 443),
        into("203.0.113.2", CLUSTER[0], 443),
        into("203.0.113.2", "198.51.100.10", 8443),
        into("203.0.113.2", CLUSTER[0], 8443),
        out("198.51.100.10", 443),
    ];
    assert_eq!(rig.fire(&shots)?, [true, true, true, false, false, false, false, false, false]);
    assert_eq!(rig.counters()?.comment("accept traffic for k8s service shop/web"), 3);
    Ok(())
}

#[test]
fn each_drop_reason_has_its_own_counter() -> Result<()> {
    let limited = firewall_with("  icmpEcho: egress");
    let rig = Rig::new(
        "reasons",
        &documents(&[&limited, &policy("all", "{egress: [{to: [{cidr: 1.0.0.0/8}]}]}")]),
    )?;
    let null_scan = Crafted::tcp(at(CLUSTER[0], fresh_port()), at("1.2.3.4", 80), 0);
    let spoofed = Crafted::syn(at("192.0.2.9", fresh_port()), at("1.2.3.4", 80));
    let sctp = Crafted::new(at(CLUSTER[0], 0).ip(), at("1.2.3.4", 0).ip(), Body::Other { protocol: 132 });
    let mut shots: Vec<(From, Crafted)> =
        [null_scan, spoofed, sctp].into_iter().map(|packet| (From::Cluster, packet)).collect();
    shots.push(out("2.2.3.4", 80));
    let pings = (0..200).map(|id| Crafted::echo(at(CLUSTER[0], 0).ip(), at("1.2.3.4", 0).ip(), id));
    shots.extend(pings.map(|ping| (From::Cluster, ping)));
    let passed = rig.fire(&shots)?.iter().filter(|passed| **passed).count() as u64;
    let counters = rig.counters()?;
    let reasons = ["drop_invalid", "drop_spoofed", "drop_unsupported_protocol", "drop_total"];
    assert_eq!(reasons.map(|reason| counters.named(reason)), [1; 4]);
    assert!(counters.named("drop_ping_flood") > 100);
    assert_eq!(counters.named("drop_ping_flood") + passed, 200, "the sum over reasons is what was dropped");
    Ok(())
}

#[test]
fn accepted_connections_are_logged_when_asked_for() -> Result<()> {
    let allow = policy("web", "{egress: [{to: [{cidr: 1.2.3.0/24}]}]}");
    let logging = firewall_with("  logAcceptedConnections: true\n  dropLog: {rate: 0}");
    let mut rig = Rig::new("acceptlog", &with_policies(&[&allow]))?;
    let ten = |rig: &Rig| rig.fire(&(0..10).map(|_| out("1.2.3.4", 80)).collect::<Vec<_>>());
    assert_eq!(ten(&rig)?, [true; 10]);
    rig.apply(&documents(&[&logging, &allow]))?;
    assert_eq!(ten(&rig)?, [true; 10]);
    let counters = rig.counters()?;
    assert_eq!((counters.named("accept_total"), counters.named("accept_logged")), (10, 10));
    assert_eq!(counters.comment("accept traffic for np web tcp"), 20, "the policy's counter went on");
    rig.apply(&with_policies(&[&allow]))?;
    assert_eq!(rig.counters()?.comment("accept traffic for np web tcp"), 20);
    Ok(())
}

#[test]
fn icmp_errors_about_live_connections_pass() -> Result<()> {
    let allow = policy("dns", "{egress: [{to: [{cidr: 203.0.113.2/32}, {cidr: '2001:db8:179::2/128'}]}]}");
    let rig = Rig::new("errors", &with_policies(&[&allow]))?;
    for internet in INTERNET {
        // Nobody listens there: the machine answers port unreachable, which is all that can come back.
        let outcome = probe::udp(&rig.lab.cluster().ns, None, at(internet, 9), PATIENCE)?;
        assert!(matches!(outcome, probe::Outcome::Refused(_)), "{internet}: {outcome:?}");
    }
    assert_eq!(rig.counters()?.comment("accept icmp"), 2);
    Ok(())
}

#[test]
fn pings_pass_only_where_icmp_echo_says_so() -> Result<()> {
    let mut rig = Rig::new("pings", FIREWALL)?;
    let pings = |id: u16| {
        let leaving = [0, 1]
            .map(|v| (From::Cluster, Crafted::echo(at(CLUSTER[v], 0).ip(), at(INTERNET[v], 0).ip(), id)));
        let entering = [0, 1]
            .map(|v| (From::Internet, Crafted::echo(at(INTERNET[v], 0).ip(), at(CLUSTER[v], 0).ip(), id)));
        [leaving, entering].concat()
    };
    let cases = [("deny", [false; 4]), ("egress", [true, true, false, false]), ("both", [true; 4])];
    for (first_id, (echo, expected)) in (100..).step_by(10).zip(cases) {
        rig.apply(&firewall_with(&format!("  icmpEcho: {echo}")))?;
        assert_eq!(rig.fire(&pings(first_id))?, expected, "{echo}");
    }
    Ok(())
}

#[test]
fn a_ping_flood_is_limited_by_source() -> Result<()> {
    let rig = Rig::new("flood", &firewall_with("  icmpEcho: both"))?;
    let ping =
        |source: &str, id| (From::Cluster, Crafted::echo(at(source, 0).ip(), at(INTERNET[0], 0).ip(), id));
    let mut shots: Vec<(From, Crafted)> = (0..500).map(|id| ping("10.0.16.2", id)).collect();
    shots.push(ping("10.0.16.3", 1));
    let passed = rig.fire(&shots)?;
    let of_flood = passed[..500].iter().filter(|passed| **passed).count();
    assert!((4..250).contains(&of_flood), "{of_flood} of 500 passed at 10 a second");
    assert!(passed[500], "another source has a bucket of its own");
    assert_eq!(rig.counters()?.comment("drop ping floods"), 500 - of_flood as u64);
    Ok(())
}

#[test]
fn source_nat_covers_tcp_udp_and_icmp() -> Result<()> {
    let egress =
        "  icmpEcho: egress\n  egressRules:\n  - {networkid: internet, ips: [203.0.113.10, 203.0.113.11]}";
    let allow = policy("all", "{egress: [{}]}");
    let rig = Rig::new("snat", &documents(&[&firewall_with(egress), &allow]))?;
    let ns = &rig.lab.internet().ns;
    let tcp = Server::tcp(ns, &[at(INTERNET[0], 7000)], Service::Echo)?;
    let udp = Server::udp(ns, &[at(INTERNET[0], 7001)])?;
    let addresses: [IpAddr; 2] = [at("203.0.113.10", 0).ip(), at("203.0.113.11", 0).ip()];
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..24 {
        for outcome in [
            probe::tcp(&rig.lab.cluster().ns, None, tcp.addresses()[0], PATIENCE)?,
            probe::udp(&rig.lab.cluster().ns, None, udp.addresses()[0], PATIENCE)?,
        ] {
            seen.extend(outcome.seen_as());
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), addresses, "both addresses are used, no other");
    let ping = probe::ping(&rig.lab.cluster().ns, None, at(INTERNET[0], 0).ip(), PATIENCE)?;
    assert!(ping.passed(), "{ping:?}");
    let v4_echo = Crafted::echo(own(rig.lab.cluster(), addresses[0]), at(INTERNET[0], 0).ip(), 4711);
    let arrived = rig.arrivals(&[(From::Cluster, v4_echo)])?;
    assert!(addresses.contains(&arrived[0][0].seen.source), "{arrived:?}");
    let counted = rig.counters()?.comment("snat for internet");
    assert_eq!(counted, 24 + 24 + 2, "one translation for each flow");
    Ok(())
}

#[test]
fn a_rate_limit_holds_within_ten_percent() -> Result<()> {
    let limit = "  rateLimits:\n  - {networkid: partner, rate: 4}";
    let allow = policy("all", "{egress: [{}]}");
    let spec = LabSpec::standard("rate")?.with_second_outside()?;
    let rig = Rig::on(&spec, &documents(&[&firewall_with(limit), &allow]))?;
    let partner = &rig.lab.outside[1];
    let server = Server::tcp(&partner.ns, &[SocketAddr::new(partner.v4(), 7000)], Service::Sink)?;
    let rate = meter::upload(
        &rig.lab.cluster().ns,
        None,
        &server,
        server.addresses()[0],
        Duration::from_secs(1),
        Duration::from_secs(10),
    )?;
    let goal = 4.0 * 1024.0 * 1024.0;
    let ratio = rate.per_second() / goal;
    assert!((0.9..1.1).contains(&ratio), "{:.0} bytes/s are {ratio:.3} of the limit", rate.per_second());
    assert!(rig.counters()?.named("drop_ratelimit") > 0);
    Ok(())
}

#[test]
fn host_protection_keeps_ssh_and_older_sessions_and_drops_the_rest() -> Result<()> {
    let mut rig = Rig::new("host", FIREWALL)?;
    let firewall = at("203.0.113.1", 0).ip();
    let servers = [2222, 9100, 7777]
        .map(|port| Server::tcp(&rig.lab.firewall, &[SocketAddr::new(firewall, port)], Service::Echo));
    let [ssh, metrics, other] = servers;
    let (ssh, _metrics, other) = (ssh?, metrics?, other?);
    // A session that conntrack has forgotten when protection comes: its next packet is NEW to it.
    let older =
        Steady::tcp(&rig.lab.internet().ns, None, other.addresses()[0], 1, Duration::from_millis(20))?;
    let sessions = other.peers().into_iter().map(|peer| (peer.ip(), peer.port(), firewall, 7777)).collect();
    let facts = HostFacts { tcp_sessions: sessions, sshd_ports: [2222].into(), ..HostFacts::default() };
    rig.apply_with(&firewall_with("  hostProtection: {enabled: true}"), &facts)?;
    fw_testkit::traffic::conntrack::flush(&rig.lab.firewall)?;
    let probe = |ns, port, patience| probe::tcp(ns, None, SocketAddr::new(firewall, port), patience);
    let (internet, cluster) = (&rig.lab.internet().ns, &rig.lab.cluster().ns);
    assert!(probe(internet, 2222, PATIENCE)?.passed(), "SSH");
    assert!(!probe(internet, 9100, SILENCE)?.passed(), "metrics are for inside");
    assert!(probe(cluster, 9100, PATIENCE)?.passed(), "metrics from inside");
    assert!(!probe(internet, 7777, SILENCE)?.passed(), "the rest");
    let report = older.stop()?;
    assert_eq!(report.breaks, Vec::<String>::new());
    assert!(rig.counters()?.comment("SSH incoming connections") > 0);
    drop(ssh);
    Ok(())
}

#[test]
fn neighbour_discovery_works_with_the_base_ruleset_and_under_host_protection() -> Result<()> {
    let mut spec = LabSpec::standard("neighbours")?;
    spec.neighbours = Neighbours::Discovered;
    let mut rig = Rig::bare(&spec)?;
    let firewall = at("2001:db8:179::1", 2222);
    let _ssh = Server::tcp(&rig.lab.firewall, &[firewall], Service::Echo)?;
    let facts = HostFacts { sshd_ports: [2222].into(), ..HostFacts::default() };
    for manifests in [String::new(), firewall_with("  hostProtection: {enabled: true}")] {
        rig.apply_with(&manifests, &facts)?;
        rig.lab.internet().ns.ip("neighbour flush all")?;
        rig.lab.firewall.ip("neighbour flush all")?;
        let outcome = probe::tcp(&rig.lab.internet().ns, None, firewall, PATIENCE)?;
        assert!(outcome.passed(), "{outcome:?} with {manifests:?}");
    }
    Ok(())
}
