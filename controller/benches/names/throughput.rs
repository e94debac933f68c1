//! What is allowed by name, in mode tcx: bytes beside a plain set of nftables, connections beside a static rule.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use fw_testkit::figures::{Goal, ROUNDS, Table};
use fw_testkit::topology::Lab;
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::traffic::{conntrack, meter};

use crate::field::{CLOSE, Field, Plain, SINK, SOURCE, cluster, named};

/// What is compared takes turns in short slices, and the best of each counts: a transfer keeps two cores busy, and what
/// others on the machine take of them is no firewall's cost.
const SLICES: usize = 9;
const WARM_UP: Duration = Duration::from_millis(50);
const SLICE: Duration = Duration::from_millis(120);

/// Megabytes a second of one connection.
pub(crate) fn bytes(table: &mut Table, [tcx, off]: [&Field; 2], plain: &Plain) -> Result<()> {
    tcx.learn()?;
    off.learn()?;
    let ends = [&tcx.lab, &off.lab, &plain.lab].map(|lab| -> Result<_> {
        let ns = &lab.internet().ns;
        let sink = Server::tcp(ns, &[named(SINK)], Service::Sink)?;
        Ok((cluster(lab), sink, Server::tcp(ns, &[named(SOURCE)], Service::Source)?))
    });
    let ends = ends.into_iter().collect::<Result<Vec<_>>>()?;
    let mut lines = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        let (mut up, mut down) = ([0.0; 3], [0.0; 3]);
        for _ in 0..SLICES {
            for (best, (ns, sink, _)) in up.iter_mut().zip(&ends) {
                let rate = meter::upload(ns, None, sink, named(SINK), WARM_UP, SLICE)?;
                *best = f64::max(*best, rate.per_second() / 1e6);
            }
            for (best, (ns, ..)) in down.iter_mut().zip(&ends) {
                let rate = meter::download(ns, None, named(SOURCE), WARM_UP, SLICE)?;
                *best = f64::max(*best, rate.per_second() / 1e6);
            }
        }
        eprintln!(
            "allowed, round {round}, MB/s by TCX, by nftables maps, by a plain set: {up:.0?} up, {down:.0?} down"
        );
        for (line, pair) in
            lines.iter_mut().zip([(up[0], up[2]), (down[0], down[2]), (up[1], up[2]), (down[1], down[2])])
        {
            line.push(pair);
        }
    }
    let [up, down, off_up, off_down] = lines;
    table.add("MB/s up by name, TCX / plain nftables set", &up, Goal::AtLeast(0.85));
    table.add("MB/s down by name, TCX / plain nftables set", &down, Goal::AtLeast(0.85));
    table.add("MB/s up by name, fast path off / plain nftables set", &off_up, Goal::None);
    table.add("MB/s down by name, fast path off / plain nftables set", &off_down, Goal::None);
    Ok(())
}

/// New connections a second, one after the other.
pub(crate) fn connections(table: &mut Table, tcx: &Field, plain: &Plain) -> Result<()> {
    let by_rule = |lab: &Lab| SocketAddr::new(lab.internet().v4(), CLOSE);
    let serve = |lab: &Lab| Server::tcp(&lab.internet().ns, &[named(CLOSE), by_rule(lab)], Service::Close);
    let _servers = [serve(&tcx.lab)?, serve(&plain.lab)?];
    tcx.learn()?;
    let (mut beside_rule, mut beside_set) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let contenders =
            [(&tcx.lab, named(CLOSE)), (&tcx.lab, by_rule(&tcx.lab)), (&plain.lab, named(CLOSE))];
        let mut best = [0.0; 3];
        for _ in 0..SLICES {
            for (best, (lab, to)) in best.iter_mut().zip(contenders) {
                let rate = meter::connections(cluster(lab), None, to, SLICE, 1)?;
                *best = f64::max(*best, rate.per_second());
                conntrack::flush(&lab.firewall)?;
            }
        }
        let [name, rule, set] = best;
        eprintln!("connections, round {round}: {name:.0}/s by name, {rule:.0}/s by rule, {set:.0}/s by set");
        beside_rule.push((name, rule));
        beside_set.push((name, set));
    }
    table.add("connections/s by name, TCX / by static rule", &beside_rule, Goal::AtLeast(0.9));
    table.add("connections/s by name, TCX / plain nftables set", &beside_set, Goal::AtLeast(0.8));
    Ok(())
}
