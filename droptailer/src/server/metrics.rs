//! What the server counts: `/metrics`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// A standard output that takes nothing for so long is no longer healthy: the container is started again.
const MOST_STALL: Duration = Duration::from_secs(120);

/// All families; METRICS.md describes them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub(super) printed: IntCounter,
    pub(super) refused: IntCounterVec,
    pub(super) repeated: IntCounter,
    pub(super) untimed: IntCounter,
    pub(super) open: IntGauge,
    pub(super) connections: IntCounterVec,
    pub(super) streams: IntGauge,
    pub(super) sessions: IntGauge,
    pub(super) forgotten: IntCounter,
    pub(super) output_errors: IntCounter,
    pub(super) output: Output,
    pub(super) reloads: IntCounterVec,
    stalled: Gauge,
}

/// Since when a write is under way.
#[derive(Debug, Default)]
pub(super) struct Output(Mutex<Option<Instant>>);

impl Output {
    pub(super) fn begin(&self, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    pub(super) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn stalled(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Metrics {
    /// All at 0.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let counters = |name: &str, help: &str, label: &str, values: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            for value in values {
                counters.get_metric_with_label_values(&[value])?;
            }
            prometheus::Result::Ok(counters)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let stalled = Gauge::new(
            "droptailer_server_output_stalled_seconds",
            "For how long standard output has taken nothing, while lines wait.",
        )?;
        registry.register(Box::new(stalled.clone()))?;
        Ok(Self {
            printed: counter("droptailer_server_printed_lines_total", "Lines printed.")?,
            refused: counters(
                "droptailer_server_refused_records_total",
                "Records and requests that were not printed, by reason.",
                "reason",
                &["malformed", "session", "size"],
            )?,
            repeated: counter(
                "droptailer_server_repeated_records_total",
                "Records that were sent again and are printed already.",
            )?,
            untimed: counter(
                "droptailer_server_untimed_records_total",
                "Records without a time that a line can show; printed with the time of their arrival.",
            )?,
            open: gauge("droptailer_server_connections", "Connections at this time.")?,
            connections: counters(
                "droptailer_server_connections_total",
                "Connections by what became of them.",
                "outcome",
                &["address-bound", "bound", "served", "slow", "tls"],
            )?,
            streams: gauge("droptailer_server_streams", "Calls of Stream at this time.")?,
            sessions: gauge("droptailer_server_sessions", "Clients whose last record is remembered.")?,
            forgotten: counter(
                "droptailer_server_forgotten_sessions_total",
                "Clients whose last record was forgotten, because there were too many.",
            )?,
            output_errors: counter(
                "droptailer_server_output_errors_total",
                "Failed writes to standard output.",
            )?,
            output: Output::default(),
            reloads: counters(
                "droptailer_server_certificate_reloads_total",
                "Changes of the certificates' files, by whether they could be loaded.",
                "outcome",
                &["failed", "loaded"],
            )?,
            stalled,
            registry,
        })
    }

    /// The exposition.
    pub fn text(&self) -> prometheus::Result<String> {
        self.stalled.set(self.output.stalled().as_secs_f64());
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// What is wrong, for /healthz.
    pub fn problem(&self) -> Option<String> {
        let stalled = self.output.stalled();
        (stalled > MOST_STALL).then(|| format!("standard output takes nothing for {} s", stalled.as_secs()))
    }
}
