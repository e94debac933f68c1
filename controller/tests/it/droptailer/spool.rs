//! A disk that is full: what waits stays, what has no room is counted.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::stage::{Stage, losses, lost, number, shown};
use crate::daemon::{PATIENCE, eventually};
use crate::rig::firewall_with;

/// Records of one MiB are some two thousand.
const SENT: u32 = 12_000;
const MORE: u32 = 500;

fn bytes_in(directory: &Path) -> Result<u64> {
    std::fs::read_dir(directory)?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.len()))
}

/// Waits until a client has put so many packets into the spool or counted them; packets it could not put there.
fn settle(stage: &Stage, logged: u32) -> Result<u64> {
    let lost = || stage.metric("droptailer_lost_packets_total{cause=\"spool\"}");
    eventually("the client has nothing in its hands", || {
        let came = stage.metric("droptailer_logged_packets_total")?;
        let overrun = stage.metric("droptailer_lost_packets_total{cause=\"sequence-gap\"}")?;
        let before = (lost()?, stage.metric("droptailer_spool_records")?);
        std::thread::sleep(Duration::from_millis(500));
        let after = (lost()?, stage.metric("droptailer_spool_records")?);
        Ok(came + overrun == u64::from(logged)
            && stage.metric("droptailer_queue_packets")? == 0
            && before == after)
    })?;
    lost()
}

/// The server is away until the spool is full, and the client ends and starts again meanwhile.
fn overflow(label: &str, signal: Signal) -> Result<()> {
    let mut stage = Stage::new(label, &firewall_with("  dropLog: {rate: 0}"))?;
    let spool = stage.spool();
    let arguments = ["--spool-directory", spool.as_str(), "--spool-disk", "1"];
    stage.start_client(&arguments)?;
    for step in 0..SENT / 100 {
        stage.send_numbered(step * 100..(step + 1) * 100)?;
        std::thread::sleep(Duration::from_millis(5));
    }
    let overflowed = settle(&stage, SENT)?;
    ensure!(
        overflowed > u64::from(SENT) / 3,
        "the spool has room for more than its bound: {overflowed} lost"
    );
    ensure!(bytes_in(spool.as_ref())? < (1 << 20) + 8192, "the bound holds: {}", bytes_in(spool.as_ref())?);
    let waiting = stage.metric("droptailer_spool_records")?;
    stage.end_client(signal)?;
    stage.send_numbered(SENT..SENT + MORE)?;
    stage.start_client(&arguments)?;
    eventually("what was on disk is there", || {
        // Its socket comes a moment later than the program.
        Ok(stage.metric("droptailer_spool_records").is_ok_and(|records| records >= waiting))
    })?;
    stage.send_numbered(SENT + MORE..SENT + 2 * MORE)?;
    let lost_again = settle(&stage, MORE)?;
    let unseen = stage.metric("droptailer_lost_packets_total{cause=\"overrun\"}")?;
    stage.start_server()?;
    let all = u64::from(SENT + 2 * MORE);
    stage.wait_for(all, PATIENCE)?;
    // Whatever is said too often comes within two settlements.
    std::thread::sleep(Duration::from_secs(3));
    let records = stage.records()?;
    let losses = losses(&records);
    eprintln!("{} shown, lost {losses:?}; {overflowed}, {unseen}, {lost_again}", shown(&records));
    ensure!(shown(&records) + lost(&records) == all, "{} shown, lost {losses:?}", shown(&records));
    let numbers: Vec<u32> = records.iter().filter_map(number).collect();
    ensure!(numbers.is_sorted_by(|a, b| a < b), "in order, and none twice");
    ensure!(numbers.get(..1000) == Some(&(0..1000).collect::<Vec<_>>()), "the beginning is complete");
    // What the first client found no room to say is known from the rules' counters, with what nobody saw.
    let (said_overrun, said_spool) = (losses.get("overrun"), losses.get("spool"));
    ensure!(losses.len() == 2 && said_overrun == Some(&unseen), "{losses:?}, and {unseen} unseen");
    ensure!(unseen >= u64::from(MORE) && said_spool >= Some(&lost_again), "{losses:?}, {lost_again}");
    // There is room again.
    stage.send_numbered(20_000..20_100)?;
    stage.wait_for(all + 100, PATIENCE)?;
    ensure!(stage.records()?.iter().filter_map(number).filter(|number| *number >= 20_000).count() == 100);
    Ok(())
}

#[test]
fn a_disk_that_is_full_keeps_what_waits_over_a_restart_and_every_loss_is_said_with_its_cause() -> Result<()> {
    overflow("dt-full", Signal::SIGTERM)
}

#[test]
fn a_client_that_is_killed_with_a_full_disk_accounts_for_every_packet_too() -> Result<()> {
    overflow("dt-full-kill", Signal::SIGKILL)
}
