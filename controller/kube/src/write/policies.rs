//! The task of the statuses of policies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use fw_intake::{Compact, Id};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::figures::WriteFigures;
use super::firewall::Voice;
use super::queue::{Bucket, Queue, pause};
use super::request::{Failure, Target};
use crate::cluster::{Cluster, Object, Watched};
use crate::report::{PolicyReport, Report};
use crate::status::fqdn::Difference;
use crate::status::policy::{Merge, Present, merge};

/// Writes at one time.
const MAX_IN_FLIGHT: usize = 16;
/// Writes at once, and a second on end.
const BURST: u32 = 100;
const PER_SECOND: u32 = 200;
/// Between two comparisons of everything.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Addresses of which only the times have changed are written at most so often.
const TIMES_PAUSE: Duration = Duration::from_secs(60);
/// For how long a firewall without an object may still be starting, or we not know of it yet.
const GRACE: Duration = Duration::from_secs(300);
/// Names that are waited for. Anybody who may write a status may make them up.
const MAX_STRANGERS: usize = 1000;
/// Everything is compared again so often, whatever the watch says.
const HEAL: Duration = Duration::from_secs(600);
/// Pauses while the API server is away.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What came of one write.
type Outcome = (Id, Arc<Object>, Result<Value, Failure>);

pub(super) async fn keep(
    client: Client,
    mut cluster: watch::Receiver<Arc<Cluster>>,
    mut report: watch::Receiver<Arc<Report>>,
    mut voice: watch::Receiver<Option<Voice>>,
    figures: &WriteFigures,
) {
    let mut desk = Desk::new(client, figures);
    let mut look_at = Instant::now();
    loop {
        let now = Instant::now();
        if look_at <= now {
            desk.cluster = Arc::clone(&cluster.borrow_and_update());
            desk.report = Arc::clone(&report.borrow_and_update());
            desk.look(voice.borrow_and_update().clone(), now);
            look_at = now + HEAL;
        }
        let next = desk.dispatch(now).min(look_at);
        let soon = now + LOOK_PAUSE;
        tokio::select! {
            changed = cluster.changed() => if changed.is_err() { return } else { look_at = look_at.min(soon) },
            changed = report.changed() => if changed.is_err() { return } else { look_at = look_at.min(soon) },
            changed = voice.changed() => if changed.is_err() { return } else { look_at = look_at.min(soon) },
            Some(outcome) = desk.in_flight.next(), if !desk.in_flight.is_empty() => desk.settle(outcome),
            () = sleep_until(next) => desk.heal(),
        }
    }
}

struct Desk<'a> {
    client: Client,
    figures: &'a WriteFigures,
    cluster: Arc<Cluster>,
    report: Arc<Report>,
    voice: Option<Voice>,
    present: Present,
    /// Names without a Firewall, and since when.
    strangers: BTreeMap<String, Instant>,
    queue: Queue<Id>,
    bucket: Bucket,
    in_flight: FuturesUnordered<BoxFuture<'static, Outcome>>,
    /// What was compared last.
    compared: BTreeMap<Id, (Arc<Object>, Arc<PolicyReport>)>,
    /// What the API server answered: it holds until the watch shows something newer than the object of then.
    answers: BTreeMap<Id, (Arc<Object>, Compact)>,
    /// When addresses were written last.
    addresses: BTreeMap<Id, Instant>,
    /// While the API server is away: failures in a row, and until when nothing is sent.
    away: Option<(u32, Instant)>,
    healed: Instant,
}

impl<'a> Desk<'a> {
    fn new(client: Client, figures: &'a WriteFigures) -> Self {
        let now = Instant::now();
        Self {
            client,
            figures,
            cluster: Arc::default(),
            report: Arc::default(),
            voice: None,
            present: Present::default(),
            strangers: BTreeMap::new(),
            queue: Queue::default(),
            bucket: Bucket::new(BURST, PER_SECOND, now),
            in_flight: FuturesUnordered::new(),
            compared: BTreeMap::new(),
            answers: BTreeMap::new(),
            addresses: BTreeMap::new(),
            away: None,
            healed: now,
        }
    }

