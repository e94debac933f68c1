//! What the API server is told: what became of each policy, the Firewall's status, what events are to be there for.
//!
//! [`report`] is a pure function of what the reconciler shows and of what names know; [`keep`] calls it whenever that
//! changes, and at the Firewall's interval with fresh counters. Nothing here waits for the API server, and the rules wait
//! for nothing here; where the thread of names or the kernel does not answer, the last answer is told again.

mod complaints;
mod interval;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fw_crds::FqdnAddresses;
use fw_intake::{Id, Manifest, Severity};
use fw_kube::{FirewallReport, PolicyReport, PolicyState, Report};
use serde::Deserialize as _;
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

pub use interval::{DEFAULT_INTERVAL, parse_interval};

use crate::control::Server;
use crate::names::Question;
use crate::reconcile::worker::Job;
use crate::reconcile::{Basis, Judged, State, View};
use crate::source::Snapshot;
use crate::status::{self, Identification};
use crate::timestamp::rfc3339;

/// Between two reports: a burst of changes is one. They take a fifth of the time at most.
const LEAST_GAP: Duration = Duration::from_millis(100);
/// How long the kernel's counters and the thread of names are waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends reports until nobody takes them or the reconciler has ended.
pub async fn keep(server: Arc<Server>, output: watch::Sender<Arc<Report>>) {
    let mut views = server.view.clone();
    let mut intrusions = server.ids.watch();
    let mut names = Arc::new(Value::Null);
    let mut next = Instant::now();
    loop {
        if next <= Instant::now() {
            names = refresh(&server).await.map_or(names, Arc::new);
        }
        let began = Instant::now();
        let mut view = View::clone(&views.borrow_and_update());
        view.problems.extend(server.problems.lines());
        let before = Arc::clone(&output.borrow());
        // With thousands of policies it takes milliseconds, in which objects on their way to the rules would wait.
        let parts = (Arc::clone(&server), Arc::clone(&names), Arc::clone(&before));
        let made = spawn_blocking(move || report(&view, &parts.1, &parts.0.identification, &parts.2)).await;
        let Ok(mut report) = made else { return };
        server.ids.add_to_report(&mut report);
        let interval =
            report.own.as_ref().map_or(DEFAULT_INTERVAL, |own| Duration::from_millis(own.interval_ms));
        if next <= Instant::now() {
            next = Instant::now() + interval;
        }
        if *before != report {
            output.send_replace(Arc::new(report));
        }
        sleep(LEAST_GAP.max(began.elapsed() * 4)).await;
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = intrusions.changed() => {}
            () = output.closed() => return,
            () = sleep(next.saturating_duration_since(Instant::now())) => {}
        }
    }
}

/// Has the counters read, and asks what names know; `None`: no answer.
async fn refresh(server: &Server) -> Option<Value> {
    let (done, answer) = oneshot::channel();
    server.jobs.send(Job::Counters(done)).ok();
    let (names, _) =
        tokio::join!(timeout(PATIENCE, server.names.show(Question::Summary)), timeout(PATIENCE, answer));
    names.ok().flatten()
}

/// The whole report. What is as in `before` is shared with it.
#[must_use]
pub fn report(view: &View, names: &Value, of: &Identification, before: &Report) -> Report {
    let Some(wanted) = &view.wanted else {
        return Report { firewall: of.firewall.clone(), ..Report::default() };
    };
    let versions = Versions::of(&wanted.objects);
    let policies = policies(view, wanted, &versions, names, before);
    let own = wanted.firewall.as_ref().and_then(|id| own(view, names, id, &versions));
    let complaints = complaints::complaints(view, own.as_ref(), &versions);
    Report { firewall: of.firewall.clone(), policies, own, complaints }
}

/// The objects of a snapshot by identity.
struct Versions<'a>(BTreeMap<&'a Id, &'a Manifest>);

impl<'a> Versions<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        Self(snapshot.manifests().filter_map(|manifest| Some((manifest.id()?, manifest))).collect())
    }

    fn generation(&self, id: &Id) -> Option<i64> {
        self.0.get(id)?.generation()
    }

    fn uid(&self, id: &Id) -> Option<&str> {
        self.0.get(id)?.uid()
    }
}

