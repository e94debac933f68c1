//! What answers open, for how long, and what they never open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fw_names::learner::Family;
use fw_names::{Answer, Learner, Name, Refusal, Table};
use fw_policy::{FqdnSelector, NameEntry, Protocol};
use hickory_proto::rr::{Record, RecordType};

use crate::messages::{address, answer, cname, message, read};
use crate::oracle::ip;
use crate::sim::Sim;

pub(crate) const SECOND: u64 = 1_000_000_000;
/// When these tests begin.
pub(crate) const START: u64 = 1_000 * SECOND;

pub(crate) fn exact(text: &str) -> FqdnSelector {
    FqdnSelector::Name(text.to_owned())
}

pub(crate) fn pattern(text: &str) -> FqdnSelector {
    FqdnSelector::Pattern(text.to_owned())
}

/// Policy, selector, TCP ports.
pub(crate) type Rule<'a> = (&'a str, FqdnSelector, &'a [(u16, u16)]);

/// Policies in order, each with a selector and TCP ports; indexes 1, 2, 3 in the order given.
pub(crate) fn table(policies: &[Rule<'_>]) -> Table {
    let entry = |(index, (policy, selector, ports)): (usize, &Rule<'_>)| {
        let entry =
            NameEntry { policy: (*policy).to_owned(), selector: selector.clone(), protocol: Protocol::Tcp };
        (entry, (u32::try_from(index).expect("few") + 1, ports.to_vec()))
    };
    Table { entries: policies.iter().enumerate().map(entry).collect(), ..Table::default() }
}

/// A learner and a data path that takes all its changes at once.
pub(crate) struct Bench {
    pub(crate) learner: Learner,
    pub(crate) sim: Sim,
    pub(crate) now: u64,
}

impl Bench {
    pub(crate) fn new(table: Table) -> Self {
        let mut learner = Learner::new();
        learner.set_table(Arc::new(table), START);
        Self { learner, sim: Sim::default(), now: START }
    }

    pub(crate) fn sync(&mut self) -> usize {
        let changes = self.learner.changes(self.now);
        self.sim.apply(&changes);
        self.learner.confirm(&changes);
        changes.len()
    }

    pub(crate) fn learn(&mut self, question: &str, records: Vec<Record>) -> fw_names::Lesson {
        self.learn_answer(&answer(question, records))
    }

    pub(crate) fn learn_answer(&mut self, answer: &Answer) -> fw_names::Lesson {
        let lesson = self.learner.learn(self.now, answer);
        self.sync();
        lesson
    }

    /// Time passes, and what is due is done when it is due.
    pub(crate) fn pass(&mut self, time: u64, in_use: &[&str]) {
        let in_use: Arc<BTreeSet<_>> = Arc::new(in_use.iter().map(|text| ip(text)).collect());
        let end = self.now + time;
        while let Some(due) = self.learner.due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.learner.expire(self.now, in_use.clone());
            self.sync();
        }
        self.now = end;
    }

    pub(crate) fn tcp(&self, address: &str, port: u16) -> Option<u32> {
        self.sim.index(ip(address), 6, port, self.now)
    }
}

#[test]
fn an_allowed_name_opens_its_addresses_on_its_ports_for_ttl_and_grace() {
    let mut bench = Bench::new(table(&[("p", exact("a.example"), &[(80, 80), (443, 444)])]));
    let lesson = bench.learn("A.example.", vec![address("a.EXAMPLE.", 100, "192.0.2.1")]);
    assert!(lesson.opens && lesson.hold.is_none());
    assert_eq!(lesson.ttl_max, Some(3600));
    assert_eq!((bench.tcp("192.0.2.1", 80), bench.tcp("192.0.2.1", 444)), (Some(1), Some(1)));
    assert_eq!((bench.tcp("192.0.2.1", 81), bench.tcp("192.0.2.2", 80)), (None, None));
    assert_eq!(bench.sim.index(ip("192.0.2.1"), 17, 80, bench.now), None);
    bench.pass(160 * SECOND - 1, &[]);
    assert_eq!(bench.tcp("192.0.2.1", 80), Some(1));
    bench.pass(1, &[]);
    assert_eq!(bench.tcp("192.0.2.1", 80), None);
    assert!(bench.sim.allows.is_empty());
    assert_eq!(bench.learner.sizes().names, 0);
    // The class goes with the list after the one that took the last reference.
    bench.sync();
    assert!(bench.sim.classes.is_empty());
    assert_eq!(bench.learner.counters().expired, 1);
}

