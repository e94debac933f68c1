//! Many questions on one connection.

use std::io::Write as _;
use std::net::Shutdown;
use std::time::Duration;

use fw_dns::Settings;
use fw_dns::config::Limits;
use fw_dns::metrics::Outcome;

use crate::message::{A, AAAA, TXT, a, answer, empty, id, query, rcode, read, record};
use crate::running::{Manner, Running, asking, framed, read_framed, wait_until};
use crate::upstream::Upstream;

#[test]
fn a_and_aaaa_pipelined_with_a_split_length_prefix_are_both_answered() {
    let upstream = Upstream::answering(|query| a(query, 60, [192, 0, 2, 1]));
    let proxy = Running::new(upstream.address, Manner::Open);
    let bytes = [framed(&query(1, "both.example", A)), framed(&query(2, "both.example", AAAA))].concat();
    let second = framed(&query(1, "both.example", A)).len();
    for split in 1..bytes.len() {
        // Every split of the second prefix, and some others, as each costs two packets.
        if split > 3 && (split < second - 2 || split > second + 3) {
            continue;
        }
        let mut stream = proxy.connect();
        stream.set_nodelay(true).unwrap();
        stream.write_all(&bytes[..split]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        stream.write_all(&bytes[split..]).unwrap();
        let mut ids = [id(&read_framed(&mut stream)), id(&read_framed(&mut stream))];
        ids.sort_unstable();
        assert_eq!(ids, [1, 2], "split at {split}");
    }
}

#[test]
fn answers_come_as_they_are_there_not_as_they_were_asked() {
    let upstream = Upstream::new(|asked, voice| {
        let reply = a(&asked.message, 0, [192, 0, 2, 1]);
        if asked.message[13] == b's' {
            let (voice, from) = (voice.clone(), asked.from);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                voice.say(&reply, from);
            });
            return Vec::new();
        }
        vec![reply]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    let mut stream = proxy.connect();
    stream.write_all(&framed(&query(1, "slow.example", A))).unwrap();
    stream.write_all(&framed(&query(2, "quick.example", A))).unwrap();
    assert_eq!(id(&read_framed(&mut stream)), 2);
    assert_eq!(id(&read_framed(&mut stream)), 1);
}

#[test]
fn a_client_that_ends_its_side_gets_all_its_answers() {
    let upstream = Upstream::new(|asked, _| {
        std::thread::sleep(Duration::from_millis(50));
        vec![a(&asked.message, 0, [192, 0, 2, 1])]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    let mut stream = proxy.connect();
    for number in 0..5 {
        stream.write_all(&framed(&query(number, &format!("n{number}.example"), A))).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut ids: Vec<_> = (0..5).map(|_| id(&read_framed(&mut stream))).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4]);
    assert_eq!(std::io::Read::read(&mut stream, &mut [0; 1]).unwrap(), 0, "then it is closed");
}

#[test]
fn a_thousand_questions_on_one_connection_are_answered_within_the_bound() {
    let upstream = Upstream::answering(|query| a(query, 0, [192, 0, 2, 1]));
    let limits = Limits { questions_per_connection: 8, ..Limits::default() };
    let proxy = Running::with(Settings { limits, ..asking(&[upstream.address]) });
    let mut stream = proxy.connect();
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for number in 0..1000_u16 {
            writer.write_all(&framed(&query(number, &format!("n{number}.example"), A))).unwrap();
        }
    });
    let mut ids: Vec<_> = (0..1000).map(|_| id(&read_framed(&mut stream))).collect();
    writing.join().unwrap();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..1000));
}

#[test]
fn a_client_that_takes_no_answers_is_not_read_for_ever() {
    let long = |query: &[u8]| {
        let text = [&[255][..], &[b'y'; 255]].concat();
        answer(query, &vec![record(TXT, 60, &text.repeat(30)); 8])
    };
    let upstream = Upstream::new(move |asked, _| {
        let mut cut = empty(&asked.message, 0);
        cut[2] |= 2;
        vec![if asked.tcp { long(&asked.message) } else { cut }]
    });
    let limits = Limits { idle: Duration::from_millis(500), connection_bytes: 4 << 20, ..Limits::default() };
    let proxy = Running::with(Settings { limits, ..asking(&[upstream.address]) });
    let mut stream = proxy.connect();
    // Each answer is 60 KiB: the kernel's buffers take a few MiB of 180 MiB, the proxy a few hundred KiB more.
    for number in 0..3000_u16 {
        if stream.write_all(&framed(&query(number, "huge.example", TXT))).is_err() {
            break;
        }
        assert!(proxy.metrics.connection_bytes.get() <= 4 << 20);
    }
    wait_until(|| proxy.metrics.connections.get() == 0, || "still open".to_owned());
    assert_eq!(proxy.metrics.connection_bytes.get(), 0);
    assert!(proxy.outcomes() < 1000, "{} questions were read", proxy.outcomes());
    wait_until(|| proxy.metrics.waiting.get() == 0, || "somebody waits".to_owned());
}

#[test]
fn a_connection_that_breaks_off_leaves_nothing_behind() {
    let upstream = Upstream::new(|asked, _| {
        std::thread::sleep(Duration::from_millis(50));
        vec![a(&asked.message, 0, [192, 0, 2, 1])]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    for number in 0..5_u16 {
        let mut stream = proxy.connect();
        stream.write_all(&framed(&query(number, &format!("gone{number}.example"), A))).unwrap();
        let reset = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &reset).unwrap();
    }
    proxy.wait_for(Outcome::DroppedClient, 1);
    wait_until(|| proxy.metrics.connections.get() == 0, || "still open".to_owned());
    wait_until(|| proxy.metrics.waiting.get() == 0, || "somebody waits".to_owned());
}

#[test]
fn a_question_longer_than_a_datagram_is_asked_by_tcp() {
    let upstream = Upstream::answering(|query| a(query, 0, [192, 0, 2, 1]));
    let proxy = Running::new(upstream.address, Manner::Open);
    let padding = [&[0, 12, 0x08, 0][..], &[0; 2048]].concat();
    let query = crate::message::edns_query(1, "padded.example", A, 1232, false, &padding);
    let reply = proxy.tcp(&query);
    assert_eq!(rcode(&reply), 0);
    assert_eq!(read(&reply).answers.len(), 1);
    let asked = upstream.asked();
    assert!(asked.len() == 1 && asked[0].tcp);
}