    /// Finds out which objects have to be compared.
    fn look(&mut self, voice: Option<Voice>, now: Instant) {
        let present = self.present(now);
        if self.voice != voice || self.present != present {
            self.compared.clear();
            (self.voice, self.present) = (voice, present);
        }
        let report = Arc::clone(&self.report);
        let known = |id: &Id| report.policies.contains_key(id);
        self.compared.retain(|id, _| known(id));
        // What the watch has overtaken is of no use any more, and half as large as the object.
        let current = |id: &Id, before: &Arc<Object>| {
            self.cluster.by_id(id).is_some_and(|object| Arc::ptr_eq(object, before))
        };
        self.answers.retain(|id, (before, _)| known(id) && current(id, before));
        self.addresses.retain(|id, _| known(id));
        self.queue.retain(known);
        if self.voice.is_none() {
            return;
        }
        for (id, policy) in &report.policies {
            let Some(object) = self.cluster.by_id(id).filter(|object| object.uid == policy.uid) else {
                continue;
            };
            let before = self.compared.get(id);
            if before.is_some_and(|(o, p)| Arc::ptr_eq(o, object) && Arc::ptr_eq(p, policy)) {
                continue;
            }
            self.compared.insert(id.clone(), (Arc::clone(object), Arc::clone(policy)));
            self.queue.push(id, now);
        }
    }

    fn heal(&mut self) {
        let now = Instant::now();
        if now >= self.healed + HEAL {
            self.healed = now;
            self.compared.clear();
        }
    }

    /// The firewalls there are, and those of which it is sure that they are not.
    fn present(&mut self, now: Instant) -> Present {
        let listed = self.cluster.of(Watched::Firewalls);
        let names: BTreeSet<String> = listed
            .into_iter()
            .flat_map(|listed| listed.objects.keys())
            .map(|(_, name)| name.clone())
            .collect();
        self.strangers.retain(|name, _| !names.contains(name));
        // Those that were there a moment ago are strangers from now on.
        for name in self.present.names.difference(&names) {
            self.strangers.entry(name.clone()).or_insert(now);
        }
        let is_sure = listed.is_some_and(|listed| listed.complete && listed.problem.is_none());
        // Where there are no Firewalls machines speak by their own names, and nobody can tell who is gone.
        let gone =
            self.strangers.iter().filter(|(_, since)| is_sure && !names.is_empty() && now >= **since + GRACE);
        let gone = gone.map(|(name, _)| name.clone()).collect();
        Present { names, gone }
    }

