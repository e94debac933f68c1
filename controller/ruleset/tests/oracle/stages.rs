//! A long plan in several transactions: every packet meets the old rules or the new ones, never a mixture.

use fw_policy::PolicySet;
use fw_ruleset::{
    Counts, DEFAULT_CELL_LIMIT, Evaluation, Live, Plan, Ruleset, Stages, compile, evaluate, plan,
};
use proptest::prelude::*;

use super::{packet, policy_set};

/// Without whose things are, which the kernel does not hold.
fn compiled(set: &PolicySet) -> Ruleset {
    let mut ruleset = compile(set, DEFAULT_CELL_LIMIT).ruleset;
    ruleset.chains.values_mut().for_each(|chain| chain.origin = None);
    ruleset.sets.values_mut().for_each(|set| set.origin = None);
    ruleset
}

fn stages(from: &Ruleset, to: &Ruleset, limit: usize) -> Stages {
    plan(Some(from), to, &Counts::default()).stages(&Live::of(from), to, limit)
}

/// Chains and sets that packets may reach, with all they hold: also those of hooks that `evaluate` does not run.
fn reachable(ruleset: &Ruleset) -> Ruleset {
    let live = Live::of(ruleset);
    let mut part = Ruleset { counters: Default::default(), timeouts: Default::default(), ..ruleset.clone() };
    part.chains.retain(|name, _| live.chains.contains(name));
    part.sets.retain(|name, _| live.sets.contains(name));
    part
}

fn after(mut ruleset: Ruleset, plan: &Plan) -> Ruleset {
    plan.apply_to(&mut ruleset);
    ruleset
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_prefix_of_the_transactions_is_the_old_ruleset_until_the_switch_and_the_new_one_from_it(
        old in policy_set(), new in policy_set(), packets in proptest::collection::vec(packet(), 1..8),
        limit in 2usize..60, stop in any::<prop::sample::Index>(),
    ) {
        let (old, new) = (compiled(&old), compiled(&new));
        let run = |ruleset: &Ruleset| packets.iter().map(|p| evaluate(ruleset, p)).collect::<Vec<Evaluation>>();
        let Stages { prepare, switch, clean } = stages(&old, &new, limit);
        prop_assert!(prepare.iter().chain(&clean).all(|part| !part.is_empty() && part.weight() <= limit));
        let mut states = vec![old.clone()];
        for part in &prepare {
            let next = after(states.last().unwrap().clone(), part);
            prop_assert_eq!(run(&next), run(&old));
            prop_assert_eq!(reachable(&next), reachable(&old));
            states.push(next);
        }
        let stopped = stop.get(&states).clone();
        let mut state = after(states.pop().unwrap(), &switch);
        for part in &clean {
            prop_assert_eq!(run(&state), run(&new));
            prop_assert_eq!(reachable(&state), reachable(&new));
            prop_assert!(!plan(Some(&state), &new, &Counts::default()).switches(&Live::of(&state), &new));
            state = after(state, part);
        }
        prop_assert_eq!(&state, &new);
        // Whoever stops while preparing goes on, or goes back.
        prop_assert!(!plan(Some(&stopped), &old, &Counts::default()).switches(&Live::of(&stopped), &old));
        let Stages { prepare, switch, clean } = stages(&stopped, &new, limit);
        let state = prepare.iter().chain([&switch]).chain(&clean).fold(stopped, after);
        prop_assert_eq!(state, new);
    }

    #[test]
    fn a_plan_switches_when_what_packets_may_reach_differs(old in policy_set(), new in policy_set()) {
        let (old, new) = (compiled(&old), compiled(&new));
        let change = plan(Some(&old), &new, &Counts::default());
        prop_assert_eq!(change.switches(&Live::of(&old), &new), reachable(&old) != reachable(&new));
    }
}

#[test]
fn a_plan_that_makes_or_replaces_the_table_is_one_transaction() {
    let wanted = compiled(&PolicySet::default());
    let whole = plan(None, &wanted, &Counts::default());
    let expected = Stages { switch: whole.clone(), ..Stages::default() };
    assert_eq!(whole.stages(&Live::default(), &wanted, 2), expected);
}
