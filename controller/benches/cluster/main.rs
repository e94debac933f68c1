//! `make bench`, cluster: a full API server, how soon it is enforced and in how much memory, how soon an edit reaches
//! packets, how soon all statuses are there; exits 1 when a figure is above its limit. Needs root.
//!
//! `cargo bench -p fw-controller --bench cluster -- start` measures the largest start alone, `-- edits` the edits.
//! The real binary, a real API server and this program share two cores. The reference of each line is its limit.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

mod edits;
mod field;
mod start;

use std::process::ExitCode;

use anyhow::Result;
use fw_testkit::figures::{Goal, Table};

use field::Field;

/// Policies and Services while edits are measured.
const USUAL: (u32, u32) = (2000, 800);
/// The same at the largest start.
const FULL: (u32, u32) = (5000, 2000);

fn main() -> Result<ExitCode> {
    // cargo test runs benches too, with this argument missing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    let mut field = Field::new()?;
    let only = |what: &str| std::env::args().any(|argument| argument == what);
    if only("start") {
        field.cluster.crowd(0..FULL.0, 0..FULL.1)?;
        start::measure(&mut table, &mut field, FULL)?;
        return show(&table);
    }
    field.cluster.crowd(0..USUAL.0, 0..USUAL.1)?;
    start::measure(&mut table, &mut field, USUAL)?;
    edits::one_by_one(&mut table, &field)?;
    edits::burst(&mut table, &field)?;
    if only("edits") {
        return show(&table);
    }
    field.stop()?;
    field.cluster.crowd(USUAL.0..FULL.0, USUAL.1..FULL.1)?;
    start::measure(&mut table, &mut field, FULL)?;
    show(&table)
}

fn show(table: &Table) -> Result<ExitCode> {
    println!("{}", table.text());
    Ok(if table.all_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A figure beside its limit.
fn limited(table: &mut Table, what: &str, figure: f64, limit: f64) {
    table.add(what, &[(figure, limit)], Goal::AtMost(1.0));
}
