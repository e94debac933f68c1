//! Ten thousand names that nobody has asked for before, and a connection to each the moment its answer is there.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fw_testkit::dns::{Connect, Load, LoadReport, Pace, Reply, Unique};
use fw_testkit::topology::SCRIPTED_ADDRESSES;

use super::field::{Mode, Names, PORT, to_names};

const NAMES: usize = 10_000;
const RATE: u32 = 1_000;
/// Seconds that each name's address has.
const TTL: u32 = 120;
const AGAIN: Duration = Duration::from_secs(5);

fn server() -> Result<SocketAddr> {
    Ok(SocketAddr::new(SCRIPTED_ADDRESSES[0].parse()?, 53))
}

/// Ten thousand questions from the cluster, with what became of the connections.
fn storm(names: &Names) -> Result<LoadReport> {
    let mut load = Load::new(server()?, NAMES, |number| format!("host{number}.storm.scripted.test"));
    load.pace = Pace::PerSecond(RATE);
    load.connect = Some((Connect::Tcp, PORT));
    load.again = Some(AGAIN);
    load.run(&names.lab.cluster().ns)
}

/// As many questions at the same rate from the firewall itself, whose own DNS nobody redirects.
fn straight(names: &Names) -> Result<LoadReport> {
    let mut load = Load::new(server()?, NAMES / 5, |number| format!("host{number}.straight.scripted.test"));
    load.pace = Pace::PerSecond(RATE);
    load.run(&names.lab.firewall)
}

fn survives_a_storm(mode: Mode) -> Result<()> {
    let policies = [to_names("storm", "{matchPattern: '*.storm.scripted.test'}")];
    let names = Names::new("storm", mode, "", &policies)?;
    let script = names.script()?;
    script.otherwise(Reply::Unique(Unique {
        v4: "198.18.0.0/16".parse()?,
        v6: "2001:db8:f00::/64".parse()?,
        ttl: TTL,
    }));
    let report = storm(&names)?;
    let straight = straight(&names)?;
    let added = |percent| {
        let (ours, plain) = (report.latency.percentile(percent), straight.latency.percentile(percent));
        format!("{ours:?} instead of {plain:?}, {:?} more", ours.saturating_sub(plain))
    };
    eprintln!("{}: DNS latency p50 {}; p99 {}", mode.name(), added(50.0), added(99.0));
    eprintln!("{}: {report:?}", mode.name());
    let figures = names.figures()?;
    let latency = &figures["proxy"]["holdLatency"];
    eprintln!("{}: answers were held: {latency}", mode.name());

    ensure!((report.answered, report.failed, report.unanswered) == (NAMES, 0, 0), "{report:?}");
    let lost = |what: &str, attempts: &fw_testkit::dns::load::Attempts, expected: usize| {
        ensure!(attempts.at_once == expected, "{what}: {expected} connections were due, {attempts:?}");
        Ok(())
    };
    lost("at once", &report.first, NAMES)?;
    let seconds = u32::try_from(AGAIN.as_secs())?;
    let long = report.ttls.iter().filter(|ttl| **ttl >= seconds).count();
    ensure!(report.ttls.len() == NAMES && long * 10 >= NAMES * 9, "only {long} TTLs of {seconds} s or more");
    ensure!(report.ttls.iter().all(|ttl| *ttl <= TTL), "TTLs grew");
    // What had more than five seconds was tried again.
    let due = report.ttls.iter().filter(|ttl| **ttl > seconds).count();
    lost("five seconds later", &report.again, due)?;
    let learned = &figures["learned"];
    ensure!(learned["names"].as_u64() >= Some(u64::try_from(NAMES)?), "{learned}");
    ensure!(
        learned["maxNamesPerPattern"] == 16_384 && learned["maxNames"] == 65_536,
        "not the defaults: {learned}"
    );
    let counted = names.counted("storm", "tcp", "*.storm.scripted.test")?.context("no counter")?;
    assert_eq!(counted, u64::try_from(NAMES + due)?, "each connection is counted once");
    assert_eq!(names.servers.connections().len(), NAMES + due, "connections that reached their address");
    let elsewhere: IpAddr = "198.18.60.1".parse()?;
    ensure!(!names.reaches(elsewhere, PORT)?, "an address beside those of the names is open");
    Ok(())
}

#[test]
fn of_ten_thousand_new_names_none_loses_a_first_packet() -> Result<()> {
    let modes: &[Mode] = if crate::daemon::soak_factor() > 1 { &Mode::ALL } else { &[Mode::Tcx] };
    modes.iter().try_for_each(|mode| survives_a_storm(*mode).context(mode.name()))
}
