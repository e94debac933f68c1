//! Reads beside somebody who commits transactions, and gives up others, as fast as he can.
//!
//! The kernel goes on with a dump by counting, also what a transaction under way has put into its lists, and neither
//! that nor a transaction given up moves the generation. What a read gives must be exact all the same.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fw_netlink::batch::{Batch, Finish};
use fw_netlink::message::{flag, subsystem};
use fw_netlink::nft::{
    BaseChain, Chain as KernelChain, Counter, Element, Expr, INET, NamedCounter as KernelCounter,
    Rule as KernelRule, Table as KernelTable, encode_elements, message, udata,
};
use fw_netlink::socket::{Outcome, Socket};
use fw_nft::{Error, Kernel, NetlinkKernel, Observed, Table, recognise};
use fw_ruleset::ir::{Field, Key, NamedCounter, SetKind, Statement, Value, Verdict};
use fw_ruleset::{Count, Counts, Ruleset, plan};
use fw_testkit::Netns;

use crate::elements::put;
use crate::sample::{chain, exact, jump, rule, sample, set};

const FIREWALL: &str = "firewall";
/// Rules of theirs have this many packets.
const THEIRS: u64 = 7_777_777;
/// Good reads of each kind before a test ends, and transactions of the neighbour beside them.
const READS: u32 = 12;
const TRANSACTIONS: u32 = 60;
const DEADLINE: Duration = Duration::from_secs(180);

/// Somebody else with a socket of his own.
struct Neighbour {
    socket: Socket,
    batch: Batch,
    done: u32,
}

impl Neighbour {
    fn new() -> Self {
        let mut socket = Socket::open().unwrap();
        let batch = Batch::new(subsystem::NFTABLES, None, socket.reserve(0));
        Self { socket, batch, done: 0 }
    }

    fn push(&mut self, message: u8, flags: u16, fill: impl FnOnce(&mut fw_netlink::attr::Writer<'_>)) {
        self.batch.push(message, flags, INET, fill);
    }

    fn table(&mut self, name: &str) {
        let table = KernelTable { name: name.to_owned(), ..KernelTable::default() };
        self.push(message::NEW_TABLE, flag::CREATE, |w| table.encode(w));
    }

    fn chain(&mut self, table: &str, name: &str, base: Option<BaseChain>) {
        let (table, name) = (table.to_owned(), name.to_owned());
        let chain = KernelChain { table, name, base, userdata: Vec::new() };
        self.push(message::NEW_CHAIN, flag::CREATE, |w| chain.encode(w));
    }

    /// A rule at the head of a chain.
    fn rule(&mut self, table: &str, chain: &str, packets: u64, comment: &str) {
        let exprs = vec![Expr::Counter(Counter { packets, bytes: packets })];
        let (table, chain, userdata) = (table.to_owned(), chain.to_owned(), udata::comment(comment));
        let rule = KernelRule { table, chain, exprs, userdata };
        self.push(message::NEW_RULE, flag::CREATE, |w| rule.encode(w));
    }

    fn flush(&mut self, table: &str, chain: &str) {
        self.push(message::DEL_RULE, 0, |w| KernelRule::all_of_chain(w, table, chain));
    }

    fn counter(&mut self, table: &str, name: &str) {
        let (table, name) = (table.to_owned(), name.to_owned());
        let counter = KernelCounter { table, name, counter: Counter::default() };
        self.push(message::NEW_OBJECT, flag::CREATE, |w| counter.encode(w));
    }

    fn elements(&mut self, kind: u8, set: &str, keys: impl Iterator<Item = u32>) {
        let one = |key: u32| Element { key: Some(key.to_be_bytes().to_vec()), ..Element::default() };
        let list: Vec<Element> = keys.map(one).collect();
        self.push(kind, flag::CREATE, |w| encode_elements(w, FIREWALL, set, &list));
    }

    fn send(&mut self, finish: Finish) {
        let sequence = self.socket.reserve(self.batch.len() + 2);
        let next = Batch::new(subsystem::NFTABLES, None, sequence + u32::try_from(self.batch.len()).unwrap());
        let batch = std::mem::replace(&mut self.batch, next).finish(finish).unwrap();
        self.socket.send_batch(&batch).unwrap();
        let outcome = self.socket.finish_batch(&batch).unwrap();
        assert_eq!(outcome, Outcome::Done);
        self.done += 1;
    }
}

/// Runs `reads` while a neighbour goes round after round, until `reads` says that it is enough.
fn beside(
    ns: &Netns,
    round: impl Fn(&mut Neighbour, u32) + Sync,
    reads: impl FnOnce(&dyn Fn() -> bool) + Send,
) {
    let (stop, done) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            ns.run(|| {
                let mut neighbour = Neighbour::new();
                let mut number = 0;
                while !stop.load(Relaxed) {
                    round(&mut neighbour, number);
                    number += 1;
                    done.store(neighbour.done, Relaxed);
                }
            })
            .unwrap();
        });
        let deadline = Instant::now() + DEADLINE;
        let is_enough = || {
            assert!(Instant::now() < deadline, "too slow beside {done:?} transactions");
            done.load(Relaxed) >= TRANSACTIONS || other.is_finished()
        };
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ns.run(|| reads(&is_enough)).unwrap()));
        stop.store(true, Relaxed);
        other.join().unwrap();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    println!("{done:?} transactions of the neighbour");
}

