//! Plans that are committed in several transactions.

use super::*;

/// So many policies make a plan that is split at this weight.
const MANY: usize = 12;
const LONG: usize = 10;

fn many(from: usize) -> Vec<String> {
    let policies = (from..from + MANY).map(|number| {
        format!(
            "apiVersion: metal-stack.io/v1\nkind: ClusterwideNetworkPolicy\n\
             metadata: {{name: p{number}, namespace: firewall}}\n\
             spec: {{egress: [{{to: [{{cidr: 198.51.{number}.0/24}}], ports: [{{protocol: TCP, port: 443}}]}}]}}\n"
        )
    });
    std::iter::once(firewall()).chain(policies).collect()
}

fn boot(machine: &Machine) -> Reconciler {
    let mut reconciler = machine.boot();
    reconciler.long = LONG;
    reconciler
}

/// What is compiled from these objects.
fn ruleset(documents: &[String]) -> Ruleset {
    let machine = Machine::default();
    give(&mut machine.boot(), documents);
    machine.kernel.ruleset().unwrap()
}

/// Transactions of each weight since the first so many.
fn weights(machine: &Machine, before: usize) -> Vec<usize> {
    machine.kernel.commits()[before..].iter().map(Plan::weight).collect()
}

/// How many policies packets can meet.
fn enforced(machine: &Machine) -> usize {
    let live = fw_ruleset::Live::of(&machine.kernel.ruleset().unwrap());
    live.chains.iter().filter(|chain| chain.starts_with("egress-p") && chain.ends_with("-tcp")).count()
}

#[test]
fn a_long_plan_is_prepared_switched_and_cleaned_in_transactions_of_their_own() {
    let machine = Machine::default();
    let mut reconciler = boot(&machine);
    give(&mut reconciler, &[firewall()]);
    let before = machine.kernel.commits().len();
    give(&mut reconciler, &many(0));
    assert!(machine.kernel.ruleset() == Some(ruleset(&many(0))));
    let list = weights(&machine, before);
    assert!(list.len() > 4 && list.iter().all(|weight| *weight <= LONG), "{list:?}");
    // The live map of /24s holds what changes: all of that is one transaction, however long.
    let before = machine.kernel.commits().len();
    give(&mut reconciler, &many(100));
    assert!(machine.kernel.ruleset() == Some(ruleset(&many(100))));
    let list = weights(&machine, before);
    assert!(list.iter().filter(|weight| **weight > LONG).count() <= 1 && list.len() > 8, "{list:?}");
    let view = reconciler.view();
    assert_eq!((view.state, view.refused), (State::Enforcing(Basis::Current), None));
}

#[test]
fn a_refusal_or_a_change_by_others_at_any_transaction_ends_right() {
    let (old, new) = (ruleset(&many(0)), ruleset(&many(100)));
    for fault in [
        Fault::Stale,
        Fault::Uncertain { applied: true },
        Fault::Uncertain { applied: false },
        Fault::Whole(NO_MEMORY),
    ] {
        for at in 0.. {
            let machine = Machine::default();
            let mut reconciler = boot(&machine);
            give(&mut reconciler, &many(0));
            assert!(machine.kernel.ruleset().as_ref() == Some(&old));
            machine.kernel.inject_after(at, fault);
            give(&mut reconciler, &many(100));
            let is_reached = machine.kernel.faults_left() == 0;
            assert_eq!(enforced(&machine), MANY, "{fault:?} at {at}: some of each");
            if reconciler.view().refused.is_some() {
                assert!(reconciler.view().enforced.unwrap().set.policies.contains_key("p0"));
                reconciler.retry(Instant::now());
            } else {
                give(&mut reconciler, &many(100));
            }
            assert!(machine.kernel.ruleset().as_ref() == Some(&new), "{fault:?} at {at}");
            assert_eq!(reconciler.view().refused, None);
            if !is_reached {
                assert!(at > 8, "{fault:?}: only {at} transactions");
                break;
            }
        }
    }
}

#[test]
fn who_starts_after_a_kill_between_transactions_goes_on_or_goes_back() {
    let (old, new) = (ruleset(&many(0)), ruleset(&many(100)));
    for at in 0.. {
        for (documents, wanted) in [(many(0), &old), (many(100), &new)] {
            let machine = Machine::default();
            let mut reconciler = boot(&machine);
            give(&mut reconciler, &many(0));
            // As after a kill: nothing that follows is remembered.
            let remembered = machine.memory.0.lock().unwrap().clone();
            machine.kernel.inject_after(at, Fault::Whole(NO_MEMORY));
            give(&mut reconciler, &many(100));
            drop(reconciler);
            *machine.memory.0.lock().unwrap() = remembered;
            if machine.kernel.faults_left() > 0 {
                assert!(at > 8, "only {at} transactions");
                return;
            }
            let left = machine.kernel.ruleset().unwrap();
            let mut next = boot(&machine);
            // What is enforced is the old: then what was remembered explains it, and leftovers go.
            let is_old = fw_ruleset::Live::of(&left).chains.contains("egress-p0-tcp");
            let basis = if is_old { Basis::Snapshot } else { Basis::Adopted };
            assert_eq!(next.view().state, State::Enforcing(basis), "at {at}");
            assert_eq!(enforced(&machine), MANY, "at {at}");
            give(&mut next, &documents);
            assert!(machine.kernel.ruleset().as_ref() == Some(wanted), "at {at}");
        }
    }
}
