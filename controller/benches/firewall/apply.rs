//! Applying rulesets: from nothing, and one edit, beside the same policies as text loaded by `nft -f`.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use fw_nft::{Kernel, NetlinkKernel};
use fw_policy::PolicySet;
use fw_ruleset::{Counts, DEFAULT_CELL_LIMIT, Ruleset, compile, plan};
use fw_testkit::figures::{Goal, ROUNDS, Table};
use fw_testkit::{Netns, nft};

use crate::policies;

/// Issue: 2,000 policies of four peers each.
const POLICIES: u32 = 2000;

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    // Nested prefixes and overlapping ranges are what one rule after the other loads fastest (and pays for with every
    // packet, see the connections), so the goal there is only to be well ahead.
    for (kind, set, apply_goal, edit_goal) in [
        ("uniform", policies::uniform(POLICIES), 0.25, 0.05),
        ("adversarial", policies::adversarial(POLICIES), 0.6, 0.2),
    ] {
        let mut from_nothing = Vec::new();
        let mut edits = Vec::new();
        for round in 0..ROUNDS {
            let round = u32::try_from(round)?;
            let (ours, our_edit) = ours(&set, round)?;
            let (reference, reference_edit) = reference(&set, round)?;
            from_nothing.push((ours, reference));
            edits.push((our_edit, reference_edit));
            eprintln!(
                "{kind} round {round}: ours {ours:.3} s, edit {our_edit:.4} s; nft -f {reference:.3} s"
            );
        }
        let second = |pairs: &[(f64, f64)]| pairs.iter().map(|(ours, _)| (*ours, 1.0)).collect::<Vec<_>>();
        let what = format!("apply {POLICIES} policies, {kind}: s / nft -f");
        table.add(&what, &from_nothing, Goal::AtMost(apply_goal));
        table.add("  beside one second", &second(&from_nothing), Goal::AtMost(1.0));
        table.add("one edit of them, in force: s / nft -f", &edits, Goal::AtMost(edit_goal));
        table.add("  beside one second", &second(&edits), Goal::AtMost(0.1));
    }
    Ok(())
}

/// Seconds from objects to committed, from nothing and for one edit.
fn ours(set: &PolicySet, round: u32) -> Result<(f64, f64)> {
    let ns = Netns::new("bench-ours")?;
    ns.run(|| {
        let mut kernel = NetlinkKernel::open()?;
        kernel.read()?;
        let start = Instant::now();
        let current = commit(&mut kernel, set, None)?;
        let from_nothing = start.elapsed().as_secs_f64();
        let edited = policies::edited(set, round);
        let start = Instant::now();
        commit(&mut kernel, &edited, Some(&current))?;
        Ok((from_nothing, start.elapsed().as_secs_f64()))
    })?
}

fn commit(kernel: &mut NetlinkKernel, set: &PolicySet, current: Option<&Ruleset>) -> Result<Ruleset> {
    let compiled = compile(set, DEFAULT_CELL_LIMIT);
    if let Some(problem) = compiled.problems.first() {
        bail!("{} {}", problem.origin, problem.message);
    }
    let plan = plan(current, &compiled.ruleset, &Counts::default());
    kernel.commit(&plan, &compiled.ruleset).context("commit")?;
    Ok(compiled.ruleset)
}

/// The same with `nft -f`: the table as text, and for the edit the whole table again.
fn reference(set: &PolicySet, round: u32) -> Result<(f64, f64)> {
    let ns = Netns::new("bench-nft")?;
    let start = Instant::now();
    nft::load(&ns, &policies::as_rules(set))?;
    let from_nothing = start.elapsed().as_secs_f64();
    let edited = policies::edited(set, round);
    let start = Instant::now();
    nft::load(&ns, &policies::as_rules(&edited))?;
    Ok((from_nothing, start.elapsed().as_secs_f64()))
}
