//! Nothing is lost and nothing comes twice while the server is away or the client starts again.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;

use super::stage::{Stage, losses, lost, number, shown};
use crate::daemon::{PATIENCE, soak_factor};
use crate::rig::firewall_with;

/// Drops a second, and for how long.
const RATE: u32 = 500;
const SHORT: u32 = 8;

fn away() -> u32 {
    if soak_factor() > 1 { 60 } else { SHORT }
}

#[test]
fn what_is_dropped_while_the_server_is_away_arrives_afterwards_in_order_and_once() -> Result<()> {
    let mut stage = Stage::running("dt-away", &firewall_with("  dropLog: {rate: 0}"))?;
    stage.send_numbered(0..100)?;
    stage.wait_for(100, PATIENCE)?;
    stage.stop_server()?;
    let (begin, mut next) = (Instant::now(), 100);
    for step in 1..=away() * 10 {
        stage.send_numbered(next..next + RATE / 10)?;
        next += RATE / 10;
        let due = begin + Duration::from_millis(100) * step;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    stage.start_server()?;
    let records = stage.wait_for(next.into(), Duration::from_secs(60))?;
    let numbers: Vec<u32> = records.iter().filter_map(number).collect();
    assert_eq!(losses(&records).len(), 0, "{:?}", losses(&records));
    assert_eq!(numbers, (0..next).collect::<Vec<_>>());
    // Their time is that of the drop, not of the arrival.
    let times: Vec<u64> = records.iter().map(|record| record["TS_US"].parse()).collect::<Result<_, _>>()?;
    let (first, last) = (times[100], times[times.len() - 1]);
    assert!(times.is_sorted() && last - first > u64::from(away() - 1) * 1_000_000, "{first} to {last}");
    Ok(())
}

/// Drops before, while and after a client is away; numbers of the first part, and records.
fn restart(label: &str, signal: Signal) -> Result<()> {
    let mut stage = Stage::new(label, &firewall_with("  dropLog: {rate: 0}"))?;
    stage.start_server()?;
    let spool = stage.spool();
    let arguments = ["--spool-directory", spool.as_str()];
    stage.start_client(&arguments)?;
    stage.send_numbered(0..300)?;
    stage.wait_for(300, PATIENCE)?;
    // These wait on disk.
    stage.stop_server()?;
    stage.send_numbered(300..600)?;
    if signal == Signal::SIGTERM {
        std::thread::sleep(Duration::from_millis(200));
    }
    stage.end_client(signal)?;
    stage.send_numbered(600..800)?;
    stage.start_server()?;
    stage.start_client(&arguments)?;
    stage.send_numbered(800..1000)?;
    stage.wait_for(1000, PATIENCE)?;
    std::thread::sleep(Duration::from_secs(2));
    let records = stage.records()?;
    let mut numbers: Vec<u32> = records.iter().filter_map(number).collect();
    assert!(numbers.is_sorted(), "in order");
    let with_repeats = numbers.len();
    numbers.dedup();
    assert_eq!(numbers.len(), with_repeats, "none twice");
    assert_eq!(shown(&records) + lost(&records), 1000, "{:?}", losses(&records));
    if signal == Signal::SIGTERM {
        assert_eq!(losses(&records), [("overrun".to_owned(), 200)].into(), "only what nobody could see");
    }
    assert!(lost(&records) >= 200 && (800..1000).all(|number| numbers.contains(&number)));
    Ok(())
}

#[test]
fn a_client_that_ends_and_starts_again_loses_only_what_was_dropped_between_and_counts_it() -> Result<()> {
    restart("dt-term", Signal::SIGTERM)
}

#[test]
fn a_client_that_is_killed_still_accounts_for_every_packet_and_repeats_none() -> Result<()> {
    restart("dt-kill", Signal::SIGKILL)
}
