//! Certificates are renewed while records go on.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use fw_droptailer::certs::{Holder, Pair, new_authority, pair};

use super::stage::{Stage, number};
use crate::daemon::{PATIENCE, eventually};
use crate::rig::firewall_with;

const FAILED: &str = "droptailer_certificate_reloads_total{outcome=\"failed\"}";
const LOADED: &str = "droptailer_certificate_reloads_total{outcome=\"loaded\"}";

fn read(directory: &Path) -> Result<Pair> {
    let text = |name: &str| fs::read_to_string(directory.join(name)).with_context(|| name.to_owned());
    Ok(Pair { certificate: text("ca.crt")?, key: text("ca.key")? })
}

/// Three files one after the other, each in one step.
fn put(directory: &Path, authority: &str, pair: &Pair) -> Result<()> {
    for (name, text) in [("ca.crt", authority), ("tls.crt", &pair.certificate), ("tls.key", &pair.key)] {
        let beside = directory.join(".new");
        fs::write(&beside, text)?;
        fs::rename(beside, directory.join(name))?;
    }
    Ok(())
}

/// Sends numbered packets in small steps until something is so.
fn send_until(stage: &Stage, sent: &mut u32, what: &str, so: impl Fn() -> Result<bool>) -> Result<()> {
    eventually(what, || {
        stage.send_numbered(*sent..*sent + 10)?;
        *sent += 10;
        std::thread::sleep(Duration::from_millis(20));
        so()
    })
}

#[test]
fn the_client_goes_over_to_renewed_certificates_and_loses_no_record_and_broken_ones_change_nothing()
-> Result<()> {
    let mut stage = Stage::running("dt-renew", &firewall_with("  dropLog: {rate: 0}"))?;
    let directory = stage.certificates().to_owned();
    let (server, client) = (directory.join("server"), directory.join("client"));
    let authority = read(&directory)?;
    let now = SystemTime::now();
    let mut sent = 0;
    let loaded = |stage: &Stage, count: u64| Ok(stage.metric(LOADED)? >= count);

    // Another pair of the same authority.
    put(&client, &authority.certificate, &pair(&authority, Holder::Client, 30, now)?)?;
    send_until(&stage, &mut sent, "the new pair is in use", || loaded(&stage, 1))?;

    // No certificate, half a pair, and one that is over: the connection stays, with what was there.
    let connections = stage.metric("droptailer_connections_total")?;
    let good = pair(&authority, Holder::Client, 30, now)?;
    let years_ago = now - Duration::from_secs(5 * 365 * 86_400);
    let garbage = Pair { certificate: "no certificate\n".to_owned(), key: good.key.clone() };
    let foreign = Pair { key: pair(&authority, Holder::Client, 30, now)?.key, ..good.clone() };
    let over = pair(&authority, Holder::Client, 30, years_ago)?;
    for (what, bad) in [("garbage", garbage), ("another's key", foreign), ("one that has expired", over)] {
        let failed = stage.metric(FAILED)?;
        put(&client, &authority.certificate, &bad)?;
        send_until(&stage, &mut sent, what, || Ok(stage.metric(FAILED)? > failed))?;
        // Looked at once more, when all three are written.
        std::thread::sleep(Duration::from_millis(2500));
    }
    ensure!(loaded(&stage, 1)? && !loaded(&stage, 2)?, "a broken one was loaded");
    ensure!(stage.metric("droptailer_connections_total")? == connections, "the connection was given up");
    let lines = stage.client()?.lines().join("\n");
    ensure!(lines.contains("certificates stay as they are") && lines.contains("has expired"), "{lines}");

    // Another authority, first at the server: until the client has it too, records wait.
    let other = new_authority(30, now)?;
    put(&server, &other.certificate, &pair(&other, Holder::Server, 30, now)?)?;
    let refused = stage.metric("droptailer_failed_connections_total")?;
    send_until(&stage, &mut sent, "the server refuses the old authority", || {
        Ok(stage.metric("droptailer_failed_connections_total")? > refused + 1)
    })?;
    put(&client, &other.certificate, &pair(&other, Holder::Client, 30, now)?)?;
    send_until(&stage, &mut sent, "the new authority is in use", || {
        Ok(stage.metric("droptailer_connected")? == 1 && loaded(&stage, 2)?)
    })?;
    let records = stage.wait_for(sent.into(), PATIENCE)?;
    let numbers: Vec<u32> = records.iter().filter_map(number).collect();
    ensure!(numbers == (0..sent).collect::<Vec<_>>(), "{} of {sent}, in order and once", numbers.len());
    ensure!(records.len() == numbers.len(), "nothing was lost");
    Ok(())
}
