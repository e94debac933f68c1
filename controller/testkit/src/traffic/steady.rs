//! Traffic that goes on and must not be disturbed.

use std::io::{self, Read as _, Write as _};
use std::mem::{size_of, zeroed};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Netns;
use crate::traffic::probe::connect_within;
use crate::traffic::server::is_temporary;

/// After so long without an answer a connection counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a message: connection and number.
const MESSAGE: usize = 16;

/// What steady traffic has lived through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Connections or flows that were opened.
    pub flows: usize,
    /// Messages sent.
    pub sent: u64,
    /// Messages that came back.
    pub answered: u64,
    /// TCP: one line for each connection that broke. UDP: socket errors.
    pub breaks: Vec<String>,
    /// TCP segments that had to be sent again (tcpi_total_retrans): packets lost on the way.
    pub retransmits: u64,
    /// Longest time between a message and its answer.
    pub slowest: Duration,
}

/// Steady traffic on a thread of its own; ends on drop.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Steady {
    /// Opens `connections` TCP connections to an echo server and keeps exchanging a message on each every
    /// `pace`. Fails if one cannot be opened.
    pub fn tcp(
        ns: &Netns,
        from: Option<SocketAddr>,
        to: SocketAddr,
        connections: usize,
        pace: Duration,
    ) -> Result<Self> {
        let streams = ns.run(|| {
            (0..connections).map(|_| connect_within(from, to, PATIENCE)).collect::<io::Result<Vec<_>>>()
        })?;
        let streams = streams.with_context(|| format!("cannot open {connections} connections to {to}"))?;
        let flows: Vec<Flow> = streams
            .into_iter()
            .enumerate()
            .map(|(number, stream)| Flow::new(number, stream))
            .collect::<Result<_>>()?;
        Self::start(connections, move |stop, report| exercise(flows, pace, stop, report))
    }

    /// Sends a datagram from one socket to a UDP echo server every `pace`, and counts the answers.
    pub fn udp(ns: &Netns, from: SocketAddr, to: SocketAddr, pace: Duration) -> Result<Self> {
        let socket = ns.run(|| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind(from)?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        let socket = socket.with_context(|| format!("cannot ask {to} from {from}"))?;
        Self::start(1, move |stop, report| question(&socket, pace, stop, report))
    }

    fn start(
        flows: usize,
        work: impl FnOnce(&AtomicBool, &Mutex<Report>) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let report = Arc::new(Mutex::new(Report { flows, ..Report::default() }));
        let (its_stop, its_report) = (Arc::clone(&stop), Arc::clone(&report));
        let thread = std::thread::Builder::new()
            .name("testkit-steady".to_owned())
            .spawn(move || work(&its_stop, &its_report))?;
        Ok(Self { stop, report, thread: Some(thread) })
    }

    /// How it has gone so far.
    pub fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Exchanges one more message on each connection, waits for the answers that are due and tells how it went.
    pub fn stop(mut self) -> Result<Report> {
        self.end()?;
        Ok(self.report())
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One TCP connection; at most one message is under way.
struct Flow {
    stream: TcpStream,
    name: String,
    number: u64,
    round: u64,
    received: Vec<u8>,
    greeted: bool,
    asked: Option<Instant>,
    next: Instant,
    /// The last message has been sent: whoever stops wants to know that the connection lives at that moment.
    farewell: bool,
}

impl Flow {
    fn new(number: usize, stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            name: format!("{} to {}", stream.local_addr()?, stream.peer_addr()?),
            stream,
            number: u64::try_from(number)?,
            round: 0,
            received: Vec::new(),
            greeted: false,
            asked: None,
            next: Instant::now(),
            farewell: false,
        })
    }

    fn message(&self) -> [u8; MESSAGE] {
        let mut message = [0; MESSAGE];
        message[..8].copy_from_slice(&self.number.to_be_bytes());
        message[8..].copy_from_slice(&self.round.to_be_bytes());
        message
    }

    fn ask(&mut self) -> Result<()> {
        // 16 bytes always fit into the buffer of a connection on which nothing else is under way.
        self.stream.write_all(&self.message()).context("cannot send")?;
        self.asked = Some(Instant::now());
        Ok(())
    }

    /// Reads what is there; the time that the answer took, once it is complete.
    fn hear(&mut self, pace: Duration) -> Result<Option<Duration>> {
        let mut buffer = [0; 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("closed by the other side"),
            Ok(length) => self.received.extend(&buffer[..length]),
            Err(error) if is_temporary(&error) => return Ok(None),
            Err(error) => return Err(error).context("cannot receive"),
        }
        if !self.greeted {
            let Some(end) = self.received.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
            self.received.drain(..=end);
            self.greeted = true;
        }
        let Some(asked) = self.asked.filter(|_| self.received.len() >= MESSAGE) else { return Ok(None) };
        ensure!(self.received == self.message(), "message {} came back changed", self.round);
        self.received.clear();
        self.asked = None;
        self.round += 1;
        self.next = asked + pace;
        Ok(Some(asked.elapsed()))
    }

    /// Asks when it is time to, complains when an answer is overdue.
    fn tick(&mut self, stopping: bool) -> Result<bool> {
        match self.asked {
            Some(asked) if asked.elapsed() > PATIENCE => {
                bail!("no answer to message {} for {PATIENCE:?}", self.round)
            }
            Some(_) => Ok(false),
            None if self.farewell => Ok(false),
            None if stopping || Instant::now() >= self.next => {
                self.farewell = stopping;
                self.ask().map(|()| true)
            }
            None => Ok(false),
        }
    }
}

