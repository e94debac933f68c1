//! The fake is held against the kernel: random plans, good and bad, must end the same way in both.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use fw_nft::fake::FakeKernel;
use fw_nft::{ElementChange, Error, Kernel, NetlinkKernel, Table, recognise};
use fw_ruleset::ir::{
    Chain, ChainKind, CtTimeout, Family, Field, Hook, HookPoint, Key, Limit, LimitUnit, Rule, Selector, Set,
    SetKind, Side, Statement, Test, Value, Verdict,
};
use fw_ruleset::{Count, Op, Plan, Ruleset};
use fw_testkit::Netns;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

const NAMES: [&str; 4] = ["aa", "bb", "cc", "dd"];
const DYNAMIC: &str = "ee";
/// Filled by user space: addresses to marks, three at most.
const LEARNED: &str = "ff";

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(&NAMES[..]).prop_map(str::to_owned)
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        name().prop_map(Verdict::Jump),
        name().prop_map(Verdict::Goto),
    ]
}

fn address() -> Selector {
    Selector::Address { side: Side::Destination, family: Family::V4, prefix: 32 }
}

fn port() -> Selector {
    Selector::Port { side: Side::Destination, protocol: Some(fw_policy::Protocol::Tcp) }
}

/// A set's name says what its keys are: `aa` and `bb` have addresses, `cc` and `dd` ports; `bb` and `dd` intervals;
/// [`DYNAMIC`] is filled by packets.
fn selector(set: &str) -> Selector {
    if set < "cc" || set == LEARNED { address() } else { port() }
}

fn statement() -> impl Strategy<Value = Statement> {
    let limit = Limit { unit: LimitUnit::Packets, rate: 1, burst: 5, over: true };
    prop_oneof![
        name().prop_map(|set| Statement::Match(selector(&set), Test::InSet(set))),
        name().prop_map(|map| Statement::VerdictMap { key: vec![selector(&map)], map }),
        Just(Statement::LimitPerKey { key: vec![port()], set: DYNAMIC.to_owned(), limit }),
        name().prop_map(Statement::NamedCounter),
        Just(Statement::Counter),
        Just(Statement::Snat([192, 0, 2, 1].into())),
        Just(Statement::Redirect(5353)),
        name().prop_map(Statement::CtTimeout),
        prop_oneof![1 => name(), 3 => Just(LEARNED.to_owned())]
            .prop_map(|map| Statement::SetMarkByMap { key: vec![selector(&map)], map }),
        verdict().prop_map(Statement::Verdict),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    (prop::collection::vec(statement(), 1..3)).prop_filter_map("compatible", |mut body| {
        // A verdict ends a rule; address and port in one rule are fine, two verdicts are not.
        let last = body.iter().position(|s| {
            use Statement::{Redirect, Snat, Verdict, VerdictMap};
            matches!(s, Verdict(_) | VerdictMap { .. } | Snat(_) | Redirect(_))
        });
        body.truncate(last.map_or(body.len(), |last| last + 1));
        Some(Rule { body, comment: None })
    })
}

fn is_interval(set: &str) -> bool {
    set == "bb" || set == "dd"
}

fn key(set: &str) -> impl Strategy<Value = Key> + use<> {
    let (port, interval) = (set >= "cc", is_interval(set));
    (0..6_u16).prop_map(move |number| {
        let value =
            |number: u16| if port { Value::Port(number) } else { Value::Ipv4(u32::from(number).into()) };
        // Intervals are disjoint or equal: of those that share one end only, the kernel takes some.
        let first = value(number * 4);
        if interval { Key::Range(first, value(number * 4 + number % 4)) } else { Key::Exact(vec![first]) }
    })
}

fn set() -> impl Strategy<Value = (String, Set)> {
    let named = (name(), any::<bool>()).prop_map(|(name, map)| {
        let kind = if is_interval(&name) { SetKind::Interval } else { SetKind::Exact };
        let field = if name.as_str() < "cc" { Field::Ipv4 } else { Field::Port };
        (name, Set { key: vec![field], kind, elements: BTreeMap::new(), map, origin: None })
    });
    let kind = SetKind::Dynamic { size: 9, timeout_ms: 60_000 };
    let dynamic = Set { key: vec![Field::Port], kind, elements: BTreeMap::new(), map: false, origin: None };
    prop_oneof![4 => named, 1 => Just((DYNAMIC.to_owned(), dynamic)), 1 => Just((LEARNED.to_owned(), learned()))]
}

fn learned() -> Set {
    let kind = SetKind::Learned { size: 3 };
    Set { key: vec![Field::Ipv4], kind, elements: BTreeMap::new(), map: true, origin: None }
}

fn change() -> impl Strategy<Value = ElementChange> {
    const HOUR: u64 = 3_600_000;
    let key = (0..5_u32).prop_map(|number| Key::Exact(vec![Value::Ipv4(number.into())]));
    let left = prop_oneof![4 => Just(Some(HOUR)), 1 => Just(Some(0)), 1 => Just(None)];
    let mark = prop_oneof![6 => (1..3_u32).prop_map(Some), 1 => Just(None)];
    (key, mark, left, prop::bool::weighted(0.3)).prop_map(|(key, mark, left, remove)| match remove {
        true => crate::elements::remove(LEARNED, key),
        false => crate::elements::put(LEARNED, key, mark, left),
    })
}

fn hook() -> impl Strategy<Value = Option<Hook>> {
    let filter = Hook { kind: ChainKind::Filter, point: HookPoint::Forward, priority: 1, policy_drop: true };
    let nat = Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: 100, policy_drop: false };
    let redirecting = Hook { point: HookPoint::Prerouting, priority: -100, ..nat };
    let hooks = [nat, redirecting].map(Some);
    prop_oneof![4 => Just(None), 2 => Just(Some(filter)), 2 => prop::sample::select(hooks.to_vec())]
}

