//! Openings of connections that nothing allows: what each costs, and what is left for those that are allowed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use fw_testkit::figures::{Goal, ROUNDS, Table};
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::live::{Live, Then};
use fw_testkit::traffic::meter;
use fw_testkit::traffic::server::{Server, Service};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::field::{Field, Plain, SINK, cluster, named};

/// Frames of one measurement: some tens of milliseconds where they are dear.
const FRAMES: u64 = 150_000;
const THIRD: Goal = Goal::AtMost(1.0 / 3.0);
/// Beside the leanest ruleset, for what comes after the kernel has made an skb: that alone is a third.
const HALF: Goal = Goal::AtMost(0.5);
/// Other packets that may be dropped meanwhile.
const STRAYS: u64 = 100;
/// Frames a second of the flood that a transfer goes through: most of a core for nftables.
const FLOOD: u64 = 200_000;
const WARM_UP: Duration = Duration::from_millis(150);
const SLICE: Duration = Duration::from_millis(500);

/// Nobody allows it, and it is for somebody behind the firewall.
fn denied() -> Result<Crafted> {
    let [from, to]: [SocketAddr; 2] = ["10.0.16.2:40000".parse()?, "198.18.77.7:25".parse()?];
    Ok(Crafted::syn(from, to))
}

fn frames(field: &Field, then: Then<'_>) -> Result<Live> {
    frames_in(&field.lab, then)
}

fn frames_in(lab: &Lab, then: Then<'_>) -> Result<Live> {
    Live::new(&lab.firewall, lab.cluster(), &denied()?, then)
}

/// Nanoseconds of a thread for each of the frames.
fn each(lab: &Lab, live: &Live) -> Result<f64> {
    let spent = lab.firewall.run(|| live.send(FRAMES))??;
    Ok(spent.as_secs_f64() * 1e9 / FRAMES as f64)
}

/// The cost of one. Native XDP is called as a driver calls it; on a veth, its own cost of it (`veth_xdp_rcv_skb`) comes
/// on top, and that is no network card's.
/// Beside the leanest ruleset there can be, and beside ours without the fast path, which also accounts and says why.
pub(crate) fn cost(table: &mut Table, [off, generic, tcx]: [&Field; 3], plain: &Plain) -> Result<()> {
    let made = frames(off, Then::Drop)?;
    let (lean, rules) = (frames_in(&plain.lab, Then::Pass)?, frames(off, Then::Pass)?);
    let native = generic.program("fw_xdp");
    let contenders = [
        ("native XDP", generic, frames(generic, Then::Program(&native))?, THIRD),
        ("generic XDP", generic, frames(generic, Then::Pass)?, HALF),
        ("TCX", tcx, frames(tcx, Then::Pass)?, HALF),
    ];
    let before = [off.dropped()?, generic.dropped()?, tcx.dropped()?];
    let (mut beside_lean, mut beside_rules) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    for round in 0..ROUNDS {
        let nothing = each(&off.lab, &made)?;
        let lean = each(&plain.lab, &lean)? - nothing;
        let rules = each(&off.lab, &rules)? - nothing;
        for (at, (what, field, live, _)) in contenders.iter().enumerate() {
            let ours = each(&field.lab, live)? - nothing;
            eprintln!(
                "denied SYN, round {round}: {what} {ours:.0} ns, plain nftables {lean:.0} ns, ours without the fast \
                 path {rules:.0} ns, made in {nothing:.0} ns"
            );
            beside_lean[at].push((ours, lean));
            beside_rules[at].push((ours, rules));
        }
    }
    // Each of the frames was dropped; the bouncer of the second field had those of two contenders.
    let sent = FRAMES * u64::try_from(ROUNDS)?;
    for ((field, before), sent) in [off, generic, tcx].iter().zip(before).zip([sent, 2 * sent, sent]) {
        let dropped = field.dropped()? - before;
        ensure!((sent..sent + STRAYS).contains(&dropped), "of {sent} denied frames, {dropped} were dropped");
    }
    for (at, (what, _, _, goal)) in contenders.iter().enumerate() {
        table.add(&format!("denied SYN, {what} / plain nftables drop: ns"), &beside_lean[at], *goal);
        table.add(&format!("denied SYN, {what} / fast path off: ns"), &beside_rules[at], THIRD);
    }
    Ok(())
}

/// Megabytes a second of an allowed transfer while so many are denied, all on one core as if one queue of a network card
/// had brought it: what the bouncer spares, the transfer can have. (On two cores a flood that fills one of them makes the
/// transfer faster, for both its ends then share the caches of the other.) The goal asks for more than nothing and leaves
/// room for generic XDP, which copies every aggregated segment into one piece (netif_receive_generic_xdp()).
pub(crate) fn goodput(table: &mut Table, [off, generic, tcx]: [&Field; 3]) -> Result<()> {
    let _pinned = Pinned::to_one_core()?;
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
        let what = format!("MB/s beside {thousands} k denied/s, {what} / fast path off");
        table.add(&what, pairs, Goal::AtLeast(1.25));
    }
    Ok(())
}

/// Keeps the calling thread, and those that it starts, on one core.
struct Pinned(CpuSet);

impl Pinned {
    fn to_one_core() -> Result<Self> {
        let (before, mut one) = (sched_getaffinity(Pid::from_raw(0))?, CpuSet::new());
        one.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}

/// Does something during a flood; what it gives, and frames a second.
fn flooded<T>(lab: &Lab, live: &Live, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| lab.firewall.run(|| live.flood(FLOOD, &stop)));
        let result = work();
        stop.store(true, Ordering::Relaxed);
        let rate = flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        Ok((result?, rate))
    })
}
