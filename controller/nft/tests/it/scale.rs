//! Sizes of the field.

use std::time::Instant;

use fw_nft::{Kernel, NetlinkKernel, recognise};
use fw_ruleset::ir::{Field, Key, SetKind, Value, Verdict};
use fw_ruleset::{DEFAULT_CELL_LIMIT, compile};
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
