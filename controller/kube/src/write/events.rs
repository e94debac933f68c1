//! The task of events.
//!
//! One event for each complaint, when it comes up. Its name is made from what it says, so a controller that starts again,
//! or another firewall that complains about the same, finds it there already; the same again later in one life counts up
//! its series. kube's `Recorder` names events by the time and keeps in memory what it has told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fw_intake::Id;
use fw_policy::ObjectKind;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::figures::WriteFigures;
use super::queue::{Bucket, pause};
use super::request::{Failure, send, short_hash};
use crate::report::{Complaint, Report};
use crate::status::cut;

/// Who reports.
const CONTROLLER: &str = "metal-stack.io/firewall-controller";
/// Bytes of a note and of an instance (kubernetes/pkg/apis/core/validation/events.go, `NoteLengthLimit`,
/// `ReportingInstanceLengthLimit`).
const MAX_NOTE: usize = 1024;
const MAX_INSTANCE: usize = 128;
/// Events at once, and a second on end.
const BURST: u32 = 50;
const PER_SECOND: u32 = 5;
/// Between two events of one reason about one object: what comes and goes every second is told once in a while.
const NORMAL_GAP: Duration = Duration::from_secs(60);
const WARNING_GAP: Duration = Duration::from_secs(10);
/// Names of events that are remembered.
const MAX_TOLD: usize = 20_000;
/// Pauses while the API server is away.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

pub(super) async fn keep(
    client: Client,
    mut report: watch::Receiver<Arc<Report>>,
    mut standby: watch::Receiver<Option<String>>,
    figures: &WriteFigures,
) {
    let mut desk = Desk::new(client, figures);
    loop {
        let writer = standby.borrow_and_update().clone();
        desk.look(&report.borrow_and_update(), writer.as_deref());
        let next = desk.tell().await;
        tokio::select! {
            changed = report.changed() => if changed.is_err() { return },
            changed = standby.changed() => if changed.is_err() { return },
            () = sleep_until(next) => {}
        }
    }
}

struct Desk<'a> {
    client: Client,
    figures: &'a WriteFigures,
    instance: String,
    /// What is there and was told.
    told: BTreeSet<Complaint>,
    /// What is there and was not.
    waiting: BTreeSet<Complaint>,
    /// When something was told last about an object for a reason.
    last: BTreeMap<(Id, String), Instant>,
    /// How often each event was told in this life.
    counts: BTreeMap<String, i32>,
    bucket: Bucket,
    away: Option<(u32, Instant)>,
}

