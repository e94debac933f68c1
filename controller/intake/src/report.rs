//! Collects the findings about one object.

use std::fmt::Display;

use fw_policy::Origin;

use crate::finding::{Finding, Reason, Severity, Subject};
use crate::objects::Id;

/// Findings that one object may have; the rest is counted. An object full of rubbish must not fill the log.
pub(crate) const MAX_FINDINGS: usize = 50;

/// The findings about one object, while it is read.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    id: Id,
    findings: Vec<Finding>,
    left_out: usize,
    errors: usize,
}

impl Report {
    pub(crate) fn new(id: &Id) -> Self {
        Self { id: id.clone(), findings: Vec::new(), left_out: 0, errors: 0 }
    }

    /// Something written is not enforced.
    pub(crate) fn error(&mut self, at: &str, reason: Reason, message: impl Display, remedy: impl Display) {
        self.errors += 1;
        self.add(at, Severity::Error, reason, message, remedy);
    }

    /// Enforced as written, but hardly as meant.
    pub(crate) fn warning(&mut self, at: &str, reason: Reason, message: impl Display, remedy: impl Display) {
        self.add(at, Severity::Warning, reason, message, remedy);
    }

    /// Ignored on purpose.
    pub(crate) fn info(&mut self, at: &str, reason: Reason, message: impl Display, remedy: impl Display) {
        self.add(at, Severity::Info, reason, message, remedy);
    }

    /// True after the first error.
    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Errors and warnings as one line for a status message: `field: message`, joined with `; `.
    pub(crate) fn summary(&self) -> String {
        let mut serious = self.findings.iter().filter(|finding| finding.severity != Severity::Info);
        let mut shown: Vec<String> = serious
            .by_ref()
            .take(SUMMARY_FINDINGS)
            .map(|finding| match finding.origin() {
                Some(origin) if !origin.field.is_empty() => format!("{}: {}", origin.field, finding.message),
                _ => finding.message.clone(),
            })
            .collect();
        let more = serious.count() + self.left_out;
        if more > 0 {
            shown.push(format!("and {more} more"));
        }
        shown.join("; ")
    }

    /// All findings, the last one counting those left out.
    pub(crate) fn into_findings(mut self) -> Vec<Finding> {
        if self.left_out > 0 {
            let message = format!("{} more findings about this object are not shown", self.left_out);
            let finding =
                self.finding("", Severity::Error, Reason::TooMany, message, "correct those shown first");
            self.findings.push(finding);
        }
        self.findings
    }

    fn add(
        &mut self,
        at: &str,
        severity: Severity,
        reason: Reason,
        message: impl Display,
        remedy: impl Display,
    ) {
        if self.findings.len() < MAX_FINDINGS {
            let finding = self.finding(at, severity, reason, message, remedy);
            self.findings.push(finding);
        } else {
            self.left_out += 1;
        }
    }

    fn finding(
        &self,
        at: &str,
        severity: Severity,
        reason: Reason,
        message: impl Display,
        remedy: impl Display,
    ) -> Finding {
        let Id { kind, namespace, name } = self.id.clone();
        Finding {
            subject: Subject::Object(Origin { kind, namespace, name, field: at.to_owned() }),
            severity,
            reason,
            message: message.to_string(),
            remedy: remedy.to_string(),
        }
    }
}

/// Findings that a status message spells out.
const SUMMARY_FINDINGS: usize = 5;
