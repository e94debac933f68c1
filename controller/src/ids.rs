//! Intrusion detection: suricata's figures for the status and the metrics, its alerts for the log and as events.
//!
//! The command socket is asked by a task; the EVE log is followed by a thread of its own, because reading a file may block.
//! Nothing waits for either: who wants to know reads what was found last. A socket that is missing, hangs or lies costs its
//! own figures and is a problem in the status.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fw_crds::IdsStats;
use fw_ids::{Position, Reading, Tail};
use fw_kube::{Complaint, Report};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::problems::Problems;
use crate::state::StateDir;
use crate::status::Status;
use crate::telemetry::chain;

mod alerts;
#[cfg(test)]
mod tests;

/// For suricata to answer everything; it takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);
/// Up to where alerts were read, in the state directory.
const DOCUMENT: &str = "ids.json";
/// Reason of the events.
const REASON: &str = "IntrusionDetected";

/// Where suricata is.
#[derive(Debug)]
pub struct Options {
    /// Its command socket.
    pub socket: PathBuf,
    /// Its EVE log.
    pub log: PathBuf,
    /// Between two readings of its figures.
    pub interval: Duration,
    /// Where it is remembered up to where alerts were read.
    pub state: Option<Arc<StateDir>>,
}

/// What is known of suricata; cheap to clone. The default one is for firewalls without intrusion detection.
#[derive(Clone, Debug, Default)]
pub struct Handle(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    known: Mutex<Known>,
    events: watch::Sender<Arc<BTreeSet<String>>>,
    state: Option<Arc<StateDir>>,
}

#[derive(Debug, Default)]
struct Known {
    /// The last answer, until there is none.
    figures: Option<Reading>,
    answered: u64,
    unanswered: u64,
    alerts: Alerts,
    tail: Tail,
    position: Option<Position>,
    saved: Option<Position>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Alerts {
    shown: u64,
    suppressed: u64,
    events: u64,
    malformed: u64,
    too_long: u64,
}

/// Starts both; must be called inside of the runtime.
pub fn start(options: Options, problems: Problems) -> Handle {
    let Options { socket, log, interval, state } = options;
    let remembered = state.as_ref().and_then(|state| match state.load(DOCUMENT) {
        Ok(position) => position,
        Err(error) => {
            warn!("alerts of meanwhile are not read: {}", chain(&error));
            None
        }
    });
    let shared = Arc::new(Shared { known: Mutex::default(), events: watch::Sender::default(), state });
    tokio::spawn(read_figures(Arc::clone(&shared), socket, interval, problems.clone()));
    let (weak, complain) = (Arc::downgrade(&shared), problems.clone());
    let thread = std::thread::Builder::new().name("ids".to_owned());
    if let Err(error) = thread.spawn(move || alerts::follow(&weak, log, remembered, &complain)) {
        problems.set("IDS alerts", vec![format!("no alerts are read: {error}")]);
    }
    Handle(Some(shared))
}

async fn read_figures(shared: Arc<Shared>, socket: PathBuf, every: Duration, problems: Problems) {
    let mut beat = interval(every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let read = fw_ids::read(&socket, PATIENCE).await;
        let complaint = read.as_ref().err().map(|error| {
            format!("no figures of suricata by its socket {}: {}", socket.display(), chain(error))
        });
        problems.set("IDS figures", complaint.into_iter().collect());
        let mut known = shared.known();
        let count = if read.is_ok() { &mut known.answered } else { &mut known.unanswered };
        *count = count.saturating_add(1);
        known.figures = read.ok();
    }
}

impl Shared {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        // A panic while it was held cannot leave it half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores up to where alerts were read, if that is news.
    fn save(&self) -> Result<(), crate::state::StateError> {
        let mut known = self.known();
        let Some((state, position)) = self.state.as_ref().zip(known.position) else { return Ok(()) };
        if known.saved == Some(position) {
            return Ok(());
        }
        known.saved = Some(position);
        drop(known);
        state.store(DOCUMENT, &position)
    }
}

impl Handle {
    /// At the end of the process, so that the next one tells no alert again.
    pub fn stop(&self) {
        if let Some(Err(error)) = self.0.as_ref().map(|shared| shared.save()) {
            warn!("{}", chain(&error));
        }
    }

    /// What is known, for the status; null without intrusion detection.
    pub fn value(&self) -> Value {
        let Some(shared) = &self.0 else { return Value::Null };
        let known = shared.known();
        let figures = known.figures.clone().unwrap_or_default();
        let interfaces = figures.interfaces.iter().map(|(name, figures)| {
            let figures = json!({
                "packets": figures.packets,
                "drops": figures.drops,
                "invalidChecksums": figures.invalid_checksums,
            });
            (name.clone(), figures)
        });
        let Known { alerts, tail, .. } = &*known;
        json!({
            "answers": known.figures.is_some(),
            "interfaces": interfaces.collect::<serde_json::Map<_, _>>(),
            "interfacesLeftOut": figures.left_out,
            "readings": {"answered": known.answered, "failed": known.unanswered},
            "alerts": {"shown": alerts.shown, "suppressed": alerts.suppressed},
            "events": alerts.events,
            "badLines": {"malformed": alerts.malformed, "tooLong": alerts.too_long, "cut": tail.cut},
            "logBytes": {"read": tail.bytes, "skipped": tail.skipped},
            "logChanges": {"rotated": tail.rotations, "truncated": tail.truncations},
        })
    }

    /// Adds what is known to a status.
    pub fn add_to_status(&self, status: &mut Status) {
        status.status.controller.ids = self.value();
        if let Some(stats) = &mut status.status.firewall.stats {
            stats.ids_stats = self.stats();
        }
    }

    /// Adds the figures to the Firewall's status, and an event for each rule that alerts.
    pub fn add_to_report(&self, report: &mut Report) {
        let (Some(shared), Some(own)) = (&self.0, &mut report.own) else { return };
        if let Some(stats) = &mut Arc::make_mut(&mut own.status).stats {
            stats.ids_stats = self.stats();
        }
        let notes = Arc::clone(&shared.events.borrow());
        let complaint = |note: &String| Complaint {
            about: own.id.clone(),
            uid: own.uid.clone(),
            reason: REASON.to_owned(),
            warning: true,
            note: note.clone(),
        };
        report.complaints.extend(notes.iter().map(complaint));
    }

    /// In the shape of the Firewall's status.
    fn stats(&self) -> std::collections::BTreeMap<String, IdsStats> {
        let Some(shared) = &self.0 else { return std::collections::BTreeMap::new() };
        let known = shared.known();
        let interfaces = known.figures.iter().flat_map(|reading| &reading.interfaces);
        interfaces
            .map(|(name, figures)| {
                let stats = IdsStats {
                    drop: figures.drops,
                    invalid_checksums: figures.invalid_checksums,
                    packets: figures.packets,
                };
                (name.clone(), stats)
            })
            .collect()
    }

    /// Tells when there are other events.
    pub fn watch(&self) -> Watch {
        Watch(self.0.as_ref().map(|shared| shared.events.subscribe()))
    }
}

/// See [`Handle::watch`].
pub struct Watch(Option<watch::Receiver<Arc<BTreeSet<String>>>>);

impl Watch {
    /// Returns when the events are others than before.
    pub async fn changed(&mut self) {
        if let Some(receiver) = &mut self.0
            && receiver.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}
