//! The thread that follows suricata's alerts.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fw_ids::{Event, Follower, Gate, Passed, Position};
use tracing::warn;

use super::{Alerts, Shared};
use crate::problems::Problems;
use crate::telemetry::chain;

/// Between two looks at the log. One reads 2 MiB at most, so that a flood of alerts costs a few percent of a processor.
const BEAT: Duration = Duration::from_millis(250);
/// Between two times that it is remembered up to where alerts were read; as much may be told again after a kill.
const SAVE: Duration = Duration::from_secs(10);

/// Follows the log until nobody wants to know any more.
pub(super) fn follow(shared: &Weak<Shared>, log: PathBuf, remembered: Option<Position>, problems: &Problems) {
    let mut desk = Desk::new(log, remembered);
    let began = Instant::now();
    let mut saved = began;
    while let Some(shared) = shared.upgrade() {
        desk.look(&shared, began.elapsed(), problems);
        if saved.elapsed() >= SAVE {
            saved = Instant::now();
            let problem = shared.save().err().map(|error| chain(&error));
            problems.set("IDS position", problem.into_iter().collect());
        }
        drop(shared);
        std::thread::sleep(BEAT);
    }
}

/// The log, and what of it was shown.
pub(super) struct Desk {
    log: PathBuf,
    follower: Follower,
    gate: Gate,
    alerts: Alerts,
    complaint: Option<String>,
}

impl Desk {
    pub(super) fn new(log: PathBuf, remembered: Option<Position>) -> Self {
        let follower = Follower::new(log.clone(), remembered);
        Self { log, follower, gate: Gate::default(), alerts: Alerts::default(), complaint: None }
    }

    /// Takes what is new in the log; `now` is the time since the thread began.
    pub(super) fn look(&mut self, shared: &Shared, now: Duration, problems: &Problems) {
        let Self { follower, gate, alerts, .. } = self;
        let outcome = follower.step(now, |line| take(line, gate, alerts, now));
        let complaint = outcome
            .err()
            .map(|error| format!("no alerts are read from {}: {}", self.log.display(), chain(&error)));
        if complaint != self.complaint {
            problems.set("IDS alerts", complaint.clone().into_iter().collect());
            self.complaint = complaint;
        }
        for line in self.gate.expire(now) {
            warn!("IDS: {line}");
        }
        self.alerts.too_long = self.follower.too_long();
        let mut known = shared.known();
        known.alerts = self.alerts;
        known.tail = self.follower.tail();
        known.position = self.follower.position();
        drop(known);
        let events = self.gate.events();
        shared.events.send_if_modified(|before| {
            let differs = **before != events;
            if differs {
                *before = Arc::new(events);
            }
            differs
        });
    }
}

fn take(line: &[u8], gate: &mut Gate, alerts: &mut Alerts, now: Duration) {
    let alert = match fw_ids::parse(line) {
        Event::Alert(alert) => alert,
        Event::Other => return,
        Event::Malformed => {
            alerts.malformed = alerts.malformed.saturating_add(1);
            return;
        }
    };
    let Passed { log, event } = gate.pass(&alert, now);
    if log {
        warn!("IDS: {}", alert.text());
    }
    let count = if log { &mut alerts.shown } else { &mut alerts.suppressed };
    *count = count.saturating_add(1);
    alerts.events = alerts.events.saturating_add(u64::from(event));
}
