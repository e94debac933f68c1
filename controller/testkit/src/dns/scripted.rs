//! An in-process DNS server that says what it is told to: UDP and TCP, right or wrong, late or never.

mod reply;
mod serve;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};

use crate::Netns;
use crate::dns::wire::{Name, Query};
use crate::r#gen::Rng;

pub use reply::{Custom, Reply, Spoof, Unique};

/// How the question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// As a datagram.
    Udp,
    /// Over a TCP connection.
    Tcp,
}

/// A question that a server has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Who asked.
    pub from: SocketAddr,
    /// How.
    pub transport: Transport,
    /// The message as it came.
    pub bytes: Vec<u8>,
}

impl Asked {
    /// The question, if it is one.
    pub fn query(&self) -> Option<Query> {
        Query::read(&self.bytes)
    }
}

/// Questions that are kept to be looked at; more are only counted.
const MOST_KEPT: usize = 100_000;

/// A scripted server in a namespace, on one thread; ends on drop.
#[derive(Debug)]
pub struct Scripted {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    asked: Mutex<Vec<Asked>>,
    questions: AtomicU64,
    answers: AtomicU64,
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which name gets which reply. Names are in lower case here; a question finds them in any case.
#[derive(Debug)]
struct Script {
    exact: BTreeMap<Name, Reply>,
    below: BTreeMap<Name, Reply>,
    fallback: Reply,
    rng: Rng,
}

impl Script {
    /// The reply for a name: its own, else that of the closest name above it that has one for all below.
    fn find(&self, name: &Name) -> &Reply {
        let name = name.to_lowercase();
        if let Some(reply) = self.exact.get(&name) {
            return reply;
        }
        let mut rest = name.bytes();
        while let Some((length, tail)) = rest.split_first().filter(|(length, _)| **length > 0) {
            rest = tail.get(usize::from(*length)..).unwrap_or_default();
            let found = Name::read(rest).and_then(|(parent, _)| self.below.get(&parent));
            if let Some(reply) = found {
                return reply;
            }
        }
        &self.fallback
    }
}

impl Scripted {
    /// Answers on UDP and TCP at addresses that the namespace has (port 0 takes a free one for each), NXDOMAIN to every
    /// question until it is told otherwise.
    pub fn new(ns: &Netns, addresses: &[SocketAddr]) -> Result<Self> {
        let listeners = ns.run(|| {
            let listen =
                |address: &SocketAddr| serve::Listener::bind(*address).with_context(|| address.to_string());
            addresses.iter().map(listen).collect::<Result<Vec<_>>>()
        })??;
        let addresses = listeners.iter().map(serve::Listener::address).collect::<Result<_>>()?;
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let shared = Arc::new(Shared {
            script: Mutex::new(Script {
                exact: BTreeMap::new(),
                below: BTreeMap::new(),
                fallback: Reply::Rcode(3),
                rng: Rng::new(1),
            }),
            asked: Mutex::default(),
            questions: AtomicU64::new(0),
            answers: AtomicU64::new(0),
        });
        let its = Arc::clone(&shared);
        // In the namespace, since spoofed answers open sockets of their own.
        let thread = ns.spawn(move || serve::serve(listeners, &stopped, &its))?;
        let thread = std::thread::spawn(move || match thread.join() {
            Ok(result) => result.flatten(),
            Err(panic) => std::panic::resume_unwind(panic),
        });
        Ok(Self { addresses, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// At port 53 of addresses.
    pub fn at(ns: &Netns, addresses: &[IpAddr]) -> Result<Self> {
        Self::new(ns, &addresses.iter().map(|address| SocketAddr::new(*address, 53)).collect::<Vec<_>>())
    }

    /// From now on this name gets this reply.
    pub fn name(&self, name: &str, reply: Reply) -> Result<&Self> {
        self.shared.script().exact.insert(Name::parse(name)?.to_lowercase(), reply);
        Ok(self)
    }

    /// From now on every name below this one gets this reply, unless it or a closer name has its own.
    pub fn below(&self, name: &str, reply: Reply) -> Result<&Self> {
        self.shared.script().below.insert(Name::parse(name)?.to_lowercase(), reply);
        Ok(self)
    }

    /// What all other names get.
    pub fn otherwise(&self, reply: Reply) -> &Self {
        self.shared.script().fallback = reply;
        self
    }

    /// Where it answers.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Questions so far, answered or not.
    pub fn questions(&self) -> u64 {
        self.shared.questions.load(Ordering::Relaxed)
    }

    /// Messages sent so far.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// The first 100,000 messages received since the last call of [`Scripted::forget`].
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked().clone()
    }

    /// Questions for a name and type, in any case.
    pub fn asked_for(&self, name: &str, kind: u16) -> Result<usize> {
        let name = Name::parse(name)?.to_lowercase();
        let asked = self.shared.asked();
        let queries = asked.iter().filter_map(Asked::query);
        Ok(queries.filter(|query| query.kind == kind && query.name.to_lowercase() == name).count())
    }

    /// Forgets the messages that are kept, not their number.
    pub fn forget(&self) {
        self.shared.asked().clear();
    }

    /// Ends it; the error that it met, if any.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.take();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
