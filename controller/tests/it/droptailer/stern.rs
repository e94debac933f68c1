//! What people type to see drops, with the real kubectl and the real stern.

use std::process::Command;

use anyhow::{Context as _, Result};
use fw_testkit::cluster::{Cluster, Kubelet, NAMESPACE, stern};
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::{Process, WorkDir};

use super::stage::{Record, Stage, records};
use crate::daemon::PATIENCE;
use crate::rig::{at, firewall_with};

const DEPLOYED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/droptailer");

/// A denied packet, and what its line must say.
struct Denied {
    packet: Crafted,
    expected: [(&'static str, &'static str); 6],
}

fn v4() -> Denied {
    let packet = Crafted::syn(at("10.0.16.2", 40_001), at("198.18.0.1", 4000));
    let expected = [
        ("PROTO", "TCP"),
        ("SRC", "10.0.16.2"),
        ("SPT", "40001"),
        ("DST", "198.18.0.1"),
        ("DPT", "4000"),
        ("SYN", ""),
    ];
    Denied { packet, expected }
}

fn v6() -> Denied {
    let packet = Crafted::udp(at("2001:db8:10:16::2", 40_002), at("2001:db8:5::1", 5000));
    let expected = [
        ("PROTO", "UDP"),
        ("SRC", "2001:0db8:0010:0016:0000:0000:0000:0002"),
        ("SPT", "40002"),
        ("DST", "2001:0db8:0005:0000:0000:0000:0000:0001"),
        ("DPT", "5000"),
        ("HOPLIMIT", "63"),
    ];
    Denied { packet, expected }
}

/// The lines of drops among others.
fn drops(lines: Vec<String>) -> Vec<String> {
    lines.into_iter().filter(|line| line.contains(" +0000 UTC {")).collect()
}

/// They are the packets, and each begins with the time that its record has.
fn check(lines: &[String], packets: &[Denied]) -> Result<()> {
    let records: Vec<Record> = records(lines)?;
    assert_eq!(records.len(), packets.len(), "{lines:?}");
    for ((line, record), Denied { expected, .. }) in lines.iter().zip(&records).zip(packets) {
        for (key, value) in expected {
            assert_eq!(record.get(*key).map(String::as_str), Some(*value), "{key} of {line}");
        }
        let more = [("ACTION", "drop"), ("IN", "vrf104009"), ("OUT", "vlan179")];
        assert!(more.iter().all(|(key, value)| record[*key] == *value), "{line}");
        assert_eq!(line.split_once(" {").map(|(time, _)| time), Some(record["timestamp"].as_str()), "{line}");
    }
    Ok(())
}

#[test]
fn kubectl_logs_and_stern_print_the_line_of_a_denied_packet() -> Result<()> {
    let stern = stern().context("this test shows that `stern -n firewall drop` works, with the real one")?;
    let cluster = Cluster::shared()?;
    cluster.kubectl(&["apply", "-k", DEPLOYED])?.ok()?;
    let mut stage = Stage::running("dt-stern", &firewall_with("  dropLog: {rate: 0}"))?;
    let kubelet = Kubelet::start(&cluster, "node")?;
    let pod = kubelet.run(&cluster, NAMESPACE, "droptailer", stage.server()?)?;

    let packets = [v4(), v6()];
    stage.send(&[packets[0].packet.clone()])?;
    stage.wait_for(1, PATIENCE)?;
    let home = WorkDir::new("dt-stern")?;
    let mut command = Command::new(stern);
    // Neither a person's settings nor a terminal's colours.
    command.env_remove("STERNCONFIG").env("HOME", home.path());
    command.arg("--kubeconfig").arg(cluster.kubeconfig()).args(["-n", NAMESPACE, "drop"]);
    let mut stern = Process::spawn(command)?;
    stern.wait_for_line(r#""SPT":"40001""#, PATIENCE).context("what is there already")?;
    stage.send(&[packets[1].packet.clone()])?;
    stern.wait_for_line(r#""SPT":"40002""#, PATIENCE).context("what comes while it follows")?;

    let printed = drops(stage.server()?.lines());
    check(&printed, &packets)?;
    let prefix = format!("{pod} droptailer ");
    let lines: Option<Vec<String>> =
        drops(stern.lines()).iter().map(|line| Some(line.strip_prefix(&prefix)?.to_owned())).collect();
    assert_eq!(lines.with_context(|| format!("{:?}", stern.lines()))?, printed, "stern");

    for whose in ["deploy/droptailer", pod.as_str()] {
        let said = cluster.kubectl(&["-n", NAMESPACE, "logs", whose, "--request-timeout=20s"])?.ok()?;
        assert_eq!(drops(said.lines().map(str::to_owned).collect()), printed, "kubectl logs {whose}");
    }
    let asked = kubelet.asked();
    let path = format!("GET /containerLogs/firewall/{pod}/droptailer");
    assert!(asked.iter().all(|call| call.starts_with(&path)), "{asked:?}");
    assert_eq!(
        asked.iter().filter(|call| call.contains("follow=true")).count(),
        1,
        "only stern follows: {asked:?}"
    );

    stern.terminate(PATIENCE).map(drop)
}