#[test]
fn a_name_no_policy_allows_opens_nothing_and_its_ttls_stay() {
    let mut bench = Bench::new(table(&[("p", exact("a.example"), &[(80, 80)])]));
    let lesson = bench.learn("b.example.", vec![address("b.example.", 100, "192.0.2.1")]);
    assert_eq!(lesson, fw_names::Lesson::default());
    assert!(bench.sim.allows.is_empty());
}

#[test]
fn every_hop_of_the_chain_opens_the_final_addresses() {
    let records =
        || vec![cname("a.x.", 30, "b.y."), cname("b.y.", 400, "c.z."), address("c.z.", 300, "192.0.2.1")];
    for (name, seconds) in [("a.x", 30), ("b.y", 300), ("c.z", 300)] {
        let mut bench = Bench::new(table(&[("p", exact(name), &[(80, 80)])]));
        assert!(bench.learn("a.x.", records()).opens, "{name}");
        let expires = bench.learner.view(None, 9).names[0].addresses[&ip("192.0.2.1")];
        assert_eq!(expires, START + (seconds + 60) * SECOND, "{name}");
        assert_eq!(bench.learner.view(None, 9).names[0].name.as_str(), name);
    }
}

#[test]
fn ttls_are_clamped_at_both_ends_and_the_answer_is_told() {
    let mut bench = Bench::new(table(&[("p", pattern("*"), &[(80, 80)])]));
    for (name, ttl, seconds) in [("a.", 0, 5), ("b.", 1, 5), ("c.", 1 << 31, 5), ("d.", 0x7fff_ffff, 3600)] {
        let lesson = bench.learn(name, vec![address(name, ttl, "192.0.2.1")]);
        assert_eq!(lesson.ttl_max, Some(3600));
        let view = bench.learner.view(Some(name.trim_end_matches('.')), 9);
        assert_eq!(view.names[0].addresses[&ip("192.0.2.1")], START + (seconds + 60) * SECOND, "{name}");
    }
}

#[test]
fn families_end_each_in_their_own_time() {
    let mut bench = Bench::new(table(&[("p", exact("a"), &[(80, 80)])]));
    bench.learn("a.", vec![address("a.", 300, "192.0.2.1"), address("a.", 5, "2001:db8::1")]);
    bench.pass(65 * SECOND, &[]);
    assert_eq!((bench.tcp("192.0.2.1", 80), bench.tcp("2001:db8::1", 80)), (Some(1), None));
}

#[test]
fn addresses_of_earlier_answers_stay_their_time_when_the_name_rotates() {
    let mut bench = Bench::new(table(&[("p", exact("a"), &[(80, 80)])]));
    for number in 0..20 {
        bench.learn("a.", vec![address("a.", 5, &format!("192.0.2.{number}"))]);
        bench.pass(2 * SECOND, &[]);
    }
    assert_eq!(bench.tcp("192.0.2.0", 80), Some(1));
    bench.pass(26 * SECOND, &[]);
    assert_eq!((bench.tcp("192.0.2.0", 80), bench.tcp("192.0.2.19", 80)), (None, Some(1)));
}

