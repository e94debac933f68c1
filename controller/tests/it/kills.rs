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
use fw_testkit::traffic::server::{Server, Service};

use crate::daemon::{Daemon, PATIENCE, eventually, soak_factor};
use crate::names::knocker::Knocker;
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

/// The policies that come and go in a long plan, and the one that stays.
fn crowd(from: u32) -> String {
    let untouched = policy("untouched", "{egress: [{to: [{cidr: 203.0.113.2/32}], ports: [{port: 7000}]}]}");
    let one = |number| {
        let spec = format!("{{egress: [{{to: [{{cidr: 198.18.{number}.0/24}}], ports: [{{port: 443}}]}}]}}");
        policy(&format!("crowd-{number}"), &spec)
    };
    let crowd: Vec<String> = (from..from + CROWD).map(one).collect();
    documents(&[FIREWALL, &untouched].into_iter().chain(crowd.iter().map(String::as_str)).collect::<Vec<_>>())
}

/// How many they are, and the first numbers of the two crowds.
const CROWD: u32 = 12;
const CROWDS: [u32; 2] = [0, 100];
/// A plan is long from this weight on.
const LONG: (&str, &str) = ("FW_LONG", "10");
/// Fewer transactions would mean that the plan was not split.
const PARTS: u32 = 8;

/// Waits until it is killed, or until the edit from one crowd to another is through. True: killed.
fn is_killed(lab: &Lab, daemon: &mut Daemon, [old, new]: [u32; 2]) -> Result<bool> {
    use std::os::unix::process::ExitStatusExt as _;
    let mut ended = None;
    eventually("it is killed or is through", || {
        let rules = fw_testkit::nft::list_ruleset(&lab.firewall)?;
        let has = |number: u32| rules.contains(&format!("egress-crowd-{number}-tcp"));
        let is_through = (new..new + CROWD).all(has) && !(old..old + CROWD).any(has);
        if is_through {
            // What goes last may be more than these chains.
            std::thread::sleep(Duration::from_millis(200));
        }
        ended = daemon.process()?.try_wait()?;
        Ok(ended.is_some() || is_through)
    })?;
    match ended {
        Some(status) => ensure!(status.signal() == Some(9), "it ended by itself: {status}"),
        None => daemon.kill()?,
    }
    Ok(ended.is_some())
}

#[test]
fn a_kill_between_the_parts_of_a_long_plan_loses_no_packet_and_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::standard("parts")?;
    let mut daemon = Daemon::new("parts")?;
    let compiled = |from| -> Result<Ruleset> {
        Ok(compile(&judge(&crowd(from), &HostFacts::default())?.set, DEFAULT_CELL_LIMIT).ruleset)
    };
    let rulesets = [compiled(CROWDS[0])?, compiled(CROWDS[1])?];
    let server = Server::tcp(&lab.internet().ns, &[at("203.0.113.2", 7000)], Service::Echo)?;
    let to = server.addresses()[0];
    let trigger = daemon.beside("fault");
    let file = trigger.to_str().context("a path that is not text")?.to_owned();
    daemon.write("all.yaml", &crowd(CROWDS[0]))?;
    daemon.start(&lab.firewall, &[LONG])?;
    daemon.wait_until_enforcing()?;
    daemon.kill()?;
    let knocker = Knocker::new(&lab.cluster().ns, &[to.ip()], to.port(), Duration::from_millis(900))?;
    let (mut current, mut killed) = (0_usize, 0);
    for part in 1.. {
        // The plan of each part is met twice: whoever starts finds the new manifests, or the old ones again.
        let mut is_reached = false;
        for goes_on in [true, false] {
            let other = 1 - current;
            let fault = format!("before-commit:{part}");
            daemon.start(&lab.firewall, &[LONG, ("FW_FAULT", &fault), ("FW_FAULT_FILE", &file)])?;
            daemon.wait_until_enforcing()?;
            std::fs::write(&trigger, "")?;
            daemon.write("all.yaml", &crowd(CROWDS[other]))?;
            let was_killed = is_killed(&lab, &mut daemon, [CROWDS[current], CROWDS[other]])?;
            std::fs::remove_file(&trigger)?;
            is_reached |= was_killed;
            killed += u32::from(was_killed);
            if goes_on {
                current = other;
            } else {
                daemon.write("all.yaml", &crowd(CROWDS[current]))?;
            }
            daemon.start(&lab.firewall, &[LONG])?;
            daemon.wait_until_enforcing()?;
            daemon.stop()?;
            let [is_wanted, is_other] = held(&lab, [&rulesets[current], &rulesets[1 - current]])?;
            ensure!(
                is_wanted && !is_other,
                "part {part}, killed: {was_killed}, goes on: {goes_on}: not exactly what is wanted"
            );
        }
        if !is_reached {
            ensure!(part > PARTS, "only {} transactions", part - 1);
            break;
        }
    }
    let knocks = knocker.stop()?;
    eprintln!("{killed} kills between parts, {} connections", knocks.opened);
    assert_eq!(knocks.lost, [], "each connection was let through at its first packet");
    ensure!(knocks.opened > 100, "only {} connections", knocks.opened);
    Ok(())
}
