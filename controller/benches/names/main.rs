//! `make bench`, names: what the data path costs and spares, ours beside a reference, interleaved in one run; exits 1
//! when a ratio misses its goal. Needs root.
//!
//! The real binary runs in the firewall of a lab, one for each mode, beside a firewall that `nft` loaded. All of them
//! share two cores with clients, servers and resolvers, so only ratios of figures from the same round mean something.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

mod answers;
mod entries;
mod field;
mod flood;
mod throughput;

use std::process::ExitCode;

use anyhow::Result;
use fw_testkit::figures::Table;

use field::{Field, Plain};

fn main() -> Result<ExitCode> {
    // cargo test runs benches too, with this argument missing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    // A part alone, for who works on it.
    let only = |what: &str| std::env::args().any(|argument| argument == what);
    if only("answers") {
        answers::measure(&mut table, &Field::start("tcx")?, &Plain::start()?)?;
        return show(&table);
    }
    if only("bytes") {
        throughput::bytes(&mut table, [&Field::start("tcx")?, &Field::start("off")?], &Plain::start()?)?;
        return show(&table);
    }
    entries::measure(&mut table)?;
    let [off, generic, tcx] = ["off", "generic", "tcx"].map(Field::start);
    let (off, generic, tcx, plain) = (off?, generic?, tcx?, Plain::start()?);
    flood::cost(&mut table, [&off, &generic, &tcx], &plain)?;
    flood::goodput(&mut table, [&off, &generic, &tcx])?;
    throughput::bytes(&mut table, [&tcx, &off], &plain)?;
    throughput::connections(&mut table, &tcx, &plain)?;
    answers::measure(&mut table, &tcx, &plain)?;
    show(&table)
}

fn show(table: &Table) -> Result<ExitCode> {
    println!("{}", table.text());
    Ok(if table.all_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
