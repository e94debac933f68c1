//! An idle cluster, and a full one: what the controller asks for, how soon it enforces, in how much memory. `make bench`
//! measures the same at full size.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fw_testkit::cluster::{Ask, crowded};
use fw_testkit::traffic::gate;
use fw_testkit::traffic::server::Server;
use serde_json::{Value, json};

use super::field::Field;
use crate::daemon::{PATIENCE, soak_factor};
use crate::rig::{FIREWALL, at, policy};
use crate::traffic::INTERNET;

/// A port that [`open`] opens.
const PORT: u16 = 30_000;
/// Kilobytes that may be resident at any moment, with no object and for each policy with its share of Services: together
/// 150 MB for 5,000.
const RESIDENT: (u64, u64) = (50_000, 20);
/// Policies that are applied at once, and transactions that they may take.
const BURST: u16 = 500;
const TRANSACTIONS: u64 = 60;

/// Policies and Services of a full cluster; a part of them unless soaked.
fn sizes() -> (u32, u32) {
    if soak_factor() > 1 { (5000, 2000) } else { (1000, 400) }
}

fn open(port: u16) -> Value {
    let ports = json!([{ "protocol": "UDP", "port": port }]);
    json!({ "egress": [{ "to": [{ "cidr": "203.0.113.0/24" }], "ports": ports }] })
}

/// A figure of `/proc/PID/status` in kilobytes.
fn kilobytes(pid: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
    Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?)
}

fn transactions(field: &Field) -> Result<u64> {
    let status = field.daemon.status()?;
    status["status"]["controller"]["transactions"]["commits"].as_u64().context("no transactions")
}

#[test]
fn nothing_is_asked_of_the_api_server_while_nothing_happens() -> Result<()> {
    let field = Field::running("k-idle")?;
    field.cluster.apply(&policy("web", "{egress: [{}]}"))?;
    field.wait_for_state("web", "deployed")?;
    // What it writes about all of that is there when nothing was written for longer than its shortest interval.
    let mut quiet = 0;
    for _ in 0..60 {
        field.faults.clear_calls();
        std::thread::sleep(Duration::from_millis(500));
        quiet = if field.faults.calls().is_empty() { quiet + 1 } else { 0 };
        if quiet == 6 {
            break;
        }
    }
    assert_eq!(quiet, 6, "it does not come to rest: {:?}", field.faults.calls());
    field.faults.clear_calls();
    std::thread::sleep(Duration::from_secs(10));
    let calls = field.faults.calls();
    let (statuses, others): (Vec<_>, Vec<_>) = calls.iter().partition(|call| {
        (&*call.verb, &*call.resource, &*call.subresource) == ("patch", "firewalls", "status")
    });
    assert!(statuses.len() <= 2, "the Firewall's status is due every 10 s: {statuses:?}");
    let asked: Vec<String> =
        others.iter().filter(|call| call.verb != "watch").map(ToString::to_string).collect();
    assert_eq!(asked, Vec::<String>::new());
    // Watches last for minutes; six of them may be renewed once.
    assert!(others.len() <= 6, "{others:?}");
    Ok(())
}

#[test]
fn a_full_cluster_is_enforced_within_seconds_and_fits_in_memory() -> Result<()> {
    let (policies, services) = sizes();
    let mut field = Field::new("k-scale")?;
    field.cluster.apply(FIREWALL)?;
    field.cluster.crowd(0..policies, 0..services)?;
    let began = Instant::now();
    field.start()?;
    let first = began.elapsed();
    assert!(first < Duration::from_secs(10), "the first commit took {first:?}");
    let set =
        field.daemon.status()?["status"]["controller"]["policies"].as_object().map(serde_json::Map::len);
    assert_eq!(set, Some(usize::try_from(policies)?), "it did not wait for the whole list");

    let deadline = began + Duration::from_secs(120);
    while field.deployed()? < usize::try_from(policies)? {
        if Instant::now() > deadline {
            bail!("{} of {policies} statuses are there\n{}", field.deployed()?, field.log());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let statuses = began.elapsed();
    let pid = field.daemon.process()?.id();
    let (now, highest) = (kilobytes(pid, "VmRSS")?, kilobytes(pid, "VmHWM")?);
    eprintln!(
        "{policies} policies, {services} Services: first commit {first:?}, all statuses {statuses:?}, resident {now} kB, \
         at most {highest} kB"
    );
    let limit = RESIDENT.0 + RESIDENT.1 * u64::from(policies);
    assert!(highest < limit, "{highest} kB were resident, {limit} may be");
    edits(&field)?;
    burst(&field, policies)
}

fn edits(field: &Field) -> Result<()> {
    let server = Server::udp(&field.lab.internet().ns, &[at(INTERNET[0], PORT)])?;
    let (client, to) = (&field.lab.cluster().ns, server.addresses()[0]);
    for round in 0..5 {
        let apply = || field.cluster.ask(&Ask::apply_policy("edit", &open(PORT))).map(drop);
        let delete = || field.cluster.ask(&Ask::delete_policy("edit")).map(drop);
        let opened = gate::opens_after(client, to, PATIENCE, apply)?;
        let closed = gate::closes_after(client, to, PATIENCE, delete)?;
        eprintln!("edit {round}: open after {opened:?}, closed after {closed:?}");
    }
    Ok(())
}

/// Many at once are few transactions.
fn burst(field: &Field, policies: u32) -> Result<()> {
    let before = transactions(field)?;
    let name = |number: u16| crowded(policies + u32::from(number));
    let asks: Vec<Ask> =
        (0..BURST).map(|number| Ask::apply_policy(&name(number), &open(PORT + 1 + number))).collect();
    let began = Instant::now();
    field.cluster.ask_all(&asks)?;
    let applied = began.elapsed();
    field.wait_for_state(&name(BURST - 1), "deployed")?;
    let wanted = usize::try_from(policies)? + usize::from(BURST);
    field.daemon.wait_until("all of them are enforced", |status| {
        status["status"]["controller"]["policies"].as_object().is_some_and(|all| all.len() == wanted)
    })?;
    let took = transactions(field)? - before;
    eprintln!("{BURST} policies applied in {applied:?}: {took} transactions");
    assert!((1..=TRANSACTIONS).contains(&took), "{took} transactions");
    Ok(())
}
