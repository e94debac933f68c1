//! What eBPF programs drop before the rules see it is a line of the server as well.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fw_testkit::nft;
use fw_testkit::traffic::craft::{Crafted, Tag};
use fw_testkit::traffic::inject::Injector;

use super::stage::{Record, Stage, losses, lost, shown};
use crate::daemon::{PATIENCE, eventually};
use crate::names::field::{Mode, Names, PORT, to_names};
use crate::rig::at;

const FLOOD: u64 = 30_000;

/// Early drops as the controller has them: all, those kept back by the limit, and who is told.
fn figures(stage: &Stage) -> Result<[u64; 3]> {
    // The status does not read the kernel again within 50 ms of the last reading.
    std::thread::sleep(Duration::from_millis(60));
    let status = stage.daemon.status()?;
    let figures = &crate::field::controller(&status)["names"]["earlyDrops"];
    let number = |key: &str| figures[key].as_u64().with_context(|| format!("{key} in {figures}"));
    Ok([number("total")?, number("notLogged")? - number("ringFull")?, number("followers")?])
}

/// Both ends of droptailer beside a controller that drops early in a mode.
fn stage(label: &str, mode: Mode, drop_log: &str) -> Result<Stage> {
    let names = Names::new(label, mode, drop_log, &[to_names("odd", "{matchPattern: '*.odd.test'}")])?;
    let Names { lab, daemon, .. } = names;
    let mut stage = Stage::on(label, lab, daemon)?;
    stage.start_server()?;
    stage.start_client(&[])?;
    stage.client()?.wait_for_line("connected to", PATIENCE)?;
    eventually("the client follows early drops", || Ok(figures(&stage)?[2] == 1))?;
    Ok(stage)
}

