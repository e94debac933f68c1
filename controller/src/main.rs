//! `firewall-controller`: see `--help`.

use std::process::ExitCode;

use clap::Parser;
use fw_controller::{commands, config::Cli, telemetry};

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::start(cli.log_level);
    commands::execute(cli.command)
}