fn op() -> impl Strategy<Value = Op> {
    let count = Count { packets: 1, bytes: 2 };
    let chain = hook().prop_map(|hook| Chain { hook, ..Chain::default() });
    let element = |set: String, with_verdict: bool| {
        let list = prop::collection::vec((key(&set), verdict()), 1..4);
        list.prop_map(move |list| {
            let list =
                list.into_iter().map(|(key, verdict)| (key, with_verdict.then_some(verdict))).collect();
            Op::AddElements(set.clone(), list)
        })
    };
    let delete = |set: String| key(&set).prop_map(move |key| Op::DeleteElements(set.clone(), vec![key]));
    prop_oneof![
        2 => name().prop_map(move |name| Op::CreateCounter(name, count)),
        1 => name().prop_map(|name| Op::CreateTimeout(name, CtTimeout { seconds: 3 })),
        1 => name().prop_map(Op::DeleteTimeout),
        1 => Just(Op::DeleteSet(LEARNED.to_owned())),
        3 => set().prop_map(|(name, set)| Op::CreateSet(name, set)),
        3 => (name(), chain).prop_map(|(name, chain)| Op::CreateChain(name, chain)),
        2 => name().prop_map(Op::FlushChain),
        10 => (name(), rule()).prop_map(move |(chain, rule)| Op::AppendRule(chain, rule, count)),
        10 => (name(), prop::bool::weighted(0.15)).prop_flat_map(move |(set, odd)| {
            // What `beginning` makes a map.
            let map = set == "aa" || set == "dd";
            element(set, map != odd)
        }),
        3 => name().prop_flat_map(delete),
        2 => name().prop_map(Op::DeleteChain),
        1 => name().prop_map(Op::DeleteSet),
        1 => name().prop_map(Op::DeleteCounter),
    ]
}

/// Something of everything, so that not all plans fail for want of it.
fn beginning() -> Vec<Op> {
    let forward = Hook { kind: ChainKind::Filter, point: HookPoint::Forward, priority: 1, policy_drop: true };
    let set = |field, kind, map| Set { key: vec![field], kind, elements: BTreeMap::new(), map, origin: None };
    let dynamic = SetKind::Dynamic { size: 9, timeout_ms: 60_000 };
    vec![
        Op::CreateTable,
        Op::CreateCounter("aa".to_owned(), Count::default()),
        Op::CreateCounter("bb".to_owned(), Count::default()),
        Op::CreateChain("aa".to_owned(), Chain { hook: Some(forward), ..Chain::default() }),
        Op::CreateChain("bb".to_owned(), Chain::default()),
        Op::CreateChain("cc".to_owned(), Chain::default()),
        Op::CreateSet("aa".to_owned(), set(Field::Ipv4, SetKind::Exact, true)),
        Op::CreateSet("bb".to_owned(), set(Field::Ipv4, SetKind::Interval, false)),
        Op::CreateSet("dd".to_owned(), set(Field::Port, SetKind::Interval, true)),
        Op::CreateSet(DYNAMIC.to_owned(), set(Field::Port, dynamic, false)),
        Op::CreateSet(LEARNED.to_owned(), learned()),
        Op::CreateTimeout("aa".to_owned(), CtTimeout { seconds: 3 }),
    ]
}

