//! Sees what arrives at an interface.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Netns;
use crate::topology::Machine;
use crate::traffic::craft::{Seen, recognise};
use crate::traffic::packet_socket::{ALL, PacketSocket};

pub use crate::traffic::packet_socket::SocketStatistics;

/// Receives everything that arrives at an interface, before the namespace's own stack and rules judge it.
#[derive(Debug)]
pub struct Sniffer {
    socket: PacketSocket,
}

impl Sniffer {
    /// At a machine of a lab.
    pub fn on(machine: &Machine) -> Result<Self> {
        Self::at(&machine.ns, Machine::INTERFACE)
    }

    /// At any interface of a namespace. Sees from now on.
    pub fn at(ns: &Netns, interface: &str) -> Result<Self> {
        Ok(Self { socket: PacketSocket::open(ns, interface, ALL)? })
    }

    /// All Ethernet frames that are there, in order of arrival (cut at 2,048 bytes); does not wait.
    pub fn frames(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while self.socket.receive(|frame| frames.push(frame.to_vec()))? > 0 {}
        Ok(frames)
    }

    /// The tagged packets among what is there; does not wait.
    pub fn tagged(&mut self) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        let keep = |frame: &[u8], seen: &mut Vec<Seen>| seen.extend(frame.get(14..).and_then(recognise));
        while self.socket.receive(|frame| keep(frame, &mut seen))? > 0 {}
        Ok(seen)
    }

    /// Waits until `enough` says so of the tagged packets seen so far, or the time is over; gives them all.
    pub fn wait_for_tagged(
        &mut self,
        patience: Duration,
        enough: impl Fn(&[Seen]) -> bool,
    ) -> Result<Vec<Seen>> {
        let deadline = Instant::now() + patience;
        let mut seen = self.tagged()?;
        while !enough(&seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.socket.wait(left)?;
            seen.extend(self.tagged()?);
        }
        Ok(seen)
    }

    /// What the kernel has counted here since the last call; `dropped` must be 0 for a sniffer to be believed.
    pub fn statistics(&self) -> Result<SocketStatistics> {
        Ok(self.socket.statistics()?)
    }
}
