//! Sizes of the field.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fw_nft::{Kernel, NetlinkKernel, Step, recognise};
use fw_policy::PolicySet;
use fw_ruleset::ir::{Field, Key, SetKind, Value, Verdict};
use fw_ruleset::{Counts, DEFAULT_CELL_LIMIT, Live, Stages, compile, plan};
use fw_testkit::Netns;

use crate::apply::{go_on, install, observed, policies};
use crate::sample::{sample, set};

#[test]
fn twenty_thousand_elements_go_in_messages_of_64_kib_within_one_transaction() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut wanted = sample();
        let exact = |index: u32| {
            (Key::Exact(vec![Value::Ipv4(index.into())]), Some(Verdict::Jump("egress-web-tcp".to_owned())))
        };
        let range = |index: u32| {
            (Key::Range(Value::Ipv4((index * 16).into()), Value::Ipv4((index * 16 + 7).into())), None)
        };
        wanted.sets.insert(
            "big".to_owned(),
            set(&[Field::Ipv4], SetKind::Exact, true, (1..=20_000).map(exact).collect()),
        );
        wanted.sets.insert(
            "wide".to_owned(),
            set(&[Field::Ipv4], SetKind::Interval, false, (1..=20_000).map(range).collect()),
        );
        let mut kernel = NetlinkKernel::open().unwrap();
        let started = Instant::now();
        let receipt = install(&mut kernel, &wanted);
        println!("{receipt:?} in {:?}", started.elapsed());
        let started = Instant::now();
        let observed = observed(&mut kernel);
        println!("read in {:?}", started.elapsed());
        assert_eq!(recognise(&observed, &wanted), wanted);
        wanted.sets.get_mut("big").unwrap().elements.clear();
        wanted.sets.get_mut("wide").unwrap().elements.clear();
        go_on(&mut kernel, &wanted);
        assert_eq!(recognise(&self::observed(&mut kernel), &wanted), wanted);
    })
    .unwrap();
}

#[test]
fn an_edit_among_two_thousand_policies_is_a_few_messages() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut set = policies(2000, 4);
        let wanted = compile(&set, DEFAULT_CELL_LIMIT).ruleset;
        let mut kernel = NetlinkKernel::open().unwrap();
        let started = Instant::now();
        let receipt = install(&mut kernel, &wanted);
        println!("{receipt:?} in {:?}", started.elapsed());
        let started = Instant::now();
        let counts = kernel.counts().unwrap();
        println!("{} counters in {:?}", counts.rules.len(), started.elapsed());
        assert!(counts.rules.len() >= 4000);
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
        set.policies.pop_first();
        let next = compile(&set, DEFAULT_CELL_LIMIT).ruleset;
        let change = fw_ruleset::plan(Some(&wanted), &next, &counts);
        let started = Instant::now();
        let receipt = kernel.commit(&change, &next).unwrap();
        println!("{receipt:?} in {:?}", started.elapsed());
        assert!(receipt.messages < 40, "{receipt:?}");
        assert_eq!(recognise(&observed(&mut kernel), &next), next);
    })
    .unwrap();
}

/// The longest time the kernel took for one of these transactions, by a hook's stamps.
fn longest(kernel: &mut NetlinkKernel, parts: &[fw_ruleset::Plan], wanted: &fw_ruleset::Ruleset) -> Duration {
    let stamps = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&stamps);
    kernel.set_hook(move |at| {
        if matches!(at, Step::Send | Step::Sent) {
            taken.lock().unwrap().push(Instant::now());
        }
    });
    for part in parts.iter().filter(|part| !part.is_empty()) {
        kernel.commit(part, wanted).unwrap();
    }
    let stamps = stamps.lock().unwrap();
    stamps.chunks(2).map(|pair| pair[1] - pair[0]).max().unwrap()
}

#[test]
fn ten_thousand_policies_come_and_go_in_transactions_of_which_one_switches() {
    const LIMIT: usize = 25_000;
    let base = compile(&PolicySet::default(), DEFAULT_CELL_LIMIT).ruleset;
    let many = compile(&policies(10_000, 4), DEFAULT_CELL_LIMIT).ruleset;
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &base);
        for (from, to) in [(&base, &many), (&many, &base)] {
            let whole = plan(Some(from), to, &Counts::default());
            let weight = whole.weight();
            let at_once = longest(&mut kernel, std::slice::from_ref(&whole), to);
            longest(&mut kernel, &[plan(Some(to), from, &Counts::default())], from);
            let Stages { prepare, switch, clean } = whole.stages(&Live::of(from), to, LIMIT);
            assert!(switch.weight() < 100, "{}", switch.weight());
            let preparing = prepare.len();
            let parts: Vec<_> = prepare.into_iter().chain([switch]).chain(clean).collect();
            let longest = longest(&mut kernel, &parts, to);
            println!(
                "{weight} objects: {at_once:?} at once, at most {longest:?} in {} transactions",
                parts.len()
            );
            assert_eq!(recognise(&observed(&mut kernel), to), *to, "after {preparing} of preparation");
        }
    })
    .unwrap();
}
