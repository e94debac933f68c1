//! The three-way oracle: the reference, the ruleset evaluator and the real kernel agree on every packet, on the
//! verdict and on who counts it. The kernel gets there by edits, as in life: each round's policies replace the last.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use fw_policy::{Packet, PolicySet};
use fw_ruleset::{Ruleset, evaluate};
use fw_testkit::r#gen::{self, Mix, Rng, World};
use fw_testkit::nft::Counters;
use fw_testkit::topology::{Lab, LabSpec};
use fw_testkit::traffic::conntrack;
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::range::{Range, Shot};

use crate::rig::Rig;

/// Rounds with policies that have nothing to do with the last, each followed by some edits.
const ROUNDS: usize = 4;
const EDITS: usize = 6;
const PACKETS: usize = 800;

fn by_comment(counters: &Counters) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (comment, count) in &counters.by_comment {
        *sums.entry(comment.clone()).or_default() += count.packets;
    }
    sums
}

/// Sends every packet and compares; gives the mix of what was sent.
fn compare(rig: &Rig, ruleset: &Ruleset, set: &PolicySet, packets: &[Packet]) -> Result<()> {
    let before = by_comment(&rig.counters()?);
    let shots = packets.iter().enumerate().map(|(number, packet)| {
        let identifier = u16::try_from(number).context("an identifier has 16 bits")?;
        Ok(Shot { from: machine(&rig.lab, packet)?, packet: Crafted::of(packet, identifier)? })
    });
    let shots: Vec<Shot> = shots.collect::<Result<_>>()?;
    let mut range = Range::new(&rig.lab)?;
    let fates = range.fire(&shots)?;
    let mut expected = before;
    for (packet, fate) in packets.iter().zip(&fates) {
        let decision = set.decide(packet);
        let evaluated = evaluate(ruleset, packet);
        ensure!(
            decision.accepted == evaluated.accepted,
            "{packet}: the reference says {decision:?}, the ruleset {evaluated:?}"
        );
        ensure!(
            decision.accepted != fate.is_empty(),
            "{packet}: the reference says {decision:?}, in the kernel it came out at {fate:?}"
        );
        ensure!(fate.len() <= 1, "{packet} came out more than once: {fate:?}");
        *expected.entry(decision.why.counter()).or_default() += 1;
    }
    let counted = by_comment(&rig.counters()?);
    let comments: BTreeSet<&String> = expected.keys().chain(counted.keys()).collect();
    for comment in comments {
        let get = |map: &BTreeMap<String, u64>| map.get(comment).copied().unwrap_or(0);
        ensure!(
            get(&expected) == get(&counted),
            "{comment:?}: the reference expects {}, the kernel counts {}",
            get(&expected),
            get(&counted)
        );
    }
    conntrack::flush(&rig.lab.firewall)
}

/// Index of the machine behind the interface the packet enters by.
fn machine(lab: &Lab, packet: &Packet) -> Result<usize> {
    let position = lab.machines().position(|machine| *machine.firewall_interface() == packet.input);
    position.with_context(|| format!("no machine is behind {}", packet.input))
}

fn run(rounds: usize) -> Result<()> {
    let seed = r#gen::seed();
    eprintln!("FW_SEED={seed}");
    let mut rng = Rng::new(seed);
    let spec = LabSpec::standard("oracle")?.with_second_inside()?.with_second_outside()?;
    let world = World::of(&spec)?;
    let mut rig = Rig::bare(&spec)?;
    Range::new(&rig.lab)?.silence_machines()?;
    let mut mix = Mix::default();
    for round in 0..rounds {
        let mut set = r#gen::policy_set(&mut rng, &world, 40, 10)?;
        for edit in 0..=EDITS {
            if edit > 0 {
                r#gen::edit(&mut rng, &world, &mut set, &BTreeSet::new(), edit)?;
            }
            let compiled = rig.apply_set(&set)?;
            let packets = r#gen::packets(&mut rng, &world, &set, PACKETS)?;
            compare(&rig, &compiled.ruleset, &set, &packets)
                .with_context(|| format!("FW_SEED={seed} round {round} edit {edit}"))?;
            mix.add(&Mix::of(&set, &packets));
        }
    }
    eprintln!("{mix}");
    mix.check().with_context(|| format!("FW_SEED={seed}"))
}

#[test]
fn reference_ruleset_and_kernel_agree_on_every_packet() -> Result<()> {
    run(ROUNDS)
}

#[test]
fn soak_reference_ruleset_and_kernel_agree_for_long() -> Result<()> {
    run(if std::env::var_os("FW_SOAK").is_some() { 60 } else { 1 })
}
