//! From what is held to what is wanted, in transactions none of which holds the kernel for long: what nothing refers to
//! yet is made first, one transaction changes what is enforced, what nothing refers to any more goes last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fw_nft::{Error, Receipt};
use fw_ruleset::{Plan, Ruleset, Stages};
use tracing::{debug, info, warn};

use super::Reconciler;
use super::held::Held;
use crate::fault;
use crate::telemetry::chain;

/// Readings of the table in one attempt to commit, when others change it meanwhile.
const ATTEMPTS: u32 = 3;
/// Heavier plans are split. Measured: the kernel takes 120 ms for as many chains and rules, 250 ms on a machine that is
/// busy, and less for elements.
const LONG: usize = 25_000;
/// Stages of a long plan. One that does not get shorter by them is committed as a whole.
const STAGES: u32 = 3;

/// A long plan for tests is one that is heavier than `FW_LONG`.
pub(super) fn long() -> usize {
    let asked = if cfg!(feature = "fault-injection") { std::env::var("FW_LONG").ok() } else { None };
    asked.and_then(|weight| weight.parse().ok()).unwrap_or(LONG)
}

/// What became of a plan.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// What is wanted is held.
    Whole,
    /// Something was prepared; nothing else is enforced than before.
    Prepared,
    /// What is wanted is enforced, with something beside it that nothing leads to.
    Switched,
}

impl Reconciler {
    /// Commits the difference between what is held and what is wanted.
    pub(super) fn apply(&mut self, wanted: &Arc<Ruleset>) -> Result<(), Error> {
        let (mut attempt, mut stages) = (1, STAGES);
        let mut is_switched = false;
        loop {
            if self.held.as_ref().is_some_and(|held| matches!(held, Held::Known(known) if known == wanted)) {
                return Ok(());
            }
            let began = Instant::now();
            let plan = self.plan(wanted)?;
            if plan.is_empty() {
                break;
            }
            debug!(steps = plan.ops.len(), weight = plan.weight(), took = ?began.elapsed(), "planned");
            let limit = if stages == 0 { usize::MAX } else { self.long };
            match self.go_on(plan, wanted, limit, began) {
                Ok(Progress::Whole) => break,
                Ok(progress) => {
                    stages -= 1;
                    is_switched |= progress == Progress::Switched;
                }
                // Others changed the table, or nobody knows whether the transaction arrived: look, plan again.
                Err(error @ (Error::Stale | Error::Uncertain(_))) if attempt < ATTEMPTS => {
                    warn!("{}", chain(&error));
                    attempt += 1;
                    (stages, is_switched) = (STAGES, false);
                    self.read()?;
                }
                Err(error) => {
                    if matches!(error, Error::Stale | Error::Uncertain(_)) {
                        self.held = None;
                    } else if is_switched {
                        warn!("what is not needed any more stays in the kernel: {}", chain(&error));
                        return Ok(());
                    }
                    return Err(error);
                }
            }
        }
        self.held = Some(Held::Known(Arc::clone(wanted)));
        Ok(())
    }

    /// Commits a plan, or the next stage of one that is heavier than `limit`.
    fn go_on(
        &mut self,
        plan: Plan,
        wanted: &Ruleset,
        limit: usize,
        began: Instant,
    ) -> Result<Progress, Error> {
        if plan.weight() <= limit {
            self.commit(&plan, wanted, began)?;
            if let Some(held @ Held::Foreign(_)) = &self.held {
                self.last = held.figures().left_by(wanted);
            }
            return Ok(Progress::Whole);
        }
        let live = self.held.as_ref().map(Held::live).unwrap_or_default();
        let Stages { prepare, switch, clean } = plan.stages(&live, wanted, limit);
        if !prepare.is_empty() {
            self.commit_parts(&prepare, wanted)?;
            return Ok(Progress::Prepared);
        }
        if !switch.is_empty() {
            if clean.is_empty() {
                return self.go_on(switch, wanted, usize::MAX, began);
            }
            self.commit_parts(&[switch], wanted)?;
            return Ok(Progress::Switched);
        }
        self.commit_parts(&clean, wanted)?;
        Ok(Progress::Whole)
    }

    /// Commits one after the other, and keeps account of what is held between them.
    fn commit_parts(&mut self, parts: &[Plan], wanted: &Ruleset) -> Result<(), Error> {
        for part in parts {
            self.commit(part, wanted, Instant::now())?;
            if let Some(Held::Known(known)) = &mut self.held {
                part.apply_to(Arc::make_mut(known));
            }
        }
        if matches!(self.held, Some(Held::Observed(_))) {
            self.read()?;
        }
        Ok(())
    }

    fn commit(&mut self, plan: &Plan, wanted: &Ruleset, began: Instant) -> Result<(), Error> {
        self.arm_through(plan.weight());
        fault::point("before-commit");
        let receipt = self.kernel.commit(plan, wanted)?;
        self.note_remade(plan);
        self.committed(plan, receipt, began.elapsed());
        Ok(())
    }

    fn committed(&mut self, plan: &Plan, receipt: Receipt, took: Duration) {
        let tally = &mut self.view.tally;
        tally.commits += 1;
        tally.others_in_between += u64::from(receipt.retries);
        tally.last_messages = receipt.messages;
        tally.last_steps = plan.ops.len();
        tally.last_commit_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        tally.generation = receipt.generation;
        info!(
            steps = plan.ops.len(),
            messages = receipt.messages,
            bytes = receipt.bytes,
            generation = receipt.generation,
            ?took,
            "applied"
        );
    }
}
