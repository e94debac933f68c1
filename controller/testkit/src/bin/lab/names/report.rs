//! What is said at the end of the second act.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fw_testkit::dns::load::LoadReport;
use fw_testkit::nft;
use fw_testkit::topology::Lab;
use serde_json::Value;

use super::{MOVING, PATIENCE, ROTATING};
use crate::controller::Controller;
use crate::table::{Table, thousands};

/// Early drops that are shown.
const SHOWN: usize = 6;

/// How the early drops were counted and logged.
pub(super) fn early_drops(table: &mut Table, lab: &Lab, controller: &Controller) -> Result<()> {
    table.heading("Early drops, as the controller logs them (at most 10 a second)");
    let deadline = Instant::now() + PATIENCE;
    // A thread of the controller reads the samples, when it gets to it.
    let (total, suppressed, lines) = loop {
        let names = &controller.status()?["status"]["controller"]["names"]["earlyDrops"];
        let figure = |key: &str| names[key].as_u64().with_context(|| format!("no earlyDrops.{key}"));
        let (total, suppressed) = (figure("total")?, figure("notLogged")?);
        let lines: Vec<Value> = controller.log().iter().filter_map(|line| sample(line)).collect();
        if u64::try_from(lines.len())? + suppressed == total || Instant::now() > deadline {
            break (total, suppressed, lines);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    for line in lines.iter().take(SHOWN) {
        let field = |key: &str| line[key].as_str().unwrap_or("?");
        let end = |address: &str, port: &str| {
            let address = field(address);
            if address.contains(':') {
                format!("[{address}]:{}", field(port))
            } else {
                format!("{address}:{}", field(port))
            }
        };
        let (from, to) = (end("SRC", "SPT"), end("DST", "DPT"));
        table.say(&format!("  {}   {:<6} {from} -> {to}", field("IN"), field("PROTO")));
    }
    if lines.len() > SHOWN {
        table.say(&format!("  and {} more", lines.len() - SHOWN));
    }
    let shown = u64::try_from(lines.len())?;
    let complaint = (shown + suppressed != total).then(|| "the sum is not right".to_owned());
    let text = format!(
        "{} shown + {} suppressed by the limit = {} early drops",
        thousands(shown),
        thousands(suppressed),
        thousands(total)
    );
    table.sum(&text, complaint);
    drop_total(table, lab, controller, total)
}

/// One figure for all that policies drop, wherever that was.
fn drop_total(table: &mut Table, lab: &Lab, controller: &Controller, early: u64) -> Result<()> {
    let by_rules = nft::counters(&lab.firewall)?.named("drop_total");
    let status = controller.status()?;
    let total = status["status"]["stats"]["dropTotal"]["packets"].as_u64().context("no dropTotal")?;
    let complaint = (total != early + by_rules).then(|| "the sum is not right".to_owned());
    let text = format!(
        "dropTotal of the status: {} = {} early + {} by nftables",
        thousands(total),
        thousands(early),
        thousands(by_rules)
    );
    table.sum(&text, complaint);
    Ok(())
}

/// The record in a line of the log about an early drop.
fn sample(line: &str) -> Option<Value> {
    let record: Value = serde_json::from_str(line.get(line.find('{')?..)?).ok()?;
    (record["WHERE"] == "early").then_some(record)
}

/// Names and addresses that last longer than this act.
pub(super) fn lasting(controller: &Controller) -> Result<BTreeSet<(String, String)>> {
    let answer: Value = serde_json::from_str(&controller.ask(&["dns", "--json"])?)?;
    let names = answer["learned"]["names"].as_array().context("no names")?;
    let mut known = BTreeSet::new();
    for name in names {
        let text = name["name"].as_str().context("a name without a name")?;
        if [MOVING, ROTATING].contains(&text) {
            continue;
        }
        let addresses = name["addresses"].as_object().context("a name without addresses")?;
        known.extend(addresses.keys().map(|address| (text.to_owned(), address.clone())));
    }
    Ok(known)
}

/// What a person asks it about names.
pub(super) fn from_the_controller(table: &Table, controller: &Controller) -> Result<()> {
    let show = |table: &Table, arguments: &[&str], text: &str| {
        let quoted: Vec<String> = arguments
            .iter()
            .map(|word| if word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() })
            .collect();
        table.heading(&format!("$ firewall-controller {}", quoted.join(" ")));
        text.lines().for_each(|line| table.say(&format!("  {line}")));
    };
    let arguments = ["dns", "www"];
    show(table, &arguments, &controller.ask(&arguments)?);
    let packet = "tcp 10.0.16.2:40000 -> 198.18.0.15:443 in vrf104009 out vlan179";
    let arguments = ["explain", "--packet", packet];
    show(table, &arguments, &controller.ask(&arguments)?);
    table.heading("From firewall-controller dns");
    let text = controller.ask(&["dns"])?;
    crate::block(&text, "Learned:").iter().for_each(|line| table.say(&format!("  {line}")));
    Ok(())
}

/// What the proxy costs, in microseconds.
pub(super) struct Latency {
    direct: u128,
    proxied: u128,
    /// The part of it in which an answer waits for the kernel; the mean of all that opened something.
    hold: u64,
}

impl Latency {
    /// Of names that nobody had asked for before.
    pub(super) fn new(controller: &Controller, direct: &LoadReport, proxied: &LoadReport) -> Result<Self> {
        let median = |report: &LoadReport| report.latency.percentile(50.0).as_micros();
        let hold = &controller.status()?["status"]["controller"]["names"]["proxy"]["holdLatency"];
        let figure = |key: &str| hold[key].as_u64().with_context(|| format!("no holdLatency.{key}"));
        let hold = figure("sumMicros")? / figure("count")?.max(1);
        Ok(Self { direct: median(direct), proxied: median(proxied), hold })
    }

    pub(super) fn print(&self, table: &Table) {
        let Self { direct, proxied, hold } = self;
        let added = proxied.saturating_sub(*direct);
        table.heading("Latency of DNS for names never asked for before, median, as the cluster sees it");
        table.say(&format!(
            "  {proxied} µs through the proxy, {direct} µs straight to the resolver: {added} µs added"
        ));
        table.say(&format!("  {hold} µs of it until the kernel has what the answer opens (mean)"));
    }
}