impl<'a> Desk<'a> {
    fn new(client: Client, figures: &'a WriteFigures) -> Self {
        let (told, waiting, last, counts) =
            (BTreeSet::new(), BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        let bucket = Bucket::new(BURST, PER_SECOND, Instant::now());
        Self { client, figures, instance: String::new(), told, waiting, last, counts, bucket, away: None }
    }

    /// Takes note of what came up and what is over.
    fn look(&mut self, report: &Report, writer: Option<&str>) {
        self.instance = cut(&report.firewall, MAX_INSTANCE);
        let standby = standby(report, writer);
        let is_wanted = |complaint: &Complaint| {
            report.complaints.contains(complaint) || standby.as_ref() == Some(complaint)
        };
        self.told.retain(is_wanted);
        let before = self.waiting.len();
        self.waiting.retain(is_wanted);
        // Over before there was room to tell it.
        self.figures.events.add_lost(before - self.waiting.len());
        let all = report.complaints.iter().chain(&standby);
        self.waiting.extend(all.filter(|complaint| !self.told.contains(complaint)).cloned());
        let now = Instant::now();
        self.last.retain(|_, at| now < *at + NORMAL_GAP);
        self.figures.events.set_waiting(self.waiting.len());
    }

    /// Tells one of what waits; tells when to go on.
    async fn tell(&mut self) -> Instant {
        let now = Instant::now();
        let idle = now + Duration::from_secs(3600);
        let not_before = self.away.map_or(now, |(_, until)| until).max(self.bucket.next(now));
        let time_of = |complaint: &Complaint| {
            let gap = if complaint.warning { WARNING_GAP } else { NORMAL_GAP };
            self.last.get(&(complaint.about.clone(), complaint.reason.clone())).map_or(now, |at| *at + gap)
        };
        let next = self.waiting.iter().map(|complaint| (time_of(complaint), complaint)).min();
        let Some((at, complaint)) = next else { return idle };
        let at = at.max(not_before);
        if at > now {
            return at;
        }
        let complaint = complaint.clone();
        self.bucket.take();
        let result = self.send(&complaint).await;
        let tally = &self.figures.events;
        match result {
            Ok(()) => {
                tally.add_written();
                self.away = None;
            }
            Err(Failure::Away(why)) => {
                tally.add_failed();
                let failures = self.away.map_or(0, |(failures, _)| failures);
                if failures == 0 {
                    warn!("events are not written: {why}");
                }
                let until = Instant::now() + pause(FIRST_PAUSE, failures, MAX_PAUSE);
                self.away = Some((failures.saturating_add(1), until));
                return until;
            }
            Err(failure) => {
                tally.add_failed();
                tally.add_lost(1);
                debug!(?failure, about = %complaint.about, "an event was not written");
            }
        }
        self.waiting.remove(&complaint);
        self.last.insert((complaint.about.clone(), complaint.reason.clone()), Instant::now());
        self.told.insert(complaint);
        tally.set_waiting(self.waiting.len());
        Instant::now()
    }

    async fn send(&mut self, complaint: &Complaint) -> Result<(), Failure> {
        let now = Timestamp::now();
        let event = event(complaint, &self.instance, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &complaint.about.namespace);
        let count = self.counts.get(&name).copied();
        if let Some(count) = count {
            let series =
                json!({"series": {"count": count.saturating_add(1), "lastObservedTime": MicroTime(now)}});
            match send(api.patch(&name, &PatchParams::default(), &Patch::Merge(&series))).await {
                // Events are kept for an hour.
                Err(Failure::Gone) => {}
                result => {
                    self.counts.insert(name, count.saturating_add(1));
                    return result.map(drop);
                }
            }
        }
        match send(api.create(&PostParams::default(), &event)).await {
            // Told by who was here before, or by another firewall.
            Ok(_) | Err(Failure::Conflict) => {
                if self.counts.len() >= MAX_TOLD {
                    self.counts.clear();
                }
                self.counts.insert(name, 1);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }
}

/// The event of a complaint.
pub(super) fn event(complaint: &Complaint, instance: &str, now: Timestamp) -> Event {
    let Id { kind, namespace, name } = &complaint.about;
    let note = cut(&complaint.note, MAX_NOTE);
    let api_version = match kind {
        ObjectKind::Service => "v1".to_owned(),
        ObjectKind::ClusterwideNetworkPolicy | ObjectKind::Firewall => {
            format!("{}/{}", fw_crds::GROUP, fw_crds::VERSION)
        }
    };
    let kind = match kind {
        ObjectKind::Service => "Service",
        ObjectKind::ClusterwideNetworkPolicy => "ClusterwideNetworkPolicy",
        ObjectKind::Firewall => "Firewall",
    };
    let hash = short_hash(&[&complaint.uid, &complaint.reason, &note]);
    // Names of events are names of objects: at most 253 bytes, and no end in a dot or dash before the hash's dot.
    let short = name.get(..name.len().min(230)).unwrap_or_default().trim_end_matches(['.', '-']);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{short}.{hash}")),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(if instance.is_empty() {
            "unknown".to_owned()
        } else {
            instance.to_owned()
        }),
        action: Some("Enforce".to_owned()),
        reason: Some(complaint.reason.clone()),
        regarding: Some(ObjectReference {
            api_version: Some(api_version),
            kind: Some(kind.to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            uid: Some(complaint.uid.clone()),
            ..ObjectReference::default()
        }),
        note: Some(note),
        type_: Some(if complaint.warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

/// That another machine writes the status of our Firewall.
fn standby(report: &Report, writer: Option<&str>) -> Option<Complaint> {
    let (own, writer) = (report.own.as_ref()?, writer?);
    Some(Complaint {
        about: own.id.clone(),
        uid: own.uid.clone(),
        reason: "Error".to_owned(),
        warning: true,
        note: format!(
            "{} takes its settings from this Firewall too, and {writer} writes the status; add a Firewall called {0}",
            report.firewall
        ),
    })
}
