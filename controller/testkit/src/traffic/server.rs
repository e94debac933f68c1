//! Servers that answer and remember who asked.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Netns;

/// What a TCP server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Says `seen ADDRESS:PORT` and a line feed (the client as the server sees it), then returns every byte.
    Echo,
    /// Closes it at once.
    Close,
    /// Reads and counts.
    Sink,
    /// Writes zeros as long as the client takes them.
    Source,
}

/// A server in a namespace, on one thread; ends on drop.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    peers: Mutex<Vec<SocketAddr>>,
    received: AtomicU64,
}

impl Shared {
    fn remember(&self, peer: SocketAddr) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
    }

    fn count(&self, bytes: usize) {
        self.received.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }
}

impl Server {
    /// Listens on TCP addresses; port 0 takes a free one.
    pub fn tcp(ns: &Netns, addresses: &[SocketAddr], service: Service) -> Result<Self> {
        let listen = |address: &SocketAddr| {
            let listener =
                TcpListener::bind(address).with_context(|| format!("cannot listen on tcp {address}"))?;
            listener.set_nonblocking(true)?;
            Ok(Listener::Tcp(listener, service))
        };
        Self::start(ns.run(|| addresses.iter().map(listen).collect::<Result<Vec<_>>>())??)
    }

    /// Listens on UDP addresses. Each datagram comes back with `seen ADDRESS:PORT` and a line feed before it.
    /// Name addresses rather than `0.0.0.0`, or answers may have another source than the question's target.
    pub fn udp(ns: &Netns, addresses: &[SocketAddr]) -> Result<Self> {
        let listen = |address: &SocketAddr| {
            let socket =
                UdpSocket::bind(address).with_context(|| format!("cannot listen on udp {address}"))?;
            socket.set_nonblocking(true)?;
            Ok(Listener::Udp(socket))
        };
        Self::start(ns.run(|| addresses.iter().map(listen).collect::<Result<Vec<_>>>())??)
    }

    fn start(listeners: Vec<Listener>) -> Result<Self> {
        let addresses = listeners.iter().map(Listener::address).collect::<io::Result<_>>()?;
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let shared = Arc::new(Shared::default());
        let server = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("testkit-server".to_owned())
            .spawn(move || serve(&listeners, &stopped, &server))?;
        Ok(Self { addresses, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The peers of all connections (TCP) or datagrams (UDP) so far, in order.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Payload bytes received so far.
    pub fn received_bytes(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener, Service),
    Udp(UdpSocket),
}

impl Listener {
    fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener, _) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener, _) => listener.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
        }
    }

    fn accept(&self, shared: &Shared, connections: &mut Vec<Connection>) {
        match self {
            Self::Tcp(listener, service) => {
                while let Ok((stream, peer)) = listener.accept() {
                    shared.remember(peer);
                    if *service != Service::Close && stream.set_nonblocking(true).is_ok() {
                        // Small answers go out at once.
                        let _ = stream.set_nodelay(true);
                        connections.push(Connection::new(stream, *service, peer));
                    }
                }
            }
            Self::Udp(socket) => {
                let mut buffer = vec![0; 65_535];
                while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    shared.remember(peer);
                    shared.count(length);
                    let answer = [format!("seen {peer}\n").as_bytes(), &buffer[..length]].concat();
                    let _ = socket.send_to(&answer, peer);
                }
            }
        }
    }
}

struct Connection {
    stream: TcpStream,
    service: Service,
    /// Still to be written.
    pending: Vec<u8>,
}

/// What an echo keeps for a client that does not read; past it, it stops reading itself.
const MOST_PENDING: usize = 1 << 20;

impl Connection {
    fn new(stream: TcpStream, service: Service, peer: SocketAddr) -> Self {
        let pending = match service {
            Service::Echo => format!("seen {peer}\n").into_bytes(),
            Service::Source => vec![0; 64 << 10],
            Service::Close | Service::Sink => Vec::new(),
        };
        Self { stream, service, pending }
    }

    fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.pending.len() < MOST_PENDING);
        flags.set(PollFlags::POLLOUT, !self.pending.is_empty());
        flags
    }

    /// False: the connection is at its end.
    fn advance(&mut self, ready: PollFlags, shared: &Shared) -> bool {
        if ready.intersects(PollFlags::POLLIN | PollFlags::POLLERR | PollFlags::POLLHUP) {
            let mut buffer = [0; 64 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) => {
                    shared.count(length);
                    if self.service == Service::Echo {
                        self.pending.extend(&buffer[..length]);
                    }
                }
                Err(error) if is_temporary(&error) => {}
                Err(_) => return false,
            }
        }
        if !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(_) if self.service == Service::Source => {}
                Ok(length) => drop(self.pending.drain(..length)),
                Err(error) if is_temporary(&error) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

pub(crate) fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn serve(listeners: &[Listener], stopped: &OwnedFd, shared: &Shared) {
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let mut entries = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        entries.extend(listeners.iter().map(|listener| PollFd::new(listener.fd(), PollFlags::POLLIN)));
        entries.extend(connections.iter().map(|c| PollFd::new(c.stream.as_fd(), c.interest())));
        match poll(&mut entries, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let ready: Vec<PollFlags> =
            entries.iter().map(|entry| entry.revents().unwrap_or(PollFlags::empty())).collect();
        let (first, others) = ready.split_at(1);
        // The pipe's other end is closed on drop.
        if !first[0].is_empty() {
            return;
        }
        let (of_listeners, of_connections) = others.split_at(listeners.len());
        let mut flags = of_connections.iter();
        connections.retain_mut(|connection| match flags.next() {
            Some(ready) if !ready.is_empty() => connection.advance(*ready, shared),
            _ => true,
        });
        for (listener, ready) in listeners.iter().zip(of_listeners) {
            if !ready.is_empty() {
                listener.accept(shared, &mut connections);
            }
        }
    }
}