fn policies(
    view: &View,
    wanted: &Arc<Judged>,
    versions: &Versions<'_>,
    names: &Value,
    before: &Report,
) -> BTreeMap<Id, Arc<PolicyReport>> {
    let errors = errors(view);
    // Thousands of objects need not be looked at twice: mostly what is wanted is in force.
    let others = view.enforced.as_ref().filter(|enforced| !Arc::ptr_eq(enforced, wanted));
    let others = others.map(|enforced| (enforced, Versions::of(&enforced.objects)));
    let is_whole = view.enforced.as_ref().is_some_and(|enforced| Arc::ptr_eq(enforced, wanted));
    let mut reports = BTreeMap::new();
    for (id, judgement) in &wanted.states {
        let (Some(generation), Some(uid)) = (versions.generation(id), versions.uid(id)) else { continue };
        let mut message = judgement.message().to_owned();
        let mut state = match judgement {
            fw_intake::PolicyState::Ignored { .. } => PolicyState::Ignored,
            fw_intake::PolicyState::Deployed { .. } => PolicyState::Deployed,
        };
        if let Some(left_out) = errors.get(id).filter(|_| state == PolicyState::Deployed) {
            state = PolicyState::Invalid;
            // What the compiler left out was not known when the policy was judged.
            let new = left_out.iter().filter(|text| !message.contains(**text));
            message = [message.as_str()]
                .into_iter()
                .filter(|text| !text.is_empty())
                .chain(new.copied())
                .collect::<Vec<_>>()
                .join("; ");
        }
        let in_force = is_whole
            || others.as_ref().is_some_and(|(enforced, versions)| {
                versions.generation(id) == Some(generation)
                    && versions.uid(id) == Some(uid)
                    && enforced.states.get(id) == Some(judgement)
                    && enforced.set.policies.get(&id.name) == wanted.set.policies.get(&id.name)
            });
        // What counts nowhere opens nothing, whatever is in force; else an older version of it may be.
        let counts = id.namespace == fw_crds::NAMESPACE;
        let is_open = view.enforced.as_ref().is_some_and(|it| it.set.policies.contains_key(&id.name));
        if !in_force && counts && (state != PolicyState::Ignored || is_open) {
            let why = why_not(view);
            message = if message.is_empty() { why } else { format!("{why}; once in force: {message}") };
            state = PolicyState::Pending;
        }
        let fqdn_state = if state == PolicyState::Ignored || !counts {
            Arc::default()
        } else {
            addresses(names, &id.name, before.policies.get(id))
        };
        let report = PolicyReport { generation, uid: uid.to_owned(), state, message, fqdn_state };
        let shared = before.policies.get(id).filter(|before| ***before == report);
        reports.insert(id.clone(), shared.map_or_else(|| Arc::new(report), Arc::clone));
    }
    reports
}

/// What is not enforced of each object.
fn errors(view: &View) -> BTreeMap<Id, Vec<&str>> {
    let mut errors: BTreeMap<Id, Vec<&str>> = BTreeMap::new();
    for finding in view.findings.iter().filter(|finding| finding.severity == Severity::Error) {
        if let Some(id) = complaints::subject(finding) {
            let texts = errors.entry(id).or_default();
            if texts.len() < complaints::SHOWN {
                texts.push(&finding.message);
            }
        }
    }
    errors
}

/// Why what is wanted is not in force.
fn why_not(view: &View) -> String {
    let refused = view.refused.as_ref().map(|why| format!("not in force yet: {why}"));
    match &view.state {
        State::NotEnforcing(why) => format!("not in force: {why}"),
        State::Enforcing(Basis::BeforeDryRun) => "not in force: the Firewall asks for a dry run".to_owned(),
        State::Enforcing(_) => refused.unwrap_or_else(|| "not in force yet".to_owned()),
    }
}

/// What names know of a policy's selectors.
fn addresses(
    names: &Value,
    policy: &str,
    before: Option<&Arc<PolicyReport>>,
) -> Arc<BTreeMap<String, Vec<FqdnAddresses>>> {
    let learned = names.get("fqdnState").and_then(|state| state.get(policy));
    let learned = learned.and_then(|learned| BTreeMap::deserialize(learned).ok()).unwrap_or_default();
    before
        .filter(|before| *before.fqdn_state == learned)
        .map_or_else(|| Arc::new(learned), |before| Arc::clone(&before.fqdn_state))
}

/// The status of the Firewall that counts, if the API server has one: a deleted one that stays in force has none.
fn own(view: &View, names: &Value, id: &Id, versions: &Versions<'_>) -> Option<FirewallReport> {
    let uid = versions.uid(id)?.to_owned();
    let mut status = status::firewall(view, names);
    // A sign of life: when the kernel was last asked or changed. A controller that hangs does not move it.
    status.last_run = view.counters_read.max(view.last_run).map(rfc3339);
    let body = versions.0.get(id).map(|manifest| manifest.body.tree()).unwrap_or_default();
    let interval =
        body.pointer("/spec/interval").and_then(Value::as_str).map_or(DEFAULT_INTERVAL, parse_interval);
    let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    Some(FirewallReport { id: id.clone(), uid, status: Arc::new(status), interval_ms })
}

#[cfg(test)]
mod tests;
