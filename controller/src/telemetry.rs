//! Logs, and how error chains are printed.

use std::io::IsTerminal;

pub use fw_edge::chain;
use tracing::level_filters::LevelFilter;

use crate::config::LogLevel;

/// Starts logging on standard error. Under systemd the journal has its own time stamps, so ours are left out.
pub fn start(level: LogLevel) {
    let filter = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(filter);
    // JOURNAL_STREAM is set by systemd when standard error is the journal (systemd.exec(5)).
    let started = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => builder.without_time().try_init(),
        None => builder.try_init(),
    };
    // A second start in one process (tests) keeps the first subscriber.
    drop(started);
}
