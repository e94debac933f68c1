//! Upstreams that fail.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fw_dns::Settings;
use fw_dns::metrics::Outcome;

use crate::message::{A, a, empty, query, rcode};
use crate::running::{Manner, Running, asking};
use crate::upstream::Upstream;

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn silence_is_servfail_after_two_tries_within_five_seconds() {
    let upstream = Upstream::silent();
    let proxy = Running::new(upstream.address, Manner::Open);
    let began = Instant::now();
    assert_eq!(rcode(&proxy.udp(&query(1, "www.example", A))), 2);
    assert!(began.elapsed() >= Duration::from_secs(4), "two tries of two seconds");
    assert!(began.elapsed() < Duration::from_secs(8));
    assert_eq!(upstream.asked().len(), 2);
    assert_ne!(upstream.asked()[0].message[..2], upstream.asked()[1].message[..2], "with another id");
    assert_eq!(proxy.metrics.outcome(Outcome::Upstream), 1);
}

#[test]
fn the_second_upstream_answers_for_a_silent_first_which_is_then_asked_last() {
    let silent = Upstream::silent();
    let good = Upstream::answering(|query| a(query, 0, [192, 0, 2, 2]));
    let settings =
        Settings { try_timeout: Duration::from_millis(200), ..asking(&[silent.address, good.address]) };
    let proxy = Running::with(settings);
    for number in 0..3 {
        assert_eq!(rcode(&proxy.udp(&query(number, "www.example", A))), 0);
    }
    assert_eq!(silent.asked().len(), 3);
    let began = Instant::now();
    assert_eq!(rcode(&proxy.udp(&query(9, "www.example", A))), 0);
    assert!(began.elapsed() < Duration::from_millis(200), "the failing one is remembered");
    assert_eq!(silent.asked().len(), 3);
}

#[test]
fn an_upstream_that_recovers_is_asked_first_again() {
    let broken = Arc::new(AtomicBool::new(true));
    let for_script = Arc::clone(&broken);
    let first = Upstream::new(move |asked, _| {
        let silent = for_script.load(Ordering::Relaxed);
        if silent { Vec::new() } else { vec![a(&asked.message, 0, [192, 0, 2, 1])] }
    });
    let second = Upstream::answering(|query| a(query, 0, [192, 0, 2, 2]));
    let settings =
        Settings { try_timeout: Duration::from_millis(50), ..asking(&[first.address, second.address]) };
    let proxy = Running::with(settings);
    for number in 0..4 {
        assert!(proxy.udp(&query(number, "www.example", A)).ends_with(&[2]));
    }
    broken.store(false, Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !proxy.udp(&query(5, "www.example", A)).ends_with(&[1]) {
        assert!(Instant::now() < deadline, "the first is never asked again");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_closed_port_is_known_at_once() {
    let good = Upstream::answering(|query| a(query, 0, [192, 0, 2, 2]));
    let proxy = Running::with(asking(&[nobody(), good.address]));
    let began = Instant::now();
    for number in 0..5 {
        assert_eq!(rcode(&proxy.udp(&query(number, "www.example", A))), 0);
    }
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waited for a timeout");
    let alone = Running::with(asking(&[nobody()]));
    let began = Instant::now();
    assert_eq!(rcode(&alone.udp(&query(1, "www.example", A))), 2);
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn servfail_and_refused_are_asked_of_the_next_upstream() {
    for code in [2, 5] {
        let bad = Upstream::answering(move |query| empty(query, code));
        let good = Upstream::answering(|query| a(query, 0, [192, 0, 2, 2]));
        let proxy = Running::with(asking(&[bad.address, good.address]));
        assert_eq!(rcode(&proxy.udp(&query(1, "www.example", A))), 0);
        let alone = Running::with(asking(&[bad.address]));
        assert_eq!(rcode(&alone.udp(&query(1, "www.example", A))), code, "of one upstream it passes");
        let both = Running::with(asking(&[bad.address, nobody()]));
        assert_eq!(rcode(&both.udp(&query(1, "www.example", A))), code, "and if no other answers");
    }
}

#[test]
fn the_proxy_never_asks_itself() {
    let settings = |proxy_port| asking(&[SocketAddr::from(([127, 0, 0, 1], proxy_port))]);
    let proxy = Running::with(asking(&[]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(proxy.handle.update(settings(proxy.port))).unwrap();
    crate::running::wait_until(
        || {
            proxy.udp(&query(1, "www.example", A));
            proxy.metrics.outcome(Outcome::Loop) > 0
        },
        || "the loop is not seen".to_owned(),
    );
    assert_eq!(rcode(&proxy.udp(&query(1, "www.example", A))), 2);
    assert_eq!(proxy.metrics.in_flight.get(), 0);
    // Any address of the box, as a client may choose one when no upstream is configured.
    for own in [[127, 0, 0, 1], [127, 9, 9, 9]] {
        let clients_choice = Running::choosing(&[SocketAddr::from((own, proxy.port))]);
        drop(clients_choice);
    }
}

#[test]
fn a_tcp_retry_that_fails_is_servfail_or_the_next_upstreams_answer() {
    let cut = |query: &[u8]| {
        let mut cut = empty(query, 0);
        cut[2] |= 2;
        cut
    };
    let only_udp = Upstream::answering(cut);
    let settings = Settings { try_timeout: Duration::from_millis(300), ..asking(&[only_udp.address]) };
    let proxy = Running::with(settings.clone());
    assert_eq!(rcode(&proxy.udp(&query(1, "www.example", A))), 2);
    let good = Upstream::answering(|query| a(query, 0, [192, 0, 2, 2]));
    let proxy = Running::with(Settings {
        upstreams: asking(&[only_udp.address, good.address]).upstreams,
        ..settings
    });
    assert_eq!(rcode(&proxy.udp(&query(1, "www.example", A))), 0);
}