/// Good reads and those given up; anything else is a failure.
#[derive(Default, Debug)]
struct Tally {
    good: u32,
    torn: u32,
}

impl Tally {
    fn take<T>(&mut self, read: Result<T, Error>) -> Option<T> {
        match read {
            Ok(value) => {
                self.good += 1;
                Some(value)
            }
            Err(Error::Unsteady(_)) => {
                self.torn += 1;
                None
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The sample with thousands of rules, counters and elements, and figures that tell each rule from all others.
fn large() -> (Ruleset, Counts) {
    let mut wanted = sample();
    let counting =
        |n: usize| rule(vec![Statement::Counter, Statement::Verdict(Verdict::Return)], &format!("rule {n}"));
    wanted.chains.insert("a-theirs".to_owned(), chain(Vec::new()));
    for (index, length) in [2000, 500, 3, 700, 1, 800].into_iter().enumerate() {
        wanted.chains.insert(format!("long-{index}"), chain((0..length).map(counting).collect()));
    }
    for index in 0..800 {
        wanted.counters.insert(format!("named-{index:04}"), NamedCounter {});
        wanted.chains.insert(format!("short-{index:04}"), chain(vec![counting(index)]));
    }
    let address = |n: u32| Value::Ipv4((0x1400_0000 + n * 16).into());
    let key = |n| (exact(&[address(n)]), jump("egress-web-tcp"));
    wanted
        .sets
        .insert("big".to_owned(), set(&[Field::Ipv4], SetKind::Exact, true, (0..6000).map(key).collect()));
    let range = |n: u32| (Key::Range(Value::Ipv4((n * 16).into()), Value::Ipv4((n * 16 + 7).into())), None);
    wanted.sets.insert(
        "wide".to_owned(),
        set(&[Field::Ipv4], SetKind::Interval, false, (1..3000).map(range).collect()),
    );
    let key = |n: u32| (exact(&[address(n)]), None);
    wanted.sets.insert("theirs".to_owned(), set(&[Field::Ipv4], SetKind::Exact, false, vec![key(0)]));
    let mut start = Counts::default();
    let mut next = 0;
    let mut figure = || {
        next += 1;
        Count { packets: next, bytes: 100 * next }
    };
    for name in wanted.counters.keys() {
        start.named.insert(name.clone(), figure());
    }
    for (name, chain) in &wanted.chains {
        for position in 0..chain.rules.len() {
            if chain.rules[position].body.contains(&Statement::Counter) {
                start.rules.insert((name.clone(), position), figure());
            }
        }
    }
    (wanted, start)
}

/// Puts it in force, with a learned set of some thousands.
fn install(kernel: &mut NetlinkKernel, wanted: &Ruleset, start: &Counts) {
    assert_eq!(kernel.read().unwrap(), Table::Absent);
    kernel.commit(&plan(None, wanted, start), wanted).unwrap();
    let learned: Vec<_> = (0..5000)
        .map(|n: u32| {
            put("fqdn4-0", exact(&[Value::Ipv4((0x0a00_0000 + n).into())]), Some(n), Some(3_600_000))
        })
        .collect();
    kernel.update_elements(&learned).unwrap();
}

/// What others do to a table of theirs: much at once, little, and what is only checked; with our chains' names.
fn edit_own_table(neighbour: &mut Neighbour, round: u32) {
    let large = |neighbour: &mut Neighbour| {
        for index in 0..300 {
            neighbour.counter("neighbour", &format!("n{index}"));
            neighbour.chain("neighbour", &format!("n{index}"), None);
            neighbour.rule("neighbour", &format!("n{index}"), THEIRS, "theirs");
        }
    };
    match round % 4 {
        0 | 2 => {
            large(neighbour);
            neighbour.send(if round.is_multiple_of(4) { Finish::Commit } else { Finish::DryRun });
        }
        1 => {
            for index in 0..300 {
                let name = format!("n{index}");
                neighbour.flush("neighbour", &name);
                neighbour.push(message::DEL_CHAIN, 0, |w| KernelChain::name(w, "neighbour", &name));
                neighbour.push(message::DEL_OBJECT, 0, |w| KernelCounter::name(w, "neighbour", &name));
            }
            neighbour.send(Finish::Commit);
        }
        _ => {
            for name in ["forward", "long-0", "long-1"] {
                for _ in 0..20 {
                    neighbour.rule("neighbour", name, THEIRS, "rule 1");
                }
            }
            neighbour.send(Finish::Commit);
            for name in ["forward", "long-0", "long-1"] {
                neighbour.flush("neighbour", name);
            }
            neighbour.table("small");
            neighbour.push(message::DEL_TABLE, 0, |w| KernelTable::name(w, "small"));
            neighbour.send(Finish::Commit);
        }
    }
}

/// A table that stands before ours in the kernel's list: what is counted over all tables counts it first.
fn neighbouring(ns: &Netns) {
    ns.run(|| {
        let mut neighbour = Neighbour::new();
        neighbour.table("neighbour");
        for name in ["forward", "long-0", "long-1"] {
            neighbour.chain("neighbour", name, None);
        }
        let hook = BaseChain { kind: "nat".to_owned(), hook: 0, priority: -100, policy: 1 };
        neighbour.chain("neighbour", "translate", Some(hook));
        neighbour.send(Finish::Commit);
    })
    .unwrap();
}

#[test]
fn reads_of_our_table_are_exact_while_others_change_theirs_all_the_time() {
    let ns = Netns::new("fwnft-torn").unwrap();
    neighbouring(&ns);
    let (wanted, start) = large();
    ns.run(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &wanted, &start);
        let elements = |kernel: &mut NetlinkKernel| {
            let list = kernel.timed_elements("fqdn4-0")?;
            Ok::<_, Error>(list.into_iter().map(|element| (element.key, element.mark)).collect::<Vec<_>>())
        };
        let learned = elements(&mut kernel).unwrap();
        assert_eq!(learned.len(), 5000);
        let others = kernel.interferers().unwrap();
        assert_eq!(others.len(), 1, "{others:?}");
        beside(&ns, edit_own_table, |is_enough| {
            let [mut counters, mut tables, mut lists, mut obstacles] = [(); 4].map(|()| Tally::default());
            while !is_enough() || tables.good < READS {
                for _ in 0..20 {
                    if let Some(counts) = counters.take(kernel.counts()) {
                        assert!(counts == start, "{}", difference(&counts, &start));
                    }
                }
                if let Some(table) = tables.take(kernel.read()) {
                    let Table::Ours(observed) = table else { panic!("not ours: {table:?}") };
                    assert!(observed.counts() == start, "{}", difference(&observed.counts(), &start));
                    assert!(recognise(&observed, &wanted) == wanted, "drift that is none");
                }
                if let Some(list) = lists.take(elements(&mut kernel)) {
                    assert!(list == learned, "{} of {} elements", list.len(), learned.len());
                }
                if let Some(found) = obstacles.take(kernel.interferers()) {
                    assert_eq!(found, others);
                }
            }
            println!(
                "counters {counters:?}, tables {tables:?}, elements {lists:?}, interferers {obstacles:?}"
            );
            // What is ours alone is read at once, whatever others do.
            assert_eq!((counters.torn, lists.torn), (0, 0));
        });
    })
    .unwrap();
}

fn difference(read: &Counts, wanted: &Counts) -> String {
    let named = wanted.named.keys().filter(|name| !read.named.contains_key(*name)).count();
    let rules = read.rules.iter().filter(|(at, count)| wanted.rules.get(*at) != Some(count)).count();
    let [ours, theirs] = [wanted.rules.len(), read.rules.len()];
    format!("{named} counters are missing, {rules} rules are not as they are, {theirs} of {ours} rules")
}

/// As on a kernel whose tables have no owners: what is in `a-theirs` and `theirs` comes and goes. With pauses, or nobody
/// could read it all in between.
fn edit_our_table(neighbour: &mut Neighbour, round: u32) {
    std::thread::sleep(Duration::from_millis((u64::from(round) * 37) % 150));
    match round % 3 {
        0 => {
            (0..40).for_each(|_| neighbour.rule(FIREWALL, "a-theirs", THEIRS, "theirs"));
            neighbour.elements(message::NEW_ELEMENTS, "theirs", 1..2000);
            neighbour.send(Finish::Commit);
        }
        1 => {
            neighbour.flush(FIREWALL, "a-theirs");
            neighbour.elements(message::DEL_ELEMENTS, "theirs", 1..2000);
            neighbour.send(Finish::Commit);
        }
        _ => {
            for chain in ["a-theirs", "long-0", "long-3"] {
                (0..60).for_each(|_| neighbour.rule(FIREWALL, chain, THEIRS, "theirs"));
            }
            (0..100).for_each(|index| neighbour.counter(FIREWALL, &format!("a-{index}")));
            neighbour.send(Finish::DryRun);
        }
    }
}

/// What was read, without what comes and goes; that must be there as a whole or not at all.
fn without_theirs(mut observed: Observed) -> (BTreeMap<String, fw_nft::ObservedChain>, Ruleset, Counts) {
    let mut counts = observed.counts();
    counts.rules.retain(|(chain, _), _| chain != "a-theirs");
    let theirs = observed.chains.remove("a-theirs").unwrap();
    assert!([0, 40].contains(&theirs.rules.len()), "{} of 40 rules", theirs.rules.len());
    let set = observed.sets.remove("theirs").unwrap();
    let keys: std::collections::BTreeSet<_> = set.elements.iter().map(|element| &element.key).collect();
    assert!([1, 2000].contains(&keys.len()), "{} elements", keys.len());
    let sets = recognise(&observed, &large().0);
    (observed.chains, Ruleset { chains: BTreeMap::new(), ..sets }, counts)
}

#[test]
fn reads_are_exact_while_others_change_our_own_table_on_kernels_without_owners() {
    let ns = Netns::new("fwnft-torn").unwrap();
    let (wanted, start) = large();
    ns.run(|| {
        let mut kernel = NetlinkKernel::open_without_owner().unwrap();
        install(&mut kernel, &wanted, &start);
        let Table::Ours(before) = kernel.read().unwrap() else { panic!("not ours") };
        let before = without_theirs(before);
        beside(&ns, edit_our_table, |is_enough| {
            let (mut counters, mut tables) = (Tally::default(), Tally::default());
            while !is_enough() || counters.good.min(tables.good) < READS {
                if let Some(mut counts) = counters.take(kernel.counts()) {
                    let theirs = counts.rules.extract_if(.., |(chain, _), _| chain == "a-theirs").count();
                    assert!([0, 40].contains(&theirs), "{theirs} of 40 rules");
                    assert!(counts == start, "{}", difference(&counts, &start));
                }
                if let Some(table) = tables.take(kernel.read()) {
                    let Table::Ours(observed) = table else { panic!("not ours: {table:?}") };
                    let after = without_theirs(observed);
                    assert!(after == before, "{}", difference(&after.2, &before.2));
                }
            }
            println!("counters {counters:?}, tables {tables:?}");
        });
    })
    .unwrap();
}

#[test]
fn figures_of_a_table_that_is_not_ours_are_exact_while_its_owner_rewrites_it() {
    let ns = Netns::new("fwnft-torn").unwrap();
    let rewrite = |neighbour: &mut Neighbour, round: u32| {
        if round.is_multiple_of(2) {
            neighbour.flush(FIREWALL, "forward");
            (0..2000).for_each(|_| neighbour.rule(FIREWALL, "forward", 1, "accept"));
            neighbour.send(Finish::Commit);
        } else {
            (0..300).for_each(|_| neighbour.rule(FIREWALL, "forward", 1, "accept"));
            neighbour.send(Finish::DryRun);
        }
    };
    ns.run(|| {
        let mut neighbour = Neighbour::new();
        neighbour.table(FIREWALL);
        neighbour.chain(FIREWALL, "forward", None);
        neighbour.send(Finish::Commit);
        rewrite(&mut neighbour, 0);
        let mut kernel = NetlinkKernel::open().unwrap();
        beside(&ns, rewrite, |is_enough| {
            let mut tables = Tally::default();
            while !is_enough() || tables.good < READS {
                if let Some(table) = tables.take(kernel.read()) {
                    let Table::Foreign(foreign) = table else { panic!("taken for ours") };
                    assert_eq!(foreign.comments["accept"], Count { packets: 2000, bytes: 2000 });
                }
            }
            println!("{tables:?}");
        });
    })
    .unwrap();
}

#[test]
fn elements_that_stay_are_listed_while_others_beside_them_expire_and_the_hash_grows() {
    let ns = Netns::new("fwnft-torn").unwrap();
    ns.run(|| {
        let (wanted, mut kernel) = (sample(), NetlinkKernel::open().unwrap());
        assert_eq!(kernel.read().unwrap(), Table::Absent);
        kernel.commit(&plan(None, &wanted, &Counts::default()), &wanted).unwrap();
        let key = |n: u32| exact(&[Value::Ipv4((0x0a00_0000 + n).into())]);
        let until = Instant::now() + Duration::from_secs(6);
        let (mut stay, mut lists) = (0, 0);
        while Instant::now() < until || stay < 6000 {
            let new = stay..(stay + 300).min(6000);
            stay = new.end;
            let mut changes: Vec<_> = new.map(|n| put("fqdn4-0", key(n), Some(1), Some(3_600_000))).collect();
            changes.extend(
                (10_000..13_000).map(|n| put("fqdn4-0", key(n), Some(2), Some(120 + u64::from(n % 400)))),
            );
            kernel.update_elements(&changes).unwrap();
            for _ in 0..8 {
                let list = kernel.timed_elements("fqdn4-0").unwrap();
                let there: Vec<_> = list.into_iter().filter(|e| e.mark == Some(1)).map(|e| e.key).collect();
                let mut all: Vec<_> = (0..stay).map(key).collect();
                all.sort();
                assert!(there == all, "{} of {} after {lists} lists", there.len(), all.len());
                lists += 1;
            }
        }
        println!("{lists} lists");
    })
    .unwrap();
}
