//! What the hold adds to an answer: names that nobody has asked for before, each with an address of its own.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use fw_testkit::Netns;
use fw_testkit::dns::{Load, LoadReport, Pace};
use fw_testkit::figures::{Goal, ROUNDS, Table};

use crate::field::{Field, Plain, RESOLVER, cluster};

/// Questions a round, and a second.
const QUESTIONS: usize = 1000;
const PACE: Pace = Pace::PerSecond(1000);
/// What a client waits longer for an answer that opens something, in milliseconds: a resolver that has to ask another
/// takes as long, and one that asks the internet takes ten times as long.
const MORE_MS: f64 = 1.0;
/// The same for the slowest of a hundred, which on a machine with two cores had to wait for one of them.
const MORE_MS_P99: f64 = 5.0;

pub(crate) fn measure(table: &mut Table, tcx: &Field, plain: &Plain) -> Result<()> {
    let (mut middle, mut slow) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let held = ask(cluster(&tcx.lab), round)?;
        let straight = ask(cluster(&plain.lab), round)?;
        eprintln!("answers, round {round}: held {:?}, straight {:?}", held.latency, straight.latency);
        middle.push((milliseconds(&held, 50.0), milliseconds(&straight, 50.0)));
        slow.push((milliseconds(&held, 99.0), milliseconds(&straight, 99.0)));
    }
    table.add("DNS answers held / straight, p50: ms", &middle, Goal::MoreBy(MORE_MS));
    table.add("DNS answers held / straight, p99: ms", &slow, Goal::MoreBy(MORE_MS_P99));
    Ok(())
}

fn milliseconds(report: &LoadReport, percent: f64) -> f64 {
    report.latency.percentile(percent).as_secs_f64() * 1e3
}

fn ask(cluster: &Netns, round: usize) -> Result<LoadReport> {
    let server = SocketAddr::new(RESOLVER.parse()?, 53);
    let name = move |number: usize| format!("host{}.scripted.test", round * QUESTIONS + number);
    let mut load = Load::new(server, QUESTIONS, name);
    load.pace = PACE;
    let report = load.run(cluster)?;
    ensure!(report.answered == QUESTIONS, "not every question was answered: {report:?}");
    Ok(report)
}
