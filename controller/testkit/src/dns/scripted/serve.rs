//! The loop of a scripted server: one thread, all sockets, a heap of what is to be said later.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::dns::client::{framed, take_message};
use crate::dns::scripted::reply::Message;
use crate::dns::scripted::{Asked, MOST_KEPT, Shared, Transport};
use crate::dns::wire::Query;
use crate::traffic::server::is_temporary;

/// Datagrams taken from one socket before the others have their turn.
const TURN: usize = 64;
/// Connections at a time; more wait.
const MOST_CONNECTIONS: usize = 1024;

/// One address, both transports.
#[derive(Debug)]
pub(super) struct Listener {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Listener {
    pub(super) fn bind(address: SocketAddr) -> Result<Self> {
        let tcp = TcpListener::bind(address).context("cannot listen on tcp")?;
        let udp = UdpSocket::bind(tcp.local_addr()?).context("cannot listen on udp")?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        // Past the host's limit (root may): a burst of questions waits here.
        nix::sys::socket::setsockopt(&udp, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20))?;
        Ok(Self { udp, tcp })
    }

    pub(super) fn address(&self) -> Result<SocketAddr> {
        Ok(self.udp.local_addr()?)
    }
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// From the listener with this index.
    Udp(usize, SocketAddr),
    /// On the connection with this number.
    Tcp(u64),
}

/// A message that waits for its time: the time, where it goes, its bytes, and the address it pretends to come from.
type Waiting = Reverse<(Instant, Target, Vec<u8>, Option<SocketAddr>)>;

struct Server<'a> {
    listeners: Vec<Listener>,
    connections: BTreeMap<u64, Connection>,
    opened: u64,
    waiting: BinaryHeap<Waiting>,
    /// Sockets of spoofed answers.
    strangers: BTreeMap<SocketAddr, UdpSocket>,
    shared: &'a Shared,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    received: Vec<u8>,
    pending: Vec<u8>,
}

/// Serves until the other end of `stopped` is closed.
pub(super) fn serve(listeners: Vec<Listener>, stopped: &OwnedFd, shared: &Shared) -> Result<()> {
    let mut server = Server {
        listeners,
        connections: BTreeMap::new(),
        opened: 0,
        waiting: BinaryHeap::new(),
        strangers: BTreeMap::new(),
        shared,
    };
    loop {
        let Some(ready) = server.wait(stopped)? else { return Ok(()) };
        server.send_what_is_due()?;
        let (of_listeners, of_connections) = ready.split_at(server.listeners.len() * 2);
        let numbers: Vec<u64> = server.connections.keys().copied().collect();
        for (index, flags) in of_listeners.chunks(2).enumerate() {
            if !flags[0].is_empty() {
                server.hear_udp(index)?;
            }
            if !flags[1].is_empty() {
                server.accept(index);
            }
        }
        for (number, flags) in numbers.into_iter().zip(of_connections) {
            if !flags.is_empty() {
                server.hear_tcp(number)?;
            }
        }
    }
}

