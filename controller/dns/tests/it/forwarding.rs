//! Questions and answers pass bit for bit.

use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

use fw_dns::metrics::{Outcome, Transport};
use fw_dns::{Settings, health};

use crate::message::{
    A, AAAA, TXT, a, answer, edns_query, empty, id, name, query, question_end, rcode, read, record,
    truncated, with_id,
};
use crate::running::{Manner, PATIENCE, Running, asking, receive, same_but_id};
use crate::upstream::Upstream;

#[test]
fn an_answer_reaches_the_client_as_the_upstream_wrote_it() {
    let upstream = Upstream::answering(|query| a(query, 300, [192, 0, 2, 1]));
    let proxy = Running::new(upstream.address, Manner::Open);
    let query = query(7, "www.example.com", A);
    let expected = a(&query, 300, [192, 0, 2, 1]);
    assert_eq!(proxy.udp(&query), expected);
    assert_eq!(proxy.tcp(&with_id(query, 8)), with_id(expected, 8), "the same by TCP");
}

#[test]
fn a_question_reaches_the_upstream_bit_for_bit_with_another_id_and_port() {
    let upstream = Upstream::answering(|query| a(query, 0, [192, 0, 2, 1]));
    let proxy = Running::new(upstream.address, Manner::Open);
    // NSID, a cookie, a client subnet, and a code nobody has assigned; DO; mixed case; an unknown type.
    let options = [
        0, 3, 0, 0, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2, 0xfd, 0xe9, 0,
        1, 9,
    ];
    let queries = [
        edns_query(1, "eXaMpLe.CoM", A, 4096, true, &options),
        edns_query(2, "_sip._tcp.xn--bcher-kva.example", 65_280, 1232, false, &[]),
        query(3, &format!("{}.example", "a".repeat(63)), 64),
        query(
            4,
            &[["b"; 63].concat(), ["c"; 63].concat(), ["d"; 63].concat(), ["e"; 61].concat()].join("."),
            A,
        ),
        query(5, ".", 2),
    ];
    for query in &queries {
        let reply = proxy.udp(query);
        assert_eq!(&reply[12..question_end(query)], &query[12..question_end(query)]);
    }
    let asked = upstream.asked();
    assert_eq!(asked.len(), queries.len());
    for (asked, query) in asked.iter().zip(&queries) {
        assert!(same_but_id(&asked.message, query), "{query:?} came as {:?}", asked.message);
    }
}

#[test]
fn ids_and_ports_differ_from_question_to_question() {
    let upstream = Upstream::answering(|query| a(query, 0, [192, 0, 2, 1]));
    let proxy = Running::new(upstream.address, Manner::Open);
    let client = proxy.client();
    for number in 0..600 {
        client.send(&query(1, &format!("n{number}.example"), A)).unwrap();
        assert_eq!(id(&receive(&client)), 1);
    }
    let asked = upstream.asked();
    let distinct = |values: Vec<u16>| values.into_iter().collect::<std::collections::BTreeSet<_>>().len();
    let ids = distinct(asked.iter().map(|asked| id(&asked.message)).collect());
    // 600 of 65,536: 2.7 collisions are expected, 30 never happen.
    assert!(ids > 570, "only {ids} ids for 600 questions");
    let ports = distinct(asked.iter().map(|asked| asked.from.port()).collect());
    assert!(ports >= 4, "only {ports} ports for 600 questions");
}

#[test]
fn unknown_records_and_options_in_answers_pass() {
    let odd = |query: &[u8]| {
        let mut message = answer(query, &[record(65_281, 60, &[0xde, 0xad]), record(A, 60, &[192, 0, 2, 7])]);
        message[11] = 1;
        message.extend([0, 0, 41, 4, 0xd0, 0, 0, 0x80, 0, 0, 6, 0, 15, 0, 2, 0, 3]);
        message
    };
    let upstream = Upstream::answering(odd);
    let proxy = Running::new(upstream.address, Manner::Open);
    let query = edns_query(77, "odd.example", 65_281, 1232, true, &[0, 3, 0, 0]);
    assert_eq!(proxy.udp(&query), odd(&query));
}

