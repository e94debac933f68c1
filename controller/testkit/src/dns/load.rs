//! Many questions, and what became of them; and of the connection that a client opens the moment it has its answer.

mod attempts;
mod run;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::Netns;
use crate::dns::wire::kind;

/// How fast questions follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// So many per second, whether they are answered or not (within a millisecond).
    PerSecond(u32),
    /// The next one as soon as fewer than so many are under way.
    InFlight(usize),
}

/// What a client does with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Opens a TCP connection and resets it. An [`crate::traffic::any::AnyServer`] answers.
    Tcp,
    /// Sends one datagram, which an [`crate::traffic::any::AnyServer`] returns.
    Udp,
}

/// A load to be.
pub struct Load {
    pub(super) server: SocketAddr,
    pub(super) count: usize,
    pub(super) name: Box<dyn Fn(usize) -> String + Send + Sync>,
    /// Type of the questions; A to begin with.
    pub kind: u16,
    /// 100 in flight to begin with.
    pub pace: Pace,
    /// From how many ports they come; 16 to begin with.
    pub ports: usize,
    /// EDNS size; none to begin with.
    pub edns: Option<u16>,
    /// How long an answer or a connection is waited for; 5 seconds to begin with. (A SYN is sent again after one.)
    pub patience: Duration,
    /// What happens on each answer's first address, and on which port.
    pub connect: Option<(Connect, u16)>,
    /// How long after the answer it happens once more, if the TTL it had is longer.
    pub again: Option<Duration>,
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} questions to {} {:?}", self.count, self.server, self.pace)
    }
}

impl Load {
    /// So many questions to one server; `name` gives the name of each.
    pub fn new(
        server: SocketAddr,
        count: usize,
        name: impl Fn(usize) -> String + Send + Sync + 'static,
    ) -> Self {
        Self {
            server,
            count,
            name: Box::new(name),
            kind: kind::A,
            pace: Pace::InFlight(100),
            ports: 16,
            edns: None,
            patience: Duration::from_secs(5),
            connect: None,
            again: None,
        }
    }

    /// Asks from a namespace until every question is answered or given up. DNS, connections and their judgement share
    /// one thread: nothing but the kernel is between an answer and the packet that follows it.
    pub fn run(&self, ns: &Netns) -> Result<LoadReport> {
        ns.run(|| run::run(self))?
    }
}

/// What became of a load.
#[derive(Clone, Default)]
pub struct LoadReport {
    /// Questions sent.
    pub asked: usize,
    /// Answers without an error.
    pub answered: usize,
    /// Answers with an RCODE other than 0.
    pub failed: usize,
    /// Questions without an answer in time.
    pub unanswered: usize,
    /// From question to answer.
    pub latency: Times,
    /// From the moment the kernel had an answer to the moment the connection's first packet was out.
    pub reaction: Times,
    /// TTLs of the addresses that were connected to, in order.
    pub ttls: Vec<u32>,
    /// Connections at once.
    pub first: Attempts,
    /// Connections later.
    pub again: Attempts,
    /// All in all.
    pub time: Duration,
}

impl fmt::Debug for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ttls = (self.ttls.iter().min(), self.ttls.iter().max());
        f.debug_struct("LoadReport")
            .field("asked", &self.asked)
            .field("answered", &self.answered)
            .field("failed", &self.failed)
            .field("unanswered", &self.unanswered)
            .field("latency", &self.latency)
            .field("reaction", &self.reaction)
            .field("ttls from and to", &ttls)
            .field("first", &self.first)
            .field("again", &self.again)
            .field("time", &self.time)
            .finish()
    }
}

impl LoadReport {
    /// Answers without an error per second.
    #[allow(clippy::cast_precision_loss, reason = "a rate for people; 52 bits are plenty")]
    pub fn per_second(&self) -> f64 {
        self.answered as f64 / self.time.as_secs_f64()
    }
}

/// What became of connections or datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Got through with their first packet.
    pub at_once: usize,
    /// Connected, and the SYN had to be sent again: the first packet was lost.
    pub late: usize,
    /// Somebody said no.
    pub refused: usize,
    /// Nothing came back in time.
    pub silent: usize,
    /// The first hundred that did not get through at once: number of the question, address.
    pub lost: Vec<(usize, IpAddr)>,
}

impl Attempts {
    /// All of them.
    pub fn total(&self) -> usize {
        self.at_once + self.late + self.refused + self.silent
    }
}

/// Durations, for percentiles.
#[derive(Clone, Default)]
pub struct Times(pub(super) Vec<Duration>);

impl Times {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The duration that so many percent do not exceed (50.0 = the median); zero when there is none.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an index between 0 and the length"
    )]
    pub fn percentile(&self, percent: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        let at = (last as f64 * percent.clamp(0.0, 100.0) / 100.0).round() as usize;
        self.0.get(at).copied().unwrap_or_default()
    }

    fn sort(&mut self) {
        self.0.sort_unstable();
    }
}

impl fmt::Debug for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, most, worst] = [50.0, 99.0, 100.0].map(|percent| self.percentile(percent));
        write!(f, "p50 {median:?} p99 {most:?} worst {worst:?} of {}", self.len())
    }
}
