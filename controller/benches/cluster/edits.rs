//! From `kubectl apply` and `kubectl delete` to packets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use fw_testkit::cluster::Ask;
use fw_testkit::figures::{Goal, Table};
use fw_testkit::traffic::gate;
use fw_testkit::traffic::server::Server;
use serde_json::{Value, json};

use crate::field::Field;
use crate::limited;

/// Policies that are applied, edited and deleted one after the other.
const EDITS: u16 = 200;
/// Policies that are applied at once.
const BURST: u16 = 500;
/// From the request to packets, the slowest of a hundred, in milliseconds.
const LIMIT: f64 = 250.0;
/// Transactions that a burst may take.
const TRANSACTIONS: f64 = 50.0;
const PORT: u16 = 30_000;
const PATIENCE: Duration = Duration::from_secs(30);

fn spec(port: u16) -> Value {
    json!({ "egress": [{
        "to": [{ "cidr": "203.0.113.0/24" }],
        "ports": [{ "protocol": "UDP", "port": port }],
    }] })
}

pub(crate) fn one_by_one(table: &mut Table, field: &Field) -> Result<()> {
    let addresses: Vec<_> =
        (0..2 * EDITS).map(|number| SocketAddr::new(field.lab.internet().v4(), PORT + number)).collect();
    let server = Server::udp(&field.lab.internet().ns, &addresses)?;
    let client = &field.lab.cluster().ns;
    let (mut applied, mut edited, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
    for pair in server.addresses().chunks(2) {
        let [first, second] = pair else { continue };
        let name = format!("edit-{}", first.port());
        let apply = |port| field.cluster.ask(&Ask::apply_policy(&name, &spec(port))).map(drop);
        let delete = || field.cluster.ask(&Ask::delete_policy(&name)).map(drop);
        applied.push(gate::opens_after(client, *first, PATIENCE, || apply(first.port()))?);
        edited.push(gate::opens_after(client, *second, PATIENCE, || apply(second.port()))?);
        deleted.push(gate::closes_after(client, *second, PATIENCE, delete)?);
    }
    for (what, took) in [("applied", applied), ("edited", edited), ("deleted", deleted)] {
        figures(table, what, took);
    }
    Ok(())
}

fn figures(table: &mut Table, what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    eprintln!("{what}: {took:?}");
    let at = |index: usize| took.get(index).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3);
    let pairs: Vec<_> = (0..took.len()).map(|index| (at(index), LIMIT)).collect();
    table.add(&format!("a policy {what}, effective for packets / limit: ms"), &pairs, Goal::AtMost(1.0));
    // The nearest rank: the smallest that at least 99 of 100 do not exceed.
    let slow = at((took.len() * 99).div_ceil(100) - 1);
    limited(table, &format!("a policy {what}, p99 of {} / limit: ms", took.len()), slow, LIMIT);
}

pub(crate) fn burst(table: &mut Table, field: &Field) -> Result<()> {
    let before = field.transactions()?;
    let asks: Vec<Ask> = (0..BURST)
        .map(|number| Ask::apply_policy(&format!("burst-{number}"), &spec(PORT + number)))
        .collect();
    let began = Instant::now();
    field.cluster.ask_all(&asks)?;
    let taken = began.elapsed();
    std::thread::sleep(Duration::from_secs(3));
    let transactions = field.transactions()? - before;
    eprintln!("burst: {BURST} policies in {taken:?}, {transactions} transactions");
    let deletions: Vec<Ask> =
        (0..BURST).map(|number| Ask::delete_policy(&format!("burst-{number}"))).collect();
    field.cluster.ask_all(&deletions)?;
    std::thread::sleep(Duration::from_secs(3));
    let transactions = u32::try_from(transactions).map_or(f64::NAN, f64::from);
    limited(table, "500 policies at once / limit: transactions", transactions, TRANSACTIONS);
    Ok(())
}
