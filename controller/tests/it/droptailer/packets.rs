//! Each denied packet is one line, and the line is the packet.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result};
use fw_testkit::traffic::craft::{Body, Crafted};

use super::stage::{Stage, binary};
use crate::daemon::PATIENCE;
use crate::rig::{at, documents, firewall_with, policy};

/// TCP flags: ACK, PSH and ACK, SYN with ECE and CWR.
const FLAGS: [(u8, &[&str]); 3] = [(0x10, &["ACK"]), (0x18, &["ACK", "PSH"]), (0xc2, &["CWR", "ECE", "SYN"])];

/// Packets of many kinds, and what their lines must say.
fn kinds() -> Vec<(Crafted, BTreeMap<&'static str, String>)> {
    let v4 = |port| (at("10.0.16.2", port), at("198.18.0.1", port + 1));
    let v6 = |port| (at("2001:db8:10:16::2", port), at("2001:db8:5::1", port + 1));
    let (long_source, long_destination) =
        ("2001:0db8:0010:0016:0000:0000:0000:0002", "2001:0db8:0005:0000:0000:0000:0000:0001");
    let ends = |v4: bool| {
        let (source, destination) =
            if v4 { ("10.0.16.2", "198.18.0.1") } else { (long_source, long_destination) };
        [("SRC", source.to_owned()), ("DST", destination.to_owned())]
    };
    let line = |v4: bool, protocol: &str, more: &[(&'static str, String)]| {
        let mut line = BTreeMap::from(ends(v4));
        line.extend([
            ("PROTO", protocol.to_owned()),
            ("IN", "vrf104009".to_owned()),
            ("OUT", "vlan179".to_owned()),
        ]);
        line.insert(if v4 { "TTL" } else { "HOPLIMIT" }, "63".to_owned());
        line.extend(more.iter().cloned());
        line
    };
    let ports = |port: u16| [("SPT", port.to_string()), ("DPT", (port + 1).to_string())];
    let mut all = Vec::new();
    for (number, (flags, names)) in (1000..).step_by(10).zip(FLAGS) {
        let mut more = ports(number).to_vec();
        more.extend(names.iter().map(|name| (*name, String::new())));
        let (source, destination) = v4(number);
        all.push((Crafted::tcp(source, destination, flags), line(true, "TCP", &more)));
    }
    let mut more = ports(2000).to_vec();
    more.push(("SYN", String::new()));
    let (source, destination) = v6(2000);
    all.push((Crafted::syn(source, destination), line(false, "TCP", &more)));
    for (v4_first, port) in [(true, 2100), (false, 2110)] {
        let (source, destination) = if v4_first { v4(port) } else { v6(port) };
        all.push((Crafted::udp(source, destination), line(v4_first, "UDP", &ports(port))));
        let (source, destination) = (source.ip(), destination.ip());
        let echo = Crafted::echo(source, destination, port);
        let more = [
            ("TYPE", if v4_first { "8" } else { "128" }.to_owned()),
            ("CODE", "0".to_owned()),
            ("ID", port.to_string()),
        ];
        all.push((echo, line(v4_first, if v4_first { "ICMP" } else { "ICMPv6" }, &more)));
        all.push((
            Crafted::new(source, destination, Body::Other { protocol: 47 }),
            line(v4_first, "47", &[]),
        ));
        // Conntrack puts fragments together before rules see them.
        let (source, destination) = if v4_first { v4(port + 5) } else { v6(port + 5) };
        let mut fragmented = Crafted::udp(source, destination);
        (fragmented.padding, fragmented.fragment_bytes) = (600, Some(256));
        all.push((fragmented, line(v4_first, "UDP", &ports(port + 5))));
    }
    all
}

#[test]
fn each_denied_packet_is_one_line_of_the_server_and_the_line_is_the_packet() -> Result<()> {
    let mut stage = Stage::running("dt-kinds", &firewall_with("  dropLog: {rate: 0}"))?;
    let kinds = kinds();
    for (packet, expected) in &kinds {
        let before = stage.records()?.len();
        stage.send(std::slice::from_ref(packet))?;
        let records = stage.wait_for(u64::try_from(before)? + 1, PATIENCE)?;
        let record = records.last().context("no record")?;
        for (key, value) in expected {
            assert_eq!(record.get(*key), Some(value), "{key} of {record:?}");
        }
        let wrong = ["SYN", "ACK", "FIN", "RST", "PSH", "URG", "ECE", "CWR"]
            .into_iter()
            .filter(|flag| record.contains_key(*flag) != expected.contains_key(flag));
        assert_eq!(wrong.collect::<Vec<_>>(), Vec::<&str>::new(), "{record:?}");
        assert_eq!(record["ACTION"], "drop");
    }
    // No second line of any of them comes late: losses and repeats would.
    std::thread::sleep(std::time::Duration::from_millis(800));
    assert_eq!(stage.records()?.len(), kinds.len());
    assert_eq!(
        fw_testkit::nft::counters(&stage.lab.firewall)?.named("drop_logged"),
        u64::try_from(kinds.len())?
    );
    Ok(())
}

#[test]
fn a_line_says_which_policy_would_have_allowed_it_and_comes_soon() -> Result<()> {
    let allow =
        policy("web", "{egress: [{to: [{cidr: 198.18.0.0/24}], ports: [{protocol: TCP, port: 443}]}]}");
    let firewall = firewall_with("  dropLog: {rate: 0}");
    let mut stage = Stage::running("dt-hint", &documents(&[&firewall, &allow]))?;
    let mut latencies = Vec::new();
    for number in 0..20 {
        let begin = Instant::now();
        stage.send(&[Crafted::syn(at("10.0.16.2", 3000 + number), at("198.18.0.1", 80))])?;
        let records = stage.wait_for(u64::from(number) + 1, PATIENCE)?;
        latencies.push(begin.elapsed());
        let record = records.last().context("no record")?;
        assert_eq!(
            record.get("RULE").map(String::as_str),
            Some("count and log dropped packets"),
            "{record:?}"
        );
        let microseconds: u64 = record["TS_US"].parse()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros();
        assert!(now.abs_diff(microseconds.into()) < 60_000_000, "its own time");
        let hint = record.get("HINT").with_context(|| format!("no hint in {record:?}"))?;
        assert!(hint.contains("web"), "{hint}");
    }
    latencies.sort();
    eprintln!("packet to line: median {:?}, slowest {:?}", latencies[10], latencies[19]);
    assert!(stage.metric("droptailer_enriched_records_total")? >= 20);
    Ok(())
}

#[test]
fn without_the_controller_records_go_on_and_are_counted() -> Result<()> {
    let mut stage = Stage::running("dt-alone", &firewall_with("  dropLog: {rate: 0}"))?;
    stage.daemon.kill()?;
    stage.send_numbered(0..100)?;
    let records = stage.wait_for(100, PATIENCE)?;
    assert!(records.iter().all(|record| !record.contains_key("RULE")), "{records:?}");
    assert_eq!(stage.metric("droptailer_unenriched_records_total{reason=\"controller\"}")?, 100);
    Ok(())
}

#[test]
fn tail_shows_what_is_asked_for_on_the_box_itself() -> Result<()> {
    let mut stage = Stage::running("dt-tail", &firewall_with("  dropLog: {rate: 0}"))?;
    let mut command = std::process::Command::new(binary()?);
    command
        .args(["tail", "--dst", "198.18.0.1", "--port", "20007", "-n", "1", "--socket"])
        .arg(stage.socket());
    let mut tail = fw_testkit::Process::spawn(command)?;
    crate::daemon::eventually("tail follows", || Ok(stage.metric("droptailer_subscribers")? == 1))?;
    stage.send_numbered(0..10)?;
    let status = tail.wait(PATIENCE)?;
    let lines = tail.lines();
    assert!(status.success() && lines.len() == 1, "{lines:?}");
    assert!(lines[0].contains("drop UDP 10.0.16.2:10000 → 198.18.0.1:20007"), "{lines:?}");
    assert!(!lines[0].contains('\x1b'), "no terminal, no colour");
    stage.wait_for(10, PATIENCE)?;
    Ok(())
}
