//! What waits to be written, and how fast.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// Pauses after failures of one object: they double.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// A set of things that wait, each until its time; so it is bounded by the number of things.
#[derive(Debug)]
pub(super) struct Queue<K> {
    times: BTreeMap<K, Instant>,
    order: BTreeSet<(Instant, K)>,
    /// Those being written; true: something new came meanwhile.
    busy: BTreeMap<K, bool>,
    /// Failures in a row, and until when nothing is tried.
    failures: BTreeMap<K, (u32, Instant)>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        let (times, order) = (BTreeMap::new(), BTreeSet::new());
        Self { times, order, busy: BTreeMap::new(), failures: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Queue<K> {
    /// To be looked at, not before `at`.
    pub(super) fn push(&mut self, key: &K, at: Instant) {
        if let Some(again) = self.busy.get_mut(key) {
            *again = true;
            return;
        }
        let at = self.failures.get(key).map_or(at, |(_, until)| at.max(*until));
        match self.times.get(key) {
            Some(before) if *before <= at => return,
            Some(before) => {
                self.order.remove(&(*before, key.clone()));
            }
            None => {}
        }
        self.times.insert(key.clone(), at);
        self.order.insert((at, key.clone()));
    }

    /// The one that has waited longest; busy until [`Self::done`] or [`Self::failed`].
    pub(super) fn pop(&mut self, now: Instant) -> Option<K> {
        let (at, key) = self.order.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = (*at, key.clone());
        self.order.pop_first();
        self.times.remove(&key);
        self.busy.insert(key.clone(), false);
        Some(key)
    }

    /// When the next one's time comes.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// All is well with it.
    pub(super) fn done(&mut self, key: &K, now: Instant) {
        self.failures.remove(key);
        if self.busy.remove(key) == Some(true) {
            self.push(key, now);
        }
    }

    /// It is tried again after a pause.
    pub(super) fn failed(&mut self, key: &K, now: Instant) {
        self.busy.remove(key);
        let (failures, until) = self.failures.entry(key.clone()).or_insert((0, now));
        *until = now + pause(FIRST_PAUSE, *failures, MAX_PAUSE);
        *failures = failures.saturating_add(1);
        self.push(key, now);
    }

    /// It was not tried: the API server is away.
    pub(super) fn later(&mut self, key: &K, now: Instant) {
        self.busy.remove(key);
        self.push(key, now);
    }

    /// Those for which the test is false do not wait any more.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&K) -> bool) {
        self.times.retain(|key, _| stays(key));
        self.order.retain(|(_, key)| stays(key));
        self.failures.retain(|key, _| stays(key));
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.times.len()
    }
}

/// Doubles with each failure.
pub(super) fn pause(first: Duration, failures: u32, max: Duration) -> Duration {
    first.saturating_mul(1_u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX)).min(max)
}

/// So many at once, and so many a second on end.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        let burst = f64::from(burst);
        Self { tokens: burst, burst, per_second: f64::from(per_second), filled: now }
    }

    /// When the next one may be taken: now, or later.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.filled = self.filled.max(now);
        let missing = (1.0 - self.tokens).max(0.0);
        now + Duration::from_secs_f64(missing / self.per_second)
    }

    /// To be called when [`Self::next`] is now.
    pub(super) fn take(&mut self) {
        self.tokens -= 1.0;
    }
}
