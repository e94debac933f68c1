//! Loads with a connection to every answer: first packets that get through, and those that do not.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fw_testkit::dns::{Connect, Load, LoadReport, Pace, Reply, Scripted, Unique, awkward, kind};
use fw_testkit::nft;
use fw_testkit::topology::{Lab, LabSpec, SCRIPTED_ADDRESSES};
use fw_testkit::traffic::any::AnyServer;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

struct Stage {
    any: AnyServer,
    server: Scripted,
    lab: Lab,
}

impl Stage {
    fn new(label: &str) -> Self {
        let prefixes = [awkward::V4, awkward::V6].map(|prefix| prefix.parse().unwrap());
        let spec = LabSpec::standard(label)
            .unwrap()
            .with_internet_addresses(&SCRIPTED_ADDRESSES.map(ip))
            .with_any_internet(&prefixes);
        let lab = Lab::new(&spec).unwrap();
        let server = Scripted::at(&lab.internet().ns, &SCRIPTED_ADDRESSES.map(ip)).unwrap();
        let unique = Unique { v4: awkward::V4.parse().unwrap(), v6: awkward::V6.parse().unwrap(), ttl: 3 };
        server.below("wild.test", Reply::Unique(unique)).unwrap();
        Self { any: AnyServer::new(&lab.internet().ns, 443).unwrap(), server, lab }
    }

    fn run(&self, count: usize, kind: u16, how: Connect, edit: impl Fn(&mut Load)) -> LoadReport {
        let server = self.server.addresses()[usize::from(kind == kind::AAAA)];
        let mut load = Load::new(server, count, |number| format!("n{number}.wild.test"));
        load.kind = kind;
        load.pace = Pace::PerSecond(1000);
        load.connect = Some((how, 443));
        edit(&mut load);
        let report = load.run(&self.lab.cluster().ns).unwrap();
        println!("{report:?}");
        report
    }
}

#[test]
fn a_thousand_names_a_second_are_connected_to_at_once_and_again_within_their_ttl() {
    let stage = Stage::new("thousands");
    for (kind, how) in [
        (kind::A, Connect::Tcp),
        (kind::AAAA, Connect::Tcp),
        (kind::A, Connect::Udp),
        (kind::AAAA, Connect::Udp),
    ] {
        let report = stage.run(2000, kind, how, |load| load.again = Some(Duration::from_secs(1)));
        assert_eq!((report.asked, report.answered, report.unanswered), (2000, 2000, 0));
        for attempts in [&report.first, &report.again] {
            assert_eq!((attempts.at_once, attempts.total()), (2000, 2000), "{attempts:?}");
        }
        assert_eq!(report.ttls, vec![3; 2000]);
        assert_eq!(report.reaction.len(), 2000);
    }
    for arrivals in [stage.any.connections(), stage.any.datagrams()] {
        let mut to: Vec<SocketAddr> = arrivals.iter().map(|arrival| arrival.to).collect();
        to.sort_unstable();
        to.dedup();
        assert_eq!((arrivals.len(), to.len()), (8000, 4000), "each address twice");
        assert!(to.contains(&"198.18.7.207:443".parse().unwrap()));
        assert!(to.contains(&"[2001:db8:f00::7cf]:443".parse().unwrap()));
    }
    assert_eq!(stage.any.failed(), 0);
}

#[test]
fn a_ttl_that_is_over_is_not_connected_to_again() {
    let stage = Stage::new("over");
    let report = stage.run(10, kind::A, Connect::Tcp, |load| load.again = Some(Duration::from_secs(3)));
    assert_eq!((report.first.at_once, report.again.total()), (10, 0));
}

#[test]
fn lost_first_packets_refusals_and_silence_are_told_apart() {
    let stage = Stage::new("lost");
    let load = |rule: &str| {
        let text = format!(
            "flush ruleset\ntable inet t {{\nchain forward {{\ntype filter hook forward priority 0;\n{rule}\n}}\n}}\n"
        );
        nft::load(&stage.lab.firewall, &text).unwrap();
    };
    // Every other SYN is lost: those connect when it is sent again after a second.
    load("tcp flags & (syn|ack) == syn numgen inc mod 2 == 0 drop");
    let report = stage.run(40, kind::A, Connect::Tcp, |load| load.patience = Duration::from_secs(60));
    let first = &report.first;
    assert!(
        first.late >= 20 && first.at_once + first.late == 40 && first.lost.len() == first.late,
        "{first:?}"
    );
    load("udp dport 443 numgen inc mod 4 == 0 drop");
    let brief = |load: &mut Load| load.patience = Duration::from_secs(1);
    let first = stage.run(40, kind::A, Connect::Udp, brief).first;
    assert_eq!((first.at_once, first.silent), (30, 10));
    load("tcp dport 443 reject with tcp reset");
    assert_eq!(stage.run(5, kind::AAAA, Connect::Tcp, brief).first.refused, 5);
    load("tcp dport 443 drop");
    assert_eq!(stage.run(5, kind::A, Connect::Tcp, brief).first.silent, 5);
    load("udp dport 53 drop");
    let report = stage.run(5, kind::A, Connect::Tcp, brief);
    assert_eq!((report.answered, report.unanswered, report.first.total()), (0, 5, 0));
}