#[test]
fn the_client_sees_an_answer_from_the_address_it_asked() {
    let upstream = Upstream::answering(|query| a(query, 60, [192, 0, 2, 1]));
    let proxy = {
        let mut config = fw_dns::Config { port: 0, ..fw_dns::Config::default() };
        config.settings = asking(&[upstream.address]);
        // Bound to the wildcard, as in the field, in a namespace where nobody else can reach it.
        config
    };
    let netns = fw_testkit::Netns::new("dns-pktinfo").unwrap();
    netns
        .ip("link set lo up\naddress add 198.51.100.7/32 dev lo\naddress add 2001:db8::7/128 dev lo")
        .unwrap();
    netns
        .run(|| {
            let bound = fw_dns::Proxy::bind(&proxy).unwrap();
            let port = bound.port();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let clients = async {
                for server in ["127.0.0.1", "127.0.0.9", "198.51.100.7", "::1", "2001:db8::7"] {
                    let server = std::net::SocketAddr::new(server.parse().unwrap(), port);
                    let any = if server.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
                    let socket = tokio::net::UdpSocket::bind(any).await.unwrap();
                    socket.send_to(&query(5, "www.example", A), server).await.unwrap();
                    let mut buffer = [0; 512];
                    let received = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await;
                    assert_eq!(received.unwrap().unwrap().1, server);
                }
            };
            let open = std::rc::Rc::new(Refusing);
            runtime.block_on(async {
                tokio::select! {
                    result = bound.run(open, std::rc::Rc::new(fw_dns::NoOriginal)) => result.unwrap(),
                    () = clients => {}
                }
            });
        })
        .unwrap();
}

/// The namespace has no upstream, so every question is refused; an answer is an answer.
struct Refusing;

impl fw_dns::Decision for Refusing {
    fn ask(&self, _: &fw_dns::Question<'_>) -> fw_dns::Ask {
        fw_dns::Ask::Refuse(5)
    }

    async fn release(&self, _: &[u8], _: u32) -> fw_dns::Release {
        fw_dns::Release::Hold
    }
}

#[test]
fn a_refused_question_is_answered_here_and_asked_nobody() {
    let upstream = Upstream::answering(|query| a(query, 60, [192, 0, 2, 1]));
    let proxy = Running::new(upstream.address, Manner::Refuse(5));
    let query = edns_query(9, "Secret.Tunnel.example", TXT, 4096, true, &[]);
    let reply = proxy.udp(&query);
    assert_eq!(rcode(&reply), 5);
    assert_eq!(reply[12..question_end(&reply)], query[12..question_end(&query)]);
    let read = read(&reply);
    assert!(read.metadata.recursion_available && read.metadata.recursion_desired);
    let edns = read.edns.expect("a client with EDNS gets an OPT record");
    assert!(edns.flags().dnssec_ok);
    assert_eq!(edns.max_payload(), 1232);
    assert!(upstream.asked().is_empty());
    assert_eq!(proxy.metrics.queries(Transport::Udp, Outcome::Refused), 1);
}

