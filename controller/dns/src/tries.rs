//! One upstream after another, until one answers.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio_rustls::rustls::ClientConfig;

use crate::decision::Decision;
use crate::engine::Engine;
use crate::flight::{Flight, Key};
use crate::metrics::{Outcome, Spoof};
use crate::release::Ready;
use crate::upstream::tls::{self, Link};
use crate::upstream::udp::Outgoing;
use crate::upstream::{Sent, Server, tcp};
use crate::wire::{self, Answer, rcode};

/// A single upstream is asked again.
const TRIES_MIN: usize = 2;
/// Longer questions go by TCP: a datagram above this may be cut to pieces on its way (RFC 9715).
const UDP_QUESTION_MAX: usize = 1232;

/// How a try went wrong before it began.
enum Untried {
    /// We would have asked ourselves.
    Loop,
    /// The kernel refused, or had no random number.
    Failed,
}

impl From<io::Error> for Untried {
    fn from(_: io::Error) -> Self {
        Self::Failed
    }
}

impl<D: Decision> Engine<D> {
    /// Asks the next upstream, or gives up.
    pub(crate) fn try_next(self: &Rc<Self>, key: Key, now: Instant) {
        loop {
            let Some(server) = self.next_server(key, now) else { return self.give_up(key) };
            self.metrics.tries.add();
            let begun = if server.tls_name.is_some() {
                self.ask_by_tls(key, &server)
            } else if self.flights.borrow_mut().get(key).is_some_and(|flight| goes_by_tcp(flight)) {
                self.ask_by_tcp(key, &server);
                Ok(())
            } else {
                self.ask_by_udp(key, &server, now)
            };
            match begun {
                Ok(()) => return,
                Err(Untried::Loop) => return self.end(key, Outcome::Loop),
                Err(Untried::Failed) => {
                    self.metrics.failed_tries.add();
                    self.servers.borrow_mut().failed(&server, now);
                }
            }
        }
    }

    fn next_server(&self, key: Key, now: Instant) -> Option<Rc<Server>> {
        let try_timeout = self.settings().try_timeout;
        let mut flights = self.flights.borrow_mut();
        let flight = flights.get(key)?;
        if now >= flight.deadline || flight.tries >= flight.servers.len().max(TRIES_MIN) {
            return None;
        }
        flight.tries += 1;
        flight.asked = now;
        let server = flight.server().cloned();
        flights.set_timer(key, now + try_timeout);
        server
    }

    fn ask_by_udp(self: &Rc<Self>, key: Key, server: &Rc<Server>, now: Instant) -> Result<(), Untried> {
        let outgoing = self.outgoing(server, now)?;
        let id = self.unused_id(|id| outgoing.uses_id(id))?;
        let mut flights = self.flights.borrow_mut();
        let Some(flight) = flights.get(key) else { return Ok(()) };
        let waits = self.outbox.waits();
        if !waits {
            self.send_question(flight, server, &outgoing, id)?;
        }
        outgoing.add(id, key);
        flight.sent.push(Sent::Udp(Rc::clone(&outgoing), id));
        if waits {
            self.departures.borrow_mut().push((key, outgoing, id));
        }
        Ok(())
    }

