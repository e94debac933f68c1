//! The drop counter is exact, the drop log is limited, and together they account for every packet.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fw_netlink::nflog::{Options, Reader};
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::{Crafted, Tag};
use fw_testkit::traffic::inject::Injector;

use crate::rig::{FIREWALL, Rig, at, documents, firewall_with, policy};

const PREFIX: &str = "nftables-firewall-dropped: ";
const DENIED: u64 = 100_000;

/// What a listener saw.
struct Log {
    lines: u64,
    lost: u64,
    wrong: Vec<String>,
}

/// Listens to group 1 in the firewall until `done`, then for as long as lines come.
fn listen(lab: &Lab, ready: &AtomicBool, done: &AtomicBool) -> Result<Log> {
    lab.firewall.run(|| {
        let mut reader = Reader::open(Options::group(1))?;
        ready.store(true, Ordering::Release);
        let mut log = Log { lines: 0, lost: 0, wrong: Vec::new() };
        loop {
            let finished = done.load(Ordering::Acquire);
            let before = log.lines;
            reader.read(Duration::from_millis(200), |packet| {
                log.lines += 1;
                let destination = packet.payload.get(16..20);
                if packet.prefix != PREFIX || destination != Some(&[198, 18, 0, 1][..]) {
                    log.wrong.push(format!("{:?} to {destination:?}", packet.prefix));
                }
            })?;
            if finished && log.lines == before {
                log.lost = reader.loss().packets + reader.loss().overruns;
                return Ok(log);
            }
        }
    })?
}

/// Sends the denied packets at full speed with a listener at work; the log and the time it took.
fn flood(rig: &Rig) -> Result<(Log, Duration)> {
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let lab = &rig.lab;
        let listener = scope.spawn(|| listen(lab, &ready, &done));
        while !ready.load(Ordering::Acquire) && !listener.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let denied = Crafted::udp(at("10.0.16.2", 4000), at("198.18.0.1", 4000));
        let packets = denied.encode(Tag { run: 0, id: 0 })?;
        let mut injector = Injector::on(rig.lab.cluster())?;
        let start = Instant::now();
        let all: Vec<&Vec<u8>> = packets.iter().cycle().take(usize::try_from(DENIED)?).collect();
        injector.send(&all)?;
        let took = start.elapsed();
        done.store(true, Ordering::Release);
        let log = listener.join().ok().context("the listener panicked")??;
        Ok((log, took))
    })
}

#[test]
fn every_denied_packet_is_counted_and_shown_or_suppressed() -> Result<()> {
    let allow = policy("web", "{egress: [{to: [{cidr: 1.2.3.0/24}]}]}");
    let rig = Rig::new("droplog", &documents(&[FIREWALL, &allow]))?;
    let (log, took) = flood(&rig)?;
    let counters = rig.counters()?;
    assert_eq!(counters.named("drop_total"), DENIED);
    assert_eq!(counters.comment("count and log dropped packets"), DENIED);
    let shown = counters.named("drop_logged");
    assert_eq!((log.lines, log.lost), (shown, 0), "what the kernel says it logged is what arrives");
    assert_eq!(log.wrong, Vec::<String>::new());
    // 10 a second, one at once, and the second in which the bucket fills again.
    let most = 10 * (took.as_secs() + 2) + 1;
    assert!((1..=most).contains(&shown), "{shown} lines in {took:?}");
    Ok(())
}

#[test]
fn without_a_limit_every_denied_packet_is_a_line() -> Result<()> {
    let rig = Rig::new("unlimited", &firewall_with("  dropLog: {rate: 0}"))?;
    let (log, _) = flood(&rig)?;
    let counters = rig.counters()?;
    assert_eq!((counters.named("drop_total"), counters.named("drop_logged")), (DENIED, DENIED));
    assert_eq!(log.lines + log.lost, DENIED, "shown and counted lost are all");
    Ok(())
}
