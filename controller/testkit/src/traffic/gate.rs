//! When something opens and when it closes, to the millisecond: datagrams to an echo server until that changes.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::Netns;
use crate::traffic::probe::any_address;

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(1);
/// An answer that takes longer is none: it takes a fraction of a millisecond.
const ANSWER: Duration = Duration::from_millis(50);
/// So many new flows in a row without an answer: it is closed, not slow.
const UNANSWERED: usize = 20;

/// Does `change` and gives how long after its beginning the first datagram came back from a UDP
/// [`crate::traffic::server::Server`].
pub fn opens_after(
    ns: &Netns,
    to: SocketAddr,
    patience: Duration,
    change: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    watch(ns, change, |began| first_answer(to, began + patience))
}

/// Does `change` and gives how long after its beginning the last new flow began that was answered; each datagram is a
/// flow of its own.
pub fn closes_after(
    ns: &Netns,
    to: SocketAddr,
    patience: Duration,
    change: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    watch(ns, change, |began| last_new_flow(to, began + patience))
}

fn watch(
    ns: &Netns,
    change: impl FnOnce() -> Result<()>,
    look: impl FnOnce(Instant) -> Result<Instant> + Send,
) -> Result<Duration> {
    std::thread::scope(|scope| {
        let began = Instant::now();
        let look = scope.spawn(move || ns.run(move || look(began))?);
        let changed = change();
        let at = look.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        changed?;
        Ok(at?.saturating_duration_since(began))
    })
}

fn first_answer(to: SocketAddr, deadline: Instant) -> Result<Instant> {
    let socket = UdpSocket::bind(any_address(to))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PACE))?;
    while Instant::now() < deadline {
        // What a router refuses comes back as an error of the next call.
        let _ = socket.send(b"open?");
        if socket.recv(&mut [0; 256]).is_ok() {
            return Ok(Instant::now());
        }
    }
    bail!("{to} does not open")
}

fn last_new_flow(to: SocketAddr, deadline: Instant) -> Result<Instant> {
    let mut open: VecDeque<(Instant, UdpSocket)> = VecDeque::new();
    let (mut last, mut unanswered) = (Instant::now(), 0);
    while Instant::now() < deadline {
        let socket = UdpSocket::bind(any_address(to))?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        let sent = Instant::now();
        let _ = socket.send(b"open?");
        open.push_back((sent, socket));
        std::thread::sleep(PACE);
        while let Some((sent, socket)) = open.front() {
            match socket.recv(&mut [0; 256]) {
                Ok(_) => (last, unanswered) = (*sent, 0),
                Err(error) if error.kind() == ErrorKind::WouldBlock && sent.elapsed() < ANSWER => break,
                Err(_) => unanswered += 1,
            }
            open.pop_front();
        }
        if unanswered >= UNANSWERED {
            return Ok(last);
        }
    }
    bail!("{to} does not close")
}
