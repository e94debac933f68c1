//! Objects in, the kernel's table out: what is judged, what is applied, what is kept when that fails.
//!
//! [`Reconciler`] is level-triggered: every step starts from the latest objects and from what the kernel holds, and
//! ends with the kernel holding what the objects mean, or with the reason why not. It blocks on the kernel and on
//! nothing else; [`worker`] runs it on a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fw_intake::{Finding, HostFacts, Manifest, Objects};
use fw_names::indexes::Indexes;
use fw_nft::{Drift, Error, Kernel};
use fw_policy::{IfName, InsideBasis, ObjectKind, Protocol};
use fw_ruleset::ir::Family;
use fw_ruleset::{DEFAULT_CELL_LIMIT, Plan, Ruleset, compile_with, name_chain, plan};
use tracing::{debug, error, info, warn};

use crate::findings::bound_finding;
use crate::source::Snapshot;
use crate::telemetry::chain;
use figures::Figures;
use held::{Held, remakes};
pub use names::{ARMED_MS, Installation, NamePath, NoNames, Prepared};
pub use stored::{KernelRecord, Memory, Remembered, StoredSnapshot};
pub use timing::{Durations, Timing};
pub use view::{Basis, DryRun, Judged, State, Tally, View};

mod apply;
mod figures;
mod held;
mod names;
mod start;
mod stored;
mod timing;
mod view;
pub mod worker;

/// Waiting time after the first refused attempt; it doubles up to the maximum.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// What the reconciler asks the machine.
pub trait Host: Send {
    /// The facts of this moment.
    fn facts(&mut self, questions: Questions) -> HostFacts;
}

/// Which of the facts are needed; the others cost time and change nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Questions {
    /// Which networks are routed over which interface.
    pub routes: bool,
    /// sshd's ports and TCP sessions.
    pub sessions: bool,
}

/// The state of one firewall.
pub struct Reconciler {
    kernel: Box<dyn Kernel>,
    host: Box<dyn Host>,
    memory: Box<dyn Memory>,
    names: Box<dyn NamePath>,
    /// The last answer of `names`.
    prepared: Prepared,
    /// With the mask they are for.
    indexes: Option<(u32, Indexes)>,
    installed: Option<Arc<Installation>>,
    /// True when maps of learned addresses were made again since the last installation.
    remade: bool,
    /// Ways by which the proxy has answered last.
    armed: BTreeSet<(Family, Protocol)>,
    held: Option<Held>,
    /// True when what is held was compiled from a Firewall without dryrun: only that stays under a dryrun.
    from_firewall: bool,
    facts: HostFacts,
    /// The Firewall object the facts were read for; when it changes they are read again.
    facts_for: Option<Manifest>,
    kept_firewall: Option<Manifest>,
    snapshot: Option<Arc<Snapshot>>,
    /// The snapshot that the memory has.
    stored: Option<Arc<Snapshot>>,
    flushed: bool,
    last: Figures,
    /// Heavier plans are split.
    long: usize,
    backoff: Option<(Duration, Instant)>,
    host_finding: Option<Finding>,
    view: View,
}

impl Reconciler {
    /// Reads what the kernel holds and sees to it that something is enforced: an existing table of ours is adopted,
    /// else the base ruleset goes in and then the remembered snapshot (semantics.md section 2).
    pub fn start(
        kernel: Box<dyn Kernel>,
        host: Box<dyn Host>,
        memory: Box<dyn Memory>,
        names: Box<dyn NamePath>,
        remembered: Remembered,
        now: Instant,
    ) -> Self {
        let stored = remembered.snapshot.map(|stored| (Arc::new(stored.as_snapshot()), stored.firewall));
        let (snapshot, kept_firewall) =
            stored.map_or((None, None), |(snapshot, firewall)| (Some(snapshot), firewall));
        // A table without a record (the state directory was lost) is taken for one that is to stay.
        let record =
            remembered.kernel.unwrap_or(KernelRecord { from_firewall: true, ..KernelRecord::default() });
        let mut this = Self {
            kernel,
            host,
            memory,
            names,
            prepared: Prepared::default(),
            indexes: None,
            installed: None,
            remade: false,
            armed: BTreeSet::new(),
            held: None,
            from_firewall: record.from_firewall,
            facts: HostFacts::default(),
            facts_for: kept_firewall.clone(),
            kept_firewall,
            stored: snapshot.clone(),
            snapshot,
            flushed: false,
            last: Figures::default(),
            long: apply::long(),
            backoff: None,
            host_finding: None,
            view: View { published: Arc::new(record.published), ..View::default() },
        };
        this.refresh_facts();
        this.begin(now);
        this
    }

