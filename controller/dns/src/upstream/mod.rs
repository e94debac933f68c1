//! Whom the proxy asks.

pub(crate) mod tcp;
pub(crate) mod tls;
pub(crate) mod udp;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fw_policy::Upstream;

use self::tls::Link;
use self::udp::{Outgoing, Sockets};

/// Tries without an answer, one after another, after which an upstream is asked last.
const FAILURES: u32 = 3;
/// For how long.
const FAILING: Duration = Duration::from_secs(10);
/// Resolvers chosen by clients that are remembered with their sockets.
const RESOLVERS: usize = 256;

/// One upstream with its sockets.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) tls_name: Option<String>,
    failures: Cell<u32>,
    failing_until: Cell<Option<Instant>>,
    pub(crate) sockets: RefCell<Sockets>,
    /// The connection of one that speaks TLS.
    pub(crate) link: RefCell<Option<Rc<Link>>>,
}

impl Server {
    fn new(address: SocketAddr, tls_name: Option<String>) -> Rc<Self> {
        Rc::new(Self {
            address,
            tls_name,
            failures: Cell::new(0),
            failing_until: Cell::new(None),
            sockets: RefCell::default(),
            link: RefCell::default(),
        })
    }

    fn failing(&self, now: Instant) -> bool {
        self.failing_until.get().is_some_and(|until| now < until)
    }
}

/// Where an answer may come from; forgotten with this value.
#[derive(Debug)]
pub(crate) enum Sent {
    /// A socket of ours.
    Udp(Rc<Outgoing>, u16),
    /// A connection.
    Tls(Rc<Link>, u16),
}

impl Sent {
    /// Whether it is what this socket was asked.
    pub(crate) fn is(&self, outgoing: &Rc<Outgoing>) -> bool {
        matches!(self, Self::Udp(socket, _) if Rc::ptr_eq(socket, outgoing))
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        match self {
            Self::Udp(outgoing, id) => outgoing.remove(*id),
            Self::Tls(link, id) => link.remove(*id),
        }
    }
}

/// All upstreams, best first.
#[derive(Debug)]
pub(crate) struct Servers {
    configured: Vec<Rc<Server>>,
    /// Those of `configured` that fail stand last.
    order: Rc<[Rc<Server>]>,
    /// When one that fails may be better again.
    reorder: Option<Instant>,
    /// Chosen by clients.
    chosen: BTreeMap<SocketAddr, Rc<[Rc<Server>]>>,
}

impl Servers {
    pub(crate) fn new(upstreams: &[Upstream]) -> Self {
        let server = |upstream: &Upstream| Server::new(upstream.address, upstream.tls_name.clone());
        let configured: Vec<_> = upstreams.iter().map(server).collect();
        Self { order: configured.as_slice().into(), configured, reorder: None, chosen: BTreeMap::new() }
    }

    /// Takes another list; those that stay keep what is known of them.
    pub(crate) fn update(&mut self, upstreams: &[Upstream], now: Instant) {
        let mut known = std::mem::take(&mut self.configured);
        for upstream in upstreams {
            let same = |server: &Rc<Server>| {
                server.address == upstream.address && server.tls_name == upstream.tls_name
            };
            let server = match known.iter().position(same) {
                Some(index) => known.swap_remove(index),
                None => Server::new(upstream.address, upstream.tls_name.clone()),
            };
            self.configured.push(server);
        }
        self.sort(now);
    }

    /// Whether upstreams are configured, so that clients do not choose.
    pub(crate) fn configured(&self) -> bool {
        !self.configured.is_empty()
    }

    /// Whom to ask: the configured ones, else the one the client chose.
    pub(crate) fn pick(&mut self, resolver: Option<SocketAddr>, now: Instant) -> Option<Rc<[Rc<Server>]>> {
        if self.configured() {
            if self.reorder.is_some_and(|at| at <= now) {
                self.sort(now);
            }
            return Some(Rc::clone(&self.order));
        }
        let resolver = resolver?;
        if let Some(chosen) = self.chosen.get(&resolver) {
            return Some(Rc::clone(chosen));
        }
        if self.chosen.len() >= RESOLVERS {
            // Those with questions in flight are kept alive by these.
            self.chosen.clear();
        }
        let chosen: Rc<[_]> = Rc::new([Server::new(resolver, None)]);
        self.chosen.insert(resolver, Rc::clone(&chosen));
        Some(chosen)
    }

    pub(crate) fn succeeded(&mut self, server: &Server, now: Instant) {
        server.failures.set(0);
        if server.failing_until.take().is_some() {
            self.sort(now);
        }
    }

    pub(crate) fn failed(&mut self, server: &Server, now: Instant) {
        server.failures.set(server.failures.get().saturating_add(1));
        if server.failures.get() >= FAILURES {
            server.failing_until.set(Some(now + FAILING));
            self.sort(now);
        }
    }

    fn sort(&mut self, now: Instant) {
        let mut order = self.configured.clone();
        order.sort_by_key(|server| server.failing(now));
        self.order = order.into();
        self.reorder = self
            .configured
            .iter()
            .filter_map(|server| server.failing_until.get().filter(|until| *until > now))
            .min();
    }

    /// Lets go of sockets that have been open for long enough; whether any is left.
    pub(crate) fn sweep(&mut self, now: Instant) -> bool {
        let chosen = self.chosen.values().flat_map(|servers| servers.iter());
        let mut left = false;
        for server in self.configured.iter().chain(chosen) {
            left |= server.sockets.borrow_mut().sweep(now);
        }
        left
    }
}
