//! From a question to its answer.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_rustls::rustls::ClientConfig;

use crate::cache::Cache;
use crate::config::{OriginalDestination, Settings};
use crate::decision::{Ask, Decision, Question};
use crate::flight::{Departure, Flights, Identity, Key, To, Waiter, Waiters};
use crate::health;
use crate::inbox::Inbox;
use crate::metrics::{Bound, Metrics, Outcome, Transport};
use crate::outbox::{Letter, Outbox};
use crate::random::Random;
use crate::release::Ready;
use crate::sockets::UdpListener;
use crate::upstream::Servers;
use crate::upstream::udp::{Arrivals, Outgoing};
use crate::wire::{self, Invalid, Query, rcode};

/// Longer questions are malformed: with every option in the field they stay far below.
const QUESTION_MAX: usize = 4096;
/// How exactly timeouts are kept.
const TICK: Duration = Duration::from_millis(20);

/// The proxy's state, all on one thread. No cell stays borrowed across a call of the decision or an await.
pub(crate) struct Engine<D> {
    pub(crate) decision: Rc<D>,
    original: Rc<dyn OriginalDestination>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) port: u16,
    pub(crate) listeners: Vec<UdpListener>,
    settings: RefCell<Rc<Settings>>,
    pub(crate) flights: RefCell<Flights>,
    pub(crate) cache: RefCell<Cache>,
    pub(crate) servers: RefCell<Servers>,
    pub(crate) random: RefCell<Random>,
    /// Made when an upstream first needs it.
    pub(crate) tls: RefCell<Option<Arc<ClientConfig>>>,
    /// Reused for keys and messages, so that they cost no allocation.
    scratch: RefCell<Vec<u8>>,
    /// What is being sent upstream.
    pub(crate) outgoing_buffer: RefCell<Vec<u8>>,
    /// What has just come from upstream: one for all sockets, as only one is read at a time.
    pub(crate) inbox: RefCell<Arrivals>,
    pub(crate) outbox: Outbox,
    /// Questions that are sent when the batch is over which they are part of.
    pub(crate) departures: RefCell<Vec<(Key, Rc<Outgoing>, u16)>>,
    waiting: Cell<usize>,
    /// The resolver that answered last when clients choose.
    pub(crate) last_resolver: Cell<Option<SocketAddr>>,
    /// Wakes the clock when there is something to time.
    pub(crate) work: Notify,
}

/// Somebody who asks.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) transport: Transport,
    pub(crate) client: Option<SocketAddr>,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) to: To,
}

impl<D: Decision> Engine<D> {
    pub(crate) fn new(
        decision: Rc<D>,
        original: Rc<dyn OriginalDestination>,
        metrics: Arc<Metrics>,
        (port, listeners): (u16, Vec<UdpListener>),
        settings: Settings,
    ) -> Rc<Self> {
        Rc::new(Self {
            decision,
            original,
            metrics,
            port,
            listeners,
            servers: RefCell::new(Servers::new(&settings.upstreams)),
            settings: RefCell::new(Rc::new(settings)),
            flights: RefCell::default(),
            cache: RefCell::default(),
            random: RefCell::new(Random::new()),
            tls: RefCell::default(),
            scratch: RefCell::default(),
            outgoing_buffer: RefCell::default(),
            inbox: RefCell::new(Inbox::new(65_535, None)),
            outbox: Outbox::default(),
            departures: RefCell::default(),
            waiting: Cell::new(0),
            last_resolver: Cell::new(None),
            work: Notify::new(),
        })
    }

    pub(crate) fn settings(&self) -> Rc<Settings> {
        Rc::clone(&self.settings.borrow())
    }

    pub(crate) fn update(&self, settings: Settings) {
        let now = Instant::now();
        self.servers.borrow_mut().update(&settings.upstreams, now);
        let evicted = self.cache.borrow_mut().shrink(&settings.limits, now);
        self.count_evicted(evicted);
        // Read again: the file may have changed.
        *self.tls.borrow_mut() = None;
        *self.settings.borrow_mut() = Rc::new(settings);
    }