    fn send_question(
        &self,
        flight: &Flight,
        server: &Server,
        outgoing: &Rc<Outgoing>,
        id: u16,
    ) -> io::Result<()> {
        let mut datagram = self.outgoing_buffer.borrow_mut();
        datagram.clear();
        datagram.extend(flight.identity.message());
        wire::set_id(&mut datagram, id);
        match outgoing.send(&datagram) {
            // A full send buffer is as a lost packet: the timeout asks again.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                server.sockets.borrow_mut().discard(outgoing);
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Sends the questions that waited for the end of a batch. To be called when nothing waits any more.
    pub(crate) fn send_questions(self: &Rc<Self>) {
        let mut departures = self.departures.take();
        for (key, outgoing, id) in departures.drain(..) {
            let mut flights = self.flights.borrow_mut();
            let Some(flight) = flights.get(key) else { continue };
            if !flight.sent.iter().any(|sent| sent.is(&outgoing)) {
                // The socket failed, and somebody else is asked already.
                continue;
            }
            let Some(server) = flight.server().cloned() else { continue };
            if self.send_question(flight, &server, &outgoing, id).is_err() {
                drop(flights);
                // The error may be the answer to an earlier question of the batch, and is told only once.
                self.socket_failed(&server, &outgoing);
            }
        }
        self.departures.replace(departures);
    }

    fn outgoing(self: &Rc<Self>, server: &Rc<Server>, now: Instant) -> Result<Rc<Outgoing>, Untried> {
        let mut sockets = server.sockets.borrow_mut();
        if let Some(outgoing) = sockets.next(now) {
            return Ok(outgoing);
        }
        let outgoing = Outgoing::open(server.address, now)?;
        if server.address.port() == self.port && tcp::is_own(outgoing.local_addr(), server.address) {
            return Err(Untried::Loop);
        }
        let reader = tokio::task::spawn_local(read(Rc::clone(self), Rc::clone(server), Rc::clone(&outgoing)));
        outgoing.set_reader(reader.abort_handle());
        sockets.put(Rc::clone(&outgoing));
        Ok(outgoing)
    }

    fn unused_id(&self, used: impl Fn(u16) -> bool) -> Result<u16, Untried> {
        let mut random = self.random.borrow_mut();
        loop {
            let id = random.next().ok_or(Untried::Failed)?;
            if !used(id) {
                return Ok(id);
            }
        }
    }

    /// Asks on a connection of its own, in a task of its own: for the few that UDP cannot serve.
    fn ask_by_tcp(self: &Rc<Self>, key: Key, server: &Rc<Server>) {
        let settings = self.settings();
        let mut flights = self.flights.borrow_mut();
        let Some(flight) = flights.get(key) else { return };
        let mut query = flight.identity.message().to_vec();
        // The task has the same time as the try and tells how it ended; the flight's own end is the backstop.
        let deadline = flight.deadline;
        flights.set_timer(key, deadline);
        drop(flights);
        let (engine, server) = (Rc::clone(self), Rc::clone(server));
        tokio::task::spawn_local(async move {
            let id = engine.random.borrow_mut().next();
            let asked = async {
                wire::set_id(&mut query, id.ok_or(io::ErrorKind::Other)?);
                tcp::ask(server.address, &query, engine.port, &engine.metrics).await
            };
            let result = tokio::time::timeout(settings.try_timeout, asked).await;
            match result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(message) => engine.whole(key, &server, message),
                Err(_) => engine.try_failed(key, &server),
            }
        });
    }

    fn ask_by_tls(self: &Rc<Self>, key: Key, server: &Rc<Server>) -> Result<(), Untried> {
        let link = self.link(server)?;
        let id = self.unused_id(|id| link.uses_id(id))?;
        let mut flights = self.flights.borrow_mut();
        let Some(flight) = flights.get(key) else { return Ok(()) };
        let mut query = flight.identity.message().to_vec();
        wire::set_id(&mut query, id);
        link.ask(id, key, &query)?;
        flight.sent.push(Sent::Tls(link, id));
        Ok(())
    }

    /// The upstream's connection, or a new one.
    fn link(self: &Rc<Self>, server: &Rc<Server>) -> Result<Rc<Link>, Untried> {
        let mut place = server.link.borrow_mut();
        if let Some(link) = place.as_ref().filter(|link| !link.closed()) {
            return Ok(Rc::clone(link));
        }
        let config = self.tls_config()?;
        let link = Rc::new(Link::default());
        *place = Some(Rc::clone(&link));
        let (engine, server, carried) = (Rc::clone(self), Rc::clone(server), Rc::clone(&link));
        tokio::task::spawn_local(async move {
            let name = server.tls_name.clone().unwrap_or_default();
            let take = |message: Vec<u8>| engine.from_link(&server, &carried, message);
            let ended = carried.carry((server.address, &name), config, take).await;
            let left = carried.close();
            if let Err(error) = ended
                && !left.is_empty()
            {
                tracing::debug!(server = %server.address, %error, "a connection to a resolver ended");
            }
            left.into_iter().for_each(|key| engine.try_failed(key, &server));
        });
        Ok(link)
    }

    fn tls_config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.tls.borrow().as_ref() {
            return Ok(Arc::clone(config));
        }
        let config = tls::client_config(&self.settings().roots).inspect_err(|error| {
            tracing::warn!(%error, "cannot read the certificates that upstreams are checked against");
        })?;
        *self.tls.borrow_mut() = Some(Arc::clone(&config));
        Ok(config)
    }

