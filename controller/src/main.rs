//! `firewall-controller`: see `--help`.

use std::process::ExitCode;

use clap::Parser;
use fw_controller::config::{self, Cli};
use fw_controller::{commands, telemetry};

fn main() -> ExitCode {
    fw_netlink::memory::share_arenas();
    let cli = Cli::parse_from(config::with_subcommand(std::env::args_os()));
    telemetry::start(cli.log_level);
    commands::execute(cli.command)
}