fn exercise(mut flows: Vec<Flow>, pace: Duration, stop: &AtomicBool, report: &Mutex<Report>) -> Result<()> {
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        flows.retain_mut(|flow| match flow.tick(stopping) {
            Ok(asked) => {
                lock(report).sent += u64::from(asked);
                true
            }
            Err(error) => {
                lock(report).breaks.push(format!("{}: {error:#}", flow.name));
                false
            }
        });
        let retransmits = flows.iter().map(|flow| retransmits(&flow.stream)).sum::<io::Result<u64>>()?;
        {
            let mut report = lock(report);
            report.retransmits = report.retransmits.max(retransmits);
        }
        if flows.iter().all(|flow| flow.farewell && flow.asked.is_none()) {
            return Ok(());
        }
        let mut entries: Vec<PollFd<'_>> =
            flows.iter().map(|flow| PollFd::new(flow.stream.as_fd(), PollFlags::POLLIN)).collect();
        let wait = pace.clamp(Duration::from_millis(1), Duration::from_millis(20));
        match poll(&mut entries, PollTimeout::try_from(wait)?) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        flows.retain_mut(|flow| match flow.hear(pace) {
            Ok(answer) => {
                let mut report = lock(report);
                report.answered += u64::from(answer.is_some());
                report.slowest = report.slowest.max(answer.unwrap_or_default());
                true
            }
            Err(error) => {
                lock(report).breaks.push(format!("{}: {error:#}", flow.name));
                false
            }
        });
    }
}

/// Segments that the kernel has sent again on a connection.
pub(crate) fn retransmits(stream: &TcpStream) -> io::Result<u64> {
    // SAFETY: a plain struct of integers.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: value and length are live and belong together.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::from(info.tcpi_total_retrans)) }
}

fn question(socket: &UdpSocket, pace: Duration, stop: &AtomicBool, report: &Mutex<Report>) -> Result<()> {
    let mut ended: Option<Instant> = None;
    let mut next = Instant::now();
    let mut asked: Vec<Instant> = Vec::new();
    let mut buffer = [0; 256];
    loop {
        if ended.is_none() && stop.load(Ordering::Relaxed) {
            ended = Some(Instant::now());
        }
        if ended.is_none() && Instant::now() >= next {
            let number = u64::try_from(asked.len())?;
            asked.push(Instant::now());
            next = (next + pace).max(Instant::now());
            match socket.send(&number.to_be_bytes()) {
                Ok(_) => lock(report).sent += 1,
                Err(error) => lock(report).breaks.push(format!("cannot send: {error}")),
            }
        }
        {
            let report = lock(report);
            let overdue = ended.is_some_and(|ended| ended.elapsed() > Duration::from_secs(1));
            if ended.is_some() && (report.answered >= report.sent || overdue) {
                return Ok(());
            }
        }
        let left = next.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.clamp(Duration::from_millis(1), Duration::from_millis(20))))?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let number = length.checked_sub(8).and_then(|at| buffer[at..length].try_into().ok());
                let number = number.map(u64::from_be_bytes).context("an answer without a number")?;
                let since = asked.get(usize::try_from(number)?).context("an answer to nothing")?;
                let mut report = lock(report);
                report.answered += 1;
                report.slowest = report.slowest.max(since.elapsed());
            }
            Err(error) if is_temporary(&error) => {}
            Err(error) => lock(report).breaks.push(format!("cannot receive: {error}")),
        }
    }
}
