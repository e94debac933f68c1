//! `explain`

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

use super::{EXIT_NO, offline, print};
use crate::config::ExplainArgs;
use crate::control::{Request, client};
use crate::explain::{Explanation, explain};
use crate::names::Known;
use crate::packet_text;

pub(super) fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let packet = packet_text::parse(&args.packet).context("--packet")?;
    if args.paths.is_empty() {
        let request = Request::Explain { packet: args.packet.clone() };
        let answer = client::ask(&args.client.control_socket, &request)?;
        return show(&serde_json::from_value(answer)?, args.json);
    }
    let judged = offline::judge(&args.paths, &offline::facts(&args.host));
    let mut stderr = std::io::stderr().lock();
    for finding in judged.findings.iter().filter(|finding| finding.severity == fw_intake::Severity::Error) {
        writeln!(stderr, "{finding}")?;
    }
    let nothing = Known::default();
    show(&explain(&judged.intake.set, &judged.compiled.ruleset, &packet, &nothing), args.json)
}

fn show(answer: &Explanation, json: bool) -> anyhow::Result<ExitCode> {
    let text = if json { serde_json::to_string_pretty(answer)? + "\n" } else { answer.to_string() };
    print(text)?;
    Ok(if answer.accepted { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}
