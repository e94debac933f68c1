//! What is kept, for whom, and for how long.

use std::time::Duration;

use fw_dns::Settings;
use fw_dns::config::Limits;
use fw_dns::metrics::{Bound, Outcome};

use crate::message::{
    A, TXT, a, answer, edns_query, empty, negative, query, question_end, rcode, record, ttls,
};
use crate::running::{Manner, Running, asking};
use crate::upstream::Upstream;

#[test]
fn a_cached_answer_has_this_clients_id_and_case_and_a_lower_ttl() {
    let upstream = Upstream::answering(|query| a(query, 100, [192, 0, 2, 1]));
    let proxy = Running::new(upstream.address, Manner::Open);
    assert_eq!(ttls(&proxy.udp(&query(1, "www.example.com", A))), [100]);
    std::thread::sleep(Duration::from_millis(1100));
    let shouted = query(2, "WWW.eXample.com", A);
    let reply = proxy.udp(&shouted);
    assert_eq!(reply[12..question_end(&reply)], shouted[12..question_end(&shouted)]);
    assert!((90..100).contains(&ttls(&reply)[0]));
    assert_eq!(upstream.asked().len(), 1);
    assert_eq!(proxy.metrics.outcome(Outcome::Cached), 1);
}

#[test]
fn an_answer_is_kept_no_longer_than_its_smallest_ttl() {
    let upstream = Upstream::answering(|query| {
        answer(query, &[record(A, 300, &[192, 0, 2, 1]), record(A, 1, &[192, 0, 2, 2])])
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    let query = query(1, "short.example", A);
    proxy.udp(&query);
    proxy.udp(&query);
    assert_eq!(upstream.asked().len(), 1);
    std::thread::sleep(Duration::from_millis(1100));
    proxy.udp(&query);
    assert_eq!(upstream.asked().len(), 2);
}

#[test]
fn ttls_of_zero_and_of_two_to_the_31_are_not_kept() {
    for ttl in [0, 1 << 31, u32::MAX] {
        let upstream = Upstream::answering(move |query| a(query, ttl, [192, 0, 2, 1]));
        let proxy = Running::new(upstream.address, Manner::Open);
        for _ in 0..2 {
            assert_eq!(proxy.udp(&query(1, "zero.example", A))[2..4], [0x81, 0x80]);
        }
        assert_eq!(upstream.asked().len(), 2, "TTL {ttl}");
    }
}

#[test]
fn negative_answers_are_kept_as_long_as_their_zone_says() {
    for (code, ttl, minimum) in [(3, 300, 1), (0, 1, 300)] {
        let upstream = Upstream::answering(move |query| negative(query, code, ttl, minimum));
        let proxy = Running::new(upstream.address, Manner::Open);
        let query = query(1, "none.example", A);
        assert_eq!(rcode(&proxy.udp(&query)), code);
        assert_eq!(rcode(&proxy.udp(&query)), code);
        assert_eq!(upstream.asked().len(), 1);
        std::thread::sleep(Duration::from_millis(1100));
        proxy.udp(&query);
        assert_eq!(upstream.asked().len(), 2);
    }
}

#[test]
fn failures_and_negative_answers_without_a_zone_are_not_kept() {
    for code in [0, 2, 3, 5] {
        let upstream = Upstream::answering(move |query| empty(query, code));
        let proxy = Running::new(upstream.address, Manner::Open);
        for _ in 0..2 {
            assert_eq!(rcode(&proxy.udp(&query(1, "none.example", A))), code);
        }
        assert_eq!(upstream.asked().len(), 2, "RCODE {code}");
    }
}

#[test]
fn questions_that_could_have_other_answers_do_not_meet_in_the_cache() {
    let upstream = Upstream::answering(|query| a(query, 100, [192, 0, 2, 1]));
    let proxy = Running::new(upstream.address, Manner::Open);
    let plain = query(1, "www.example", A);
    let flagged = |third: u8, fourth: u8| {
        let mut query = plain.clone();
        (query[2], query[3]) = (third, fourth);
        query
    };
    let different = [
        plain.clone(),
        flagged(0, 0),
        flagged(1, 0x10),
        flagged(1, 0x20),
        query(1, "www.example", TXT),
        edns_query(1, "www.example", A, 1232, false, &[]),
        edns_query(1, "www.example", A, 1232, true, &[]),
    ];
    for (before, query) in different.iter().enumerate() {
        proxy.udp(query);
        assert_eq!(upstream.asked().len(), before + 1, "{query:?}");
    }
    different.iter().for_each(|query| drop(proxy.udp(query)));
    // The upstream has no TXT record and no SOA, so that one answer was not kept.
    assert_eq!(upstream.asked().len(), different.len() + 1);
}

#[test]
fn answers_for_a_client_subnet_and_other_options_are_never_kept() {
    let upstream = Upstream::answering(|query| a(query, 100, [192, 0, 2, 1]));
    let proxy = Running::new(upstream.address, Manner::Open);
    let subnet = edns_query(1, "www.example", A, 1232, false, &[0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2]);
    let cookie = edns_query(1, "www.example", A, 1232, false, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    for query in [&subnet, &subnet, &cookie, &cookie] {
        proxy.udp(query);
    }
    assert_eq!(upstream.asked().len(), 4);
}

#[test]
fn the_upstreams_options_stay_out_of_the_cache() {
    let with_error = |query: &[u8]| {
        let mut message = a(query, 100, [192, 0, 2, 1]);
        message[11] = 1;
        message.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 6, 0, 15, 0, 2, 0, 3]);
        message
    };
    let upstream = Upstream::answering(with_error);
    let proxy = Running::new(upstream.address, Manner::Open);
    let query = edns_query(1, "www.example", A, 1232, false, &[]);
    assert_eq!(proxy.udp(&query), with_error(&query));
    let kept = proxy.udp(&query);
    assert!(kept.ends_with(&[0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]), "{kept:?}");
    assert_eq!(upstream.asked().len(), 1);
}

#[test]
fn the_cache_is_bounded_in_entries_and_bytes() {
    let upstream = Upstream::answering(|query| a(query, 100, [192, 0, 2, 1]));
    let few = Limits { cache_entries: 10, ..Limits::default() };
    let small = Limits { cache_bytes: 2500, ..Limits::default() };
    for limits in [few, small] {
        let proxy = Running::with(Settings { limits, ..asking(&[upstream.address]) });
        for number in 0..50 {
            proxy.udp(&query(1, &format!("n{number}.example"), A));
            assert!(proxy.metrics.cache_entries.get() <= 10 || limits.cache_entries > 10);
            assert!(proxy.metrics.cache_bytes.get() <= limits.cache_bytes as u64);
        }
        let entries = proxy.metrics.cache_entries.get();
        assert!((5..=12).contains(&entries), "{entries} entries");
        assert_eq!(proxy.metrics.bound(Bound::CacheEvicted), 50 - entries);
        // The newest is there.
        proxy.udp(&query(1, "n49.example", A));
        assert_eq!(proxy.metrics.outcome(Outcome::Cached), 1);
    }
}

#[test]
fn resolvers_of_different_clients_do_not_answer_for_each_other() {
    let inner = Upstream::answering(|query| a(query, 100, [192, 0, 2, 1]));
    let outer = Upstream::answering(|query| a(query, 100, [192, 0, 2, 2]));
    let proxy = Running::choosing(&[inner.address, outer.address]);
    for _ in 0..3 {
        for last in [1, 2] {
            assert!(proxy.udp(&query(1, "split.example", A)).ends_with(&[192, 0, 2, last]));
        }
    }
}
