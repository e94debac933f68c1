//! How many questions a second of one core is enough for: ours beside a bare UDP forwarder of the same runtime, and
//! beside unbound and dnsmasq as forwarders. Exit code 1 if a goal is missed.
//!
//! Time is that of the forwarder's thread on its core, so that neighbours on a shared machine do not count. Every
//! question has another name, so no cache and no sharing helps anybody.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "the table")]

mod forwarders;
mod load;

use std::process::ExitCode;

use fw_testkit::figures::{Goal, ROUNDS, Table};

/// Questions a round.
const QUESTIONS: u32 = 20_000;

fn main() -> ExitCode {
    let upstream = load::Upstream::start();
    let mut table = Table::new();
    for window in [1, 64] {
        let (mut bare, mut unbound, mut dnsmasq) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let ours = forwarders::ours(upstream.address, |address| load::ask(address, QUESTIONS, window));
            let plain = forwarders::bare(upstream.address, |address| load::ask(address, QUESTIONS, window));
            bare.push((ours, plain));
            let measure = |address| load::ask(address, QUESTIONS / 2, window);
            unbound.extend(forwarders::unbound(upstream.address, measure).map(|rate| (ours, rate)));
            dnsmasq.extend(forwarders::dnsmasq(upstream.address, measure).map(|rate| (ours, rate)));
            println!("window {window}, round {}: ours {ours:.0}/s, bare {plain:.0}/s", round + 1);
        }
        for (other, pairs, goal) in [
            ("bare forwarder", bare, Goal::AtLeast(0.8)),
            ("unbound", unbound, Goal::None),
            ("dnsmasq", dnsmasq, Goal::None),
        ] {
            let thousands: Vec<_> =
                pairs.iter().map(|(ours, other)| (ours / 1000.0, other / 1000.0)).collect();
            table.add(&format!("thousand/s of a core, {other}, window {window}"), &thousands, goal);
        }
    }
    println!("{}", table.text());
    if table.all_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
