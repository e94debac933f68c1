//! `make demo`: real traffic through the real firewall-controller, in network namespaces of its own.
//!
//! Exit code 0 only if everything was as expected. Nothing outside its namespaces and a temporary directory is
//! touched, and both go with it, also when it is interrupted.

mod controller;
mod drops;
mod names;
mod scenario;
mod stage;
mod table;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use fw_droptailer::DropRecord;
use fw_testkit::nft;
use fw_testkit::topology::Lab;

use controller::Controller;
use drops::Listener;
use scenario::Servers;
use stage::Stage;
use table::{Table, thousands};

/// Manifests that the first act runs on.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples/lab");
/// Lines of the drop log that are shown.
const SHOWN: usize = 20;
/// Width of the first act's longest comment.
const RULE_WIDTH: usize = 35;

fn main() -> ExitCode {
    let mut table = Table::new();
    match show(&mut table) {
        Ok(()) if table.failed().is_empty() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(table: &mut Table) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root; run it as root or with sudo");
    let begin = Instant::now();
    packets(table)?;
    names::act(table)?;
    let seconds = begin.elapsed().as_secs_f64();
    let total = table.lines();
    if table.failed().is_empty() {
        table.verdict(&format!("All {total} as expected, in {seconds:.1} s."));
    } else {
        let failed = table.failed().join("; ");
        table.verdict(&format!("NOT as expected, {} of {total}: {failed}", table.failed().len()));
    }
    Ok(())
}

/// The first act: addresses, ports and protocols.
fn packets(table: &mut Table) -> Result<()> {
    let mut controller = Controller::prepare("packets", Path::new(EXAMPLES), &[])?;
    let begin = SystemTime::now();
    let lab = Lab::new(&scenario::world()?)?;
    let servers = Servers::start(&lab)?;
    let took = controller.start(&lab.firewall)?;
    table.title("firewall-controller: real packets through the rules of deploy/examples/lab");
    table.say("  cluster 10.0.16.2 -- vrf104009 [firewall] vlan179 -- internet 203.0.113.2, 1.2.3.4, ...");
    table.say("                                            vlan178 -- partner 192.0.2.2 (at most 4 MiB/s)");
    table.say(&format!("rules in force {} ms after the start", took.as_millis()));
    let failed = table.failed().len();
    let outcome = probes(table, &lab, &servers, &controller, begin);
    end_act(table, &mut controller, failed, outcome)
}

/// Ends a controller; says what it logged if something went wrong since `failed` had gone wrong.
fn end_act(table: &Table, controller: &mut Controller, failed: usize, outcome: Result<()>) -> Result<()> {
    if outcome.is_err() || table.failed().len() > failed {
        table.heading("What the controller logged");
        controller.log().iter().for_each(|line| table.say(&format!("  {line}")));
    }
    outcome?;
    controller.stop()
}

fn probes(
    table: &mut Table,
    lab: &Lab,
    servers: &Servers,
    controller: &Controller,
    begin: SystemTime,
) -> Result<()> {
    let listener = Listener::start(&lab.firewall)?;
    table.say("");
    table.columns(RULE_WIDTH);
    let mut stage = Stage { lab, controller, table, explained: 0 };
    scenario::leaving(&mut stage)?;
    scenario::entering(&mut stage)?;
    scenario::attacks(&mut stage)?;
    scenario::rates(&mut stage, servers)?;
    scenario::edits(&mut stage)?;
    let explained = stage.explained;
    table.remark(&format!(
        "\nfrom A: answered, and A is the client as the server saw it. nothing: no answer, though a server listens there.\n\
         A rule is named by its comment in `nft list ruleset`, less \"accept traffic for\"; (+n) is what the probe added.\n\
         `firewall-controller explain` agrees about all {explained} packets that it was asked about."
    ));
    let records = listener.stop().context("the drop log")?;
    drop_log(table, lab, controller, &records, begin)?;
    status(table, controller)
}

/// What the drop log showed, and that it accounts for every dropped packet.
fn drop_log(
    table: &mut Table,
    lab: &Lab,
    controller: &Controller,
    records: &[DropRecord],
    begin: SystemTime,
) -> Result<()> {
    table.heading(&format!(
        "Dropped packets, as NFLOG group {} shows them (at most 10 a second)",
        drops::GROUP
    ));
    for record in records.iter().take(SHOWN) {
        table.say(&format!("  {}", drops::describe(record, begin)));
    }
    if records.len() > SHOWN {
        table.say(&format!("  and {} more", records.len() - SHOWN));
    }
    if let Some(record) = records.first() {
        table.remark(&format!("  the first one as log pipelines get it: {}", record.line()));
    }
    let status = controller.status()?;
    let log = &status["status"]["stats"]["dropLog"];
    let figure = |key: &str| log[key].as_u64().with_context(|| format!("the status has no dropLog.{key}"));
    let (shown, suppressed) = (figure("shown")?, figure("suppressed")?);
    let counters = nft::counters(&lab.firewall)?;
    let reasons =
        ["drop_total", "drop_spoofed", "drop_unsupported_protocol"].map(|name| counters.named(name));
    let dropped: u64 = reasons.iter().sum();
    let read = u64::try_from(records.len())?;
    let [denied, spoofed, unsupported] = reasons.map(thousands);
    let complaint = (read != shown || shown + suppressed != dropped)
        .then(|| format!("read {read}, shown {shown}, suppressed {suppressed}, dropped {dropped}"));
    table.sum(
        &format!(
            "{} shown + {} suppressed by the limit = {denied} denied + {spoofed} spoofed + {unsupported} unsupported",
            thousands(shown),
            thousands(suppressed)
        ),
        complaint,
    );
    Ok(())
}

/// The head of the status and the parts about what happened here.
fn status(table: &Table, controller: &Controller) -> Result<()> {
    table.heading("From firewall-controller status");
    let text = controller.ask(&["status"])?;
    table.say(&format!("  {}", text.lines().next().unwrap_or_default()));
    for label in ["Policies:", "Transactions:", "Drop Log:", "Drop Total:"] {
        for line in block(&text, label) {
            table.say(&format!("  {line}"));
        }
    }
    Ok(())
}

/// A label's line and the lines below it that are indented deeper, without the label's own indentation.
fn block<'a>(text: &'a str, label: &str) -> Vec<&'a str> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().skip_while(|line| line.trim() != label);
    let Some(first) = lines.next() else { return Vec::new() };
    let outer = depth(first);
    let below = lines.take_while(|line| depth(line) > outer);
    std::iter::once(first).chain(below).map(|line| &line[outer..]).collect()
}