    /// Takes a source's snapshot.
    pub fn objects(&mut self, snapshot: Arc<Snapshot>, now: Instant) {
        self.view.source = snapshot.counters;
        self.view.objects_read = Some(SystemTime::now());
        self.snapshot = Some(snapshot);
        self.reconcile(now);
    }

    /// Makes the kernel hold what the objects mean.
    pub fn reconcile(&mut self, now: Instant) {
        let Some(snapshot) = self.snapshot.clone() else { return };
        let began = Instant::now();
        if self.held.is_none()
            && let Err(error) = self.read()
        {
            return self.failed(&error, now);
        }
        self.arm_through_objects(snapshot.manifests().count());
        let judged = self.judge(&snapshot);
        if self.flushed {
            return;
        }
        let nothing_known = snapshot.groups.is_empty() && judged.firewall.is_none();
        let basis = match snapshot.fresh {
            true => Basis::Current,
            false if nothing_known => Basis::Base,
            false => Basis::Snapshot,
        };
        // What was adopted is newer than, or the same as, anything known from before the restart.
        let found = [State::Enforcing(Basis::Adopted), State::Enforcing(Basis::Foreign)];
        let waits = !snapshot.fresh && found.contains(&self.view.state);
        if waits && !self.held.as_ref().is_some_and(|held| held.enforces(&judged.ruleset)) {
            self.view.waiting_for.clone_from(&snapshot.note);
            return;
        }
        self.converge(judged, basis, now);
        self.note_time(began.elapsed());
        self.view.waiting_for.clone_from(&snapshot.note);
        if snapshot.fresh && self.backoff.is_none() {
            self.last.settle();
            self.remember(&snapshot);
        }
    }

    fn note_time(&mut self, took: Duration) {
        let timing = &mut self.view.timing;
        if self.backoff.is_some() {
            timing.refused.record(took);
        } else if self.view.dry_run.is_some() {
            timing.dry_run.record(took);
        } else {
            timing.applied.record(took);
        }
    }

    /// Notes how long objects have waited until they were enforced; not where they are not.
    pub fn note_lag(&mut self, given: Instant) {
        let is_current = self.view.state == State::Enforcing(Basis::Current);
        if is_current && self.backoff.is_none() {
            self.view.timing.lag.record(given.elapsed());
        }
    }

    /// Judges objects: intake, the kept Firewall, compilation, findings.
    fn judge(&mut self, snapshot: &Arc<Snapshot>) -> Arc<Judged> {
        let began = Instant::now();
        let (mut intake, kept) = self.intake(snapshot);
        let read = began.elapsed();
        if !intake.set.firewall.dry_run {
            self.prepared = self.names.prepare(&intake.set);
        }
        let mut names = self.name_entries(&intake.set, self.prepared.stamp);
        let compiled = compile_with(&intake.set, &names, DEFAULT_CELL_LIMIT);
        // An entry of a policy that was left out must not win a port over one that is enforced.
        names.indexes.retain(|entry, _| compiled.ruleset.chains.contains_key(&name_chain(entry)));
        let mut findings = snapshot.findings.clone();
        findings.append(&mut intake.findings);
        findings.extend(compiled.problems.iter().map(bound_finding));
        findings.extend(kept);
        findings.extend(self.host_finding.clone());
        self.report(findings);
        debug!(policies = intake.set.policies.len(), ?read, took = ?began.elapsed(), "judged and compiled");
        let judged = Arc::new(Judged {
            set: intake.set,
            ruleset: Arc::new(compiled.ruleset),
            names,
            own_addresses: self.prepared.own_addresses.clone(),
            states: intake.states,
            firewall: intake.firewall,
            inside: intake.inside,
            objects: Arc::clone(snapshot),
        });
        self.view.wanted = Some(Arc::clone(&judged));
        judged
    }