/// Packets to where nothing is allowed, and what their lines must say.
fn kinds() -> Vec<(Crafted, BTreeMap<&'static str, String>)> {
    let v4 = |port| (at("10.0.16.2", port), at("198.18.1.77", PORT));
    let v6 = |port| (at("2001:db8:10:16::2", port), at("2001:db8:f00::1:77", PORT));
    let line = |v4: bool, protocol: &str, port: u16, more: &[(&'static str, &str)]| {
        let (source, destination, hops) = match v4 {
            true => ("10.0.16.2", "198.18.1.77", "TTL"),
            false => {
                let destination = "2001:0db8:0f00:0000:0000:0000:0001:0077";
                ("2001:0db8:0010:0016:0000:0000:0000:0002", destination, "HOPLIMIT")
            }
        };
        // It has not passed the forwarding code.
        let mut line = BTreeMap::from([
            ("SRC", source.to_owned()),
            ("DST", destination.to_owned()),
            ("PROTO", protocol.to_owned()),
            ("SPT", port.to_string()),
            ("DPT", PORT.to_string()),
            ("IN", "vrf104009".to_owned()),
            ("OUT", String::new()),
            (hops, "64".to_owned()),
            ("WHERE", "early".to_owned()),
            ("ACTION", "drop".to_owned()),
            ("RULE", "count and log dropped packets".to_owned()),
        ]);
        line.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
        line
    };
    let ends = |(source, destination)| Crafted::syn(source, destination);
    let (source, destination) = v4(4020);
    let ecn = Crafted::tcp(source, destination, 0xc2);
    let (source, destination) = v4(4030);
    let udp = Crafted::udp(source, destination);
    vec![
        (ends(v4(4000)), line(true, "TCP", 4000, &[("SYN", "")])),
        (ends(v6(4010)), line(false, "TCP", 4010, &[("SYN", "")])),
        (ecn, line(true, "TCP", 4020, &[("SYN", ""), ("ECE", ""), ("CWR", "")])),
        (udp, line(true, "UDP", 4030, &[])),
    ]
}

fn is_the_packet(record: &Record, expected: &BTreeMap<&'static str, String>) -> Result<()> {
    for (key, value) in expected {
        ensure!(record.get(*key) == Some(value), "{key} is not {value:?} in {record:?}");
    }
    for flag in ["SYN", "ACK", "FIN", "RST", "PSH", "URG", "ECE", "CWR", "COUNT"] {
        ensure!(record.contains_key(flag) == expected.contains_key(flag), "{flag} in {record:?}");
    }
    let hint = record.get("HINT").with_context(|| format!("no hint in {record:?}"))?;
    ensure!(hint.contains(expected["PROTO"].as_str()) && hint.contains(&PORT.to_string()), "{hint}");
    ensure!(!record.contains_key("POLICY"), "no policy has decided: {record:?}");
    Ok(())
}

/// Waits for an account of so many packets; whatever is said too often comes soon after.
fn account(stage: &mut Stage, packets: u64) -> Result<Vec<Record>> {
    stage.wait_for(packets, Duration::from_secs(60))?;
    std::thread::sleep(Duration::from_millis(2500));
    stage.records()
}

/// SYNs of many flows to where nothing is allowed, at full speed.
fn flood(stage: &Stage) -> Result<()> {
    let mut packets = Vec::new();
    for port in 0..100 {
        let syn = Crafted::syn(at("10.0.16.2", 10_000 + port), at("198.18.1.77", 4000));
        packets.extend(syn.encode(Tag { run: 0, id: 0 })?);
    }
    let all: Vec<&Vec<u8>> = packets.iter().cycle().take(usize::try_from(FLOOD)?).collect();
    Injector::on(stage.lab.cluster())?.send(&all)
}

#[test]
fn each_packet_that_is_dropped_early_is_one_line_of_the_server_and_a_flood_is_accounted_for() -> Result<()> {
    for mode in [Mode::Tcx, Mode::Generic] {
        let mut stage = stage("dt-early", mode, "  dropLog: {rate: 0}\n")?;
        let [before, ..] = figures(&stage)?;
        let kinds = kinds();
        for (number, (packet, expected)) in (1..).zip(&kinds) {
            stage.send(std::slice::from_ref(packet))?;
            let records = stage.wait_for(number, PATIENCE)?;
            is_the_packet(records.last().context("no record")?, expected).context(mode.name())?;
        }
        let some = u64::try_from(kinds.len())?;
        let records = account(&mut stage, some)?;
        ensure!(records.len() == kinds.len(), "{records:?}");
        flood(&stage)?;
        let records = account(&mut stage, some + FLOOD)?;
        let [dropped, kept_back, _] = figures(&stage)?;
        let (shown, lost) = (shown(&records), lost(&records));
        eprintln!("{}: {shown} shown, lost {:?}", mode.name(), losses(&records));
        ensure!(
            dropped - before == some + FLOOD && kept_back == 0,
            "{dropped} dropped, {kept_back} kept back"
        );
        ensure!(shown + lost == some + FLOOD, "{shown} shown and {lost} lost in mode {}", mode.name());
        ensure!(shown > FLOOD / 100, "nearly everything was lost");
        ensure!(losses(&records).keys().all(|cause| cause == "early"), "{:?}", losses(&records));
        let counters = nft::counters(&stage.lab.firewall)?;
        ensure!(counters.named("drop_total") == 0, "they reached nftables");
    }
    Ok(())
}

#[test]
fn the_limit_of_the_drop_log_holds_early_drops_back_too_and_what_it_holds_back_is_known() -> Result<()> {
    for mode in [Mode::Tcx, Mode::Generic] {
        let stage = stage("dt-early-limit", mode, "")?;
        let [before, kept_before, _] = figures(&stage)?;
        flood(&stage)?;
        // The account of what was read comes within a second or two.
        std::thread::sleep(Duration::from_secs(4));
        let records = stage.records()?;
        let [dropped, kept_back, _] = figures(&stage)?;
        let (dropped, kept_back) = (dropped - before, kept_back - kept_before);
        let (shown, lost) = (shown(&records), lost(&records));
        eprintln!("{}: {shown} shown, {lost} lost, {kept_back} kept back", mode.name());
        ensure!(dropped == FLOOD, "{dropped} dropped");
        ensure!(shown + lost + kept_back == FLOOD, "{shown} + {lost} + {kept_back} in mode {}", mode.name());
        ensure!(shown > 0 && kept_back > FLOOD / 2, "{shown} shown, {kept_back} kept back");
    }
    Ok(())
}
