//! Questions that wait together are taken together, and still each is answered by itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use fw_dns::config::Settings;
use fw_dns::metrics::Outcome;
use fw_dns::{Ask, Config, Decision, Metrics, NoOriginal, Proxy, Question, Release};
use tokio::net::UdpSocket;

use crate::message::{A, a, query};
use crate::running::{PATIENCE, asking};
use crate::upstream::Upstream;

/// More than two batches.
const QUESTIONS: u16 = 100;

struct Open;

impl Decision for Open {
    fn ask(&self, _: &Question<'_>) -> Ask {
        Ask::Forward
    }

    async fn release(&self, _: &[u8], _: u32) -> Release {
        Release::Send { ttl_max: None }
    }
}

/// One datagram, whom it is sent to, and the answer it must get.
struct Case {
    question: Vec<u8>,
    server: Ipv4Addr,
    expected: Vec<u8>,
}

/// Sends all before the proxy runs, so that they wait in its socket together; then each client, which has a socket of
/// its own, must get its own answer from the address it asked.
fn ask_at_once(config: &Config, cases: Vec<Case>) -> Arc<Metrics> {
    let proxy = Proxy::bind(config).unwrap();
    let (port, metrics) = (proxy.port(), proxy.metrics());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clients = async {
        let mut sockets = Vec::new();
        for case in cases {
            let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            socket.send_to(&case.question, (case.server, port)).await.unwrap();
            sockets.push((socket, case));
        }
        tokio::select! {
            result = proxy.run(Rc::new(Open), Rc::new(NoOriginal)) => result.unwrap(),
            () = async {
                for (socket, case) in sockets {
                    let mut buffer = [0; 1500];
                    let received = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await;
                    let (length, from) = received.unwrap().unwrap();
                    assert_eq!(from, SocketAddr::from((case.server, port)));
                    assert_eq!(buffer[..length], case.expected);
                }
            } => {}
        }
    };
    runtime.block_on(clients);
    metrics
}

/// A question with an id, a length and an answer of its own.
fn ordinary(number: u16, server: Ipv4Addr) -> Case {
    let labels = "abcdefgh.".repeat(usize::from(number % 20));
    let question = query(number, &format!("n{number}.{labels}example"), A);
    let expected = a(&question, 60, [192, 0, 2, 1]);
    Case { question, server, expected }
}

/// Longer than the room for it.
fn oversized(number: u16, server: Ipv4Addr) -> Case {
    let mut question = query(number, "long.example", A);
    question.resize(9000, 0);
    // Its id, QR and RD, RA and FORMERR, no sections.
    let mut expected = vec![0, 0, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
    expected[..2].copy_from_slice(&number.to_be_bytes());
    Case { question, server, expected }
}

#[test]
fn of_questions_that_wait_together_each_gets_its_own_answer_from_the_address_it_asked() {
    let netns = fw_testkit::Netns::new("dns-bursts").unwrap();
    netns.ip("link set lo up\naddress add 198.51.100.7/32 dev lo").unwrap();
    let run = || {
        let upstream = Upstream::answering(|query| a(query, 60, [192, 0, 2, 1]));
        let config = Config { port: 0, settings: asking(&[upstream.address]), ..Config::default() };
        let servers = [[127, 0, 0, 1], [127, 0, 0, 9], [198, 51, 100, 7]].map(Ipv4Addr::from);
        let case = |number: u16| {
            let server = servers[usize::from(number / 2) % servers.len()];
            if number % 10 == 9 { oversized(number, server) } else { ordinary(number, server) }
        };
        let metrics = ask_at_once(&config, (0..QUESTIONS).map(case).collect());
        assert_eq!(metrics.outcome(Outcome::Forwarded), 90);
        assert_eq!(metrics.outcome(Outcome::Malformed), 10);
        assert_eq!(metrics.unsent.get(), 0);
        assert_eq!(upstream.asked().len(), 90, "each was asked once");
    };
    netns.run(run).unwrap();
}

#[test]
fn questions_that_wait_together_are_asked_of_the_next_upstream_when_the_first_is_closed() {
    let closed = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let upstream = Upstream::answering(|query| a(query, 60, [192, 0, 2, 1]));
    let settings = Settings { try_timeout: PATIENCE, ..asking(&[closed, upstream.address]) };
    let config = Config { port: 0, addresses: vec![Ipv4Addr::LOCALHOST.into()], settings };
    let cases = (0..QUESTIONS).map(|number| ordinary(number, Ipv4Addr::LOCALHOST)).collect();
    let metrics = ask_at_once(&config, cases);
    assert_eq!(metrics.outcome(Outcome::Forwarded), u64::from(QUESTIONS));
    assert_eq!(upstream.asked().len(), usize::from(QUESTIONS));
    assert!(metrics.failed_tries.get() > 0, "the closed port was noticed");
}
