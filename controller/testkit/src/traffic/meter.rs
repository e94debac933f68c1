//! Rates: connections per second, bytes per second.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use crate::Netns;
use crate::traffic::probe::connect_within;
use crate::traffic::server::Server;

/// A figure and the time it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Connections or bytes.
    pub amount: u64,
    /// Measured time.
    pub time: Duration,
}

impl Rate {
    /// Per second.
    #[allow(clippy::cast_precision_loss, reason = "a rate for people; 52 bits are plenty")]
    pub fn per_second(&self) -> f64 {
        self.amount as f64 / self.time.as_secs_f64()
    }
}

/// Opens and closes TCP connections, one after the other on each of `threads` threads, for `time`. The server
/// should be a [`crate::traffic::server::Service::Close`]. Any failure to connect is an error.
pub fn connections(
    ns: &Netns,
    from: Option<SocketAddr>,
    to: SocketAddr,
    time: Duration,
    threads: usize,
) -> Result<Rate> {
    let begin = Instant::now();
    let one_thread = || -> io::Result<u64> {
        let mut opened = 0;
        while begin.elapsed() < time {
            let stream = connect_within(from, to, Duration::from_secs(10))?;
            reset_on_close(&stream)?;
            opened += 1;
        }
        Ok(opened)
    };
    let results: Vec<io::Result<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| ns.run(one_thread))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Result<_>>()
    })?;
    let amount =
        results.into_iter().sum::<io::Result<u64>>().with_context(|| format!("cannot connect to {to}"))?;
    Ok(Rate { amount, time: begin.elapsed() })
}

/// No TIME_WAIT, which would use up the ports within a second.
fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(setsockopt(&stream.as_fd(), sockopt::Linger, &linger)?)
}

/// Sends to a [`crate::traffic::server::Service::Sink`] over one TCP connection and counts what arrives, for
/// `time` after `warm_up`.
pub fn upload(
    ns: &Netns,
    from: Option<SocketAddr>,
    sink: &Server,
    to: SocketAddr,
    warm_up: Duration,
    time: Duration,
) -> Result<Rate> {
    let stop = AtomicBool::new(false);
    let send = || -> io::Result<()> {
        let mut stream = connect_within(from, to, Duration::from_secs(10))?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        let zeros = [0; 16 << 10];
        run_until(&stop, || stream.write(&zeros))
    };
    measure(ns, send, &stop, warm_up, time, || sink.received_bytes())
        .with_context(|| format!("upload to {to}"))
}

/// Receives from a [`crate::traffic::server::Service::Source`] over one TCP connection and counts what
/// arrives, for `time` after `warm_up`.
pub fn download(
    ns: &Netns,
    from: Option<SocketAddr>,
    source: SocketAddr,
    warm_up: Duration,
    time: Duration,
) -> Result<Rate> {
    let stop = AtomicBool::new(false);
    let received = AtomicU64::new(0);
    let receive = || -> io::Result<()> {
        let mut stream = connect_within(from, source, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut buffer = vec![0; 64 << 10];
        run_until(&stop, || {
            let length = stream.read(&mut buffer)?;
            received.fetch_add(u64::try_from(length).unwrap_or(0), Ordering::Relaxed);
            Ok(length)
        })
    };
    measure(ns, receive, &stop, warm_up, time, || received.load(Ordering::Relaxed))
        .with_context(|| format!("download from {source}"))
}

fn run_until(stop: &AtomicBool, mut step: impl FnMut() -> io::Result<usize>) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        match step() {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if crate::traffic::server::is_temporary(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn measure(
    ns: &Netns,
    work: impl FnOnce() -> io::Result<()> + Send,
    stop: &AtomicBool,
    warm_up: Duration,
    time: Duration,
    counted: impl Fn() -> u64,
) -> Result<Rate> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| ns.run(work));
        std::thread::sleep(warm_up);
        let (begin, before) = (Instant::now(), counted());
        std::thread::sleep(time);
        let rate = Rate { amount: counted().saturating_sub(before), time: begin.elapsed() };
        stop.store(true, Ordering::Relaxed);
        match worker.join() {
            Ok(Ok(Ok(()))) => Ok(rate),
            Ok(Ok(Err(error))) => Err(error.into()),
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("the thread that moves the bytes panicked"),
        }
    })
}
