//! `firewall-controller`: see `--help`.

use std::process::ExitCode;

use clap::Parser;
use fw_controller::config::{self, Cli};
use fw_controller::{commands, telemetry};

#[global_allocator]
static ALLOCATOR: fw_memory::Allocator = fw_memory::Allocator;

fn main() -> ExitCode {
    fw_memory::give_back_at_once();
    let cli = Cli::parse_from(config::with_subcommand(std::env::args_os()));
    telemetry::start(cli.log_level);
    commands::execute(cli.command)
}
