//! `render`

use std::io::Write;
use std::process::ExitCode;

use super::{offline, print};
use crate::config::RenderArgs;

pub(super) fn run(args: &RenderArgs) -> anyhow::Result<ExitCode> {
    let judged = offline::judge(&args.paths, &offline::facts(&args.host));
    let mut stderr = std::io::stderr().lock();
    for finding in &judged.findings {
        writeln!(stderr, "{finding}")?;
    }
    print(fw_ruleset::render(&judged.compiled.ruleset))
}
