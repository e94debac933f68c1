//! Counters, gauges and histograms of the proxy; written by its thread, read by any.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Declares an enum whose variants are the labels of a family of counters.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As metrics call it.
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

labels! {
    /// How a question came.
    Transport {
        /// UDP.
        Udp = "udp",
        /// TCP.
        Tcp = "tcp",
        /// DNS over TLS (RFC 7858).
        Tls = "tls",
        /// DNS over HTTPS (RFC 8484).
        Https = "https",
        /// The background refresh.
        Lookup = "lookup",
    }
}

labels! {
    /// What became of a question. Each has exactly one, so that their sum is the number of questions.
    Outcome {
        /// Answered by an upstream.
        Forwarded = "forwarded",
        /// Answered by what an upstream said to somebody who asked the same at the same time.
        Joined = "joined",
        /// Answered from the cache.
        Cached = "cached",
        /// [`crate::Ask::Refuse`].
        Refused = "refused",
        /// The question that the proxy asks itself.
        Health = "health",
        /// FORMERR.
        Malformed = "malformed",
        /// NOTIMP: an operation that is not QUERY, or a zone transfer.
        NotImplemented = "not_implemented",
        /// SERVFAIL: no upstream answered in time.
        Upstream = "servfail_upstream",
        /// SERVFAIL: nobody to ask.
        NoUpstream = "servfail_no_upstream",
        /// SERVFAIL: it would have asked itself.
        Loop = "servfail_loop",
        /// SERVFAIL: too many questions in flight or waiting.
        Full = "servfail_full",
        /// SERVFAIL: the release took too long.
        HoldDeadline = "servfail_hold_deadline",
        /// SERVFAIL: [`crate::Release::Hold`].
        Held = "servfail_held",
        /// Not answered: by an interface that is not inside.
        DroppedInterface = "dropped_interface",
        /// Not answered: an answer, or no header.
        DroppedNoQuestion = "dropped_no_question",
        /// Not answered: the client went away, or did not take its answer.
        DroppedClient = "dropped_client",
    }
}

labels! {
    /// Why something that came from an upstream was no answer. (Packets from other servers and to other ports never
    /// reach the connected sockets; the kernel counts them as `UdpNoPorts`.)
    Spoof {
        /// An id that is not asked for: unsolicited, or later than the last timeout.
        Id = "id",
        /// The question section differs, in case perhaps.
        Question = "question",
        /// Shorter than a header, no answer, or records that cannot be read.
        Malformed = "malformed",
    }
}

labels! {
    /// Which bound was met.
    Bound {
        /// Connections of clients closed at once, as there were too many.
        Connections = "connections",
        /// Connections closed because their answers were not taken.
        ConnectionBytes = "connection_bytes",
        /// Cache entries given up before their time.
        CacheEvicted = "cache_evicted",
        /// Connections of clients of the encrypted listeners closed at once, as there were too many.
        TlsConnections = "tls_connections",
        /// Connections closed because their TLS handshake failed or took too long.
        TlsHandshake = "tls_handshake",
        /// Questions of the encrypted listeners refused, as the proxy's thread had too many.
        Queue = "queue",
    }
}

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }
}

/// Durations in fixed buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; Histogram::BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    /// Upper ends of the buckets in microseconds, both included; one more bucket has the rest.
    pub const BOUNDS: [u64; 16] = [
        10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 1_000_000,
        5_000_000,
    ];

    /// How many fell into each bucket (not cumulative).
    pub fn buckets(&self) -> [u64; Self::BOUNDS.len() + 1] {
        std::array::from_fn(|index| self.buckets[index].load(Ordering::Relaxed))
    }

    /// How many in all.
    pub fn count(&self) -> u64 {
        self.buckets().iter().sum()
    }

    /// Their sum in microseconds.
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    pub(crate) fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let index = Self::BOUNDS.partition_point(|bound| *bound < micros);
        self.buckets[index].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Metrics {
    queries: [[Counter; Outcome::ALL.len()]; Transport::ALL.len()],
    spoofs: [Counter; Spoof::ALL.len()],
    bounds: [Counter; Bound::ALL.len()],
    /// From asking an upstream to its answer.
    pub upstream_latency: Histogram,
    /// From an answer to its release.
    pub hold_latency: Histogram,
    /// Questions sent to upstreams, each try.
    pub tries: Counter,
    /// Tries that had no answer in time, or an error.
    pub failed_tries: Counter,
    /// Truncated answers of upstreams that were asked again by TCP.
    pub tcp_retries: Counter,
    /// UDP answers cut to the header and the question.
    pub truncated: Counter,
    /// UDP answers that the kernel did not take, as when its buffer is full.
    pub unsent: Counter,
    /// Cache: questions that were not in it.
    pub cache_misses: Counter,
    /// Cache: entries ([`crate::config::Limits::cache_entries`]).
    pub cache_entries: Gauge,
    /// Cache: bytes ([`crate::config::Limits::cache_bytes`]).
    pub cache_bytes: Gauge,
    /// Questions asked upstream now ([`crate::config::Limits::in_flight`]).
    pub in_flight: Gauge,
    /// Clients waiting for them ([`crate::config::Limits::waiting`]).
    pub waiting: Gauge,
    /// Connections of clients now ([`crate::config::Limits::connections`]).
    pub connections: Gauge,
    /// Connections of clients of the encrypted listeners now, those in their handshake too.
    pub tls_connections: Gauge,
    /// How many there may be; 0 while nobody listens.
    pub tls_connections_max: Gauge,
    /// Bytes of answers not yet taken by connections ([`crate::config::Limits::connection_bytes`]).
    pub connection_bytes: Gauge,
}

impl Metrics {
    /// Questions by how they came and what became of them.
    pub fn queries(&self, transport: Transport, outcome: Outcome) -> u64 {
        self.queries[transport as usize][outcome as usize].get()
    }

    /// Questions with this outcome.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        Transport::ALL.iter().map(|transport| self.queries(*transport, outcome)).sum()
    }

    /// What came from an upstream's address and was no answer.
    pub fn spoofs(&self, spoof: Spoof) -> u64 {
        self.spoofs[spoof as usize].get()
    }

    /// How often a bound was met.
    pub fn bound(&self, bound: Bound) -> u64 {
        self.bounds[bound as usize].get()
    }

    pub(crate) fn count(&self, transport: Transport, outcome: Outcome) {
        self.queries[transport as usize][outcome as usize].add();
    }

    pub(crate) fn spoof(&self, spoof: Spoof) {
        self.spoofs[spoof as usize].add();
    }

    pub(crate) fn bound_met(&self, bound: Bound) {
        self.bounds[bound as usize].add();
    }
}