    /// Takes a question; its answer goes where the asker says, now or later.
    pub(crate) fn ask(self: &Rc<Self>, message: &[u8], asker: Asker) {
        let query = match Query::read(message) {
            Ok(query) if message.len() <= QUESTION_MAX => query,
            Ok(_) => return self.reject(message, Invalid::Malformed, asker),
            Err(invalid) => return self.reject(message, invalid, asker),
        };
        let settings = self.settings();
        if asker.client.is_some_and(|client| health::is_ours(&query, client)) {
            return self.say(asker, health::answer(&query), Outcome::Health);
        }
        let client = asker.client;
        let question = Question { name: query.name(), kind: query.kind, class: query.class, client };
        if let Ask::Refuse(rcode) = self.decision.ask(&question) {
            return self.say(asker, query.answer(rcode, settings.udp_size), Outcome::Refused);
        }
        let mut scratch = self.scratch.take();
        self.look_up(&query, asker, &settings, &mut scratch);
        self.scratch.replace(scratch);
    }

    fn reject(&self, message: &[u8], invalid: Invalid, asker: Asker) {
        let (code, outcome) = match invalid {
            Invalid::NoQuestion => {
                return self.metrics.count(asker.transport, Outcome::DroppedNoQuestion);
            }
            Invalid::Malformed => (rcode::FORMERR, Outcome::Malformed),
            Invalid::NotImplemented => (rcode::NOTIMP, Outcome::NotImplemented),
        };
        let answer = match Query::read_any(message) {
            Some(query) => query.answer(code, self.settings().udp_size),
            None => wire::header_answer(message, code),
        };
        self.say(asker, answer, outcome);
    }

    /// The resolver the client asked, if it is to be asked.
    fn resolver(&self, asker: &Asker) -> Option<SocketAddr> {
        if self.servers.borrow().configured() {
            return None;
        }
        let find = || self.original.of(asker.transport, asker.client?, asker.local?);
        match &asker.to {
            To::Udp { .. } => find(),
            To::Stream(ticket) => ticket.resolver(find),
            To::Channel(_) => self.last_resolver.get(),
        }
    }

    /// Answers from the cache, joins a flight, or starts one.
    fn look_up(self: &Rc<Self>, query: &Query<'_>, asker: Asker, settings: &Settings, scratch: &mut Vec<u8>) {
        let now = Instant::now();
        let mut resolver = self.resolver(&asker);
        let cacheable = query.cache_key(scratch);
        let hash = if cacheable { self.cache.borrow().hash(scratch) } else { 0 };
        if asker.transport == Transport::Lookup {
            if resolver.is_some() {
                resolver = self.cache.borrow().resolver(hash, scratch).or(resolver);
            }
        } else if cacheable {
            let hit = self.cache.borrow_mut().get((hash, scratch), resolver, now);
            if let Some(hit) = hit {
                let identity = Identity::new(query.message, query.message.len());
                let waiters = self.wait(query, asker, settings);
                let ready = Ready::from_cache(hit, identity, query.question_end(), waiters);
                return self.release(ready, now);
            }
            self.metrics.cache_misses.add();
        }
        let cache_key = cacheable.then(|| (hash, Box::from(scratch.as_slice())));
        if self.waiting.get() >= settings.limits.waiting {
            return self.fail(query, asker, Outcome::Full);
        }
        Identity::write(scratch, query.message, resolver);
        let (hash, joined) = self.flights.borrow_mut().find(scratch);
        if let Some(key) = joined {
            let waiter = self.waiter(query, asker, settings);
            if let Some(flight) = self.flights.borrow_mut().get(key) {
                flight.waiters.more.push(waiter);
            }
            return;
        }
        if self.flights.borrow().len() >= settings.limits.in_flight {
            return self.fail(query, asker, Outcome::Full);
        }
        let Some(servers) = self.servers.borrow_mut().pick(resolver, now) else {
            return self.fail(query, asker, Outcome::NoUpstream);
        };
        let departure = Departure {
            identity: Identity::new(scratch, query.message.len()),
            hash,
            question_end: query.question_end(),
            cache_key,
            resolver,
            waiter: self.waiter(query, asker, settings),
            servers,
        };
        self.depart(departure, now, settings);
    }

    fn depart(self: &Rc<Self>, departure: Departure, now: Instant, settings: &Settings) {
        let mut flights = self.flights.borrow_mut();
        let key = flights.start(departure, now, settings.timeout);
        self.metrics.in_flight.set(flights.len());
        if flights.len() == 1 {
            self.work.notify_one();
        }
        drop(flights);
        self.try_next(key, now);
    }

