//! The corpus against the kernel: what is said to be forwarded is, and nothing else; and the flood counts right.

use std::collections::BTreeSet;
use std::time::Duration;

use fw_testkit::nft;
use fw_testkit::topology::Lab;
use fw_testkit::traffic::corpus::{Ends, Sample, arrived, corpus};
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::flood::Flood;
use fw_testkit::traffic::inject::Injector;
use fw_testkit::traffic::sniff::Sniffer;

const PORT: u16 = 443;

fn ends(lab: &Lab) -> Ends {
    Ends::of(lab.cluster(), "192.0.2.7".parse().unwrap(), "2001:db8:5::7".parse().unwrap(), PORT)
}

fn allow(lab: &Lab, port: u16) {
    let text = format!(
        "flush ruleset\ntable inet t {{\nchain forward {{\ntype filter hook forward priority 0; policy drop;\n\
         ct state invalid drop\n\
         ip daddr 192.0.2.7 meta l4proto {{ tcp, udp }} th dport {port} accept\n\
         ip6 daddr 2001:db8:5::7 meta l4proto {{ tcp, udp }} th dport {port} accept\n}}\n}}\n"
    );
    nft::load(&lab.firewall, &text).unwrap();
}

/// The samples that came out.
fn fire(lab: &Lab, samples: &[Sample], run: u32) -> BTreeSet<u32> {
    // What arrives is seen, and nobody answers.
    let deaf =
        "table inet silent {\nchain input {\ntype filter hook input priority -400; policy drop;\n}\n}\n";
    nft::load(&lab.internet().ns, deaf).unwrap();
    let mut injector = Injector::on(lab.cluster()).unwrap();
    let mut sniffer = Sniffer::on(lab.internet()).unwrap();
    for sample in samples {
        injector.send_frames(&sample.frames).unwrap();
    }
    let frames = sniffer.frames().unwrap();
    assert_eq!(sniffer.statistics().unwrap().dropped, 0);
    arrived(&frames, run)
}

#[test]
fn the_kernel_forwards_what_the_corpus_says_and_nothing_else() {
    let lab = Lab::standard("corpus").unwrap();
    let samples = corpus(&ends(&lab), 1);
    assert!(samples.len() > 300, "{}", samples.len());
    allow(&lab, PORT);
    let seen = fire(&lab, &samples, 1);
    let wrong: Vec<String> = samples
        .iter()
        .filter(|sample| sample.forwarded != seen.contains(&sample.tag.id))
        .map(|sample| format!("{}: expected {}", sample.name, sample.forwarded))
        .collect();
    assert!(wrong.is_empty(), "{} samples:\n{}", wrong.len(), wrong.join("\n"));
    assert!(seen.len() > 50, "{}", seen.len());
}

#[test]
fn nothing_of_the_corpus_passes_to_a_port_that_is_not_allowed() {
    let lab = Lab::standard("denied").unwrap();
    let samples = corpus(&ends(&lab), 2);
    allow(&lab, PORT + 1);
    let seen = fire(&lab, &samples, 2);
    assert!(seen.is_empty(), "{seen:?}");
}

#[test]
fn names_of_samples_are_unique_and_their_flows_are_where_they_go() {
    let lab = Lab::standard("unique").unwrap();
    let samples = corpus(&ends(&lab), 3);
    let names: BTreeSet<&str> = samples.iter().map(|sample| sample.name.as_str()).collect();
    assert_eq!(names.len(), samples.len());
    for sample in &samples {
        assert!(!sample.frames.is_empty() && sample.frames.iter().all(|frame| frame.len() >= 14));
        assert!(sample.flow.is_some() || !(sample.forwarded || sample.complete), "{}", sample.name);
        assert!(sample.flow.is_none_or(|flow| flow.port == PORT));
    }
}

#[test]
fn every_packet_of_a_flood_is_counted_where_it_is_dropped() {
    let lab = Lab::standard("flood").unwrap();
    let rules = "table inet t {\nchain forward {\ntype filter hook forward priority 0; policy drop;\n\
                 tcp dport 443 counter drop comment \"denied\"\n}\n}\n";
    nft::load(&lab.firewall, rules).unwrap();
    let packets: Vec<Crafted> = (0..1000_u16)
        .map(|n| {
            let source = format!("10.0.16.2:{}", 1024 + n).parse().unwrap();
            Crafted::syn(source, format!("192.0.2.{}:443", n % 256).parse().unwrap())
        })
        .collect();
    let mut flood = Flood::new(lab.cluster(), &packets).unwrap();
    let report = flood.send(200_000).unwrap();
    println!("{report:?}: {:.0} a second, {:.0} ns each", report.per_second(), report.nanoseconds_each());
    assert_eq!(report.sent + report.refused, 200_000);
    let flooding = flood.start().unwrap();
    while flooding.sent() < 10_000 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let more = flooding.stop().unwrap();
    // The last ones may still be on their way.
    Injector::on(lab.cluster()).unwrap().send_frames::<Vec<u8>>(&[]).unwrap();
    let counted = nft::counters(&lab.firewall).unwrap().comment("denied");
    let sent = report.sent + more.sent;
    assert!(counted <= sent && counted + sent / 100 >= sent, "{counted} of {sent}");
    assert!(report.cpu > Duration::ZERO && report.cpu <= report.time + Duration::from_millis(100));
}