    /// A message of a TLS connection.
    fn from_link(self: &Rc<Self>, server: &Rc<Server>, link: &Rc<Link>, message: Vec<u8>) {
        let matched = wire::id(&message).and_then(|id| link.find(id)).ok_or(Spoof::Id).and_then(|key| {
            let mut flights = self.flights.borrow_mut();
            let flight = flights.get(key).ok_or(Spoof::Id)?;
            if wire::answers(&message, flight.question()) { Ok(key) } else { Err(Spoof::Question) }
        });
        match matched {
            Ok(key) => self.whole(key, server, message),
            Err(spoof) => self.metrics.spoof(spoof),
        }
    }

    /// A datagram from an upstream.
    fn datagram(self: &Rc<Self>, server: &Rc<Server>, outgoing: &Rc<Outgoing>, message: &[u8]) {
        match self.match_datagram(outgoing, message) {
            Err(spoof) => self.metrics.spoof(spoof),
            Ok((key, answer)) => {
                if let Some(flight) = self.flights.borrow_mut().get(key) {
                    flight.sent.retain(|sent| !sent.is(outgoing));
                }
                if answer.truncated {
                    self.metrics.tcp_retries.add();
                    self.ask_by_tcp(key, server);
                } else {
                    self.answered(key, server, message.to_vec(), answer);
                }
            }
        }
    }

    fn match_datagram(&self, outgoing: &Outgoing, message: &[u8]) -> Result<(Key, Answer), Spoof> {
        if message.len() < wire::HEADER {
            return Err(Spoof::Malformed);
        }
        let id = wire::id(message).ok_or(Spoof::Malformed)?;
        let key = outgoing.find(id).ok_or(Spoof::Id)?;
        let mut flights = self.flights.borrow_mut();
        let flight = flights.get(key).ok_or(Spoof::Id)?;
        if !wire::is_answer(message) {
            return Err(Spoof::Malformed);
        }
        if !wire::answers(message, flight.question()) {
            return Err(Spoof::Question);
        }
        let answer = Answer::read(message, flight.question_end).ok_or(Spoof::Malformed)?;
        Ok((key, answer))
    }

    /// An answer that came by a stream, so that it is whole; its id and question are checked.
    pub(crate) fn whole(self: &Rc<Self>, key: Key, server: &Rc<Server>, message: Vec<u8>) {
        let question_end = self.flights.borrow_mut().get(key).map(|flight| flight.question_end);
        let answer = question_end.and_then(|end| Answer::read(&message, end));
        match answer.filter(|answer| !answer.truncated) {
            Some(answer) => self.answered(key, server, message, answer),
            None => {
                self.metrics.spoof(Spoof::Malformed);
                self.try_failed(key, server);
            }
        }
    }

    fn answered(self: &Rc<Self>, key: Key, server: &Rc<Server>, message: Vec<u8>, answer: Answer) {
        let now = Instant::now();
        let mut flights = self.flights.borrow_mut();
        let Some(flight) = flights.get(key) else { return };
        let refused =
            matches!(answer.rcode, rcode::SERVFAIL | rcode::REFUSED | rcode::NOTIMP | rcode::FORMERR);
        if refused && flight.tries < flight.servers.len() && now < flight.deadline {
            // Others may know better; if none does, this is what the client gets.
            flight.failure = Some(message);
            drop(flights);
            return self.try_next(key, now);
        }
        self.metrics.upstream_latency.record(now.saturating_duration_since(flight.asked));
        let Some(mut flight) = flights.remove(key) else { return };
        self.metrics.in_flight.set(flights.len());
        drop(flights);
        self.servers.borrow_mut().succeeded(server, now);
        self.last_resolver.set(flight.resolver.or(self.last_resolver.get()));
        if let Some(cache_key) = flight.cache_key.take() {
            let limits = self.settings().limits;
            let kept = (message.as_slice(), &answer);
            let evicted = self.cache.borrow_mut().put(cache_key, kept, flight.resolver, &limits, now);
            self.count_evicted(evicted);
        }
        self.deliver(flight, message, answer, now);
    }

