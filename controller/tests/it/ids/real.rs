//! Debian's suricata, a rule that fires, and an API server.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use fw_controller::config::{DEFAULT_SURICATA_LOG, DEFAULT_SURICATA_SOCKET};
use fw_testkit::traffic::craft::Crafted;
use serde_json::Value;

use crate::daemon::eventually;
use crate::kube::field::Field;
use crate::rig::{From, fire, firewall_with};
use crate::traffic::{INTERNET, udp_out};
use crate::tree;

use super::field::{Suricata, logged, metrics, of, places, problems, watch};

/// The interface that suricata looks at: the cluster's.
const INTERFACE: &str = "vrf104009";
const DISCARD: u16 = 9;

/// Events about intrusions.
fn events(field: &Field) -> Result<Vec<Value>> {
    let path = "/apis/events.k8s.io/v1/namespaces/firewall/events";
    let all = field.cluster.request("GET", path, "application/json", "")?.ok()?;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().filter(|event| event["reason"] == "IntrusionDetected").collect())
}

#[test]
fn a_rule_of_a_real_suricata_that_fires_is_logged_told_and_counted() -> Result<()> {
    let mut field = Field::new("ids-real")?;
    watch(&mut field.daemon)?;
    let directory = field.daemon.beside("suricata");
    let suricata = Suricata::start(&field.lab, INTERFACE, &directory)?;
    field.cluster.apply(&firewall_with("  interval: 2s"))?;
    field.start()?;
    field.daemon.wait_until("suricata answers and its log is followed", |status| {
        of(status)["answers"] == true && problems(status).is_empty()
    })?;

    let shots: Vec<(From, Crafted)> = (0..7).map(|_| udp_out(INTERNET[0], DISCARD)).collect();
    fire(&field.lab, &shots)?;
    let status = field.daemon.wait_until("all alerts are counted", |status| {
        let alerts = &of(status)["alerts"];
        alerts["shown"].as_u64().zip(alerts["suppressed"].as_u64()).is_some_and(|(a, b)| a + b == 7)
    })?;
    assert_eq!(of(&status)["alerts"]["shown"], 1, "one flow of addresses is one line");
    let lines = logged(&field.daemon)?;
    let text = "1:1000001:3 \"lab: a datagram to discard\" (Seen in the lab), severity 2: UDP 10.0.16.2:";
    assert!(lines.len() == 1 && lines[0].contains(text), "{lines:#?}");
    assert!(lines[0].ends_with(" -> 203.0.113.2:9 on vrf104009, allowed"), "{lines:#?}");

    let mut told = Vec::new();
    eventually("the alert is an event", || {
        told = events(&field)?;
        Ok(!told.is_empty())
    })
    .with_context(|| field.log())?;
    let firewall = field.object("firewalls", "firewall")?;
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(
        (&told[0]["type"], &told[0]["regarding"]["uid"]),
        (&"Warning".into(), &firewall["metadata"]["uid"])
    );
    assert!(told[0]["note"].as_str().is_some_and(|note| note.contains(text)), "{told:#?}");

    // In the field's shape, in the Firewall object; the same figures as metrics.
    let object = field.wait_for("the object has the figures", ("firewalls", "firewall"), |firewall| {
        firewall["status"]["stats"]["idsstats"][INTERFACE]["packets"]
            .as_u64()
            .is_some_and(|packets| packets >= 7)
    })?;
    let shown = &object["status"]["stats"]["idsstats"];
    assert_eq!(shown.as_object().map(serde_json::Map::len), Some(1), "{shown}");
    assert_eq!((&shown[INTERFACE]["drop"], &shown[INTERFACE]["invalidchecksums"]), (&0.into(), &0.into()));
    let families = metrics(&field.lab)?;
    let packets = families.iter().find(|line| line.starts_with("firewall_ids_packets_total{"));
    let packets =
        packets.and_then(|line| line.strip_prefix("firewall_ids_packets_total{interface=\"vrf104009\"} "));
    assert!(
        packets.and_then(|text| text.parse::<u64>().ok()).is_some_and(|packets| packets >= 7),
        "{families:#?}"
    );
    for line in
        ["firewall_ids_up 1", "firewall_ids_alerts_total{outcome=\"shown\"} 1", "firewall_ids_events_total 1"]
    {
        assert!(families.iter().any(|other| other == line), "{line} is not in {families:#?}");
    }

    // Without suricata its own figures go, nothing else, and they come back with it.
    drop(suricata);
    let status =
        field.daemon.wait_until("that it is gone is a problem", |status| !problems(status).is_empty())?;
    assert_eq!(of(&status)["answers"], false);
    assert_eq!(status["status"]["stats"]["idsstats"], Value::Null);
    assert_eq!(status["status"]["controller"]["enforcing"], true);
    assert!(metrics(&field.lab)?.contains(&"firewall_ids_up 0".to_owned()));
    std::fs::remove_file(places(&field.daemon).0).ok();
    let _again = Suricata::start(&field.lab, INTERFACE, &directory)?;
    field
        .daemon
        .wait_until("it is back", |status| of(status)["answers"] == true && problems(status).is_empty())?;
    Ok(())
}

#[test]
fn suricata_takes_the_configuration_in_deploy_and_is_where_the_controller_looks() -> Result<()> {
    // What it cannot include it complains of and goes on without.
    let own = tree::root().join("deploy/suricata/firewall.yaml");
    let mut command = Command::new("suricata");
    command.args(["--dump-config", "-c", "/etc/suricata/suricata.yaml", "--include"]).arg(own);
    let output = command.output().context("suricata comes with `make tools`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && !said.contains("Error"), "{said}");
    let dumped = String::from_utf8(output.stdout)?;
    let (directory, log) = DEFAULT_SURICATA_LOG.rsplit_once('/').context("a path")?;
    for line in [
        format!("unix-command.filename = {DEFAULT_SURICATA_SOCKET}"),
        "unix-command.enabled = yes".to_owned(),
        format!("default-log-dir = {directory}/"),
        format!("outputs.0.eve-log.filename = {log}"),
        "outputs.0.eve-log.filetype = regular".to_owned(),
        "outputs.0.eve-log.types.0 = alert".to_owned(),
        "af-packet.0.interface = vrf104009".to_owned(),
    ] {
        assert!(dumped.lines().any(|other| other == line), "{line} is not in\n{dumped}");
    }
    let unit = tree::read("deploy/systemd/suricata.service.d/firewall.conf")?;
    assert!(
        unit.contains(" -c /etc/suricata/suricata.yaml --include /etc/suricata/firewall.yaml "),
        "{unit}"
    );
    Ok(())
}