    /// Reads the objects; a Firewall that was deleted is read from what was kept of it.
    fn intake(&mut self, snapshot: &Snapshot) -> (fw_intake::Intake, Option<Finding>) {
        let objects = Objects::new(snapshot.manifests());
        let mut intake = fw_intake::intake(&objects, &self.facts);
        let chosen = intake.firewall.clone().and_then(|id| {
            objects
                .of_kind(ObjectKind::Firewall)
                .find(|(other, _)| **other == id)
                .map(|(_, manifest)| manifest.clone())
        });
        let is_kept = chosen.is_none() && self.kept_firewall.is_some();
        let manifest = chosen.or_else(|| self.kept_firewall.take());
        let is_changed = manifest != self.facts_for;
        if is_changed {
            self.facts_for.clone_from(&manifest);
            self.refresh_facts();
        }
        self.kept_firewall = manifest;
        if is_kept || is_changed {
            let kept = if is_kept { self.kept_firewall.as_ref() } else { None };
            let objects = Objects::new(snapshot.manifests().chain(kept));
            intake = fw_intake::intake(&objects, &self.facts);
        }
        let finding = is_kept.then(|| stored::kept_finding(self.kept_firewall.as_ref()));
        (intake, finding)
    }

    fn refresh_facts(&mut self) {
        let questions = self.facts_for.as_ref().map(stored::questions).unwrap_or_default();
        self.facts = self.host.facts(questions);
        self.host_finding = None;
    }

    /// True while the routes are to say which side is inside and say nothing: early at boot there are none yet.
    pub fn seeks_inside(&self) -> bool {
        let inside = self.view.wanted.as_ref().map(|wanted| &wanted.set.firewall.inside);
        let asks = self.facts_for.as_ref().is_some_and(|firewall| stored::questions(firewall).routes);
        asks && inside.is_some_and(|inside| inside.interfaces.is_empty())
    }

    /// Looks whether the routes still lead where they did when inside was chosen by them; chooses if nothing was.
    pub fn check_host(&mut self, now: Instant) {
        self.check_obstacles();
        let Some(wanted) = self.view.wanted.clone() else { return };
        if self.seeks_inside() {
            let before = self.facts.clone();
            self.refresh_facts();
            if self.facts != before {
                self.reconcile(now);
            }
        } else if wanted.set.firewall.inside.basis == InsideBasis::Routes {
            let facts = self.host.facts(Questions { routes: true, sessions: false });
            let finding = fw_intake::inside_changed(&wanted.set.firewall.inside, &facts);
            if finding != self.host_finding {
                self.host_finding = finding;
                self.reconcile(now);
            }
        }
    }

    /// Logs what is new among the findings and what is gone.
    fn report(&mut self, mut findings: Vec<Finding>) {
        findings.sort();
        findings.dedup();
        let new: BTreeSet<&Finding> = findings.iter().collect();
        let old: BTreeSet<&Finding> = self.view.findings.iter().collect();
        view::log_findings(new.difference(&old).copied(), old.difference(&new).copied());
        self.view.findings = Arc::new(findings);
    }

    /// Applies, or tries dry, or leaves, as the Firewall asks.
    fn converge(&mut self, judged: Arc<Judged>, basis: Basis, now: Instant) {
        let result = if judged.set.firewall.dry_run {
            self.try_dry(&judged)
        } else {
            self.view.dry_run = None;
            self.apply_with_names(&judged).map(|()| {
                if basis == Basis::Current {
                    Arc::make_mut(&mut self.view.published).retain(&judged.ruleset);
                }
                // Whether the rules come from a Firewall, deleted or not; those without stay under no dry run.
                self.from_firewall = judged.firewall.is_some();
                self.view.enforced = Some(judged);
                self.view.state = State::Enforcing(basis);
            })
        };
        match result {
            Ok(()) => {
                self.backoff = None;
                self.view.refused = None;
                self.view.last_run = Some(SystemTime::now());
                self.note_kernel();
            }
            Err(error) => self.failed(&error, now),
        }
    }

