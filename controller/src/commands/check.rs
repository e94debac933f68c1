//! `check`

use std::process::ExitCode;

use fw_intake::HostFacts;

use super::{offline, print};
use crate::config::CheckArgs;

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let findings = offline::judge(&args.paths, &HostFacts::default()).findings;
    let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    print(lines)?;
    Ok(if offline::has_errors(&findings) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
