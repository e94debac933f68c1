//! The client listens where the rules log.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::stage::{Stage, losses, lost, number, shown};
use crate::daemon::{PATIENCE, eventually};
use crate::rig::firewall_with;

fn firewall(group: u16) -> String {
    firewall_with(&format!("  dropLog: {{rate: 0}}\n  nflogGroup: {group}"))
}

fn listens_to(stage: &Stage, group: u64) -> Result<()> {
    eventually(&format!("the client listens to group {group}"), || {
        // Its socket comes a moment later than the program.
        Ok(stage.metric("droptailer_nflog_group").is_ok_and(|listened| listened == group))
    })
}

#[test]
fn the_client_listens_to_the_group_of_the_firewall_object_and_follows_it_without_an_uncounted_loss()
-> Result<()> {
    let mut stage = Stage::new("dt-group", &firewall(7))?;
    stage.start_server()?;
    stage.start_client(&[])?;
    listens_to(&stage, 7)?;
    let lines = stage.client()?.lines().join("\n");
    ensure!(!lines.contains("NFLOG group 1"), "it asks before it listens: {lines}");
    stage.send_numbered(0..100)?;
    stage.wait_for(100, PATIENCE)?;
    stage.daemon.write("all.yaml", &firewall(9))?;
    // While the rules change and the client does not know it yet.
    let mut sent = 100;
    while stage.metric("droptailer_nflog_group")? != 9 {
        stage.send_numbered(sent..sent + 10)?;
        sent += 10;
        ensure!(sent < 20_000, "it stays with group 7: {:?}", stage.client()?.lines());
        std::thread::sleep(Duration::from_millis(20));
    }
    stage.send_numbered(sent..sent + 100)?;
    let last = sent + 100;
    stage.wait_for(last.into(), PATIENCE)?;
    // Whatever is said too often comes within two settlements.
    std::thread::sleep(Duration::from_secs(3));
    let records = stage.records()?;
    eprintln!("{} shown, lost {:?}", shown(&records), losses(&records));
    ensure!(shown(&records) + lost(&records) == u64::from(last), "{:?}", losses(&records));
    let shown: Vec<u32> = records.iter().filter_map(number).collect();
    ensure!(shown.is_sorted_by(|a, b| a < b), "in order, and none twice");
    ensure!((sent..last).all(|number| shown.contains(&number)), "what came after the change is there");
    Ok(())
}

#[test]
fn without_the_controller_the_client_listens_where_it_did_last_or_to_the_group_it_is_told() -> Result<()> {
    let mut stage = Stage::new("dt-group-alone", &firewall(7))?;
    stage.start_server()?;
    let spool = stage.spool();
    let kept = ["--spool-directory", spool.as_str()];
    stage.start_client(&kept)?;
    listens_to(&stage, 7)?;
    stage.daemon.kill()?;
    stage.send_numbered(0..100)?;
    stage.wait_for(100, PATIENCE)?;
    stage.end_client(Signal::SIGTERM)?;
    stage.start_client(&kept)?;
    listens_to(&stage, 7)?;
    stage.send_numbered(100..200)?;
    stage.wait_for(200, PATIENCE)?;
    stage.end_client(Signal::SIGTERM)?;
    // Nothing is known: the default, until the controller says something else.
    stage.start_client(&[])?;
    listens_to(&stage, 1)?;
    let Stage { lab, daemon, .. } = &mut stage;
    daemon.start_in(lab)?;
    listens_to(&stage, 7)?;
    stage.end_client(Signal::SIGTERM)?;
    // Who is told a group believes nobody else.
    stage.start_client(&["--nflog-group", "5"])?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(stage.metric("droptailer_nflog_group")? == 5);
    Ok(())
}
