//! Findings of the shell itself, beside those of the intake.

use fw_intake::{Finding, Reason, Severity, Subject};
use fw_ruleset::Problem;

/// About something the compiler left out.
pub(crate) fn bound_finding(problem: &Problem) -> Finding {
    Finding {
        subject: Subject::Object(problem.origin.clone()),
        severity: Severity::Error,
        reason: Reason::LimitReached,
        message: problem.message.clone(),
        remedy: "nothing of it is opened until it fits: merge its entries or name fewer of them".to_owned(),
    }
}

/// About a file or directory that cannot be used.
pub(crate) fn unreadable(path: &str, reason: &str) -> Finding {
    Finding {
        subject: Subject::File { path: path.to_owned(), line: 0, column: 0 },
        severity: Severity::Error,
        reason: Reason::Unreadable,
        message: format!("cannot be used: {reason}"),
        remedy: "make it a readable file or directory, or remove it".to_owned(),
    }
}
