//! Questions that upstreams are asked now, and who waits for them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::front::tcp::Ticket;
use crate::index::Index;
use crate::metrics::Transport;
use crate::sockets::Path;
use crate::upstream::{Sent, Server};
use crate::wire::HEADER;

/// Where an answer goes.
#[derive(Debug)]
pub(crate) enum To {
    /// Through the listener with this number, cut to `size` bytes.
    Udp { listener: usize, path: Path, size: usize },
    /// Into a connection.
    Stream(Ticket),
    /// To the background refresh, or to an encrypted listener.
    Channel(oneshot::Sender<Vec<u8>>),
}

/// Somebody who waits for an answer.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) id: u16,
    pub(crate) transport: Transport,
    pub(crate) to: To,
}

/// Those who wait for one answer; nearly always one.
#[derive(Debug)]
pub(crate) struct Waiters {
    pub(crate) first: Waiter,
    pub(crate) more: Vec<Waiter>,
}

/// Names one flight for ever, also after it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    slot: usize,
    generation: u64,
}

/// What makes two questions one: all bytes but the id, and whom they go to.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    bytes: Rc<[u8]>,
    message: usize,
}

impl Identity {
    pub(crate) fn write(buffer: &mut Vec<u8>, message: &[u8], resolver: Option<SocketAddr>) {
        buffer.clear();
        buffer.extend([0, 0]);
        buffer.extend(message.get(2..).unwrap_or_default());
        if let Some(resolver) = resolver {
            match resolver.ip() {
                IpAddr::V4(ip) => buffer.extend(ip.octets()),
                IpAddr::V6(ip) => buffer.extend(ip.octets()),
            }
            buffer.extend(resolver.port().to_be_bytes());
        }
    }

    pub(crate) fn new(bytes: &[u8], message: usize) -> Self {
        Self { bytes: bytes.into(), message }
    }

    /// Name, type and class.
    pub(crate) fn question(&self, question_end: usize) -> &[u8] {
        self.message().get(HEADER..question_end).unwrap_or_default()
    }

    /// The question as a message with id 0.
    pub(crate) fn message(&self) -> &[u8] {
        self.bytes.get(..self.message).unwrap_or_default()
    }
}

/// One question on its way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) identity: Identity,
    pub(crate) question_end: usize,
    /// With its hash.
    pub(crate) cache_key: Option<(u64, Box<[u8]>)>,
    pub(crate) resolver: Option<SocketAddr>,
    pub(crate) waiters: Waiters,
    /// Whom to ask, in order.
    pub(crate) servers: Rc<[Rc<Server>]>,
    /// Tries so far.
    pub(crate) tries: usize,
    /// When the present try began.
    pub(crate) asked: Instant,
    /// When it is given up.
    pub(crate) deadline: Instant,
    /// When the present try is given up: its entry in [`Flights::timers`].
    timer: Option<Instant>,
    hash: u64,
    /// Where answers may still come from.
    pub(crate) sent: Vec<Sent>,
    /// An upstream's failure, for want of something better.
    pub(crate) failure: Option<Vec<u8>>,
}

impl Flight {
    /// Name, type and class as asked.
    pub(crate) fn question(&self) -> &[u8] {
        self.identity.question(self.question_end)
    }

    /// The upstream of the present try.
    pub(crate) fn server(&self) -> Option<&Rc<Server>> {
        let last = self.tries.checked_sub(1)?;
        self.servers.get(last % self.servers.len().max(1))
    }
}

/// All of them, bounded by the caller.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    slots: Vec<Option<Flight>>,
    generations: Vec<u64>,
    free: Vec<usize>,
    by_identity: Index<Key>,
    timers: BTreeSet<(Instant, Key)>,
}

/// What a new flight is made of.
#[derive(Debug)]
pub(crate) struct Departure {
    pub(crate) identity: Identity,
    /// Of the identity ([`Flights::find`]).
    pub(crate) hash: u64,
    pub(crate) question_end: usize,
    pub(crate) cache_key: Option<(u64, Box<[u8]>)>,
    pub(crate) resolver: Option<SocketAddr>,
    pub(crate) waiter: Waiter,
    pub(crate) servers: Rc<[Rc<Server>]>,
}

impl Flights {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The flight of the same question, and the hash that a new one needs.
    pub(crate) fn find(&mut self, identity: &[u8]) -> (u64, Option<Key>) {
        let hash = self.by_identity.hash(identity);
        let found = self.by_identity.get(hash);
        let same = |key: &Key| self.get(*key).is_some_and(|flight| &*flight.identity.bytes == identity);
        (hash, found.filter(same))
    }

    pub(crate) fn start(&mut self, departure: Departure, now: Instant, timeout: Duration) -> Key {
        let deadline = now + timeout;
        let flight = Flight {
            identity: departure.identity,
            question_end: departure.question_end,
            cache_key: departure.cache_key,
            resolver: departure.resolver,
            waiters: Waiters { first: departure.waiter, more: Vec::new() },
            servers: departure.servers,
            tries: 0,
            asked: now,
            deadline,
            hash: departure.hash,
            timer: None,
            sent: Vec::new(),
            failure: None,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.generations.push(0);
            self.slots.len() - 1
        });
        let key = Key { slot, generation: self.generations[slot] };
        self.by_identity.insert(departure.hash, key);
        self.slots[slot] = Some(flight);
        key
    }

    pub(crate) fn get(&mut self, key: Key) -> Option<&mut Flight> {
        if self.generations.get(key.slot) != Some(&key.generation) {
            return None;
        }
        self.slots.get_mut(key.slot)?.as_mut()
    }

    /// Sets when the present try is given up; never later than the flight itself.
    pub(crate) fn set_timer(&mut self, key: Key, at: Instant) {
        let Some(flight) = self.get(key) else { return };
        let at = at.min(flight.deadline);
        if let Some(before) = flight.timer.replace(at) {
            self.timers.remove(&(before, key));
        }
        self.timers.insert((at, key));
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Flight> {
        self.get(key)?;
        let flight = self.slots.get_mut(key.slot)?.take()?;
        self.generations[key.slot] += 1;
        self.free.push(key.slot);
        self.by_identity.remove(flight.hash, key);
        if let Some(timer) = flight.timer {
            self.timers.remove(&(timer, key));
        }
        Some(flight)
    }

    /// One whose try has had its time; it stays until it is given another timer or removed.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Key> {
        self.timers.first().filter(|(at, _)| *at <= now).map(|(_, key)| *key)
    }
}
