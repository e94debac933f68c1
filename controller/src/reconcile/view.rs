//! What the status, `explain` and the service manager are told from: a copy, so that nobody waits for the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fw_intake::{Finding, Id, PolicyState, Severity};
use fw_policy::PolicySet;
use fw_ruleset::{DEFAULT_CELL_LIMIT, Names, Op, Plan, Ruleset, compile};
use serde::Serialize;
use tracing::{error, info, warn};

use super::timing::Timing;
use crate::published::Published;
use crate::source::{Snapshot, SourceCounters};

/// Differences and findings that are spelled out in one go.
const SHOWN: usize = 50;

/// Everything there is to know about a running firewall.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Whether rules are in force, and which.
    pub state: State,
    /// What is in force, when it was compiled here.
    pub enforced: Option<Arc<Judged>>,
    /// What the latest objects mean.
    pub wanted: Option<Arc<Judged>>,
    /// What the source is waiting for.
    pub waiting_for: String,
    /// Everything to report.
    pub findings: Arc<Vec<Finding>>,
    /// Counter values.
    pub published: Arc<Published>,
    /// When the counters were last read.
    pub counters_read: Option<SystemTime>,
    /// When the objects were last reconciled without an error.
    pub last_run: Option<SystemTime>,
    /// When a source last gave other objects.
    pub objects_read: Option<SystemTime>,
    /// How long reconciling took.
    pub timing: Timing,
    /// Why the last attempt failed.
    pub refused: Option<String>,
    /// When it is tried again.
    pub retry_in: Option<Duration>,
    /// Outcome of the dry run.
    pub dry_run: Option<DryRun>,
    /// The last change by others.
    pub last_drift: Option<DriftReport>,
    /// Figures.
    pub tally: Tally,
    /// The source's figures.
    pub source: SourceCounters,
    /// What the controller itself could not do: write its state, put an address on an interface.
    pub problems: Vec<String>,
}

/// Whether rules are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// A table of ours is in force.
    Enforcing(Basis),
    /// None is, for this reason.
    NotEnforcing(String),
}

impl Default for State {
    fn default() -> Self {
        Self::NotEnforcing("starting".to_owned())
    }
}

/// What the rules in force were made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// No objects: nothing new passes.
    Base,
    /// The objects known from before the restart, or from before the source vanished.
    Snapshot,
    /// The source's objects.
    Current,
    /// Found in the kernel at start.
    Adopted,
    /// Somebody else's table of our name, the Go controller's for instance, until there are objects to replace it by.
    Foreign,
    /// The objects of before `dryrun` was switched on.
    BeforeDryRun,
}

/// Objects, judged and compiled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// What they mean.
    pub set: PolicySet,
    /// What they compile to.
    pub ruleset: Arc<Ruleset>,
    /// Who stamps packets, and the mark index of each entry with names.
    pub names: Names,
    /// Addresses of the box.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Status of each policy.
    pub states: BTreeMap<Id, PolicyState>,
    /// The Firewall object that counts.
    pub firewall: Option<Id>,
    /// Which side is inside and why.
    pub inside: String,
    /// The objects.
    pub objects: Arc<Snapshot>,
}

impl Judged {
    /// No objects.
    pub fn base() -> Self {
        let set = PolicySet::default();
        let ruleset = Arc::new(compile(&set, DEFAULT_CELL_LIMIT).ruleset);
        Self { set, ruleset, ..Self::default() }
    }
}

/// Outcome of a dry run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DryRun {
    /// Steps that would be taken.
    pub steps: usize,
    /// The first of them.
    pub differences: Vec<String>,
    /// Why the kernel would refuse them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A change of our table by others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriftReport {
    /// When it was noticed.
    pub at: SystemTime,
    /// The process, as the kernel names it.
    pub by: String,
    /// True when the table was deleted.
    pub deleted: bool,
}

/// What the reconciler counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Transactions committed.
    pub commits: u64,
    /// Attempts that failed.
    pub refused: u64,
    /// Transactions sent again because others committed in between.
    pub others_in_between: u64,
    /// Changes by others that were repaired.
    pub repairs: u64,
    /// The kernel's generation after our last commit.
    pub generation: u32,
    /// Steps of the last transaction.
    pub last_steps: usize,
    /// Its netlink messages.
    pub last_messages: usize,
    /// Microseconds from planning it to the kernel's answer.
    pub last_commit_us: u64,
}

/// The first steps of a plan, a line each.
pub(super) fn describe(plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> = plan.ops.iter().take(SHOWN).map(describe_step).collect();
    if plan.ops.len() > SHOWN {
        lines.push(format!("and {} more steps", plan.ops.len() - SHOWN));
    }
    lines
}

fn describe_step(op: &Op) -> String {
    match op {
        Op::DeleteTable => "delete table inet firewall".to_owned(),
        Op::CreateTable => "add table inet firewall".to_owned(),
        Op::CreateCounter(name, _) => format!("add counter {name}"),
        Op::CreateTimeout(name, _) => format!("add ct timeout {name}"),
        Op::DeleteTimeout(name) => format!("delete ct timeout {name}"),
        Op::CreateSet(name, set) => format!("add {} {name}", if set.map { "map" } else { "set" }),
        Op::CreateChain(name, _) => format!("add chain {name}"),
        Op::FlushChain(name) => format!("flush chain {name}"),
        Op::DeleteElements(name, keys) => format!("delete {} elements of {name}", keys.len()),
        Op::AppendRule(name, rule, _) => match &rule.comment {
            Some(comment) => format!("add rule \"{comment}\" to chain {name}"),
            None => format!("add a rule to chain {name}"),
        },
        Op::AddElements(name, elements) => format!("add {} elements to {name}", elements.len()),
        Op::DeleteChain(name) => format!("delete chain {name}"),
        Op::DeleteSet(name) => format!("delete set {name}"),
        Op::DeleteCounter(name) => format!("delete counter {name}"),
    }
}

/// Logs findings that are new and those that are resolved; floods are cut.
pub(super) fn log_findings<'a>(
    new: impl Iterator<Item = &'a Finding>,
    resolved: impl Iterator<Item = &'a Finding>,
) {
    let mut more = 0_usize;
    for (index, finding) in new.enumerate() {
        match finding.severity {
            _ if index >= SHOWN => more += 1,
            Severity::Error => error!("{finding}"),
            Severity::Warning => warn!("{finding}"),
            Severity::Info => info!("{finding}"),
        }
    }
    if more > 0 {
        warn!("and {more} more findings; `firewall-controller status` has them all");
    }
    for finding in resolved.take(SHOWN) {
        info!("resolved: {} {}", finding.subject, finding.reason);
    }
}