    /// `dryrun`: what is applied stays, what would be applied is shown to the kernel and not committed.
    fn try_dry(&mut self, judged: &Judged) -> Result<(), Error> {
        if self.held.as_ref().is_some_and(Held::is_ours) && !self.from_firewall {
            // Installed because nothing was known; now it is known that nothing was to be installed.
            self.withdraw()?;
            info!("withdrew the base ruleset: the Firewall asks for a dry run");
        }
        let plan = self.plan(&judged.ruleset)?;
        let checked = self.kernel.check(&plan, &judged.ruleset);
        let refused = match checked {
            Ok(()) => None,
            Err(
                error @ (Error::Refused(_) | Error::Whole { .. } | Error::Lower { .. } | Error::TooLong(_)),
            ) => Some(chain(&error)),
            Err(error) => return Err(error),
        };
        let dry_run = DryRun { steps: plan.ops.len(), differences: view::describe(&plan), refused };
        if self.view.dry_run.as_ref() != Some(&dry_run) {
            info!(steps = dry_run.steps, refused = ?dry_run.refused, "dry run: nothing was applied");
        }
        self.view.dry_run = Some(dry_run);
        self.view.state = if self.held.as_ref().is_some_and(Held::is_ours) {
            State::Enforcing(Basis::BeforeDryRun)
        } else if matches!(self.held, Some(Held::Foreign(_))) {
            State::NotEnforcing("dryrun: the table inet firewall of somebody else stays as it is".to_owned())
        } else {
            State::NotEnforcing("dryrun: nothing was installed".to_owned())
        };
        Ok(())
    }

    /// The plan to `wanted`, with fresh figures where counters have to be made again.
    fn plan(&mut self, wanted: &Arc<Ruleset>) -> Result<Plan, Error> {
        let held = self.held_or_read()?.clone();
        let steps = held.plan(wanted, &self.last);
        match &held {
            Held::Known(known) if remakes(&steps) => {
                self.read_counters()?;
                let mut counts = self.last.for_ruleset(known);
                counts.rules.extend(self.last.for_new_chains(known, wanted).rules);
                Ok(plan(Some(known), wanted, &counts))
            }
            _ => Ok(steps),
        }
    }

    fn held_or_read(&mut self) -> Result<&Held, Error> {
        if self.held.is_none() {
            self.read()?;
        }
        // `read` leaves something or an error.
        self.held.as_ref().ok_or(Error::Stale)
    }

    fn read(&mut self) -> Result<(), Error> {
        self.held = None;
        let held = Held::of(self.kernel.read()?).map_err(|port| Error::Taken { port })?;
        if matches!(held, Held::Foreign(_)) {
            warn!(
                "table inet firewall is not ours; it will be replaced in one transaction, its counters are carried over"
            );
        }
        self.held = Some(held);
        Ok(())
    }

    /// Reads the kernel's counters into the published values.
    pub fn read_counters(&mut self) -> Result<(), Error> {
        let Some(Held::Known(known)) = &self.held else { return Ok(()) };
        let known = Arc::clone(known);
        let counts = self.kernel.counts()?;
        self.last.renew(&known, &counts);
        let resets = self.view.published.resets;
        Arc::make_mut(&mut self.view.published).observe(&known, &counts);
        if self.view.published.resets != resets {
            warn!("counters in the kernel were reset by others; the published values go on");
            self.note_kernel();
        }
        self.view.counters_read = Some(SystemTime::now());
        Ok(())
    }

    /// Others changed our table, or may have.
    pub fn drifted(&mut self, drift: &Drift, now: Instant) {
        let Some(before @ (Held::Known(_) | Held::Observed(_))) = self.held.clone() else { return };
        if let Err(error) = self.read() {
            return self.failed(&error, now);
        }
        let intact = match (&before, &self.held) {
            (Held::Known(known), Some(held)) => held.is(known),
            (_, Some(held)) => held.is_ours(),
            (_, None) => false,
        };
        if intact {
            if matches!(before, Held::Known(_)) {
                self.held = Some(before);
            }
            return self.refill();
        }
        self.view.tally.repairs += 1;
        let who = drift.process.clone().unwrap_or_else(|| "unknown".to_owned());
        self.view.last_drift =
            Some(view::DriftReport { at: SystemTime::now(), by: who, deleted: drift.deleted });
        error!(by = ?drift.process, deleted = drift.deleted, lost = drift.lost, "our table was changed by others; repairing it");
        let repaired = match before {
            Held::Known(known) => self.apply(&known),
            _ => Ok(()),
        };
        match repaired {
            Ok(()) => {
                self.refill();
                self.note_kernel();
            }
            Err(error) => self.failed(&error, now),
        }
    }

