//! Forged answers, broken questions, and everything in between.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use fw_dns::Settings;
use fw_dns::metrics::{Outcome, Spoof};

use crate::message::{A, TXT, a, answer, edns_query, id, query, question_end, rcode, record, with_id};
use crate::running::{Manner, Running, asking, receive, wait_until};
use crate::upstream::Upstream;

const GOOD: [u8; 4] = [192, 0, 2, 1];
const BAD: [u8; 4] = [203, 0, 113, 66];

#[test]
fn forged_answers_are_counted_by_reason_and_the_true_one_is_awaited() {
    let upstream = Upstream::new(|asked, voice| {
        let query = &asked.message;
        let forged = a(query, 300, BAD);
        for step in 1..=50_u16 {
            voice.say(&with_id(forged.clone(), id(query).wrapping_add(step)), asked.from);
        }
        // The same letters in another case are not the question that was asked.
        let mut other_case = forged.clone();
        other_case[13] ^= 0x20;
        voice.say(&other_case, asked.from);
        let mut other_type = forged.clone();
        let end = question_end(query);
        other_type[end - 3] = 28;
        voice.say(&other_type, asked.from);
        let mut two_questions = forged.clone();
        two_questions[5] = 2;
        voice.say(&two_questions, asked.from);
        let mut no_answer = forged.clone();
        no_answer[2] &= 0x7f;
        voice.say(&no_answer, asked.from);
        voice.say(&forged[..forged.len() - 3], asked.from);
        voice.say(&forged[..5], asked.from);
        voice.say(&[], asked.from);
        // From another port of the right address: the kernel keeps it from a connected socket.
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.send_to(&forged, asked.from).unwrap();
        // And from another address with the right port.
        if let Ok(stranger) = UdpSocket::bind(("127.0.0.2", 0)) {
            stranger.send_to(&forged, asked.from).unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
        vec![a(query, 300, GOOD)]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    let query = query(3, "Bank.example", A);
    assert_eq!(proxy.udp(&query), a(&query, 300, GOOD));
    assert_eq!(proxy.metrics.spoofs(Spoof::Id), 50);
    assert_eq!(proxy.metrics.spoofs(Spoof::Question), 3);
    assert_eq!(proxy.metrics.spoofs(Spoof::Malformed), 4);
    let seen = proxy.seen.lock().unwrap();
    assert!(seen.len() == 1 && seen[0].0.ends_with(&GOOD), "the decision saw the true answer alone");
}

#[test]
fn unsolicited_answers_by_the_thousand_change_nothing() {
    let upstream = Upstream::new(|asked, voice| {
        let good = a(&asked.message, 300, GOOD);
        for step in 1..=5000_u16 {
            let mut forged = a(&query(0, "other.example", A), 300, BAD);
            forged = with_id(forged, id(&good).wrapping_add(step));
            voice.say(&forged, asked.from);
            if step % 100 == 0 {
                // The receiver must keep up, or the kernel drops some and the count is lower.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        vec![good]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    let query = query(3, "bank.example", A);
    assert_eq!(proxy.udp(&query), a(&query, 300, GOOD));
    let counted = proxy.metrics.spoofs(Spoof::Id);
    assert!((4000..=5000).contains(&counted), "{counted} of 5000 counted");
    assert_eq!(proxy.seen.lock().unwrap().len(), 1);
    assert_eq!(proxy.metrics.cache_entries.get(), 1);
}

#[test]
fn forged_answers_by_tcp_are_passed_over_too() {
    let upstream = Upstream::new(|asked, _| {
        let good = a(&asked.message, 300, GOOD);
        if !asked.tcp {
            let mut cut = answer(&asked.message, &[]);
            cut[2] |= 2;
            return vec![cut];
        }
        let forged = a(&asked.message, 300, BAD);
        let mut other_case = forged.clone();
        other_case[13] ^= 0x20;
        vec![with_id(forged, id(&good).wrapping_add(1)), other_case, good]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    let query = query(3, "bank.example", A);
    assert_eq!(proxy.udp(&query), a(&query, 300, GOOD));
    assert_eq!(proxy.metrics.spoofs(Spoof::Id), 1);
    assert_eq!(proxy.metrics.spoofs(Spoof::Question), 1);
}

#[test]
fn an_answer_after_the_timeout_is_not_believed() {
    let upstream = Upstream::new(|asked, _| {
        std::thread::sleep(Duration::from_millis(500));
        vec![a(&asked.message, 300, BAD)]
    });
    let settings = Settings {
        try_timeout: Duration::from_millis(100),
        timeout: Duration::from_millis(200),
        ..asking(&[upstream.address])
    };
    let proxy = Running::with(settings);
    assert_eq!(rcode(&proxy.udp(&query(3, "late.example", A))), 2);
    std::thread::sleep(Duration::from_millis(600));
    assert!(proxy.seen.lock().unwrap().is_empty());
    assert_eq!(proxy.metrics.cache_entries.get(), 0);
    assert_eq!(proxy.metrics.outcome(Outcome::Upstream), 1);
}

#[test]
fn a_slow_answer_still_counts_while_the_next_try_runs() {
    let first = AtomicU16::new(0);
    let upstream = Upstream::new(move |asked, voice| {
        if first.fetch_add(1, Ordering::Relaxed) == 0 {
            let (voice, from, answer) = (voice.clone(), asked.from, a(&asked.message, 300, GOOD));
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                voice.say(&answer, from);
            });
        }
        Vec::new()
    });
    let settings = Settings { try_timeout: Duration::from_millis(200), ..asking(&[upstream.address]) };
    let proxy = Running::with(settings);
    assert_eq!(rcode(&proxy.udp(&query(3, "slow.example", A))), 0);
}

#[test]
fn questions_that_make_no_sense_get_formerr_notimp_or_silence() {
    let upstream = Upstream::answering(|query| a(query, 0, GOOD));
    let proxy = Running::new(upstream.address, Manner::Open);
    let good = query(3, "www.example", A);
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut message = good.clone();
        change(&mut message);
        message
    };
    let formerr = [
        changed(|m| m[5] = 0),
        changed(|m| m[5] = 2),
        changed(|m| m[7] = 1),
        changed(|m| m[9] = 1),
        changed(|m| m[11] = 1),
        changed(|m| m.push(0)),
        changed(|m| m.truncate(12)),
        changed(|m| m.truncate(20)),
        changed(|m| m[12] = 0xc0),
        changed(|m| m[12] = 64),
        // A name that points to itself.
        changed(|m| m.splice(12.., [0xc0, 12, 0, 1, 0, 1]).for_each(drop)),
        // Two OPT records.
        {
            let mut twice = edns_query(3, "www.example", A, 1232, false, &[]);
            let opt = twice[twice.len() - 11..].to_vec();
            twice.extend(opt);
            twice[11] = 2;
            twice
        },
        // A name of 256 bytes.
        query(
            3,
            &[["b"; 63].concat(), ["c"; 63].concat(), ["d"; 63].concat(), ["e"; 62].concat()].join("."),
            A,
        ),
        // More than anybody asks.
        edns_query(3, "www.example", A, 1232, false, &[&[0, 12, 0x10, 0][..], &[0; 4096]].concat()),
    ];
    for query in &formerr {
        assert_eq!(rcode(&proxy.udp(query)), 1, "{query:?}");
    }
    let notimp = [
        changed(|m| m[2] |= 2 << 3),
        changed(|m| m[2] |= 4 << 3),
        changed(|m| m[2] |= 5 << 3),
        query(3, "example", 252),
        query(3, "example", 251),
    ];
    for query in &notimp {
        assert_eq!(rcode(&proxy.udp(query)), 4, "{query:?}");
    }
    assert_eq!(proxy.metrics.outcome(Outcome::Malformed), formerr.len() as u64);
    assert_eq!(proxy.metrics.outcome(Outcome::NotImplemented), notimp.len() as u64);
    // Answers, and what has no header, get no answer: that could go on for ever.
    let client = proxy.client();
    let silent = [changed(|m| m[2] |= 0x80), good[..11].to_vec(), vec![1], Vec::new()];
    for query in &silent {
        client.send(query).unwrap();
    }
    client.send(&good).unwrap();
    assert_eq!(receive(&client), a(&good, 0, GOOD), "the first and only thing that comes back");
    assert_eq!(proxy.metrics.outcome(Outcome::DroppedNoQuestion), silent.len() as u64);
    assert_eq!(upstream.asked().len(), 1);
}

#[test]
fn every_truncation_and_every_changed_byte_of_a_question_is_survived() {
    let upstream = Upstream::answering(|query| a(query, 0, GOOD));
    let settings = Settings { try_timeout: Duration::from_millis(100), ..asking(&[upstream.address]) };
    let proxy = Running::with(Settings { timeout: Duration::from_millis(200), ..settings });
    let whole = edns_query(3, "www.example.com", A, 1232, true, &[0, 3, 0, 0]);
    let client = proxy.client();
    let mut sent = 0;
    for end in 0..whole.len() {
        client.send(&whole[..end]).unwrap();
        sent += 1;
    }
    for at in 0..whole.len() {
        for value in [0, 1, 0x3f, 0x40, 0x80, 0xc0, 0xff] {
            let mut changed = whole.clone();
            changed[at] = value;
            client.send(&changed).unwrap();
            sent += 1;
            if sent % 50 == 0 {
                wait_until(|| proxy.outcomes() >= sent, || format!("{} of {sent}", proxy.outcomes()));
            }
        }
    }
    wait_until(|| proxy.outcomes() >= sent, || format!("{} of {sent} have an outcome", proxy.outcomes()));
    assert_eq!(rcode(&proxy.udp(&query(9, "alive.example", A))), 0);
    assert_eq!(proxy.outcomes(), sent + 1);
    assert_eq!(proxy.metrics.waiting.get(), 0);
    assert_eq!(proxy.metrics.in_flight.get(), 0);
}

#[test]
fn every_truncation_and_every_changed_byte_of_an_answer_is_survived() {
    let number = AtomicU16::new(0);
    let make = |query: &[u8]| {
        let mut message = answer(
            query,
            &[record(5, 60, b"\x01a\xc0\x0c"), record(A, 60, &GOOD), record(TXT, 60, b"\x03abc")],
        );
        message[11] = 1;
        message.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
        message
    };
    let length = make(&query(0, "www.example", A)).len();
    let upstream = Upstream::new(move |asked, voice| {
        let good = make(&asked.message);
        let number = usize::from(number.fetch_add(1, Ordering::Relaxed));
        let mut bad = good.clone();
        if number < length {
            bad.truncate(number);
        } else {
            let at = 2 + (number - length) % (length - 2);
            bad[at] ^= [0xff, 0x01, 0x80, 0xc0][(number - length) / (length - 2) % 4];
        }
        voice.say(&bad, asked.from);
        vec![good]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    for number in 0..length * 5 {
        let reply = proxy.udp(&query(number as u16, "www.example", A));
        assert!(reply.len() >= 12);
    }
    assert_eq!(proxy.metrics.waiting.get(), 0);
}

#[test]
fn compression_loops_and_lying_counts_are_survived() {
    let upstream = Upstream::new(|asked, voice| {
        let query = &asked.message;
        let end = question_end(query) as u8;
        let mut looped = answer(query, &[vec![0xc0, end, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 1, 2, 3, 4]]);
        voice.say(&looped, asked.from);
        looped[6..12].fill(0xff);
        voice.say(&looped, asked.from);
        vec![a(query, 60, GOOD)]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    // The loop in an owner's name is the decision's to see; the proxy only walks over it.
    assert_eq!(rcode(&proxy.udp(&query(3, "loop.example", A))), 0);
    assert_eq!(rcode(&proxy.udp(&query(4, "loop.example", A))), 0);
}

#[test]
fn random_bytes_are_survived_on_both_sides() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let garbage: Vec<Vec<u8>> =
        (0..500).map(|_| (0..usize::from(random())).map(|_| random()).collect()).collect();
    let for_upstream = garbage.clone();
    let upstream = Upstream::new(move |asked, voice| {
        for bytes in &for_upstream[..100] {
            let mut bytes = bytes.clone();
            if bytes.len() > 2 {
                bytes[..2].copy_from_slice(&asked.message[..2]);
            }
            voice.say(&bytes, asked.from);
        }
        vec![a(&asked.message, 60, GOOD)]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    let client = proxy.client();
    for bytes in &garbage {
        client.send(bytes).unwrap();
    }
    assert_eq!(rcode(&proxy.udp(&query(9, "alive.example", A))), 0);
}
