//! What events are to be there for.

use std::collections::{BTreeMap, BTreeSet};

use fw_intake::{Finding, Id, Reason, Severity};
use fw_kube::{Complaint, FirewallReport};
use fw_policy::{ObjectKind, Origin};

use super::Versions;
use crate::reconcile::{Basis, State, View};
use crate::status::headline;
use crate::timestamp::rfc3339;

/// Findings of one object and reason that an event spells out.
pub(super) const SHOWN: usize = 5;

/// One complaint for each object and reason, so that they are bounded by the objects.
pub(super) fn complaints(
    view: &View,
    own: Option<&FirewallReport>,
    versions: &Versions<'_>,
) -> BTreeSet<Complaint> {
    let mut grouped: BTreeMap<(Id, String), Vec<&Finding>> = BTreeMap::new();
    for finding in view.findings.iter() {
        if let (Some(id), Some(reason)) = (subject(finding), reason(finding)) {
            grouped.entry((id, reason)).or_default().push(finding);
        }
    }
    let told = grouped.into_iter().filter_map(|((about, reason), findings)| {
        // What is not in the cluster has no events.
        let uid = versions.uid(&about)?.to_owned();
        Some(Complaint { about, uid, reason, warning: true, note: note(&findings) })
    });
    let mut complaints: BTreeSet<Complaint> = told.collect();
    if let Some(own) = own {
        complaints.extend(of_firewall(view, own));
    }
    complaints
}

/// The object a finding is about.
pub(super) fn subject(finding: &Finding) -> Option<Id> {
    let Origin { kind, namespace, name, .. } = finding.origin()?.clone();
    Some(Id { kind, namespace, name })
}

/// The reasons that alerts in the field match (compat.md section 4), for all that is not enforced; what is enforced but
/// hardly as meant has the finding's own reason on objects without a status message of ours.
fn reason(finding: &Finding) -> Option<String> {
    let kind = finding.origin()?.kind;
    let known = match (finding.severity, finding.reason) {
        (Severity::Error, Reason::ForbiddenCIDR) => "ForbiddenCIDR",
        (Severity::Error, Reason::LimitReached) => "RuleRefused",
        (Severity::Error, _) => "Inapplicable",
        (Severity::Warning, other) if kind != ObjectKind::ClusterwideNetworkPolicy => {
            return Some(other.to_string());
        }
        (Severity::Warning | Severity::Info, _) => return None,
    };
    Some(known.to_owned())
}

fn note(findings: &[&Finding]) -> String {
    let mut texts: Vec<String> = findings.iter().take(SHOWN).map(|finding| text(finding)).collect();
    if let Some(more) = findings.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        texts.push(format!("and {more} more"));
    }
    texts.join("; ")
}

/// The text of alerts is `address:"…" is outside of the allowed network range:"…", ignoring`: it stands alone, and the
/// field after it.
fn text(finding: &Finding) -> String {
    let field = finding.origin().map(|origin| origin.field.as_str()).unwrap_or_default();
    let Finding { message, remedy, .. } = finding;
    match (finding.reason, field) {
        (Reason::ForbiddenCIDR, field) if !field.is_empty() => format!("{message} ({field})"),
        (_, "") => format!("{message}; next: {remedy}"),
        (_, field) => format!("{field}: {message}; next: {remedy}"),
    }
}

/// What is told on the Firewall about the machine.
fn of_firewall(view: &View, own: &FirewallReport) -> Vec<Complaint> {
    let complaint = |reason: &str, warning, note: String| Complaint {
        about: own.id.clone(),
        uid: own.uid.clone(),
        reason: reason.to_owned(),
        warning,
        note,
    };
    let mut complaints = Vec::new();
    if let Some(why) = &view.refused {
        complaints.push(complaint("RuleRefused", true, format!("the last change was not applied: {why}")));
    } else if let Some(why) = view.dry_run.as_ref().and_then(|dry_run| dry_run.refused.as_ref()) {
        complaints.push(complaint("RuleRefused", true, format!("the dry run would be refused: {why}")));
    } else if view.state == State::Enforcing(Basis::Current) {
        // The number of transactions makes each applied change another one.
        let commits = view.tally.commits;
        complaints.push(complaint("Reconciled", false, format!("{}; transaction {commits}", headline(view))));
    }
    if let Some(drift) = &view.last_drift {
        let what = if drift.deleted { "deleted" } else { "changed" };
        let outcome = if view.refused.is_none() { "repaired" } else { "not repaired yet" };
        let note =
            format!("table inet firewall was {what} by {} at {}; {outcome}", drift.by, rfc3339(drift.at));
        let reason = if view.refused.is_none() { "DriftRepaired" } else { "Error" };
        complaints.push(complaint(reason, true, note));
    }
    if !view.problems.is_empty() {
        let mut texts: Vec<&str> = view.problems.iter().take(SHOWN).map(String::as_str).collect();
        let more = format!("and {} more", view.problems.len().saturating_sub(SHOWN));
        if view.problems.len() > SHOWN {
            texts.push(&more);
        }
        complaints.push(complaint("Error", true, texts.join("; ")));
    }
    complaints
}
