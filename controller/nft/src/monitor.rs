//! Notices that others changed our table.
//!
//! The kernel sends every commit's changes to the group NFNLGRP_NFTABLES, and after them one message with the new
//! generation and the process (nf_tables_gen_notify). A monitor has a socket of its own and drops what our own
//! writer caused before it is queued.

use std::time::{Duration, Instant};

use fw_netlink::attr::Attrs;
use fw_netlink::message::{Message, Messages, subsystem};
use fw_netlink::nft::{Generation, INET, NFNLGRP_NFTABLES, Table, message};
use fw_netlink::socket::{Socket, SocketError};
use fw_ruleset::ir::TABLE;

/// Receive buffer: some ten thousand changed rules of others.
const BUFFER: usize = 16 << 20;

/// Somebody else's change of our table.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Drift {
    /// Generation it led to; `None` when notifications were lost.
    pub generation: Option<u32>,
    /// Process that did it, as the kernel names it: `nft (4711)`.
    pub process: Option<String>,
    /// True when the table was deleted.
    pub deleted: bool,
    /// True when notifications were lost (ENOBUFS): whether the table changed is unknown.
    pub lost: bool,
}

/// Listens for changes of our table by anybody but one socket.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    /// What the messages since the last generation message touched.
    pending: Option<Drift>,
    /// Generation of the last commit by others that was seen.
    seen: Option<u32>,
}

impl Monitor {
    /// Listens in the network namespace of the calling thread. `writer` is the netlink port whose changes are
    /// expected ([`crate::NetlinkKernel::port`]).
    pub fn open(writer: u32) -> Result<Self, SocketError> {
        Self::with_buffer(writer, BUFFER)
    }

    /// As [`Self::open`], with a receive buffer of `bytes`.
    pub fn with_buffer(writer: u32, bytes: usize) -> Result<Self, SocketError> {
        let socket = Socket::open()?;
        socket.receive_buffer(bytes)?;
        socket.ignore_port(writer)?;
        socket.subscribe(NFNLGRP_NFTABLES)?;
        Ok(Self { socket, pending: None, seen: None })
    }

    /// Waits up to `timeout` for a change of our table.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Drift>, SocketError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.step(left)? {
                Progress::Nothing => return Ok(None),
                Progress::Commit(None) => {}
                Progress::Commit(Some(drift)) => return Ok(Some(drift)),
            }
        }
    }

    /// Reads until the commit that led to `generation` has been seen; true when our table was touched on the way,
    /// or when that cannot be told.
    pub(crate) fn touched_until(&mut self, generation: u32, timeout: Duration) -> Result<bool, SocketError> {
        let deadline = Instant::now() + timeout;
        let mut touched = false;
        loop {
            if self.seen.is_some_and(|seen| !newer(generation, seen)) {
                // What is queued behind belongs to later commits; the guard of the next attempt covers them.
                return Ok(touched);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.step(left)? {
                Progress::Nothing => return Ok(true),
                Progress::Commit(drift) => touched |= drift.is_some(),
            }
        }
    }

    /// Forgets what came so far: the table has been read since.
    pub(crate) fn clear(&mut self) -> Result<(), SocketError> {
        while !matches!(self.step(Duration::ZERO)?, Progress::Nothing) {}
        self.pending = None;
        Ok(())
    }

    /// Reads one datagram.
    fn step(&mut self, timeout: Duration) -> Result<Progress, SocketError> {
        let mut ended = None;
        let (pending, seen) = (&mut self.pending, &mut self.seen);
        match self.socket.receive(timeout) {
            Ok(None) => return Ok(Progress::Nothing),
            Ok(Some(datagram)) => {
                for message in Messages::new(datagram) {
                    let message = message?;
                    note(&message, pending, seen, &mut ended);
                }
            }
            Err(SocketError::Lost) => {
                *pending = None;
                return Ok(Progress::Commit(Some(Drift { lost: true, ..Drift::default() })));
            }
            Err(error) => return Err(error),
        }
        Ok(Progress::Commit(ended))
    }
}

enum Progress {
    /// No datagram came.
    Nothing,
    /// One came; with the end of a commit that touched our table, or without.
    Commit(Option<Drift>),
}

fn note(
    message: &Message<'_>,
    pending: &mut Option<Drift>,
    seen: &mut Option<u32>,
    ended: &mut Option<Drift>,
) {
    let (subsystem, kind) = message.nfnl();
    if subsystem != subsystem::NFTABLES {
        return;
    }
    if kind == message::NEW_GENERATION {
        let Ok(generation) = Generation::decode(message.attrs()) else { return };
        *seen = Some(generation.id);
        if let Some(drift) = pending.take() {
            let process = generation.process.map(|id| {
                let name = generation.process_name.as_deref().unwrap_or("?");
                format!("{name} ({id})")
            });
            *ended = Some(Drift { generation: Some(generation.id), process, ..drift });
        }
        return;
    }
    let inet = message.nfgen().is_ok_and(|(family, _)| family == INET);
    if inet && names_our_table(message.attrs()) {
        let drift = pending.get_or_insert_default();
        match kind {
            message::DEL_TABLE => drift.deleted = true,
            message::NEW_TABLE if Table::decode(message.attrs()).is_ok() => drift.deleted = false,
            _ => {}
        }
    }
}

/// Attribute 1 is the table's name in every message of nftables about something in a table.
fn names_our_table(mut attrs: Attrs<'_>) -> bool {
    attrs.any(|attr| attr.is_ok_and(|attr| attr.kind == 1 && attr.text().is_ok_and(|name| name == TABLE)))
}

/// Whether generation `a` comes after `b`; they wrap.
pub(crate) fn newer(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_compare_across_the_wrap() {
        assert!(newer(1, u32::MAX) && !newer(u32::MAX, 1));
        assert!(newer(8, 7) && !newer(7, 7));
    }
}
