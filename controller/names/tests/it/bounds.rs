//! Bounds, and what they may cost.

use std::collections::BTreeMap;
use std::sync::Arc;

use fw_names::learner::counters::{Eviction, Full};
use fw_names::{Lesson, Table};
use fw_policy::{FqdnSelector, NameEntry, Protocol};

use crate::learning::{Bench, SECOND, exact, pattern, table};
use crate::messages::address;

fn small(max_names: u32, per_pattern: u32, addresses: u32) -> Table {
    let mut table = table(&[("p", exact("a"), &[(80, 80)]), ("q", pattern("*.x"), &[(80, 80)])]);
    table.dns.max_names = max_names;
    table.dns.max_names_per_pattern = per_pattern;
    table.dns.max_addresses_per_name = addresses;
    table
}

fn learn(bench: &mut Bench, name: &str, ttl: u32) -> Lesson {
    bench.learn(name, vec![address(name, ttl, "192.0.2.1")])
}

fn names(bench: &Bench) -> Vec<String> {
    bench.learner.view(None, 99).names.iter().map(|view| view.name.to_string()).collect()
}

#[test]
fn what_is_inside_a_ttl_is_never_evicted_and_the_answer_is_held() {
    let mut bench = Bench::new(small(100, 2, 10));
    assert!(learn(&mut bench, "1.x.", 5).opens);
    assert!(learn(&mut bench, "2.x.", 5).opens);
    bench.pass(5 * SECOND - 1, &[]);
    let lesson = learn(&mut bench, "3.x.", 5);
    assert_eq!((lesson.hold, lesson.opens, lesson.ttl_max), (Some(Full::Pattern), false, None));
    assert_eq!(names(&bench), ["1.x", "2.x"]);
    // A name a policy spells out is none of the pattern's.
    assert!(learn(&mut bench, "a.", 5).opens);
    bench.pass(1, &[]);
    assert!(learn(&mut bench, "3.x.", 5).opens, "the grace period goes first");
    assert_eq!(names(&bench).len(), 3);
    assert_eq!(bench.learner.counters().evicted, BTreeMap::from([(Eviction::Pattern, 1)]));
    assert_eq!(bench.learner.counters().held, BTreeMap::from([(Full::Pattern, 1)]));
}

#[test]
fn the_least_recently_asked_goes_first_and_none_in_use() {
    let mut bench = Bench::new(small(4, 10, 10));
    for (number, ttl) in [(1, 60), (2, 5), (3, 6), (4, 7)] {
        let name = format!("{number}.x.");
        bench.learn(&name, vec![address(&name, ttl, &format!("192.0.2.{number}"))]);
        bench.pass(SECOND, &[]);
    }
    // 2 was asked again, so that 3 is older; 4 has a connection.
    bench.learn("2.x.", vec![address("2.x.", 5, "192.0.2.2")]);
    bench.pass(20 * SECOND, &["192.0.2.4"]);
    let in_use = Arc::new([crate::oracle::ip("192.0.2.4")].into());
    bench.learner.expire(bench.now, in_use);
    assert!(learn(&mut bench, "5.x.", 5).opens);
    assert_eq!(names(&bench), ["1.x", "2.x", "4.x", "5.x"]);
    assert!(learn(&mut bench, "6.x.", 5).opens);
    assert_eq!(names(&bench), ["1.x", "4.x", "5.x", "6.x"]);
    assert_eq!(learn(&mut bench, "7.x.", 5).hold, Some(Full::Names));
}

#[test]
fn what_is_over_goes_before_anything_else_and_is_no_eviction() {
    let mut bench = Bench::new(small(2, 2, 10));
    learn(&mut bench, "1.x.", 100);
    learn(&mut bench, "2.x.", 5);
    // Nobody has come to expire it; the older name is still in its grace period.
    bench.now += 120 * SECOND;
    assert!(learn(&mut bench, "3.x.", 5).opens);
    assert_eq!(names(&bench), ["1.x", "3.x"]);
    assert_eq!((bench.learner.counters().expired, bench.learner.counters().evicted.len()), (1, 0));
}

#[test]
fn a_name_with_too_many_addresses_loses_those_handed_out_longest_ago() {
    let mut bench = Bench::new(small(9, 9, 3));
    for number in 1..=3 {
        bench.learn("a.", vec![address("a.", 5, &format!("192.0.2.{number}"))]);
        bench.pass(SECOND, &[]);
    }
    let lesson = bench.learn("a.", vec![address("a.", 5, "192.0.2.4")]);
    assert_eq!(lesson.hold, Some(Full::Addresses));
    bench.pass(3 * SECOND, &[]);
    assert!(bench.learn("a.", vec![address("a.", 5, "192.0.2.4")]).opens);
    assert_eq!((bench.tcp("192.0.2.1", 80), bench.tcp("192.0.2.2", 80)), (None, Some(1)));
    assert_eq!(bench.learner.counters().evicted, BTreeMap::from([(Eviction::Address, 1)]));
}