    /// Sends what may be sent; tells when there is more to do.
    fn dispatch(&mut self, now: Instant) -> Instant {
        let idle = now + HEAL;
        if self.away.is_none_or(|(_, until)| until <= now) {
            let limit = if self.away.is_some() { 1 } else { MAX_IN_FLIGHT };
            while self.in_flight.len() < limit && self.bucket.next(now) <= now {
                let Some(id) = self.queue.pop(now) else { break };
                match self.write(&id, now) {
                    Ok(write) => {
                        self.bucket.take();
                        self.in_flight.push(write);
                    }
                    Err(later) => {
                        self.queue.done(&id, now);
                        later.into_iter().for_each(|at| self.queue.push(&id, at));
                    }
                }
            }
        }
        self.figures.policies.set_waiting(self.queue.len());
        let grace = self.strangers.values().map(|since| *since + GRACE).filter(|at| *at > now).min();
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return idle;
        }
        let not_before = self.away.map_or(now, |(_, until)| until).max(self.bucket.next(now));
        let queued = self.queue.next().map(|at| at.max(not_before).max(now + Duration::from_millis(1)));
        queued.into_iter().chain(grace).min().unwrap_or(idle)
    }

    /// The write that an object needs; else when it needs one, as far as is known.
    fn write(&mut self, id: &Id, now: Instant) -> Result<BoxFuture<'static, Outcome>, Option<Instant>> {
        let report = Arc::clone(&self.report);
        let policy = report.policies.get(id).ok_or(None)?;
        let voice = self.voice.clone().ok_or(None)?;
        let object = self.cluster.by_id(id).filter(|object| object.uid == policy.uid).ok_or(None)?;
        let object = Arc::clone(object);
        let (merged, later) = self.merged(id, policy, &object, &voice, now);
        let client = self.client.clone();
        let mut target = Target { id: id.clone(), uid: object.uid.clone(), version: None };
        if let Some(list) = merged.prune {
            target.version = Some(object.resource_version.clone());
            return Ok(Box::pin(async move {
                let result = target.replace(&client, &voice.name, list).await;
                (target.id, object, result)
            }));
        }
        let status = merged.apply.ok_or(later)?;
        if status
            .get("fqdn_state")
            .is_some_and(|state| Some(state) != self.observed(id, &object).get("fqdn_state"))
        {
            self.addresses.insert(id.clone(), now);
        }
        Ok(Box::pin(async move {
            let result = target.apply(&client, &voice.name, status).await;
            (target.id, object, result)
        }))
    }

    /// What is to be written, and when to look again if that is nothing.
    fn merged(
        &mut self,
        id: &Id,
        policy: &PolicyReport,
        object: &Arc<Object>,
        voice: &Voice,
        now: Instant,
    ) -> (Merge, Option<Instant>) {
        let last = self.addresses.get(id).copied();
        let due = match last {
            Some(last) if now < last + voice.interval => None,
            Some(last) if now < last + TIMES_PAUSE => Some(Difference::Addresses),
            _ => Some(Difference::Times),
        };
        let observed = self.observed(id, object);
        let merged = merge(policy, &observed, &voice.name, &self.present, due, Timestamp::now());
        for name in &merged.strangers {
            if self.strangers.len() < MAX_STRANGERS {
                self.strangers.entry(name.clone()).or_insert(now);
            }
        }
        let wait = merged.later.map(|difference| match difference {
            Difference::Addresses => voice.interval,
            Difference::Times => TIMES_PAUSE.max(voice.interval),
        });
        (merged, wait.map(|wait| last.unwrap_or(now) + wait))
    }

    fn observed(&self, id: &Id, object: &Arc<Object>) -> Value {
        let answer = self.answers.get(id).filter(|(before, _)| Arc::ptr_eq(before, object));
        answer.map_or(&object.status, |(_, status)| status).tree()
    }

    fn settle(&mut self, (id, object, result): Outcome) {
        let now = Instant::now();
        let tally = &self.figures.policies;
        match result {
            Ok(status) => {
                tally.add_written();
                if self.away.take().is_some() {
                    info!("the API server takes statuses again");
                }
                self.answers.insert(id.clone(), (Arc::clone(&object), status.into()));
                if self.is_kept(&id, &object) {
                    self.queue.done(&id, now);
                } else {
                    // Fields that its definition does not have; asking for them all the time would not help.
                    self.figures.policies.add_lost(1);
                    debug!("the API server does not keep all of the status of {id}");
                    self.queue.failed(&id, now);
                }
            }
            Err(Failure::Gone) => self.queue.done(&id, now),
            Err(Failure::Conflict) => {
                tally.add_failed();
                self.queue.failed(&id, now);
            }
            Err(Failure::Refused(why)) => {
                tally.add_failed();
                warn!("the status of {id} was refused: {why}");
                self.queue.failed(&id, now);
            }
            Err(Failure::Away(why)) => {
                tally.add_failed();
                let failures = self.away.map_or(0, |(failures, _)| failures);
                if failures == 0 {
                    warn!("statuses of policies are not written: {why}");
                }
                // Those that were in flight together failed together.
                if self.away.is_none_or(|(_, until)| until <= now) {
                    self.away =
                        Some((failures.saturating_add(1), now + pause(FIRST_PAUSE, failures, MAX_PAUSE)));
                }
                self.queue.later(&id, now);
            }
        }
    }

    /// True when the API server's answer says what is wanted. Newer wishes come by [`Self::look`].
    fn is_kept(&self, id: &Id, object: &Arc<Object>) -> bool {
        let (Some(voice), Some((_, policy))) = (&self.voice, self.compared.get(id)) else { return true };
        let observed = self.observed(id, object);
        let merged = merge(policy, &observed, &voice.name, &self.present, None, Timestamp::now());
        merged.apply.is_none()
    }
}