    /// Removes our table and what was remembered, on purpose.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.read_counters().ok();
        self.withdraw()?;
        self.flushed = true;
        self.kept_firewall = None;
        self.stored = None;
        self.backoff = None;
        self.view.refused = None;
        self.memory.forget_snapshot();
        self.view.state =
            State::NotEnforcing("FLUSHED: `firewall-controller flush --undo` enforces again".to_owned());
        warn!("flushed: the table is gone, nothing is enforced");
        Ok(())
    }

    /// Enforces again after a flush.
    pub fn undo_flush(&mut self, now: Instant) {
        if !std::mem::take(&mut self.flushed) {
            return;
        }
        info!("enforcing again");
        self.held = None;
        if self.snapshot.is_some() {
            self.reconcile(now);
        } else {
            self.begin(now);
        }
    }

    fn withdraw(&mut self) -> Result<(), Error> {
        self.names.pass_all();
        self.kernel.delete_table()?;
        self.after_commit(None);
        self.held = Some(Held::Absent);
        self.last = Figures::default();
        self.from_firewall = false;
        self.view.enforced = None;
        Arc::make_mut(&mut self.view.published).table_lost();
        self.note_kernel();
        Ok(())
    }

    fn failed(&mut self, error: &Error, now: Instant) {
        let wait = self.backoff.map_or(FIRST_BACKOFF, |(wait, _)| (wait * 2).min(MAX_BACKOFF));
        self.backoff = Some((wait, now + wait));
        self.view.tally.refused += 1;
        let text = chain(error);
        if self.view.refused.as_ref() != Some(&text) {
            error!(retry_in = ?wait, "{text}");
        }
        self.view.refused = Some(text.clone());
        if matches!(error, Error::Taken { .. }) {
            self.held = None;
            self.view.enforced = None;
        }
        if !self.held.as_ref().is_some_and(Held::is_ours) {
            self.view.state = State::NotEnforcing(text);
        }
    }

    /// When to call [`Self::retry`].
    pub fn retry_at(&self) -> Option<Instant> {
        self.backoff.map(|(_, at)| at)
    }

    /// Tries again what was refused.
    pub fn retry(&mut self, now: Instant) {
        if self.held.is_none() || self.snapshot.is_none() {
            self.begin(now);
        }
        if self.held.is_some() {
            self.reconcile(now);
        }
    }

    fn remember(&mut self, snapshot: &Arc<Snapshot>) {
        if self.stored.as_ref().is_some_and(|stored| Arc::ptr_eq(stored, snapshot)) {
            return;
        }
        self.memory.snapshot(Arc::clone(snapshot), self.kept_firewall.clone());
        self.stored = Some(Arc::clone(snapshot));
    }

    /// Hands what belongs to the kernel's table to the memory.
    pub fn note_kernel(&mut self) {
        self.memory.kernel(Arc::clone(&self.view.published), self.from_firewall);
    }

    /// The addresses that source NAT needs on interfaces; `None` while what is held was not compiled here.
    pub fn snat_addresses(&self) -> Option<BTreeMap<IfName, BTreeSet<IpAddr>>> {
        if self.flushed || matches!(self.held, Some(Held::Absent)) {
            return Some(BTreeMap::new());
        }
        let enforced = self.view.enforced.as_ref()?;
        let mut wanted: BTreeMap<IfName, BTreeSet<IpAddr>> = BTreeMap::new();
        for snat in enforced.set.firewall.snat.values() {
            wanted.entry(snat.device.clone()).or_default().extend(&snat.addresses);
        }
        Some(wanted)
    }

    /// Everything the status shows.
    pub fn view(&mut self) -> View {
        self.view.problems = self.memory.problems();
        self.view.retry_in = self.backoff.map(|(wait, _)| wait);
        self.view.clone()
    }
}

#[cfg(test)]
mod tests;