    fn deliver(self: &Rc<Self>, flight: Flight, message: Vec<u8>, answer: Answer, now: Instant) {
        let Flight { identity, question_end, waiters, .. } = flight;
        self.release(Ready::new((message, answer), identity, question_end, waiters), now);
    }

    /// A try that ended without an answer.
    pub(crate) fn try_failed(self: &Rc<Self>, key: Key, server: &Rc<Server>) {
        let now = Instant::now();
        self.metrics.failed_tries.add();
        self.servers.borrow_mut().failed(server, now);
        self.try_next(key, now);
    }

    /// A try that had its time. What it asked may still be answered while the next one runs.
    pub(crate) fn try_timed_out(self: &Rc<Self>, key: Key, now: Instant) {
        let server = self.flights.borrow_mut().get(key).and_then(|flight| flight.server().cloned());
        if let Some(server) = server {
            self.metrics.failed_tries.add();
            self.servers.borrow_mut().failed(&server, now);
        }
        self.try_next(key, now);
    }

    /// The kernel says that nobody listens there: all that wait for this socket ask somebody else.
    fn socket_failed(self: &Rc<Self>, server: &Rc<Server>, outgoing: &Rc<Outgoing>) {
        server.sockets.borrow_mut().discard(outgoing);
        for key in outgoing.keys() {
            let present = {
                let mut flights = self.flights.borrow_mut();
                let Some(flight) = flights.get(key) else { continue };
                flight.sent.retain(|sent| !sent.is(outgoing));
                flight.sent.is_empty()
            };
            if present {
                self.try_failed(key, server);
            }
        }
    }

    /// No upstream answered.
    fn give_up(self: &Rc<Self>, key: Key) {
        let failure = self.flights.borrow_mut().get(key).and_then(|flight| {
            let message = flight.failure.take()?;
            let answer = Answer::read(&message, flight.question_end)?;
            Some((message, answer))
        });
        match failure {
            Some((message, answer)) => {
                let Some(flight) = self.remove(key) else { return };
                self.deliver(flight, message, answer, Instant::now());
            }
            None => self.end(key, Outcome::Upstream),
        }
    }

    fn end(&self, key: Key, outcome: Outcome) {
        if let Some(flight) = self.remove(key) {
            self.settle_failed(&flight.identity, flight.waiters, outcome);
        }
    }

    fn remove(&self, key: Key) -> Option<Flight> {
        let mut flights = self.flights.borrow_mut();
        let flight = flights.remove(key);
        self.metrics.in_flight.set(flights.len());
        flight
    }
}

fn goes_by_tcp(flight: &Flight) -> bool {
    flight.identity.message().len() > UDP_QUESTION_MAX
}

/// Reads one socket until it is retired and all it asked is answered or given up (then this task is aborted).
async fn read<D: Decision>(engine: Rc<Engine<D>>, server: Rc<Server>, outgoing: Rc<Outgoing>) {
    loop {
        let Ok(interest) = outgoing.ready().await else {
            return engine.socket_failed(&server, &outgoing);
        };
        loop {
            let mut inbox = engine.inbox.borrow_mut();
            match outgoing.receive(interest, &mut inbox) {
                Ok(_) => engine.together(|| {
                    inbox.datagrams().for_each(|(message, ())| engine.datagram(&server, &outgoing, message));
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    drop(inbox);
                    return engine.socket_failed(&server, &outgoing);
                }
            }
        }
    }
}
