//! The task of the Firewall's status. It also finds out whether this machine speaks for its Firewall.

use std::sync::Arc;
use std::time::Duration;

use fw_policy::ObjectKind;
use kube::Client;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::figures::WriteFigures;
use super::queue::pause;
use super::request::{Failure, Target};
use crate::cluster::{Cluster, Object, Watched};
use crate::report::{FirewallReport, Report};
use crate::status::firewall::{News, head, news, wanted};
use crate::status::voice::{Claim, Watcher};

/// Between two writes, whatever happens.
const LEAST_GAP: Duration = Duration::from_secs(1);
/// Where there are thousands of rules a write keeps the API server and us busy for tens of milliseconds, in which edits
/// wait. News of how many policies are in force may take one part in a hundred of the time.
const COST_PARTS: u32 = 100;
/// Longest pause after failures.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// By which name we speak in the statuses of policies, and how often at most we repeat addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Voice {
    pub(super) name: String,
    pub(super) interval: Duration,
}

/// What other tasks have to know.
pub(super) struct Tell {
    pub(super) voice: watch::Sender<Option<Voice>>,
    /// The machine that writes instead of us.
    pub(super) standby: watch::Sender<Option<String>>,
}

pub(super) async fn keep(
    client: Client,
    mut cluster: watch::Receiver<Arc<Cluster>>,
    mut report: watch::Receiver<Arc<Report>>,
    tell: Tell,
    figures: &WriteFigures,
) {
    let mut desk = Desk {
        client,
        figures,
        tell,
        began: Instant::now(),
        watcher: Watcher::default(),
        seen: None,
        sent: None,
        failures: 0,
    };
    loop {
        let (objects, wanted) =
            (Arc::clone(&cluster.borrow_and_update()), Arc::clone(&report.borrow_and_update()));
        let next = desk.look(&objects, &wanted).await;
        tokio::select! {
            changed = cluster.changed() => if changed.is_err() { return },
            changed = report.changed() => if changed.is_err() { return },
            () = sleep_until(next) => {}
        }
    }
}

struct Desk<'a> {
    client: Client,
    figures: &'a WriteFigures,
    tell: Tell,
    began: Instant,
    watcher: Watcher,
    /// An object, and the status it has as far as we know: what the API server answered to a write holds until the watch
    /// shows something newer. As a tree it is megabytes where there are thousands of rules: there is only this one.
    seen: Option<(Arc<Object>, Arc<Value>)>,
    sent: Option<Sent>,
    failures: u32,
}

/// The last write, or attempt.
struct Sent {
    at: Instant,
    took: Duration,
    uid: String,
    /// Without the figures.
    head: Value,
}

/// From one write, which took so long, to the next one with such news.
pub(super) fn gap(news: News, took: Duration, interval: Duration) -> Duration {
    match news {
        News::State => LEAST_GAP,
        News::Number => took.saturating_mul(COST_PARTS).clamp(LEAST_GAP, interval.max(LEAST_GAP)),
        News::None => interval,
    }
}