impl Server<'_> {
    /// Which sockets are ready, UDP and TCP of each listener first; `None`: it is to end.
    fn wait(&self, stopped: &OwnedFd) -> Result<Option<Vec<PollFlags>>> {
        let mut entries = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        for listener in &self.listeners {
            entries.push(PollFd::new(listener.udp.as_fd(), PollFlags::POLLIN));
            let room = self.connections.len() < MOST_CONNECTIONS;
            let interest = if room { PollFlags::POLLIN } else { PollFlags::empty() };
            entries.push(PollFd::new(listener.tcp.as_fd(), interest));
        }
        for connection in self.connections.values() {
            let mut interest = PollFlags::POLLIN;
            interest.set(PollFlags::POLLOUT, !connection.pending.is_empty());
            entries.push(PollFd::new(connection.stream.as_fd(), interest));
        }
        let timeout = match self.waiting.peek() {
            // Milliseconds, rounded up.
            Some(Reverse((due, ..))) => PollTimeout::try_from(
                due.saturating_duration_since(Instant::now()) + Duration::from_micros(999),
            )?,
            None => PollTimeout::NONE,
        };
        match poll(&mut entries, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let mut ready = entries.iter().map(|entry| entry.revents().unwrap_or(PollFlags::empty()));
        // The pipe's other end is closed on drop.
        let stop = ready.next().is_some_and(|flags| !flags.is_empty());
        Ok((!stop).then(|| ready.collect()))
    }

    fn hear_udp(&mut self, index: usize) -> Result<()> {
        let mut buffer = [0; 65_535];
        for _ in 0..TURN {
            let Some(listener) = self.listeners.get(index) else { break };
            match listener.udp.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    self.answer(&buffer[..length], from, Target::Udp(index, from))?;
                }
                Err(error) if is_temporary(&error) => break,
                // ICMP errors about earlier answers; nobody waits for them.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
        Ok(())
    }

    fn accept(&mut self, index: usize) {
        let Some(listener) = self.listeners.get(index) else { return };
        while let Ok((stream, peer)) = listener.tcp.accept() {
            if stream.set_nonblocking(true).is_ok() && stream.set_nodelay(true).is_ok() {
                let connection = Connection { stream, peer, received: Vec::new(), pending: Vec::new() };
                self.connections.insert(self.opened, connection);
                self.opened += 1;
            }
        }
    }

    fn hear_tcp(&mut self, number: u64) -> Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        let mut lives = connection.flush();
        let mut buffer = [0; 16 << 10];
        match connection.stream.read(&mut buffer) {
            Ok(0) => lives = false,
            Ok(length) => connection.received.extend(&buffer[..length]),
            Err(error) if is_temporary(&error) => {}
            Err(_) => lives = false,
        }
        let peer = connection.peer;
        let mut messages = Vec::new();
        while let Some(message) = take_message(&mut connection.received) {
            messages.push(message);
        }
        for message in messages {
            self.answer(&message, peer, Target::Tcp(number))?;
        }
        if !lives {
            self.connections.remove(&number);
        }
        Ok(())
    }

    fn answer(&mut self, bytes: &[u8], from: SocketAddr, target: Target) -> Result<()> {
        let transport = match target {
            Target::Udp(..) => Transport::Udp,
            Target::Tcp(_) => Transport::Tcp,
        };
        self.shared.questions.fetch_add(1, Ordering::Relaxed);
        {
            let mut asked = self.shared.asked();
            if asked.len() < MOST_KEPT {
                asked.push(Asked { from, transport, bytes: bytes.to_vec() });
            }
        }
        let Some(query) = Query::read(bytes) else { return Ok(()) };
        let messages = {
            let mut script = self.shared.script();
            // The generator is part of what is locked; a copy goes through the reply and comes back.
            let mut rng = script.rng.clone();
            let messages = script.find(&query.name).messages(&query, transport, &mut rng)?;
            script.rng = rng;
            messages
        };
        for Message { bytes, after, from } in messages {
            if after.is_zero() {
                self.send(target, &bytes, from)?;
            } else {
                self.waiting.push(Reverse((Instant::now() + after, target, bytes, from)));
            }
        }
        Ok(())
    }

    fn send_what_is_due(&mut self) -> Result<()> {
        while self.waiting.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
            if let Some(Reverse((_, target, bytes, from))) = self.waiting.pop() {
                self.send(target, &bytes, from)?;
            }
        }
        Ok(())
    }

    /// Nobody hears what cannot be sent; UDP is like that, and a connection may be gone.
    fn send(&mut self, target: Target, bytes: &[u8], from: Option<SocketAddr>) -> Result<()> {
        match target {
            Target::Udp(index, to) => {
                if let Some(from) = from {
                    let _ = self.stranger(from)?.send_to(bytes, to);
                } else if let Some(listener) = self.listeners.get(index) {
                    let _ = listener.udp.send_to(bytes, to);
                }
            }
            Target::Tcp(number) => {
                let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
                connection.pending.extend(framed(bytes)?);
                if !connection.flush() {
                    self.connections.remove(&number);
                }
            }
        }
        self.shared.answers.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn stranger(&mut self, address: SocketAddr) -> Result<&UdpSocket> {
        use std::collections::btree_map::Entry;
        Ok(match self.strangers.entry(address) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(
                UdpSocket::bind(address)
                    .with_context(|| format!("cannot answer from {address}, which the machine lacks"))?,
            ),
        })
    }
}

impl Connection {
    /// Writes what it can; false: the connection is at its end.
    fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(length) => drop(self.pending.drain(..length)),
                Err(error) if is_temporary(&error) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}