/// Step and errno of a refusal. Which errno a second chain or set of one name gets depends on how it differs from
/// the first; any of them says that it is there. Where a rule makes both a loop (EMLINK) and a translation outside of
/// nat chains (EOPNOTSUPP), the one that the kernel's walk meets first wins, and it walks maps in hash order.
fn ending(plan: &Plan, result: Result<fw_nft::Receipt, Error>) -> Result<(), (usize, i32)> {
    const EEXIST: i32 = 17;
    const EMLINK: i32 = 31;
    const EOPNOTSUPP: i32 = 95;
    match result {
        Ok(_) => Ok(()),
        Err(Error::Refused(refusal)) => {
            let creates = matches!(plan.ops[refusal.op], Op::CreateChain(..) | Op::CreateSet(..));
            let errno = match refusal.errno {
                _ if creates => EEXIST,
                EMLINK => EOPNOTSUPP,
                errno => errno,
            };
            Err((refusal.op, errno))
        }
        Err(other) => panic!("{other}"),
    }
}

/// What the real table holds, in the terms of what it should hold.
fn held(kernel: &mut NetlinkKernel, wanted: &Ruleset) -> Ruleset {
    let Table::Ours(observed) = kernel.read().unwrap() else { panic!("not ours") };
    recognise(&observed, wanted)
}

/// How an update of elements ended, and what the set holds then, without the time that is left.
fn updated(kernel: &mut dyn Kernel, changes: &[ElementChange]) -> String {
    let result = match kernel.update_elements(changes) {
        Err(Error::Refused(refusal)) => format!("refused {} {}", refusal.op, refusal.errno),
        Err(Error::Stale) => "stale".to_owned(),
        other => format!("{other:?}"),
    };
    let list = kernel.timed_elements(LEARNED).map(|list| {
        let parts =
            |element: fw_nft::TimedElement| (element.key, element.mark, element.expires_in_ms.is_some());
        list.into_iter().map(parts).collect::<Vec<_>>()
    });
    format!("{result} {}", list.map_or_else(|error| error.to_string(), |list| format!("{list:?}")))
}

#[test]
fn random_plans_succeed_and_fail_in_the_fake_as_in_the_kernel() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand_seed);
    println!("SEED={seed}");
    let ns = Netns::new("fwnft").unwrap();
    let config = Config {
        cases: 30,
        max_shrink_iters: 20,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    };
    let (good, bad) = ns
        .run(|| {
            let (good, bad) = (Cell::new(0), Cell::new(0));
            let real = RefCell::new(NetlinkKernel::open().unwrap());
            let mut runner = TestRunner::new(config);
            let step = (prop::collection::vec(op(), 1..4), prop::collection::vec(change(), 0..4));
            let plans = prop::collection::vec(step, 60);
            let result = runner.run(&plans, |plans| {
                let mut real = real.borrow_mut();
                let real = &mut *real;
                let mut fake = FakeKernel::new();
                let create = Plan { ops: beginning() };
                real.delete_table().unwrap();
                for kernel in [&mut *real as &mut dyn Kernel, &mut fake] {
                    kernel.commit(&create, &Ruleset::default()).unwrap();
                }
                for (ops, changes) in plans {
                    let plan = Plan { ops };
                    let real_ending = ending(&plan, real.commit(&plan, &Ruleset::default()));
                    let fake_ending = ending(&plan, fake.commit(&plan, &Ruleset::default()));
                    prop_assert_eq!(&real_ending, &fake_ending, "{:?} on {:?}", plan, fake.ruleset());
                    let wanted = fake.ruleset().unwrap();
                    prop_assert_eq!(held(real, &wanted), wanted, "{:?}", plan);
                    prop_assert_eq!(updated(real, &changes), updated(&mut fake, &changes), "{:?}", changes);
                    let tally = if real_ending.is_ok() { &good } else { &bad };
                    tally.set(tally.get() + 1);
                }
                Ok(())
            });
            real_failure(result);
            (good.get(), bad.get())
        })
        .unwrap();
    println!("{good} plans applied, {bad} refused");
    assert!(good > 120 && bad > 120, "the mix is off: {good} applied, {bad} refused");
}

fn real_failure<T: std::fmt::Debug>(result: Result<(), proptest::test_runner::TestError<T>>) {
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn rand_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_secs() ^ u64::from(std::process::id())
}
