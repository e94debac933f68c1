//! The fake fails when told to.

use fw_nft::fake::{FakeKernel, Fault};
use fw_nft::{Error, Kernel, Table, recognise};
use fw_ruleset::{Count, Counts, Op, Plan, plan};

use crate::sample::sample;

#[test]
fn injected_faults_come_in_order_and_leave_the_ruleset_as_they_say() {
    let fake = FakeKernel::new();
    let mut kernel = fake.clone();
    let wanted = sample();
    let all = plan(None, &wanted, &Counts::default());
    assert_eq!(kernel.read().unwrap(), Table::Absent);
    for fault in [
        Fault::Stale,
        Fault::Whole(12),
        Fault::Refuse { op: 3, errno: 12 },
        Fault::Uncertain { applied: false },
    ] {
        fake.inject(fault);
    }
    assert!(matches!(kernel.commit(&all, &wanted), Err(Error::Stale)));
    assert!(matches!(kernel.commit(&all, &wanted), Err(Error::Whole { errno: 12 })));
    assert!(matches!(kernel.commit(&all, &wanted), Err(Error::Refused(refusal)) if refusal.op == 3));
    assert!(matches!(kernel.commit(&all, &wanted), Err(Error::Uncertain(_))));
    assert_eq!(fake.ruleset(), None);
    fake.inject(Fault::Uncertain { applied: true });
    assert!(matches!(kernel.commit(&all, &wanted), Err(Error::Uncertain(_))));
    assert_eq!(fake.ruleset(), Some(wanted.clone()));
    let Table::Ours(observed) = kernel.read().unwrap() else { panic!("not ours") };
    assert_eq!(recognise(&observed, &wanted), wanted);
}

#[test]
fn traffic_and_edits_of_others_are_seen_as_in_a_real_kernel() {
    let fake = FakeKernel::new();
    let mut kernel = fake.clone();
    let wanted = sample();
    kernel.commit(&plan(None, &wanted, &Counts::default()), &wanted).unwrap();
    fake.count_rule("egress-web-tcp", 0, Count { packets: 2, bytes: 3 });
    fake.count_named("drop_total", Count { packets: 5, bytes: 7 });
    let counts = kernel.counts().unwrap();
    assert_eq!(counts.rules[&("egress-web-tcp".to_owned(), 0)], Count { packets: 2, bytes: 3 });
    assert_eq!(counts.named["drop_total"], Count { packets: 5, bytes: 7 });
    fake.edit(&Plan { ops: vec![Op::FlushChain("forward".to_owned())] }).unwrap();
    let nothing = Plan::default();
    assert!(matches!(kernel.commit(&nothing, &wanted), Err(Error::Stale)));
    let Table::Ours(observed) = kernel.read().unwrap() else { panic!("not ours") };
    assert_ne!(recognise(&observed, &wanted), wanted);
    kernel.commit(&nothing, &wanted).unwrap();
    fake.vanish();
    assert!(matches!(kernel.commit(&nothing, &wanted), Err(Error::Stale)));
    assert_eq!(kernel.read().unwrap(), Table::Absent);
}
