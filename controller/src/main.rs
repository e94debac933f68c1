//! `firewall-controller`: see `--help`.

use std::process::ExitCode;

use clap::Parser;
use fw_controller::config::{self, Cli};
use fw_controller::{commands, telemetry};

/// Every edit has all policies compiled anew, which is hundreds of thousands of small pieces of memory: with glibc's
/// allocator an edit took twice as long, and what was freed stayed with the process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse_from(config::with_subcommand(std::env::args_os()));
    telemetry::start(cli.log_level);
    commands::execute(cli.command)
}
