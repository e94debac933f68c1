//! Shown, suppressed and lost are all that was dropped, exactly.

use std::time::Duration;

use anyhow::Result;
use fw_testkit::nft;
use fw_testkit::traffic::craft::{Crafted, Tag};
use fw_testkit::traffic::inject::Injector;
use nix::sys::signal::Signal;

use super::stage::{Stage, losses, lost, shown};
use crate::rig::{FIREWALL, at, firewall_with};

const DENIED: u64 = 200_000;

/// Sends denied packets at full speed, of many flows.
fn flood(stage: &Stage) -> Result<()> {
    let mut packets = Vec::new();
    for number in 0..500 {
        let packet = Crafted::udp(at("10.0.16.2", 4000 + number), at("198.18.0.1", 4000));
        packets.extend(packet.encode(Tag { run: 0, id: 0 })?);
    }
    let all: Vec<&Vec<u8>> = packets.iter().cycle().take(usize::try_from(DENIED)?).collect();
    Injector::on(stage.lab.cluster())?.send(&all)
}

/// Waits for an account of everything logged and says what was dropped, logged, shown and lost.
fn account(stage: &mut Stage) -> Result<[u64; 4]> {
    let counters = nft::counters(&stage.lab.firewall)?;
    let (dropped, logged) = (counters.named("drop_total"), counters.named("drop_logged"));
    stage.wait_for(logged, Duration::from_secs(60))?;
    // Whatever is said too often comes within two settlements.
    std::thread::sleep(Duration::from_secs(2));
    let records = stage.records()?;
    eprintln!(
        "dropped {dropped}, logged {logged}, shown {} in {} records, lost {:?}",
        shown(&records),
        records.len(),
        losses(&records)
    );
    Ok([dropped, logged, shown(&records), lost(&records)])
}

#[test]
fn without_a_limit_shown_and_lost_are_all_that_a_flood_had() -> Result<()> {
    let mut stage = Stage::running("dt-flood", &firewall_with("  dropLog: {rate: 0}"))?;
    flood(&stage)?;
    let [dropped, logged, shown, lost] = account(&mut stage)?;
    assert_eq!((dropped, logged), (DENIED, DENIED));
    assert_eq!(shown + lost, DENIED);
    assert!(shown > DENIED / 100, "nearly everything was lost");
    Ok(())
}

#[test]
fn with_the_limit_shown_suppressed_and_lost_are_all_that_a_flood_had() -> Result<()> {
    let mut stage = Stage::running("dt-limit", FIREWALL)?;
    flood(&stage)?;
    let [dropped, logged, shown, lost] = account(&mut stage)?;
    assert_eq!(dropped, DENIED);
    let suppressed = dropped - logged;
    assert_eq!(shown + suppressed + lost, DENIED);
    assert!(suppressed > DENIED / 2 && shown > 0);
    Ok(())
}

#[test]
fn a_table_that_is_made_again_is_no_loss_and_hides_none() -> Result<()> {
    let mut stage = Stage::running("dt-again", &firewall_with("  dropLog: {rate: 0}"))?;
    stage.send_numbered(0..200)?;
    stage.wait_for(200, crate::daemon::PATIENCE)?;
    // The client reads the counters once a second.
    std::thread::sleep(Duration::from_secs(2));
    for arguments in [&["flush"][..], &["flush", "--undo"]] {
        let output = stage.daemon.ask(arguments)?;
        assert!(output.status.success(), "{output:?}");
    }
    stage.daemon.wait_until_enforcing()?;
    std::thread::sleep(Duration::from_secs(3));
    flood(&stage)?;
    let [_, logged, shown, lost] = account(&mut stage)?;
    assert!(logged == DENIED || logged == DENIED + 200, "{logged}");
    assert_eq!(shown + lost, DENIED + 200);
    Ok(())
}

#[test]
fn a_burst_whose_end_nobody_read_is_accounted_for_without_another_packet() -> Result<()> {
    let mut stage = Stage::running("dt-asleep", &firewall_with("  dropLog: {rate: 0}"))?;
    stage.client()?.signal(Signal::SIGSTOP)?;
    // The kernel's buffer is full before they are all there, and no number tells of the last ones.
    flood(&stage)?;
    stage.client()?.signal(Signal::SIGCONT)?;
    let [_, logged, shown, lost] = account(&mut stage)?;
    assert_eq!(logged, DENIED);
    assert_eq!(shown + lost, DENIED);
    assert!(
        lost > 0 && stage.metric("droptailer_overruns_total")? > 0,
        "the kernel's buffer had room for all"
    );
    Ok(())
}
