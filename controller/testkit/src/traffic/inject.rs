//! Sends crafted packets from a machine, at full speed or in step.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::topology::Machine;
use crate::traffic::packet_socket::{ARP, BATCH, NONE, PacketSocket};

const ETHER_V4: [u8; 2] = [0x08, 0x00];
const ETHER_V6: [u8; 2] = [0x86, 0xdd];

/// Sends whole IP packets out of a machine's `eth0` to the firewall.
#[derive(Debug)]
pub struct Injector {
    sender: PacketSocket,
    answers: PacketSocket,
    v4_header: [u8; 14],
    v6_header: [u8; 14],
    question: [u8; 42],
    name: String,
}

impl Injector {
    /// For a machine of a lab.
    pub fn on(machine: &Machine) -> Result<Self> {
        Ok(Self {
            sender: PacketSocket::open(&machine.ns, Machine::INTERFACE, NONE)?,
            answers: PacketSocket::open(&machine.ns, Machine::INTERFACE, ARP)?,
            v4_header: ethernet_header_for(machine, false),
            v6_header: ethernet_header_for(machine, true),
            question: arp_probe(machine),
            name: machine.ns.name().to_owned(),
        })
    }

    /// Sends whole Ethernet frames as they are, in order; returns when the firewall is through with them all.
    pub fn send_frames<F: AsRef<[u8]>>(&mut self, frames: &[F]) -> Result<()> {
        let _pinned = Pinned::to_this_cpu()?;
        for batch in frames.chunks(BATCH) {
            self.send_parts(&batch.iter().map(|frame| (frame.as_ref(), &[][..])).collect::<Vec<_>>())?;
        }
        self.settle()
    }

    /// Sends all packets in order as fast as it can; none is lost before the firewall's interface has it.
    /// Returns when the firewall is through with them all, and so is the link behind it.
    pub fn send<P: AsRef<[u8]>>(&mut self, packets: &[P]) -> Result<()> {
        let _pinned = Pinned::to_this_cpu()?;
        for batch in packets.chunks(BATCH) {
            self.send_batch(batch)?;
        }
        self.settle()
    }

    /// As [`Injector::send`], but never has more than `in_flight` packets on the way. The kernel's queue between
    /// veths holds `net.core.netdev_max_backlog` packets (1,000 unless someone says otherwise) for all links of a
    /// CPU together: well below it, none is lost behind the firewall either.
    pub fn send_in_step<P: AsRef<[u8]>>(&mut self, packets: &[P], in_flight: usize) -> Result<()> {
        let _pinned = Pinned::to_this_cpu()?;
        for step in packets.chunks(in_flight.max(1)) {
            for batch in step.chunks(BATCH) {
                self.send_batch(batch)?;
            }
            self.settle()?;
        }
        Ok(())
    }

    fn send_batch<P: AsRef<[u8]>>(&self, packets: &[P]) -> Result<()> {
        let frames: Vec<(&[u8], &[u8])> = packets
            .iter()
            .map(|packet| {
                let packet = packet.as_ref();
                let v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
                (if v6 { &self.v6_header[..] } else { &self.v4_header[..] }, packet)
            })
            .collect();
        self.send_parts(&frames)
    }

    fn send_parts(&self, frames: &[(&[u8], &[u8])]) -> Result<()> {
        let mut rest = frames;
        while !rest.is_empty() {
            match self.sender.send(rest) {
                Ok(sent) => rest = &rest[sent..],
                // ENOBUFS: the link's queue is full and the packet was not taken (veth_xmit() returns
                // NET_XMIT_DROP). Try it again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(|| format!("cannot send from {}", self.name)),
            }
        }
        Ok(())
    }

    /// Waits until the kernel is through with everything this thread has sent so far from this CPU.
    ///
    /// Asks the firewall's kernel for its own address by ARP, which no rule of ours filters. Packets of all
    /// veths wait in one queue per CPU, first in, first out (process_backlog() in net/core/dev.c): when the
    /// answer is back, all that was sent before the question has left the firewall or died there, and
    /// what left is at the sockets of its destination.
    fn settle(&mut self) -> Result<()> {
        while self.answers.receive(|_| ())? > 0 {}
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.sender.send(&[(&self.question, &[])]).is_err() {
            if Instant::now() > deadline {
                bail!("cannot send ARP from {}", self.name);
            }
            std::thread::yield_now();
        }
        let mut answered = false;
        while !answered {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.answers.wait(left)? {
                bail!("the firewall does not answer ARP from {}", self.name);
            }
            let question = &self.question;
            self.answers.receive(|frame| answered |= is_answer(frame, question))?;
        }
        Ok(())
    }
}

/// What is in front of a machine's packets to the firewall.
pub(crate) fn ethernet_header_for(machine: &Machine, v6: bool) -> [u8; 14] {
    ethernet_header(machine.gateway_mac, machine.mac, if v6 { ETHER_V6 } else { ETHER_V4 })
}

fn ethernet_header(to: [u8; 6], from: [u8; 6], kind: [u8; 2]) -> [u8; 14] {
    let mut header = [0; 14];
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&from);
    header[12..].copy_from_slice(&kind);
    header
}

/// An ARP probe (RFC 5227: sender address 0.0.0.0), so that nobody's neighbour table changes.
fn arp_probe(machine: &Machine) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..14].copy_from_slice(&ethernet_header(machine.gateway_mac, machine.mac, [0x08, 0x06]));
    // Ethernet, IPv4, lengths 6 and 4, request.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&machine.mac);
    frame[38..].copy_from_slice(&machine.link.gateway.0.octets());
    frame
}

/// A reply from the address that was asked for, to 0.0.0.0.
fn is_answer(frame: &[u8], question: &[u8; 42]) -> bool {
    frame.get(20..22) == Some(&[0, 2])
        && frame.get(28..32) == Some(&question[38..])
        && frame.get(38..42) == Some(&[0; 4])
}

/// Keeps the thread on its CPU while it lives.
struct Pinned {
    before: CpuSet,
}

impl Pinned {
    fn to_this_cpu() -> Result<Self> {
        let thread = Pid::from_raw(0);
        let before = sched_getaffinity(thread).context("sched_getaffinity")?;
        let mut only = CpuSet::new();
        only.set(sched_getcpu().context("getcpu")?)?;
        sched_setaffinity(thread, &only).context("sched_setaffinity")?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}
