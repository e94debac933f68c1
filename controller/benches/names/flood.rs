//! Openings of connections that nothing allows: what each costs, and what is left for those that are allowed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fw_testkit::figures::{Goal, ROUNDS, Table};
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::live::{Live, Then};
use fw_testkit::traffic::meter;
use fw_testkit::traffic::server::{Server, Service};

use crate::field::{Field, SINK, cluster, named};

/// Frames of one measurement: some tens of milliseconds where they are dear.
const FRAMES: u64 = 150_000;
/// Frames a second of the flood that a transfer goes through: what the reference can just about take beside it.
const FLOOD: u64 = 400_000;
const WARM_UP: Duration = Duration::from_millis(150);
const SLICE: Duration = Duration::from_millis(400);

/// Nobody allows it, and it is for somebody behind the firewall.
fn denied() -> Result<Crafted> {
    let [from, to]: [SocketAddr; 2] = ["10.0.16.2:40000".parse()?, "198.18.77.7:25".parse()?];
    Ok(Crafted::syn(from, to))
}

fn frames(field: &Field, then: Then<'_>) -> Result<Live> {
    Live::new(&field.lab.firewall, field.lab.cluster(), &denied()?, then)
}

/// Nanoseconds of a thread for each of the frames.
fn each(lab: &Lab, live: &Live) -> Result<f64> {
    let spent = lab.firewall.run(|| live.send(FRAMES))??;
    Ok(spent.as_secs_f64() * 1e9 / FRAMES as f64)
}

/// The cost of one. Native XDP is called as a driver calls it; on a veth, its own cost of it (`veth_xdp_rcv_skb`) comes
/// on top, and that is no network card's.
pub(crate) fn cost(table: &mut Table, off: &Field, generic: &Field, tcx: &Field) -> Result<()> {
    let made = frames(off, Then::Drop)?;
    let rules = frames(off, Then::Pass)?;
    let native = generic.program("fw_xdp");
    let contenders = [
        ("native XDP", generic, frames(generic, Then::Program(&native))?, Goal::AtMost(1.0 / 3.0)),
        ("generic XDP", generic, frames(generic, Then::Pass)?, Goal::AtMost(1.0 / 3.0)),
        ("TCX", tcx, frames(tcx, Then::Pass)?, Goal::AtMost(1.0)),
    ];
    let before = [off.dropped()?, generic.dropped()?, tcx.dropped()?];
    let mut pairs = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        let nothing = each(&off.lab, &made)?;
        let reference = each(&off.lab, &rules)? - nothing;
        for ((what, field, live, _), pairs) in contenders.iter().zip(&mut pairs) {
            let ours = each(&field.lab, live)? - nothing;
            eprintln!(
                "denied SYN, round {round}: {what} {ours:.0} ns, nftables {reference:.0} ns, made in {nothing:.0} ns"
            );
            pairs.push((ours, reference));
        }
    }
    let sent = FRAMES * u64::try_from(ROUNDS)?;
    let after = [off.dropped()?, generic.dropped()?, tcx.dropped()?];
    let [by_rules, by_xdp, by_tcx] = [0, 1, 2].map(|at| after[at] - before[at]);
    ensure!(
        (by_rules, by_xdp, by_tcx) == (sent, 2 * sent, sent),
        "of {sent} denied frames each, {by_rules}, {by_xdp} (twice) and {by_tcx} were dropped"
    );
    for ((what, _, _, goal), pairs) in contenders.iter().zip(&pairs) {
        table.add(&format!("denied SYN, {what} / nftables policy drop: ns"), pairs, *goal);
    }
    Ok(())
}

/// Megabytes a second of an allowed transfer while so many are denied. What the bouncer spares, the transfer can have:
/// it must not be worse off than without.
pub(crate) fn goodput(table: &mut Table, off: &Field, generic: &Field, tcx: &Field) -> Result<()> {
    let mut beside = [const { Vec::new() }; 2];
    let mut runs = Vec::new();
    for field in [off, generic, tcx] {
        let sink = Server::tcp(&field.lab.internet().ns, &[named(SINK)], Service::Sink)?;
        field.learn()?;
        runs.push((&field.lab, sink, frames(field, Then::Pass)?));
    }
    for round in 0..ROUNDS {
        let mut rates = Vec::new();
        for (lab, sink, live) in &runs {
            let (rate, flood) = flooded(lab, live, || {
                let rate = meter::upload(cluster(lab), None, sink, named(SINK), WARM_UP, SLICE)?;
                Ok(rate.per_second() / 1e6)
            })?;
            eprintln!("flooded, round {round}: {rate:.0} MB/s beside {flood:.0} denied/s");
            rates.push(rate);
        }
        beside[0].push((rates[1], rates[0]));
        beside[1].push((rates[2], rates[0]));
    }
    let thousands = FLOOD / 1000;
    for (what, pairs) in ["generic XDP", "TCX"].iter().zip(&beside) {
        table.add(
            &format!("MB/s beside {thousands} k denied/s, {what} / nftables"),
            pairs,
            Goal::AtLeast(1.0),
        );
    }
    Ok(())
}

/// Does something during a flood; what it gives, and frames a second.
fn flooded<T>(lab: &Lab, live: &Live, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let stop = AtomicBool::new(false);
    let flood = || -> Result<f64> {
        let begin = Instant::now();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let due = u64::try_from(begin.elapsed().as_micros())? * FLOOD / 1_000_000;
            if due > sent {
                // What could not be sent for a moment is not sent at once afterwards.
                let frames = (due - sent).min(FLOOD / 200);
                live.send(frames)?;
                sent += frames;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(sent as f64 / begin.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| lab.firewall.run(flood));
        let result = work();
        stop.store(true, Ordering::Relaxed);
        let rate = flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        Ok((result?, rate))
    })
}
