//! Packets at full speed: the same frames over and over, nothing built between two of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};

use crate::topology::Machine;
use crate::traffic::craft::{Crafted, Tag};
use crate::traffic::inject::ethernet_header_for;
use crate::traffic::packet_socket::{NONE, PacketSocket, Ring};

/// What a flood has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Frames that the firewall's interface took.
    pub sent: u64,
    /// Frames that found its queue full; they are not sent again.
    pub refused: u64,
    /// Time on the clock.
    pub time: Duration,
    /// Time of the sending thread on a CPU. What the firewall does with a frame is in it as long as the kernel does it
    /// in the sender's context, as it does between veths until the load makes ksoftirqd take over.
    pub cpu: Duration,
}

impl Report {
    /// Frames sent per second.
    #[allow(clippy::cast_precision_loss, reason = "a rate for people; 52 bits are plenty")]
    pub fn per_second(&self) -> f64 {
        self.sent as f64 / self.time.as_secs_f64()
    }

    /// Thread time for each frame sent, in nanoseconds.
    #[allow(clippy::cast_precision_loss, reason = "a figure for people; 52 bits are plenty")]
    pub fn nanoseconds_each(&self) -> f64 {
        self.cpu.as_nanos() as f64 / (self.sent as f64).max(1.0)
    }
}

/// Frames of one machine, ready to be sent.
#[derive(Debug)]
pub struct Flood {
    socket: PacketSocket,
    ring: Ring,
    name: String,
}

impl Flood {
    /// From a machine to the firewall: these packets, one after the other and then again from the first.
    pub fn new(machine: &Machine, packets: &[Crafted]) -> Result<Self> {
        let mut frames = Vec::with_capacity(packets.len());
        for (id, packet) in packets.iter().enumerate() {
            for bytes in packet.encode(Tag { run: u32::MAX, id: u32::try_from(id)? })? {
                frames.push([&ethernet_header_for(machine, packet.source.is_ipv6())[..], &bytes].concat());
            }
        }
        ensure!(!frames.is_empty(), "a flood has one packet at least");
        let socket = PacketSocket::open(&machine.ns, Machine::INTERFACE, NONE)?;
        // Past the queueing discipline: nothing between the socket and the driver.
        socket.bypass_queue()?;
        Ok(Self { socket, ring: Ring::new(frames), name: machine.ns.name().to_owned() })
    }

    /// Sends so many frames as fast as it can.
    pub fn send(&mut self, frames: u64) -> Result<Report> {
        let mut report = Report::default();
        let (begin, cpu) = (Instant::now(), thread_time()?);
        while report.sent + report.refused < frames {
            let left = usize::try_from(frames - report.sent - report.refused).unwrap_or(usize::MAX);
            self.step(left, &mut report)?;
        }
        (report.time, report.cpu) = (begin.elapsed(), thread_time()?.saturating_sub(cpu));
        Ok(report)
    }

    fn step(&mut self, most: usize, report: &mut Report) -> Result<()> {
        match self.socket.send_ring(&mut self.ring, most) {
            Ok(sent) => report.sent += u64::try_from(sent)?,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.ring.skip();
                report.refused += 1;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("cannot send from {}", self.name)),
        }
        Ok(())
    }

    /// Sends on a thread of its own until it is stopped.
    pub fn start(mut self) -> Result<Flooding> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (its_stop, its_sent) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::Builder::new().name("testkit-flood".to_owned()).spawn(move || {
            let mut report = Report::default();
            let (begin, cpu) = (Instant::now(), thread_time()?);
            while !its_stop.load(Ordering::Relaxed) {
                self.step(usize::MAX, &mut report)?;
                its_sent.store(report.sent, Ordering::Relaxed);
            }
            (report.time, report.cpu) = (begin.elapsed(), thread_time()?.saturating_sub(cpu));
            Ok(report)
        })?;
        Ok(Flooding { stop, sent, thread: Some(thread) })
    }
}

/// A flood that goes on; ends on drop.
#[derive(Debug)]
pub struct Flooding {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Report>>>,
}

impl Flooding {
    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(Report::default()),
        }
    }
}

impl Drop for Flooding {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn thread_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
