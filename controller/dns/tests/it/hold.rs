//! Answers wait for the decision.

use std::time::{Duration, Instant};

use fw_dns::Settings;
use fw_dns::metrics::Outcome;

use crate::message::{A, a, edns_query, id, query, rcode, ttls, with_id};
use crate::running::{Manner, Running, asking, receive};
use crate::upstream::Upstream;

fn upstream() -> Upstream {
    Upstream::answering(|query| a(query, 300, [192, 0, 2, 1]))
}

#[test]
fn an_answer_that_is_never_released_becomes_servfail_at_the_deadline() {
    let upstream = upstream();
    let proxy = Running::new(upstream.address, Manner::Never);
    let began = Instant::now();
    let reply = proxy.udp(&edns_query(3, "held.example", A, 1232, true, &[]));
    assert_eq!(rcode(&reply), 2);
    assert!(began.elapsed() >= Duration::from_millis(100), "not before the deadline");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?} is not the deadline of 100 ms", began.elapsed());
    assert_eq!(proxy.metrics.outcome(Outcome::HoldDeadline), 1);
    assert_eq!(proxy.metrics.waiting.get(), 0);
    assert_eq!(proxy.metrics.hold_latency.count(), 1);
    // From the cache it is held just the same.
    assert_eq!(rcode(&proxy.udp(&edns_query(4, "held.example", A, 1232, true, &[]))), 2);
    assert_eq!(proxy.metrics.outcome(Outcome::HoldDeadline), 2);
}

#[test]
fn a_held_answer_becomes_servfail_at_once() {
    let upstream = upstream();
    let proxy = Running::new(upstream.address, Manner::Hold);
    assert_eq!(rcode(&proxy.tcp(&query(3, "held.example", A))), 2);
    assert_eq!(proxy.metrics.outcome(Outcome::Held), 1);
}

#[test]
fn a_late_release_lets_the_answer_go() {
    let upstream = upstream();
    let proxy = Running::new(upstream.address, Manner::Late(Duration::from_millis(30)));
    let began = Instant::now();
    let query = query(3, "late.example", A);
    assert_eq!(proxy.udp(&query), a(&query, 300, [192, 0, 2, 1]));
    assert!(began.elapsed() >= Duration::from_millis(30));
}

#[test]
fn ttls_are_lowered_to_what_the_release_says() {
    let upstream = upstream();
    let proxy = Running::new(upstream.address, Manner::Lower(17));
    assert_eq!(ttls(&proxy.udp(&query(3, "low.example", A))), [17]);
    assert_eq!(ttls(&proxy.udp(&query(4, "low.example", A))), [17], "and so from the cache");
    let high = Running::new(upstream.address, Manner::Lower(3600));
    assert_eq!(ttls(&high.udp(&query(3, "low.example", A))), [300], "never raised");
}

#[test]
fn the_decision_sees_each_answer_with_the_ttls_of_its_upstream_and_its_age() {
    let upstream = upstream();
    let proxy = Running::new(upstream.address, Manner::Open);
    let query = query(3, "seen.example", A);
    proxy.udp(&query);
    std::thread::sleep(Duration::from_millis(2100));
    let aged = proxy.udp(&query);
    assert!(ttls(&aged)[0] <= 298);
    let seen = proxy.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    assert_eq!(ttls(&seen[0].0), [300]);
    assert_eq!(ttls(&seen[1].0), [300]);
    assert_eq!(seen[0].1, 0);
    assert!((2..10).contains(&seen[1].1));
    assert_eq!(ttls(&aged)[0], 300 - seen[1].1);
}

#[test]
fn identical_questions_share_one_answer_and_one_release() {
    let upstream = Upstream::new(|asked, _| {
        std::thread::sleep(Duration::from_millis(200));
        vec![a(&asked.message, 300, [192, 0, 2, 1])]
    });
    let proxy = Running::new(upstream.address, Manner::Late(Duration::from_millis(10)));
    let clients: Vec<_> = (0..20).map(|_| proxy.client()).collect();
    for (number, client) in clients.iter().enumerate() {
        client.send(&query(number as u16, "same.example", A)).unwrap();
    }
    for (number, client) in clients.iter().enumerate() {
        let reply = receive(client);
        assert_eq!(id(&reply), number as u16);
        assert_eq!(rcode(&reply), 0);
    }
    assert_eq!(upstream.asked().len(), 1);
    assert_eq!(proxy.seen.lock().unwrap().len(), 1);
    assert_eq!(proxy.metrics.outcome(Outcome::Forwarded), 1);
    assert_eq!(proxy.metrics.outcome(Outcome::Joined), 19);
}

#[test]
fn questions_that_differ_in_case_or_edns_are_not_shared() {
    let upstream = Upstream::new(|asked, _| {
        std::thread::sleep(Duration::from_millis(20));
        vec![a(&asked.message, 300, [192, 0, 2, 1])]
    });
    let settings = Settings { hold_deadline: Duration::from_secs(5), ..asking(&[upstream.address]) };
    let proxy = Running::with(settings);
    let client = proxy.client();
    let questions = [
        query(1, "same.example", A),
        query(2, "SAME.example", A),
        edns_query(3, "same.example", A, 1232, false, &[]),
        edns_query(4, "same.example", A, 1232, true, &[]),
    ];
    for question in &questions {
        client.send(question).unwrap();
    }
    let mut replies: Vec<_> = questions.iter().map(|_| receive(&client)).collect();
    replies.sort_by_key(|reply| id(reply));
    for (reply, question) in replies.iter().zip(&questions) {
        assert_eq!(reply, &with_id(a(question, 300, [192, 0, 2, 1]), id(question)));
    }
    assert_eq!(upstream.asked().len(), 4);
}
