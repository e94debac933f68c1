//! The thread that the reconciler lives on: takes jobs, reads counters now and then, tries again what was refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use fw_nft::{Drift, ElementChange, TimedElement};
use fw_policy::{IfName, Protocol};
use fw_ruleset::ir::Family;
use tokio::sync::{oneshot, watch};
use tracing::warn;

use super::{Reconciler, View};
use crate::source::Snapshot;
use crate::telemetry::chain;

/// How often routes are compared with those that inside was chosen by.
const HOST_INTERVAL: Duration = Duration::from_secs(60);
/// The same while there are no routes to choose by.
const SEEK_INTERVAL: Duration = Duration::from_secs(5);
/// How often counters are handed to the memory.
const RECORD_INTERVAL: Duration = Duration::from_secs(60);
/// In a burst of objects they are enforced with this pause between: each time everything is compiled anew.
const BURST_PAUSE: Duration = Duration::from_millis(150);
/// Readings of the counters on demand are at least this far apart.
const FRESH_ENOUGH: Duration = Duration::from_millis(50);

/// What the thread can be asked.
pub enum Job {
    /// A source's objects, and when it gave them.
    Objects(Arc<Snapshot>, Instant),
    /// Others changed our table, or may have.
    Drift(Drift),
    /// Read the counters; answered when the view has them.
    Counters(oneshot::Sender<()>),
    /// The proxy answers by these ways.
    Arm(BTreeSet<(Family, Protocol)>),
    /// Change elements of the maps that stand in for eBPF.
    Elements {
        /// What is to change.
        changes: Vec<ElementChange>,
        /// The [`super::Installation::emptied`] they were made under.
        emptied: u64,
        /// Answered when they are in the kernel, or why not.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Read those maps.
    ReadElements(Vec<String>, oneshot::Sender<Vec<(String, Vec<TimedElement>)>>),
    /// Interfaces or addresses of this machine have changed.
    Links,
    /// Remove the table.
    Flush(oneshot::Sender<Result<(), String>>),
    /// Enforce again.
    UndoFlush(oneshot::Sender<()>),
    /// Answered when its turn comes: the sign of life for the watchdog.
    Ping(oneshot::Sender<()>),
    /// Leave, rules in place.
    Stop(oneshot::Sender<()>),
}

/// What the thread tells.
#[derive(Clone)]
pub struct Outputs {
    /// The state after each step.
    pub view: watch::Sender<Arc<View>>,
    /// Addresses that source NAT needs on interfaces; `None`: unknown, leave them as they are.
    pub addresses: watch::Sender<Option<BTreeMap<IfName, BTreeSet<IpAddr>>>>,
}

/// Starts the thread with a reconciler that has begun already.
pub fn start(reconciler: Reconciler, outputs: Outputs, counter_interval: Duration) -> Sender<Job> {
    let (sender, jobs) = channel();
    std::thread::spawn(move || {
        Worker {
            reconciler,
            outputs,
            counter_interval,
            counters_at: Instant::now(),
            host_at: Instant::now() + HOST_INTERVAL,
            record_at: Instant::now() + RECORD_INTERVAL,
            waiting: Waiting::default(),
        }
        .run(&jobs);
    });
    sender
}

struct Worker {
    reconciler: Reconciler,
    outputs: Outputs,
    counter_interval: Duration,
    counters_at: Instant,
    host_at: Instant,
    record_at: Instant,
    waiting: Waiting,
}

/// Objects that are still to be enforced.
#[derive(Default)]
struct Waiting {
    /// The last ones, and when the first of those that they stand for were given.
    objects: Option<(Arc<Snapshot>, Instant)>,
    /// When the last enforcement ended, and how many have been given before that and were too late for it.
    ended: Option<Instant>,
    late: u32,
}

impl Waiting {
    fn take(&mut self, snapshot: Arc<Snapshot>, given: Instant) {
        let first = self.objects.take().map_or(given, |(_, first)| first.min(given));
        self.objects = Some((snapshot, first));
        self.late += u32::from(self.ended.is_some_and(|ended| given < ended));
    }

