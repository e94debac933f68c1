//! A start in a full cluster, as on a box that was just installed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fw_testkit::figures::Table;

use crate::field::Field;
use crate::limited;

/// Seconds until the cluster's rules are in force.
const FIRST_COMMIT: f64 = 10.0;
/// Resident memory in MB.
const RESIDENT: f64 = 150.0;
/// Statuses of policies that are written a second.
const STATUSES: f64 = 100.0;
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) fn measure(table: &mut Table, field: &mut Field, (policies, services): (u32, u32)) -> Result<()> {
    let before = field.deployed()?;
    let first = field.start()?;
    let began = Instant::now();
    while field.deployed()? < usize::try_from(policies)? {
        ensure!(began.elapsed() < PATIENCE, "not all statuses are there after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let took = first + began.elapsed();
    // A few reports and status writes later.
    std::thread::sleep(Duration::from_secs(12));
    let (now, highest) = field.resident()?;
    let what = format!("{policies} policies, {services} Services");
    eprintln!(
        "{what}: first commit {first:?}, statuses {took:?}, resident {now:.0} MB, at most {highest:.0} MB"
    );
    limited(table, &format!("{what}: first commit / limit: s"), first.as_secs_f64(), FIRST_COMMIT);
    limited(table, &format!("{what}: resident / limit: MB"), now, RESIDENT);
    limited(table, &format!("{what}: resident at most / limit: MB"), highest, RESIDENT);
    let written = f64::from(policies) - f64::from(u32::try_from(before)?);
    limited(table, &format!("{what}: all statuses / limit: s"), took.as_secs_f64(), written / STATUSES);
    Ok(())
}
