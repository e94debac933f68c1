//! The subcommands. The one place that writes to standard output, and where errors end.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;

use crate::config::{Cli, Command};
use crate::{app, telemetry};

mod check;
mod client;
mod explain;
mod offline;
mod render;

/// Exit code for "asked and answered, and the answer is no": a dropped packet, a firewall that does not enforce.
pub const EXIT_NO: u8 = 3;

/// Runs a subcommand; prints its error, if any, once with all its causes.
pub fn execute(command: Command) -> ExitCode {
    match dispatch(command) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error gone too there is nobody left to tell.
            writeln!(io::stderr(), "firewall-controller: {}", telemetry::chain(error.as_ref())).ok();
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(args) => check::run(&args),
        Command::Render(args) => render::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "firewall-controller", &mut script);
            print(&script)
        }
        Command::Run(args) => app::run(args).map(|()| ExitCode::SUCCESS),
        Command::Status(args) => client::status(&args),
        Command::Dns(args) => client::dns(&args),
        Command::Legend(args) => client::legend(&args),
        Command::Flush(args) => client::flush(&args),
        Command::Crds => print(fw_crds::crds_yaml()?),
    }
}

/// Writes a whole answer to standard output.
fn print(text: impl AsRef<[u8]>) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Whoever read our output has seen enough: `render … | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
