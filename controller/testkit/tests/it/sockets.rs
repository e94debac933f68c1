//! Probes, servers, steady traffic and meters, through a firewall with and without rules.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fw_testkit::nft;
use fw_testkit::topology::Lab;
use fw_testkit::traffic::meter;
use fw_testkit::traffic::probe::{self, Outcome};
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::traffic::steady::Steady;

/// For what is answered; far longer than it takes.
const PATIENT: Duration = Duration::from_secs(10);
/// For what is dropped.
const BRIEF: Duration = Duration::from_millis(300);

fn load(lab: &Lab, rules: &str) {
    let text = format!(
        "flush ruleset\ntable inet t {{\nchain forward {{\ntype filter hook forward priority 0; policy drop;\n\
         ct state established,related accept\n{rules}\n}}\n\
         chain nat {{\ntype nat hook postrouting priority 100;\n\
         oifname vlan179 ip saddr 10.0.16.0/22 snat ip to 203.0.113.50\n}}\n}}\n"
    );
    nft::load(&lab.firewall, &text).unwrap();
}

fn on(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

#[test]
fn probes_tell_answered_refused_and_silent_apart_and_as_whom_they_were_seen() {
    let lab = Lab::standard("probes").unwrap();
    load(
        &lab,
        "tcp dport { 80, 81 } accept\nudp dport { 53, 54 } accept\nmeta l4proto { icmp, icmpv6 } accept\n",
    );
    let (cluster, internet) = (&lab.cluster().ns, lab.internet());
    for (to, seen) in [(internet.v4(), "203.0.113.50"), (internet.v6(), "2001:db8:10:16::2")] {
        let seen: IpAddr = seen.parse().unwrap();
        let tcp = Server::tcp(&internet.ns, &[on(to, 80), on(to, 82)], Service::Echo).unwrap();
        let udp = Server::udp(&internet.ns, &[on(to, 53), on(to, 55)]).unwrap();
        let outcome = probe::tcp(cluster, None, on(to, 80), PATIENT).unwrap();
        assert_eq!(outcome.seen_as(), Some(seen), "{outcome:?}");
        assert_eq!(tcp.peers().iter().map(SocketAddr::ip).collect::<Vec<_>>(), [seen]);
        assert!(matches!(probe::tcp(cluster, None, on(to, 81), PATIENT).unwrap(), Outcome::Refused(_)));
        assert_eq!(probe::tcp(cluster, None, on(to, 82), BRIEF).unwrap(), Outcome::Silent);
        let outcome = probe::udp(cluster, None, on(to, 53), PATIENT).unwrap();
        assert_eq!(outcome.seen_as(), Some(seen), "{outcome:?}");
        assert_eq!(udp.peers().iter().map(SocketAddr::ip).collect::<Vec<_>>(), [seen]);
        assert!(matches!(probe::udp(cluster, None, on(to, 54), PATIENT).unwrap(), Outcome::Refused(_)));
        assert_eq!(probe::udp(cluster, None, on(to, 55), BRIEF).unwrap(), Outcome::Silent);
        assert!(probe::ping(cluster, None, to, PATIENT).unwrap().passed());
    }
    load(&lab, "");
    for to in [internet.v4(), internet.v6()] {
        assert_eq!(probe::ping(cluster, None, to, BRIEF).unwrap(), Outcome::Silent);
    }
}

#[test]
fn probes_take_the_source_they_are_given() {
    let lab = Lab::standard("sources").unwrap();
    let (cluster, internet) = (lab.cluster(), lab.internet());
    for (address, source) in [(internet.v4(), "198.51.100.10"), (internet.v6(), "2001:db8:1b::10")] {
        let source: IpAddr = source.parse().unwrap();
        let to = on(address, 80);
        let _tcp = Server::tcp(&internet.ns, &[to], Service::Echo).unwrap();
        let _udp = Server::udp(&internet.ns, &[to]).unwrap();
        let from = on(source, 4321);
        let seen = Outcome::Answered { seen_as: from };
        assert_eq!(probe::tcp(&cluster.ns, Some(from), to, PATIENT).unwrap(), seen);
        assert_eq!(probe::udp(&cluster.ns, Some(from), to, PATIENT).unwrap(), seen);
        assert!(probe::ping(&cluster.ns, Some(source), address, PATIENT).unwrap().passed());
    }
}

#[test]
fn steady_connections_survive_what_leaves_them_alone_and_report_what_does_not() {
    let lab = Lab::standard("steady").unwrap();
    load(&lab, "tcp dport 80 accept\nudp dport 53 accept\n");
    let (cluster, internet) = (lab.cluster(), lab.internet());
    let (web, dns) = (on(internet.v6(), 80), on(internet.v6(), 53));
    let server = Server::tcp(&internet.ns, &[web], Service::Echo).unwrap();
    let _udp = Server::udp(&internet.ns, &[dns]).unwrap();
    let connections = Steady::tcp(&cluster.ns, None, web, 20, Duration::from_millis(5)).unwrap();
    let datagrams = Steady::udp(&cluster.ns, on(cluster.v6(), 0), dns, Duration::from_millis(2)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    // Whole rulesets come and go; connections are established and stay.
    for _ in 0..20 {
        load(&lab, "tcp dport 81 accept\nudp dport 53 accept\n");
    }
    let (tcp, udp) = (connections.report(), datagrams.stop().unwrap());
    assert_eq!((tcp.flows, &tcp.breaks[..], tcp.retransmits), (20, &[][..], 0));
    assert!(tcp.answered >= 100, "{tcp:?}");
    assert_eq!((udp.sent, &udp.breaks[..]), (udp.answered, &[][..]));
    // A server that goes takes its connections with it, and the report says so.
    drop(server);
    let cut = connections.stop().unwrap();
    assert_eq!(cut.breaks.len(), 20, "{cut:?}");
}

#[test]
fn lost_packets_show_in_steady_traffic() {
    let lab = Lab::standard("losses").unwrap();
    load(&lab, "tcp dport 80 accept\nudp dport 53 accept\n");
    let (cluster, internet) = (lab.cluster(), lab.internet());
    let (web, dns) = (on(internet.v4(), 80), on(internet.v4(), 53));
    let _tcp = Server::tcp(&internet.ns, &[web], Service::Echo).unwrap();
    let _udp = Server::udp(&internet.ns, &[dns]).unwrap();
    let connections = Steady::tcp(&cluster.ns, None, web, 5, Duration::from_millis(5)).unwrap();
    let datagrams = Steady::udp(&cluster.ns, on(cluster.v4(), 0), dns, Duration::from_millis(5)).unwrap();
    let lossy = "table inet lossy {\nchain forward {\ntype filter hook forward priority -10;\n\
                 numgen random mod 4 == 0 drop\n}\n}\n";
    nft::load(&lab.firewall, lossy).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    nft::load(&lab.firewall, "delete table inet lossy\n").unwrap();
    let (tcp, udp) = (connections.stop().unwrap(), datagrams.stop().unwrap());
    assert!(tcp.retransmits > 0 && tcp.breaks.is_empty(), "{tcp:?}");
    assert!(udp.sent > udp.answered && udp.answered > 0, "{udp:?}");
}

#[test]
fn meters_count_connections_and_bytes() {
    let lab = Lab::standard("meters").unwrap();
    load(&lab, "tcp dport 80-82 counter accept comment \"new\"\n");
    let (cluster, internet) = (lab.cluster(), lab.internet());
    let address = |port| on(internet.v4(), port);
    let _close = Server::tcp(&internet.ns, &[address(80)], Service::Close).unwrap();
    let second = Duration::from_secs(1);
    let rate = meter::connections(&cluster.ns, None, address(80), second, 2).unwrap();
    // Conntrack may take a late segment of a connection that was reset for a new one.
    let counted = nft::counters(&lab.firewall).unwrap().comment("new");
    assert!((rate.amount..=rate.amount + rate.amount / 50).contains(&counted), "{rate:?}, counted {counted}");
    assert!(rate.amount > 50 && rate.time >= second, "{rate:?}");
    let sink = Server::tcp(&internet.ns, &[address(81)], Service::Sink).unwrap();
    let _source = Server::tcp(&internet.ns, &[address(82)], Service::Source).unwrap();
    let up = meter::upload(&cluster.ns, None, &sink, address(81), BRIEF, second).unwrap();
    let down = meter::download(&cluster.ns, None, address(82), BRIEF, second).unwrap();
    assert!(up.amount > 1 << 20 && down.amount > 1 << 20, "{up:?} {down:?}");
    // A limit of 1 MB/s: the meter sees it, not the speed of the machine.
    load(&lab, "tcp dport 81 accept\n");
    let limit = "table inet slow {\nchain forward {\ntype filter hook forward priority -10;\n\
                 iifname vrf104009 limit rate over 1 mbytes/second burst 64 kbytes drop\n}\n}\n";
    nft::load(&lab.firewall, limit).unwrap();
    let limited = meter::upload(&cluster.ns, None, &sink, address(81), second, second).unwrap();
    // On a busy machine some of the second before is read in this one.
    assert!(
        limited.per_second() < 4e6 && limited.per_second() < up.per_second() / 5.0,
        "{limited:?}, free {up:?}"
    );
    assert!(limited.amount > 0, "{limited:?}");
}