#[test]
fn addresses_that_lead_inwards_or_nowhere_are_never_learned() {
    let refusals = [
        ("0.1.2.3", Refusal::Unspecified),
        ("127.0.0.53", Refusal::Loopback),
        ("169.254.169.254", Refusal::LinkLocal),
        ("224.0.0.251", Refusal::Multicast),
        ("255.255.255.255", Refusal::Reserved),
        ("::", Refusal::Unspecified),
        ("::1", Refusal::Loopback),
        ("fe80::1", Refusal::LinkLocal),
        ("fec0::1", Refusal::LinkLocal),
        ("ff02::1", Refusal::Multicast),
        ("::ffff:198.51.100.1", Refusal::Mapped),
        ("::198.51.100.1", Refusal::Mapped),
        ("::ffff:0:198.51.100.1", Refusal::Mapped),
        ("64:ff9b::127.0.0.1", Refusal::Loopback),
        ("2002:7f00:1::1", Refusal::Loopback),
        ("2001:0:1::80ff:fffe", Refusal::Loopback),
        ("64:ff9b::10.9.0.1", Refusal::Cluster),
        ("203.0.113.9", Refusal::Own),
        ("10.9.3.4", Refusal::Cluster),
    ];
    let mut table = table(&[("p", exact("a"), &[(80, 80)])]);
    table.own_addresses = [ip("203.0.113.9")].into();
    table.cluster_prefixes = ["10.9.0.0/16".parse().expect("a prefix")].into();
    let mut bench = Bench::new(table);
    for (text, refusal) in refusals {
        let lesson = bench.learn("a.", vec![address("a.", 60, text)]);
        assert_eq!(lesson.refused, BTreeMap::from([(refusal, 1)]), "{text}");
        assert!(!lesson.opens && lesson.hold.is_none() && lesson.ttl_max.is_none(), "{text}");
    }
    assert!(bench.sim.allows.is_empty());
    assert_eq!(bench.learner.sizes().names, 0);
    let name = Name::from_text("a").expect("a name");
    assert_eq!(bench.learner.counters().refused_names[&name], refusals.len() as u64);
    // Translated and tunnelled forms of what may be learned are learned.
    assert!(bench.learn("a.", vec![address("a.", 60, "64:ff9b::198.51.100.1")]).opens);
}