#[test]
fn a_bound_of_nothing_holds_everything_and_one_of_one_still_works() {
    let mut bench = Bench::new(small(0, 9, 9));
    assert_eq!(learn(&mut bench, "a.", 5).hold, Some(Full::Names));
    let mut bench = Bench::new(small(1, 1, 1));
    assert!(learn(&mut bench, "a.", 5).opens);
    bench.pass(5 * SECOND, &[]);
    assert!(bench.learn("a.", vec![address("a.", 5, "192.0.2.9")]).opens);
    bench.pass(5 * SECOND, &[]);
    assert!(learn(&mut bench, "b.x.", 5).opens);
    assert_eq!(names(&bench), ["b.x"]);
}

#[test]
fn the_fuller_it_is_the_shorter_are_the_ttls_handed_out_but_never_below_the_least() {
    let mut bench = Bench::new(small(100_000, 400, 10));
    let mut caps = Vec::new();
    for number in 0..400 {
        caps.extend(learn(&mut bench, &format!("{number}.x."), 86_400).ttl_max);
    }
    assert_eq!(caps.len(), 400, "one answer was held");
    assert!(caps.windows(2).all(|pair| pair[0] >= pair[1]));
    assert!(caps[..=100].iter().all(|cap| *cap == 3600));
    assert!(caps[200..].iter().all(|cap| *cap == 5));
    assert!(caps[100..200].iter().any(|cap| (100..1_000).contains(cap)));
    assert_eq!(bench.learner.counters().shortened, caps.iter().filter(|cap| **cap < 3600).count() as u64);
    // When they are over there is room for long ones again, though all of them are still known.
    bench.pass(3_600 * SECOND, &[]);
    assert_eq!(learn(&mut bench, "0.x.", 86_400).ttl_max, Some(3600));
}

#[test]
fn ten_thousand_names_in_ten_seconds_all_open_and_most_ttls_are_long() {
    let mut bench = Bench::new(table(&[("q", pattern("*.x"), &[(80, 80)])]));
    let mut caps = Vec::new();
    for number in 0..10_000_u32 {
        let [_, b, c, d] = number.to_be_bytes();
        let name = format!("{number}.x.");
        let lesson = bench.learn(&name, vec![address(&name, 60, &format!("198.{b}.{c}.{d}"))]);
        assert!(lesson.opens && lesson.hold.is_none(), "{number}");
        caps.extend(lesson.ttl_max.map(|cap| cap.min(60)));
        // The name asked for five seconds ago is inside the TTL it was given.
        if let Some(earlier) = number.checked_sub(5_000) {
            let [_, b, c, d] = earlier.to_be_bytes();
            assert_eq!(bench.tcp(&format!("198.{b}.{c}.{d}"), 80), Some(1), "{earlier}");
        }
        bench.pass(SECOND / 1_000, &[]);
    }
    assert!(caps.iter().all(|cap| *cap >= 5));
    assert!(bench.learner.counters().evicted.is_empty());
}

#[test]
fn a_thousand_new_names_a_second_under_one_pattern_go_on_for_minutes() {
    let mut bench = Bench::new(table(&[("q", pattern("*.x"), &[(80, 80)])]));
    let mut shortest = u32::MAX;
    for number in 0..120_000_u32 {
        let name = format!("{number}.x.");
        let [_, b, c, d] = number.to_be_bytes();
        let lesson = bench.learn(&name, vec![address(&name, 3_600, &format!("198.{b}.{c}.{d}"))]);
        assert_eq!(lesson.hold, None, "{number}");
        shortest = shortest.min(lesson.ttl_max.expect("it opens"));
        bench.pass(SECOND / 1_000, &[]);
    }
    assert_eq!(shortest, 5);
    assert!(bench.learner.sizes().fullest_pattern <= 16_384);
    assert!(bench.learner.counters().evicted[&Eviction::Pattern] > 100_000);
}

#[test]
fn a_class_with_too_many_cells_leaves_the_rest_closed_and_counts_it() {
    let ports: Vec<(u16, u16)> = (0..200).map(|number| (2 * number, 2 * number)).collect();
    let mut bench = Bench::new(table(&[("p", exact("a"), &ports)]));
    assert!(learn(&mut bench, "a.", 60).opens);
    assert_eq!((bench.tcp("192.0.2.1", 254), bench.tcp("192.0.2.1", 256)), (Some(1), None));
    assert_eq!(bench.learner.counters().cells_left_out, 72);
}

#[test]
fn when_the_classes_run_out_answers_are_held_and_nothing_opens_by_mistake() {
    let entries = (0..17_000_u32).map(|number| {
        let selector = FqdnSelector::Name(format!("n{number}"));
        let entry = NameEntry { policy: "p".to_owned(), selector, protocol: Protocol::Tcp };
        (entry, (number + 1, vec![(80, 80)]))
    });
    let mut bench = Bench::new(Table { entries: entries.collect(), ..Table::default() });
    let mut held = 0;
    for number in 0..17_000_u32 {
        let [_, _, c, d] = number.to_be_bytes();
        let (name, text) = (format!("n{number}."), format!("198.51.{c}.{d}"));
        let lesson = bench.learn(&name, vec![address(&name, 600, &text)]);
        match lesson.hold {
            None => assert_eq!(bench.tcp(&text, 80), Some(number + 1)),
            Some(full) => {
                assert_eq!(full, Full::Classes);
                held += 1;
            }
        }
    }
    assert!(held >= 17_000 - 16_382, "{held} held");
    assert!(bench.learner.counters().without_class > 0);
    assert!(bench.learner.sizes().classes <= 16_382);
}
