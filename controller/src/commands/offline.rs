//! Manifests named on the command line, judged and compiled without a running controller.

use std::path::PathBuf;

use fw_intake::{Finding, HostFacts, Intake, Manifest, Objects, Severity};
use fw_ruleset::{Compiled, DEFAULT_CELL_LIMIT};

use crate::config::HostArgs;
use crate::findings::{bound_finding, unreadable};
use crate::host::ThisMachine;
use crate::reconcile::{Host, Questions};
use crate::source::files;

/// The outcome of `check`, `render` and `explain FILE…`.
pub(super) struct Judged {
    /// What the objects mean.
    pub(super) intake: Intake,
    /// What they compile to.
    pub(super) compiled: Compiled,
    /// Everything that is wrong: files, objects, bounds of the compiler.
    pub(super) findings: Vec<Finding>,
}

/// Facts of this machine, if they were asked for.
pub(super) fn facts(args: &HostArgs) -> HostFacts {
    if !args.this_host {
        return HostFacts::default();
    }
    ThisMachine::new(None).facts(Questions { routes: true, sessions: true })
}

/// Reads, judges and compiles.
pub(super) fn judge(paths: &[PathBuf], facts: &HostFacts) -> Judged {
    let (manifests, mut findings) = load(paths);
    let intake = fw_intake::intake(&Objects::new(&manifests), facts);
    let compiled = fw_ruleset::compile(&intake.set, DEFAULT_CELL_LIMIT);
    findings.extend(intake.findings.iter().cloned());
    findings.extend(compiled.problems.iter().map(bound_finding));
    Judged { intake, compiled, findings }
}

fn load(paths: &[PathBuf]) -> (Vec<Manifest>, Vec<Finding>) {
    let mut manifests = Vec::new();
    let mut findings = Vec::new();
    for found in files::expand(paths) {
        match found {
            Ok(path) => match files::read_argument(&path) {
                Ok(bytes) => match fw_intake::parse(&path.display().to_string(), &bytes) {
                    Ok(mut objects) => manifests.append(&mut objects),
                    Err(error) => findings.push(error.finding()),
                },
                Err(error) => findings.push(unreadable(&path.display().to_string(), &error.to_string())),
            },
            Err((path, reason)) => findings.push(unreadable(&path.display().to_string(), &reason)),
        }
    }
    (manifests, findings)
}

/// True when something that was written is not enforced.
pub(super) fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}