#[test]
fn private_addresses_are_for_exact_names_and_for_patterns_only_where_it_is_said() {
    let private = ["10.1.2.3", "172.16.0.1", "192.168.7.7", "fd00::1", "64:ff9b::10.1.2.3", "64:ff9b:1::1"];
    let policies: [Rule<'_>; 2] = [("p", exact("a"), &[(80, 80)]), ("q", pattern("*"), &[(443, 443)])];
    let mut table = table(&policies);
    let mut bench = Bench::new(table.clone());
    for text in private {
        assert!(bench.learn("a.", vec![address("a.", 60, text)]).opens, "{text}");
        assert_eq!((bench.tcp(text, 80), bench.tcp(text, 443)), (Some(1), None), "{text}");
        let other = bench.learn("b.", vec![address("b.", 60, text)]);
        assert_eq!(other.refused, BTreeMap::from([(Refusal::Private, 1)]), "{text}");
    }
    table.dns.private_prefixes = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a net")).into();
    bench.learner.set_table(Arc::new(table), bench.now);
    bench.sync();
    assert_eq!(bench.tcp("10.1.2.3", 443), Some(2), "what was learned follows the new table");
    assert_eq!(bench.tcp("192.168.7.7", 443), None);
    assert!(bench.learn("b.", vec![address("b.", 60, "10.1.2.4")]).opens);
}

#[test]
fn addresses_outside_the_allowed_networks_stay_closed() {
    let mut table = table(&[("p", exact("a"), &[(80, 80)])]);
    table.dns.allowed = Some(["198.51.100.0/24".parse().expect("a net")].into());
    let mut bench = Bench::new(table);
    let lesson = bench.learn("a.", vec![address("a.", 9, "192.0.2.1"), address("a.", 9, "198.51.100.1")]);
    assert_eq!(lesson.refused, BTreeMap::from([(Refusal::NotAllowed, 1)]));
    assert_eq!((bench.tcp("192.0.2.1", 80), bench.tcp("198.51.100.1", 80)), (None, Some(1)));
}

#[test]
fn an_address_in_use_stays_and_goes_when_it_is_no_more() {
    let mut bench = Bench::new(table(&[("p", exact("a"), &[(80, 80)])]));
    bench.learn("a.", vec![address("a.", 5, "192.0.2.1"), address("a.", 5, "192.0.2.2")]);
    for _ in 0..600 {
        bench.pass(SECOND, &["192.0.2.1"]);
        assert_eq!(bench.tcp("192.0.2.1", 80), Some(1));
    }
    assert_eq!(bench.tcp("192.0.2.2", 80), None);
    assert!(bench.learner.counters().extended > 10);
    bench.pass(31 * SECOND, &[]);
    assert_eq!(bench.tcp("192.0.2.1", 80), None);
}

#[test]
fn of_two_policies_that_share_an_address_one_may_go_without_the_other() {
    let both = table(&[("p", exact("a"), &[(80, 443)]), ("q", exact("b"), &[(80, 80)])]);
    let mut bench = Bench::new(both.clone());
    bench.learn("a.", vec![address("a.", 60, "192.0.2.1")]);
    bench.learn("b.", vec![address("b.", 60, "192.0.2.1")]);
    assert_eq!(bench.tcp("192.0.2.1", 80), Some(1));
    let mut one = both;
    one.entries.retain(|entry, _| entry.policy == "q");
    let changes = bench.learner.withdraw(&[1].into(), bench.now);
    bench.sim.apply(&changes);
    bench.learner.confirm(&changes);
    assert_eq!(bench.learner.installed_indexes(), [2].into());
    assert_eq!((bench.tcp("192.0.2.1", 80), bench.tcp("192.0.2.1", 443)), (Some(2), None));
    bench.learner.set_table(Arc::new(one), bench.now);
    assert_eq!(bench.sync(), 0);
    assert_eq!(bench.learner.sizes().names, 1);
}

#[test]
fn more_ends_than_steps_are_shortened_and_written_again_in_time() {
    let names: Vec<String> = (0..9).map(|number| format!("n{number}")).collect();
    let ports: Vec<[(u16, u16); 1]> = (0..9).map(|number| [(100 + number, 100 + number)]).collect();
    let policies: Vec<Rule<'_>> = names
        .iter()
        .zip(&ports)
        .map(|(name, ports)| (name.as_str(), exact(name), ports.as_slice()))
        .collect();
    let mut bench = Bench::new(table(&policies));
    for (number, name) in names.iter().enumerate() {
        let ttl = 100 + 10 * u32::try_from(number).expect("few");
        bench.learn(&format!("{name}."), vec![address(&format!("{name}."), ttl, "192.0.2.1")]);
    }
    let ends_after_the_fourth = bench.sim.allows[&ip("192.0.2.1")].steps[3].until_ns;
    assert_eq!(ends_after_the_fourth, START + 190 * SECOND, "fail closed until it is written again");
    for second in 0..300 {
        for number in 0..9_u16 {
            let open = second < 160 + 10 * u64::from(number);
            assert_eq!(bench.tcp("192.0.2.1", 100 + number).is_some(), open, "n{number} after {second} s");
        }
        bench.pass(SECOND, &[]);
    }
}

#[test]
fn a_name_beyond_all_policies_at_an_allowed_address_is_noted() {
    let mut bench = Bench::new(table(&[("p", exact("a"), &[(80, 80)])]));
    bench.learn("a.", vec![address("a.", 60, "192.0.2.1")]);
    for _ in 0..3 {
        bench.learn("evil.", vec![address("evil.", 60, "192.0.2.1"), address("evil.", 60, "192.0.2.2")]);
    }
    let shared = bench.learner.shared();
    assert_eq!(shared.len(), 1);
    assert_eq!((shared[0].allowed.as_str(), shared[0].other.as_str()), ("a", "evil"));
    assert_eq!(bench.learner.counters().shared, 3);
    assert_eq!(bench.learner.names_of(ip("192.0.2.1"), 9).len(), 1);
}

#[test]
fn exact_names_and_names_lately_used_are_asked_again_before_they_are_over() {
    let mut bench = Bench::new(table(&[("p", exact("a"), &[(80, 80)]), ("q", pattern("*.x"), &[(80, 80)])]));
    let mut v6 = message("a.", RecordType::AAAA, vec![address("a.", 20, "2001:db8::1")]);
    v6.metadata.id = 1;
    bench.learn("a.", vec![address("a.", 10, "192.0.2.1")]);
    bench.learn_answer(&read(&v6));
    bench.learn("b.x.", vec![address("b.x.", 10, "192.0.2.2")]);
    bench.learn("c.x.", vec![address("c.x.", 100, "192.0.2.3")]);
    assert_eq!(bench.learner.refresh_at(), Some(START + 8 * SECOND));
    assert!(bench.learner.refresh_due(START + 8 * SECOND - 1).is_empty());
    let mut asked = |seconds: u64| -> Vec<String> {
        let due = bench.learner.refresh_due(START + seconds * SECOND);
        due.iter().map(|(name, family)| format!("{name} {family:?}")).collect()
    };
    assert_eq!(asked(8), ["a V4", "b.x V4"]);
    assert!(asked(9).is_empty(), "they are under way");
    assert_eq!(asked(13), ["a V4", "b.x V4"], "and tried again when nothing comes");
    assert_eq!(asked(18), ["a V4", "a V6", "b.x V4"]);
    // Nobody has asked for c.x for a while.
    assert!(asked(98).iter().all(|question| question.starts_with("a ")));
    let answer = answer("a.", vec![address("a.", 10, "192.0.2.1")]);
    assert!(bench.learner.refreshed(START + 98 * SECOND, &answer).opens);
    let due = bench.learner.refresh_due(START + 106 * SECOND);
    assert!(due.contains(&(Name::from_text("a").expect("a name"), Family::V4)));
}

#[test]
fn a_journal_restores_what_was_known_and_the_data_path_is_left_alone() {
    let table = Arc::new(table(&[("p", exact("a"), &[(80, 80)]), ("q", pattern("*.x"), &[(443, 443)])]));
    let mut bench = Bench::new((*table).clone());
    let mut journal = Vec::new();
    for (name, number) in [("a.", 1), ("b.x.", 2), ("c.x.", 3)] {
        let lesson = bench.learn(name, vec![address(name, 60, &format!("192.0.2.{number}"))]);
        journal.extend(lesson.facts);
    }
    assert_eq!(journal.len(), 3);
    assert!(bench.learn("a.", vec![address("a.", 60, "192.0.2.1")]).facts.is_empty(), "no news");
    let mut learner = Learner::new();
    learner.install(bench.sim.allows.clone(), bench.sim.classes.clone());
    learner.set_table(table, bench.now);
    assert!(journal.iter().all(|fact| learner.relearn(bench.now, fact)));
    assert_eq!(learner.changes(bench.now), []);
    assert_eq!(learner.learned(bench.now), bench.learner.learned(bench.now));
    // What no policy wants any more, or is over, is not taken.
    assert!(!learner.relearn(bench.now + 500 * SECOND, &journal[0]));
    let mut other = Learner::new();
    other.install(bench.sim.allows.clone(), bench.sim.classes.clone());
    other.set_table(Arc::new(Table::default()), bench.now);
    assert!(!other.relearn(bench.now, &journal[0]));
    let changes = other.changes(bench.now);
    bench.sim.apply(&changes);
    assert!(bench.sim.allows.is_empty() && bench.sim.classes.is_empty());
}

#[test]
fn a_list_that_was_not_taken_comes_again() {
    let mut bench = Bench::new(table(&[("p", exact("a"), &[(80, 80)])]));
    bench.learner.learn(bench.now, &answer("a.", vec![address("a.", 60, "192.0.2.1")]));
    let lost = bench.learner.changes(bench.now);
    assert_eq!(bench.learner.changes(bench.now), lost, "until it is confirmed every list has it");
    bench.learner.reject(&lost);
    bench.learner.reject(&lost);
    assert_eq!(bench.sync(), 2);
    assert_eq!(bench.sync(), 0);
    assert_eq!(bench.tcp("192.0.2.1", 80), Some(1));
}
