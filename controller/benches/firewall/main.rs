//! `make bench`: ours beside a reference, interleaved in one run; exits 1 when a ratio misses its goal.
//!
//! The machines this runs on are shared and noisy, so only ratios of figures from the same run mean something.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

mod apply;
mod connections;
mod policies;

use std::process::ExitCode;

use fw_testkit::figures::Table;

fn main() -> anyhow::Result<ExitCode> {
    let mut table = Table::new();
    apply::measure(&mut table)?;
    connections::measure(&mut table)?;
    println!("{}", table.text());
    Ok(if table.all_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
