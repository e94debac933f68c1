//! `droptailer`: see `--help`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fw_droptailer::{certs, client, server, tail};
use tracing::level_filters::LevelFilter;

/// Dropped packets of firewalls, from the kernel to the cluster.
#[derive(Debug, Parser)]
#[command(name = "droptailer", version)]
struct Cli {
    /// What to log on standard error: error, warn, info, debug, trace
    #[arg(long, global = true, default_value = "info")]
    log_level: LevelFilter,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// On a firewall: read drops from the kernel, and bring them to the server
    Client(client::Options),
    /// In the cluster: take records from firewalls, and print a line for each
    Server(server::Options),
    /// Make an authority, and certificates for server and clients
    Certs(certs::Options),
    /// On a firewall: show drops as they come
    #[command(
        after_help = "Examples:\n  droptailer tail --src 10.0.16.0/22 --action drop\n  droptailer tail --policy web -o json | jq .HINT"
    )]
    Tail(tail::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.log_level);
    let ended = match cli.command {
        Command::Client(options) => client::run(options),
        Command::Server(options) => server::run(options),
        Command::Certs(options) => certs::run(&options),
        Command::Tail(options) => tail::run(&options),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Under systemd the journal has its own time stamps, so ours are left out (systemd.exec(5), JOURNAL_STREAM).
fn log(level: LevelFilter) {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(level);
    match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => builder.without_time().init(),
        None => builder.init(),
    }
}
