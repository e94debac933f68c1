//! Logs that are rotated, truncated, full of garbage, or written faster than anybody reads.

use std::fs::{self, File};
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::daemon::{Daemon, eventually};

use super::field::{edits_are_enforced, logged, of, places, running};

/// As suricata writes them, all of one length.
fn alert(number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!(
        "{{\"event_type\":\"alert\",\"in_iface\":\"vlan179\",\"src_ip\":\"2001:db8::1{a:02x}:1{b:02x}:1{c:02x}\",\"src_port\":40000,\
         \"dest_ip\":\"203.0.113.9\",\"dest_port\":9,\"proto\":\"UDP\",\"alert\":{{\"action\":\"allowed\",\"gid\":1,\
         \"signature_id\":{},\"rev\":1,\"signature\":\"scripted\",\"category\":\"\",\"severity\":3}}}}\n",
        1_000_000 + number % 1000
    )
}

fn count(status: &Value, group: &str, key: &str) -> u64 {
    of(status)[group][key].as_u64().unwrap_or_default()
}

fn is_logged(daemon: &Daemon, number: u32) -> Result<()> {
    let sid = format!(" 1:{}:1 ", 1_000_000 + number);
    eventually(&format!("alert{sid}is logged"), || Ok(logged(daemon)?.iter().any(|line| line.contains(&sid))))
}

fn append(daemon: &Daemon, text: &[u8]) -> Result<()> {
    let mut file = File::options().append(true).create(true).open(places(daemon).1)?;
    Ok(file.write_all(text)?)
}

#[test]
fn a_log_that_is_rotated_truncated_or_garbage_loses_no_alert_that_comes_after() -> Result<()> {
    let (lab, mut daemon) = running("ids-log")?;
    let log = places(&daemon).1;
    // It was not there when the controller began.
    append(&daemon, alert(1).as_bytes())?;
    is_logged(&daemon, 1)?;
    fs::rename(&log, log.with_extension("1"))?;
    append(&daemon, alert(2).as_bytes())?;
    is_logged(&daemon, 2)?;
    File::options().write(true).open(&log)?.set_len(0)?;
    daemon.wait_until("that it became shorter is noticed", |status| {
        count(status, "logChanges", "truncated") == 1
    })?;
    append(&daemon, alert(3).as_bytes())?;
    is_logged(&daemon, 3)?;
    let garbage: Vec<u8> =
        (0..1_000_000_u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    append(&daemon, &garbage)?;
    append(&daemon, &vec![b'\0'; 1_000_000])?;
    append(&daemon, format!("\n{}", alert(4)).as_bytes())?;
    is_logged(&daemon, 4)?;
    let status = daemon.wait_until("all was counted", |status| count(status, "alerts", "shown") == 4)?;
    assert_eq!((count(&status, "logChanges", "rotated"), count(&status, "badLines", "tooLong")), (1, 1));
    assert!(count(&status, "badLines", "malformed") > 0);
    edits_are_enforced(&lab, &daemon, 443)?;

    // A restart goes on where it was: nothing is told again, and nothing of meanwhile is left out.
    daemon.stop()?;
    append(&daemon, alert(5).as_bytes())?;
    daemon.start_in(&lab)?;
    is_logged(&daemon, 5)?;
    assert_eq!(logged(&daemon)?.len(), 1);
    Ok(())
}

#[test]
fn a_hundred_thousand_alerts_a_second_are_bounded_and_every_byte_is_accounted_for() -> Result<()> {
    let (lab, daemon) = running("ids-flood")?;
    append(&daemon, b"")?;
    daemon.wait_until("the log is followed", |status| {
        status["status"]["controller"]["problems"].as_array().is_none_or(|lines| lines.len() < 2)
    })?;
    let length = u64::try_from(alert(0).len())?;
    let began = Instant::now();
    let path = places(&daemon).1;
    let flood = std::thread::spawn(move || -> Result<u64> {
        let mut file = File::options().append(true).open(path)?;
        let mut written = 0;
        for second in 0..2 {
            for tenth in 0..10_u32 {
                let batch: String =
                    (0..10_000).map(|number| alert((second * 10 + tenth) * 10_000 + number)).collect();
                file.write_all(batch.as_bytes())?;
                written += 10_000;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(written)
    });
    edits_are_enforced(&lab, &daemon, 443)?;
    let Ok(written) = flood.join() else { anyhow::bail!("the writer has panicked") };
    let total = written? * length;
    let status = daemon.wait_until("every byte was read or skipped", |status| {
        count(status, "logBytes", "read") + count(status, "logBytes", "skipped") == total
    })?;
    assert!(count(&status, "logBytes", "skipped") > 0, "the flood is beyond the bound: {}", of(&status));
    // But for a line at either end of what was skipped, all that was read was taken for what it is.
    let seen = count(&status, "alerts", "shown") + count(&status, "alerts", "suppressed");
    let read = count(&status, "logBytes", "read") / length;
    assert!(seen <= read && seen + 50 > read, "{seen} of {read} lines");
    assert_eq!(count(&status, "badLines", "malformed"), 0);
    assert!(of(&status)["events"].as_u64().is_some_and(|events| (1..=32).contains(&events)));
    let most = 20 + 2 * (began.elapsed().as_secs() + 1);
    let lines = u64::try_from(logged(&daemon)?.len())?;
    assert!(lines <= most, "{lines} lines, at most {most}");
    append(&daemon, alert(0).as_bytes())?;
    edits_are_enforced(&lab, &daemon, 444)
}