    fn waiter(&self, query: &Query<'_>, asker: Asker, settings: &Settings) -> Waiter {
        self.waiting.set(self.waiting.get() + 1);
        self.metrics.waiting.set(self.waiting.get());
        let mut to = asker.to;
        if let To::Udp { size, .. } = &mut to {
            *size = query.udp_size(settings.udp_size);
        }
        Waiter { id: wire::id(query.message).unwrap_or_default(), transport: asker.transport, to }
    }

    fn wait(&self, query: &Query<'_>, asker: Asker, settings: &Settings) -> Waiters {
        Waiters { first: self.waiter(query, asker, settings), more: Vec::new() }
    }

    /// SERVFAIL to a question that nobody was asked.
    fn fail(&self, query: &Query<'_>, asker: Asker, outcome: Outcome) {
        self.say(asker, query.answer(rcode::SERVFAIL, self.settings().udp_size), outcome);
    }

    /// An answer of our own to somebody who does not wait yet.
    fn say(&self, asker: Asker, answer: Vec<u8>, outcome: Outcome) {
        self.dispatch(asker.transport, asker.to, answer, outcome);
    }

    /// Answers somebody who waits.
    pub(crate) fn settle(&self, waiter: Waiter, mut answer: Vec<u8>, outcome: Outcome) {
        wire::set_id(&mut answer, waiter.id);
        self.waiting.set(self.waiting.get().saturating_sub(1));
        self.metrics.waiting.set(self.waiting.get());
        self.dispatch(waiter.transport, waiter.to, answer, outcome);
    }

    /// Counts, then sends: whoever has an answer finds it counted.
    fn dispatch(&self, transport: Transport, to: To, answer: Vec<u8>, outcome: Outcome) {
        match to {
            To::Udp { listener, path, .. } => {
                self.metrics.count(transport, outcome);
                if self.outbox.put(Letter { listener, path, message: answer }) {
                    self.send_answers();
                }
            }
            // The connection's own task writes it later.
            To::Stream(ticket) => {
                let taken = ticket.answer(&answer).is_ok();
                self.metrics.count(transport, if taken { outcome } else { Outcome::DroppedClient });
            }
            To::Channel(sender) => {
                let gone = sender.is_closed();
                self.metrics.count(transport, if gone { Outcome::DroppedClient } else { outcome });
                let _ = sender.send(answer);
            }
        }
    }

    /// Does something with all that was received at once. What it sends by UDP leaves at the end: clients and upstreams
    /// that sleep are then woken once a batch. Must not be nested.
    pub(crate) fn together(self: &Rc<Self>, work: impl FnOnce()) {
        self.outbox.hold();
        work();
        self.outbox.release();
        self.send_questions();
        self.send_answers();
    }

    fn send_answers(&self) {
        for _ in 0..self.outbox.send(&self.listeners) {
            self.metrics.unsent.add();
        }
    }

    /// SERVFAIL to all who wait.
    pub(crate) fn settle_failed(&self, identity: &Identity, waiters: Waiters, outcome: Outcome) {
        let Ok(query) = Query::read(identity.message()) else { return };
        let answer = query.answer(rcode::SERVFAIL, self.settings().udp_size);
        for waiter in waiters.more {
            self.settle(waiter, answer.clone(), outcome);
        }
        self.settle(waiters.first, answer, outcome);
    }

    pub(crate) fn count_evicted(&self, evicted: usize) {
        for _ in 0..evicted {
            self.metrics.bound_met(Bound::CacheEvicted);
        }
        let cache = self.cache.borrow();
        self.metrics.cache_entries.set(cache.len());
        self.metrics.cache_bytes.set(cache.bytes());
    }

    /// Gives up tries whose time is over, and sockets that have been open for long enough. Never ends.
    pub(crate) async fn clock(self: &Rc<Self>) {
        loop {
            let now = Instant::now();
            loop {
                let overdue = self.flights.borrow().overdue(now);
                let Some(key) = overdue else { break };
                self.try_timed_out(key, now);
            }
            let sockets = self.servers.borrow_mut().sweep(now);
            if sockets || self.flights.borrow().len() > 0 {
                tokio::time::sleep(TICK).await;
            } else {
                self.work.notified().await;
            }
        }
    }
}
