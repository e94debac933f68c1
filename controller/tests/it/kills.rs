//! `kill -9` at every step of an apply: the kernel holds the whole old or the whole new ruleset, and the next start
//! goes on from it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fw_intake::HostFacts;
use fw_nft::{Kernel, NetlinkKernel, Table, recognise};
use fw_ruleset::{DEFAULT_CELL_LIMIT, Ruleset, compile};
use fw_testkit::r#gen::{self, Rng};
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::range::{Range, Shot};

use crate::daemon::{Daemon, PATIENCE, soak_factor};
use crate::rig::{FIREWALL, at, documents, fresh_port, judge, policy};

const KILLS: u32 = 200;
const UNTOUCHED: &str = "accept traffic for np untouched tcp";

/// Where the process is killed, and whether the kernel must hold the new ruleset then (what is persisted first at a
/// start may be from before the edit).
const POINTS: [(&str, Option<bool>); 7] = [
    ("before-commit", Some(false)),
    ("before-build", Some(false)),
    ("before-send", Some(false)),
    ("after-send-before-ack", Some(true)),
    ("after-ack", Some(true)),
    ("before-persist", None),
    ("after-persist", None),
];
/// Between the start of a transaction and its end.
const IN_FLIGHT: [&str; 3] = ["before-send", "after-send-before-ack", "after-ack"];

/// Manifests number `round`: one policy changes all the time, in both what is added and what is removed.
fn manifests(round: usize) -> [String; 3] {
    let edited = format!(
        "{{egress: [{{to: [{{cidr: 198.18.{}.0/24}}, {{cidr: 198.19.0.0/16}}], ports: [{{port: {}}}]}}]}}",
        round % 256,
        1000 + round % 60_000
    );
    let untouched = policy("untouched", "{egress: [{to: [{cidr: 1.2.3.0/24}], ports: [{port: 80}]}]}");
    [FIREWALL.to_owned(), untouched, policy(&format!("edited-{}", round / 3), &edited)]
}

fn ruleset(round: usize) -> Result<Ruleset> {
    let parts = manifests(round);
    let judged = judge(&documents(&parts.each_ref().map(String::as_str)), &HostFacts::default())?;
    Ok(compile(&judged.set, DEFAULT_CELL_LIMIT).ruleset)
}

fn write(daemon: &Daemon, round: usize) -> Result<()> {
    daemon.write("all.yaml", &documents(&manifests(round).each_ref().map(String::as_str)))
}

/// Which of the rulesets the kernel holds, whole.
fn held(lab: &Lab, candidates: [&Ruleset; 2]) -> Result<[bool; 2]> {
    lab.firewall.run(|| {
        let mut kernel = NetlinkKernel::open()?;
        let observed = match kernel.read()? {
            Table::Ours(observed) => observed,
            other => bail!("where our table was there is {other:?}"),
        };
        Ok(candidates.map(|wanted| recognise(&observed, wanted) == *wanted))
    })?
}

/// An edit that meets the controller on its way up, killed at a point or at any time. Gives what the kernel holds
/// then, and whether the kill was in flight.
fn kill_once(
    lab: &Lab,
    daemon: &mut Daemon,
    old: Ruleset,
    round: usize,
    rng: &mut Rng,
) -> Result<(Ruleset, bool)> {
    let new = ruleset(round)?;
    write(daemon, round)?;
    let point = POINTS.get(rng.below(POINTS.len() + 1));
    match point {
        Some((name, _)) => {
            daemon.start(&lab.firewall, &[("FW_FAULT", name)])?;
            let status =
                daemon.process()?.wait(PATIENCE).with_context(|| format!("it must die at {name}"))?;
            ensure!(!status.success(), "it ended by itself at {name}");
        }
        None => {
            daemon.start(&lab.firewall, &[])?;
            std::thread::sleep(Duration::from_micros(100 * rng.below(600) as u64));
            daemon.kill()?;
        }
    }
    let [is_old, is_new] = held(lab, [&old, &new])?;
    ensure!(is_old || is_new, "{point:?}: neither the old nor the new ruleset, but something between");
    if let Some((name, Some(must_be_new))) = point {
        ensure!(is_new == *must_be_new, "{name}: old {is_old}, new {is_new}");
    }
    let in_flight = point.is_some_and(|(name, _)| IN_FLIGHT.contains(name));
    Ok((if is_new { new } else { old }, in_flight))
}

#[test]
fn a_kill_at_any_step_leaves_the_old_or_the_new_ruleset_whole() -> Result<()> {
    let seed = r#gen::seed();
    eprintln!("FW_SEED={seed}");
    let mut rng = Rng::new(seed);
    let lab = Lab::standard("kills")?;
    let mut daemon = Daemon::new("kills")?;
    write(&daemon, 0)?;
    daemon.start_in(&lab)?;
    let syn = || Crafted::syn(at("10.0.16.2", fresh_port()), at("1.2.3.4", 80));
    let shots: Vec<Shot> = (0..10).map(|_| Shot { from: 0, packet: syn() }).collect();
    let arrived = Range::new(&lab)?.fire(&shots)?;
    ensure!(arrived.iter().all(|arrivals| arrivals.len() == 1), "{arrived:?}");
    daemon.stop()?;
    let (mut in_flight, mut current) = (0, ruleset(0)?);
    let kills = usize::try_from(KILLS * soak_factor())?;
    for round in 1..=kills {
        let killed;
        (current, killed) = kill_once(&lab, &mut daemon, current, round, &mut rng)
            .with_context(|| format!("FW_SEED={seed} kill {round}"))?;
        in_flight += usize::from(killed);
    }
    eprintln!("{kills} kills, {in_flight} of them in flight");
    ensure!(in_flight >= 50, "only {in_flight} of {kills} kills were in flight");
    daemon.start_in(&lab)?;
    daemon.stop()?;
    let last = ruleset(kills)?;
    ensure!(held(&lab, [&last, &last])?[0], "the last start must end with the last manifests");
    let counters = fw_testkit::nft::counters(&lab.firewall)?;
    assert_eq!(counters.comment(UNTOUCHED), 10, "the counter of an untouched policy survived all of it");
    Ok(())
}