impl Desk<'_> {
    /// Writes if it is time to; tells when to look again.
    async fn look(&mut self, cluster: &Cluster, report: &Report) -> Instant {
        let idle = Instant::now() + MAX_PAUSE;
        let Some(own) = &report.own else {
            // As long as there are no Firewalls at all, machines speak by their own names.
            let none = cluster
                .of(Watched::Firewalls)
                .is_some_and(|listed| listed.complete && listed.objects.is_empty());
            let name = (none && !report.firewall.is_empty()).then(|| report.firewall.clone());
            self.speak(name, Duration::from_secs(10));
            self.stand_by(None);
            return idle;
        };
        let object = cluster
            .by_id(&own.id)
            .filter(|object| object.uid == own.uid && own.id.kind == ObjectKind::Firewall);
        let Some(object) = object else {
            self.speak(None, Duration::ZERO);
            return idle;
        };
        let interval = Duration::from_millis(own.interval_ms).max(LEAST_GAP);
        let observed = &*self.observed(object);
        let now = Instant::now();
        let named = (own.id.name.as_str(), own.uid.as_str());
        let claim = self.watcher.look(&report.firewall, named, observed, interval, now - self.began);
        let replaces = match claim {
            Claim::Theirs(writer) => {
                self.speak(None, interval);
                if self.stand_by(Some(&writer)) {
                    warn!("{writer} writes the status of {}; this machine has none of its own", own.id);
                }
                return now + interval;
            }
            Claim::Ours { speaks, replaces } => {
                self.speak(speaks.then(|| own.id.name.clone()), interval);
                if self.stand_by(None) {
                    info!("the status of {} is written by this machine from now on", own.id);
                }
                replaces
            }
        };
        let head = head(&own.status, &report.firewall);
        let due = self.due(own, &head, observed, interval, now);
        if due <= now {
            let status = wanted(&own.status, observed, &report.firewall);
            if status != *observed {
                self.write(own, object, head, status, replaces).await;
                return Instant::now() + LEAST_GAP;
            }
        }
        due.max(now + LEAST_GAP)
    }

    /// Once an interval, and soon when there is more to say than newer figures.
    fn due(
        &self,
        own: &FirewallReport,
        head: &Value,
        observed: &Value,
        interval: Duration,
        now: Instant,
    ) -> Instant {
        let Some(sent) = self.sent.as_ref().filter(|sent| sent.uid == own.uid) else { return now };
        if self.failures > 0 {
            return sent.at + pause(LEAST_GAP, self.failures - 1, MAX_PAUSE);
        }
        // What was sent already and is not there still was not kept, or others wrote; at its interval it is sent again.
        sent.at + gap(news(head, observed).min(news(head, &sent.head)), sent.took, interval)
    }

    async fn write(
        &mut self,
        own: &FirewallReport,
        object: &Arc<Object>,
        head: Value,
        status: Value,
        replaces: bool,
    ) {
        let version = replaces.then(|| object.resource_version.clone());
        let target = Target { id: own.id.clone(), uid: own.uid.clone(), version };
        let at = Instant::now();
        let result = target.apply(&self.client, &own.id.name, status).await;
        match result {
            Ok(answer) => {
                self.figures.firewall.add_written();
                self.failures = 0;
                self.seen = Some((Arc::clone(object), Arc::new(answer)));
            }
            Err(failure) => {
                self.figures.firewall.add_failed();
                match failure {
                    Failure::Refused(why) | Failure::Away(why) if self.failures == 0 => {
                        warn!("the status of {} was not written: {why}", own.id);
                    }
                    failure => debug!(?failure, "the status of {} was not written", own.id),
                }
                self.failures = self.failures.saturating_add(1);
            }
        }
        self.sent = Some(Sent { at, took: at.elapsed(), uid: own.uid.clone(), head });
    }

    fn observed(&mut self, object: &Arc<Object>) -> Arc<Value> {
        if let Some((_, status)) = self.seen.as_ref().filter(|(before, _)| Arc::ptr_eq(before, object)) {
            return Arc::clone(status);
        }
        // The old one goes before the new one comes.
        self.seen = None;
        let status = Arc::new(object.status.tree());
        self.seen = Some((Arc::clone(object), Arc::clone(&status)));
        status
    }

    /// True when that is news.
    fn stand_by(&self, writer: Option<&str>) -> bool {
        let is_new = self.figures.set_standby(writer);
        if is_new {
            self.tell.standby.send_replace(writer.map(str::to_owned));
        }
        is_new
    }

    fn speak(&self, name: Option<String>, interval: Duration) {
        let voice = name.map(|name| Voice { name, interval });
        self.tell.voice.send_if_modified(|current| {
            let differs = *current != voice;
            *current = voice;
            differs
        });
    }
}