#[test]
fn without_edns_512_bytes_are_the_limit_and_tcp_has_the_rest() {
    let addresses = |query: &[u8]| {
        let records: Vec<_> = (0..60).map(|last| record(A, 60, &[192, 0, 2, last])).collect();
        answer(query, &records)
    };
    let upstream = Upstream::new(move |asked, _| {
        let whole = addresses(&asked.message);
        if asked.tcp || whole.len() <= 512 {
            return vec![whole];
        }
        let mut cut = empty(&asked.message, 0);
        cut[2] |= 2;
        vec![cut]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    let query = query(3, "many.example", A);
    let reply = proxy.udp(&query);
    assert!(truncated(&reply) && reply.len() <= 512);
    assert_eq!(read(&reply).answers.len(), 0);
    let whole = proxy.tcp(&query);
    assert_eq!(read(&whole).answers.len(), 60);
    assert_eq!(proxy.metrics.tcp_retries.get(), 1, "the second answer came from the cache");
    assert_eq!(proxy.metrics.truncated.get(), 1);
}

#[test]
fn sixty_addresses_fit_into_1232_bytes() {
    let upstream = Upstream::answering(|query| {
        let records: Vec<_> = (0..60).map(|last| record(A, 60, &[192, 0, 2, last])).collect();
        answer(query, &records)
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    let reply = proxy.udp(&edns_query(3, "many.example", A, 1232, false, &[]));
    assert!(!truncated(&reply));
    assert_eq!(read(&reply).answers.len(), 60);
}

#[test]
fn udp_answers_obey_the_client_and_the_option() {
    let long = |query: &[u8]| answer(query, &vec![record(TXT, 60, &[&[200][..], &[b'x'; 200]].concat()); 15]);
    let upstream = Upstream::answering(long);
    let proxy = Running::new(upstream.address, Manner::Open);
    let big = edns_query(3, "long.example", TXT, 4096, false, &[]);
    assert!(truncated(&proxy.udp(&big)), "3,200 bytes are more than the default of 1,232");
    let settings = Settings { udp_size: 4096, ..asking(&[upstream.address]) };
    let generous = Running::with(settings);
    assert!(!truncated(&generous.udp(&big)));
    assert!(truncated(&generous.udp(&edns_query(4, "long.example", TXT, 3000, false, &[]))));
}

#[test]
fn answers_of_64_kib_pass_by_tcp() {
    let huge = |query: &[u8]| {
        let text = [&[255][..], &[b'y'; 255]].concat();
        answer(query, &vec![record(TXT, 60, &text.repeat(30)); 8])
    };
    let upstream = Upstream::new(move |asked, _| {
        let mut cut = empty(&asked.message, 0);
        cut[2] |= 2;
        vec![if asked.tcp { huge(&asked.message) } else { cut }]
    });
    let proxy = Running::new(upstream.address, Manner::Open);
    let query = edns_query(3, "huge.example", TXT, 1232, false, &[]);
    let reply = proxy.tcp(&query);
    assert!(reply.len() > 60_000 && reply == huge(&query));
}

#[test]
fn the_proxy_answers_its_own_question_over_each_transport_and_family() {
    let upstream = Upstream::silent();
    let proxy = Running::new(upstream.address, Manner::Refuse(5));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let armed = runtime.block_on(health::probe(proxy.port));
    assert_eq!(armed, health::Armed { udp4: true, tcp4: true, udp6: true, tcp6: true });
    assert_eq!(proxy.metrics.outcome(Outcome::Health), 4);
    let port = proxy.port;
    drop(proxy);
    assert_eq!(runtime.block_on(health::probe(port)), health::Armed::default());
}

#[test]
fn ipv6_clients_are_served() {
    let upstream =
        Upstream::answering(|query| answer(query, &[record(AAAA, 60, &Ipv6Addr::LOCALHOST.octets())]));
    let proxy = Running::new(upstream.address, Manner::Open);
    let client = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    client.connect((Ipv6Addr::LOCALHOST, proxy.port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send(&query(3, "six.example", AAAA)).unwrap();
    assert_eq!(read(&receive(&client)).answers.len(), 1);
}

#[test]
fn the_resolver_that_the_client_asked_is_asked() {
    let upstream = Upstream::answering(|query| a(query, 60, [192, 0, 2, 9]));
    let proxy = Running::start(Settings::default(), Manner::Open, Some(upstream.address));
    let query = query(3, "chosen.example", A);
    assert_eq!(rcode(&proxy.udp(&query)), 0);
    assert_eq!(rcode(&proxy.tcp(&query)), 0);
    assert_eq!(upstream.asked().len(), 1, "the second answer came from the cache");
    let unknown = Running::start(Settings::default(), Manner::Open, None);
    assert_eq!(rcode(&unknown.udp(&query)), 2);
    assert_eq!(unknown.metrics.outcome(Outcome::NoUpstream), 1);
}

#[test]
fn a_lookup_asks_as_a_client_would_but_not_the_cache() {
    let upstream = Upstream::answering(|query| a(query, 60, [192, 0, 2, 9]));
    let proxy = Running::start(Settings::default(), Manner::Open, Some(upstream.address));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let look_up = |text: &str| runtime.block_on(proxy.handle.lookup(&name(text), A)).unwrap();
    assert_eq!(rcode(&look_up("fresh.example")), 2, "nobody has been asked yet, so there is no resolver");
    assert_eq!(rcode(&proxy.udp(&query(3, "fresh.example", A))), 0);
    for _ in 0..2 {
        assert_eq!(read(&look_up("fresh.example")).answers.len(), 1);
    }
    assert_eq!(upstream.asked().len(), 3);
    assert_eq!(proxy.metrics.queries(Transport::Lookup, Outcome::Forwarded), 2);
    assert_eq!(proxy.seen.lock().unwrap().len(), 3, "each answer was released");
    assert!(runtime.block_on(proxy.handle.lookup(b"\x05short", A)).is_err());
}

#[test]
fn settings_change_while_the_proxy_runs() {
    let first = Upstream::answering(|query| a(query, 0, [192, 0, 2, 1]));
    let second = Upstream::answering(|query| a(query, 0, [192, 0, 2, 2]));
    let proxy = Running::new(first.address, Manner::Open);
    let query = query(3, "moved.example", A);
    assert!(proxy.udp(&query).ends_with(&[192, 0, 2, 1]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(proxy.handle.update(asking(&[second.address]))).unwrap();
    crate::running::wait_until(
        || proxy.udp(&query).ends_with(&[192, 0, 2, 2]),
        || "still the first".to_owned(),
    );
    drop(proxy);
    std::thread::sleep(Duration::from_millis(1));
}
