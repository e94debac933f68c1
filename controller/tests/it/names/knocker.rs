//! Clients that open connections all the time and note each that was not accepted at its first packet.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use fw_testkit::Netns;

/// Between two connections.
const PACE: Duration = Duration::from_millis(1);
/// A SYN is sent again after a second: what takes as long as this has lost its first.
const PATIENCE: Duration = Duration::from_millis(900);

/// What they have lived through.
#[derive(Clone, Debug, Default)]
pub(crate) struct Knocks {
    /// Connections that were opened.
    pub(crate) opened: usize,
    /// When connections were begun that did not come about, since the first of all.
    pub(crate) lost: Vec<(Duration, IpAddr)>,
}

impl Knocks {
    /// From the first to the last that was lost.
    pub(crate) fn closed_for(&self) -> Duration {
        match (self.lost.first(), self.lost.last()) {
            (Some((first, _)), Some((last, _))) => last.saturating_sub(*first),
            _ => Duration::ZERO,
        }
    }
}

/// One client for each address; ends on drop.
pub(crate) struct Knocker {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Knocks>>>,
}

impl Knocker {
    /// Knocks at one port of all addresses. While an address does not answer, its client tries anew after
    /// `patience` (at most that of a first packet).
    pub(crate) fn new(ns: &Netns, addresses: &[IpAddr], port: u16, patience: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let begin = Instant::now();
        let start = |address: &IpAddr| {
            let (to, its) = (SocketAddr::new(*address, port), Arc::clone(&stop));
            ns.spawn(move || knock(to, begin, patience.min(PATIENCE), &its))
        };
        Ok(Self { threads: addresses.iter().map(start).collect::<Result<_>>()?, stop })
    }

    /// Ends them.
    pub(crate) fn stop(mut self) -> Result<Knocks> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Knocks::default();
        for thread in self.threads.drain(..) {
            let one = thread.join().map_err(|_| anyhow!("a client panicked"))??;
            all.opened += one.opened;
            all.lost.extend(one.lost);
        }
        all.lost.sort();
        Ok(all)
    }
}

impl Drop for Knocker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn knock(to: SocketAddr, begin: Instant, patience: Duration, stop: &AtomicBool) -> Knocks {
    let mut knocks = Knocks::default();
    while !stop.load(Ordering::Relaxed) {
        let began = begin.elapsed();
        match TcpStream::connect_timeout(&to, patience) {
            Ok(_) => knocks.opened += 1,
            Err(_) => knocks.lost.push((began, to.ip())),
        }
        std::thread::sleep(PACE);
    }
    knocks
}