    /// When they are to be enforced: at once, or later in a burst. One edit that comes while another one is enforced is no
    /// burst yet.
    fn due(&self) -> Option<Instant> {
        let (_, given) = self.objects.as_ref()?;
        Some(self.ended.filter(|_| self.late > 1).map_or(*given, |ended| ended + BURST_PAUSE))
    }
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        self.publish();
        loop {
            let wait = self.next_deadline().saturating_duration_since(Instant::now());
            match jobs.recv_timeout(wait) {
                Ok(job) => {
                    if self.take(job, jobs) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.tick(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.waiting.due().is_some_and(|due| due <= Instant::now()) {
                self.enforce();
            }
        }
    }

    fn next_deadline(&self) -> Instant {
        let timers = [self.counters_at, self.host_at, self.record_at];
        let first = timers.into_iter().chain(self.reconciler.retry_at()).chain(self.waiting.due()).min();
        first.unwrap_or(self.counters_at)
    }

    /// Does a job and all that came meanwhile, but for objects, which only wait: the last ones count. True to leave.
    fn take(&mut self, first: Job, jobs: &Receiver<Job>) -> bool {
        // What comes while they are done waits for its turn behind the objects.
        let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter()).collect();
        batch.into_iter().any(|job| self.perform(job))
    }

    fn enforce(&mut self) {
        let Some((snapshot, given)) = self.waiting.objects.take() else { return };
        self.reconciler.objects(snapshot, Instant::now());
        self.reconciler.note_lag(given);
        self.publish();
        self.waiting = Waiting { ended: Some(Instant::now()), ..Waiting::default() };
    }

    fn perform(&mut self, job: Job) -> bool {
        let now = Instant::now();
        match job {
            Job::Objects(snapshot, given) => self.waiting.take(snapshot, given),
            Job::Drift(drift) => {
                self.reconciler.drifted(&drift, now);
                self.publish();
            }
            Job::Counters(done) => {
                if self.counters_at.saturating_duration_since(now) + FRESH_ENOUGH <= self.counter_interval {
                    self.read_counters();
                }
                done.send(()).ok();
            }
            Job::Arm(ways) => self.reconciler.arm(&ways),
            Job::Elements { changes, emptied, done } => {
                done.send(self.reconciler.update_elements(&changes, emptied)).ok();
            }
            Job::ReadElements(maps, done) => {
                done.send(self.reconciler.timed_elements(&maps)).ok();
            }
            Job::Links => {
                self.reconciler.reconcile(now);
                self.publish();
            }
            Job::Flush(done) => {
                let result = self.reconciler.flush().map_err(|error| chain(&error));
                self.publish();
                done.send(result).ok();
            }
            Job::UndoFlush(done) => {
                self.reconciler.undo_flush(now);
                self.publish();
                done.send(()).ok();
            }
            Job::Ping(done) => {
                done.send(()).ok();
            }
            Job::Stop(done) => {
                self.enforce();
                self.read_counters();
                self.reconciler.note_kernel();
                done.send(()).ok();
                return true;
            }
        }
        false
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.reconciler.retry_at().is_some_and(|at| at <= now) {
            self.reconciler.retry(now);
            self.publish();
        }
        if self.counters_at <= now {
            self.read_counters();
        }
        if self.host_at <= now {
            self.host_at = now + HOST_INTERVAL;
            self.reconciler.check_host(now);
            self.publish();
        }
        if self.record_at <= now {
            self.record_at = now + RECORD_INTERVAL;
            self.reconciler.note_kernel();
        }
    }

    fn read_counters(&mut self) {
        self.counters_at = Instant::now() + self.counter_interval;
        if let Err(error) = self.reconciler.read_counters() {
            warn!("counters were not read: {}", chain(&error));
        }
        self.publish();
    }

    fn publish(&mut self) {
        if self.reconciler.seeks_inside() {
            self.host_at = self.host_at.min(Instant::now() + SEEK_INTERVAL);
        }
        self.outputs.view.send_replace(Arc::new(self.reconciler.view()));
        let wanted = self.reconciler.snat_addresses();
        self.outputs.addresses.send_if_modified(|current| {
            let differs = *current != wanted;
            if differs {
                *current = wanted;
            }
            differs
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

    use super::*;

    fn noted(note: &str) -> Arc<Snapshot> {
        Arc::new(Snapshot { note: note.to_owned(), ..Snapshot::default() })
    }

    /// What waits after an enforcement that ended at `ended`, of objects given that long before or after.
    fn after(ended: Instant, given: &[(i32, &str)]) -> Waiting {
        let mut waiting = Waiting { ended: Some(ended), ..Waiting::default() };
        for (at, note) in given {
            let away = Duration::from_millis(at.unsigned_abs().into());
            waiting.take(noted(note), if *at < 0 { ended - away } else { ended + away });
        }
        waiting
    }

    #[test]
    fn a_single_edit_is_enforced_at_once_also_when_it_comes_during_another_one() {
        let ended = Instant::now();
        let mut first = Waiting::default();
        assert_eq!(first.due(), None);
        first.take(noted("first"), ended);
        assert_eq!(first.due(), Some(ended));
        for given in [&[(-20, "one")][..], &[(20, "one")], &[(-20, "one"), (5, "two")]] {
            assert!(after(ended, given).due().unwrap() <= ended + Duration::from_millis(20), "{given:?}");
        }
    }

    #[test]
    fn a_burst_waits_and_of_its_objects_the_last_count_since_the_first() {
        let ended = Instant::now();
        let waiting = after(ended, &[(-30, "one"), (-10, "two"), (40, "three")]);
        assert_eq!(waiting.due(), Some(ended + BURST_PAUSE));
        let (snapshot, given) = waiting.objects.unwrap();
        assert_eq!((snapshot.note.as_str(), given), ("three", ended - Duration::from_millis(30)));
    }
}
