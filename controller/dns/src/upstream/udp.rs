//! Questions by UDP: connected sockets with ports the kernel picks at random, used for a short while each.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, send, socket};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use crate::flight::Key;
use crate::inbox::Inbox;

/// Sockets that take turns for one upstream.
const WIDTH: usize = 2;
/// Questions that one socket asks.
const USES: u32 = 128;
/// How long a socket asks: whoever finds out its port has this long to use that.
const LIFE: Duration = Duration::from_millis(500);

/// Datagrams of a connected socket: where they come from is known.
pub(crate) type Arrivals = Inbox<(), ()>;

/// One socket, connected: the kernel drops what others than the upstream send.
#[derive(Debug)]
pub(crate) struct Outgoing {
    socket: UdpSocket,
    /// What it asked and is not answered yet. Short, so that a scan is the fastest search.
    asked: RefCell<Vec<(u16, Key)>>,
    uses: Cell<u32>,
    born: Instant,
    retired: Cell<bool>,
    reader: RefCell<Option<AbortHandle>>,
}

impl Outgoing {
    /// Opens one. The kernel binds it to a random free port of `net.ipv4.ip_local_port_range`.
    pub(crate) fn open(server: SocketAddr, now: Instant) -> io::Result<Rc<Self>> {
        let family = if server.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Datagram, flags, None)?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(server))?;
        Ok(Rc::new(Self {
            socket: UdpSocket::from_std(fd.into())?,
            asked: RefCell::default(),
            uses: Cell::new(0),
            born: now,
            retired: Cell::new(false),
            reader: RefCell::default(),
        }))
    }

    /// The task that reads it, ended as soon as there is nothing to wait for.
    pub(crate) fn set_reader(&self, reader: AbortHandle) {
        *self.reader.borrow_mut() = Some(reader);
    }

    /// Sends past the runtime, which calls a socket writable only after it has waited for it once.
    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), datagram, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }

    /// Waits for an answer or an error (an ICMP error makes a socket no more readable than before); says for which
    /// [`Outgoing::receive`] is to look.
    pub(crate) async fn ready(&self) -> io::Result<Interest> {
        let ready = self.socket.ready(Interest::READABLE | Interest::ERROR).await?;
        Ok(if ready.is_error() { Interest::ERROR } else { Interest::READABLE })
    }

    pub(crate) fn receive(&self, interest: Interest, inbox: &mut Arrivals) -> io::Result<usize> {
        self.socket.try_io(interest, || inbox.receive(self.socket.as_raw_fd(), |_| ()))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Whether an id is in use.
    pub(crate) fn uses_id(&self, id: u16) -> bool {
        self.asked.borrow().iter().any(|(used, _)| *used == id)
    }

    pub(crate) fn add(&self, id: u16, key: Key) {
        self.uses.set(self.uses.get() + 1);
        self.asked.borrow_mut().push((id, key));
    }

    /// What was asked with this id.
    pub(crate) fn find(&self, id: u16) -> Option<Key> {
        self.asked.borrow().iter().find(|(asked, _)| *asked == id).map(|(_, key)| *key)
    }

    /// All that wait for it.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.asked.borrow().iter().map(|(_, key)| *key).collect()
    }

    pub(crate) fn remove(&self, id: u16) {
        let mut asked = self.asked.borrow_mut();
        if let Some(index) = asked.iter().position(|(used, _)| *used == id) {
            asked.swap_remove(index);
        }
        if self.retired.get() && asked.is_empty() {
            self.close();
        }
    }

    fn usable(&self, now: Instant) -> bool {
        self.uses.get() < USES && now.saturating_duration_since(self.born) < LIFE
    }

    /// Asks no more; goes when all is answered or given up.
    fn retire(&self) {
        self.retired.set(true);
        if self.asked.borrow().is_empty() {
            self.close();
        }
    }

    fn close(&self) {
        if let Some(reader) = self.reader.borrow_mut().take() {
            reader.abort();
        }
    }
}

/// The sockets of one upstream that ask.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    open: [Option<Rc<Outgoing>>; WIDTH],
    next: usize,
}

impl Sockets {
    /// The next one in turn; `None`: it has to be opened ([`Sockets::put`]).
    pub(crate) fn next(&mut self, now: Instant) -> Option<Rc<Outgoing>> {
        self.next = (self.next + 1) % WIDTH;
        let place = &mut self.open[self.next];
        match place {
            Some(outgoing) if outgoing.usable(now) => Some(Rc::clone(outgoing)),
            _ => {
                if let Some(old) = place.take() {
                    old.retire();
                }
                None
            }
        }
    }

    /// Puts one where [`Sockets::next`] found none.
    pub(crate) fn put(&mut self, outgoing: Rc<Outgoing>) {
        self.open[self.next] = Some(outgoing);
    }

    /// Retires one that failed.
    pub(crate) fn discard(&mut self, failed: &Rc<Outgoing>) {
        for place in &mut self.open {
            if place.as_ref().is_some_and(|outgoing| Rc::ptr_eq(outgoing, failed)) {
                *place = None;
            }
        }
        failed.retire();
    }

    /// Retires those that have lived long enough; whether any is left.
    pub(crate) fn sweep(&mut self, now: Instant) -> bool {
        for place in &mut self.open {
            if let Some(old) = place.take_if(|outgoing| !outgoing.usable(now)) {
                old.retire();
            }
        }
        self.open.iter().any(Option::is_some)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for outgoing in self.open.iter().flatten() {
            outgoing.retire();
        }
    }
}
