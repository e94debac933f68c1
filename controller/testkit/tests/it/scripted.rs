//! The scripted server: what it is told to say is what a client hears.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use fw_testkit::dns::scripted::Transport;
use fw_testkit::dns::wire::{Edns, Record, Response};
use fw_testkit::dns::{
    Client, Load, Name, Pace, Query, Reply, Scripted, Spoof, TcpClient, Unique, awkward, kind,
};
use fw_testkit::topology::{Lab, LabSpec, RESOLVER_ADDRESSES, SCRIPTED_ADDRESSES};

/// Longer than any answer takes on a busy machine.
const PATIENT: Duration = Duration::from_secs(20);
/// For what never comes.
const BRIEF: Duration = Duration::from_millis(200);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

struct Stage {
    server: Scripted,
    lab: Lab,
}

impl Stage {
    fn new(label: &str) -> Self {
        let spec = LabSpec::standard(label).unwrap();
        let lab = Lab::new(&spec.with_internet_addresses(&SCRIPTED_ADDRESSES.map(ip))).unwrap();
        Self { server: Scripted::at(&lab.internet().ns, &SCRIPTED_ADDRESSES.map(ip)).unwrap(), lab }
    }

    fn client(&self) -> Client {
        Client::new(&self.lab.cluster().ns, self.server.addresses()[0]).unwrap()
    }

    fn tcp(&self) -> TcpClient {
        TcpClient::connect(&self.lab.cluster().ns, self.server.addresses()[1], PATIENT).unwrap()
    }
}

fn pool(count: u16) -> Vec<IpAddr> {
    (0..count).map(|n| IpAddr::from([198, 18, n.to_be_bytes()[0], n.to_be_bytes()[1]])).collect()
}

fn addresses(ttl: u32) -> Reply {
    Reply::Addresses { addresses: awkward::addresses_of(1).to_vec(), ttl }
}

#[test]
fn rotating_answers_differ_and_come_from_the_pool() {
    let stage = Stage::new("rotating");
    let all = pool(500);
    stage.server.name("r.test", Reply::Rotating { pool: all.clone(), choose: 8, ttl: 5 }).unwrap();
    let mut client = stage.client();
    let mut seen = std::collections::BTreeSet::new();
    for id in 0..50 {
        let answer = client.ask(&Query::new(id, "R.Test", kind::A).unwrap(), PATIENT).unwrap().unwrap();
        let mut ips = answer.ips();
        ips.dedup();
        assert_eq!(ips.len(), 8);
        assert!(answer.addresses().iter().all(|(ip, ttl)| all.contains(ip) && *ttl == 5));
        seen.extend(ips);
    }
    // 50 draws of 8 out of 500 miss so many that fewer than 200 distinct ones would be a broken generator.
    assert!(seen.len() > 200, "{}", seen.len());
}

#[test]
fn numbered_names_have_addresses_of_their_own_and_ttls_are_any() {
    let stage = Stage::new("unique");
    let unique = Unique { v4: awkward::V4.parse().unwrap(), v6: awkward::V6.parse().unwrap(), ttl: 1 << 31 };
    stage.server.below("wild.test", Reply::Unique(unique)).unwrap();
    let mut client = stage.client();
    for (id, name, v4, v6) in [
        (1, "n0.wild.test", "198.18.0.0", "2001:db8:f00::"),
        (3, "a-70000.wild.test", "198.19.17.112", "2001:db8:f00::1:1170"),
    ] {
        let answer = client.ask(&Query::new(id, name, kind::A).unwrap(), PATIENT).unwrap().unwrap();
        assert_eq!(answer.addresses(), [(ip(v4), 1 << 31)]);
        assert_eq!(unique.of(&Name::parse(name).unwrap(), kind::A), Some(ip(v4)));
        let answer = client.ask(&Query::new(id + 1, name, kind::AAAA).unwrap(), PATIENT).unwrap().unwrap();
        assert_eq!(answer.addresses(), [(ip(v6), 1 << 31)]);
    }
    for (id, name) in [(5, "plain.wild.test"), (6, "n999999.wild.test"), (7, "wild.test")] {
        let answer = client.ask(&Query::new(id, name, kind::A).unwrap(), PATIENT).unwrap().unwrap();
        assert_eq!(answer.rcode(), Some(3), "{name}");
    }
}

#[test]
fn late_missing_cut_and_failing_answers_are_that() {
    let stage = Stage::new("late");
    let server = &stage.server;
    server.name("late.test", Reply::Late(Duration::from_millis(300), Box::new(addresses(60)))).unwrap();
    server.name("silent.test", Reply::Silence).unwrap();
    server.name("fail.test", Reply::Rcode(2)).unwrap();
    server.name("tcp.test", Reply::OnlyTcp(Box::new(addresses(60)))).unwrap();
    let mut client = stage.client();
    let answer = client.ask(&Query::new(1, "late.test", kind::A).unwrap(), PATIENT).unwrap().unwrap();
    assert!(answer.after >= Duration::from_millis(300), "{answer:?}");
    assert_eq!(client.ask(&Query::new(2, "silent.test", kind::A).unwrap(), BRIEF).unwrap(), None);
    let answer = client.ask(&Query::new(3, "fail.test", kind::A).unwrap(), PATIENT).unwrap().unwrap();
    assert_eq!(answer.rcode(), Some(2));
    let answer = client.ask(&Query::new(4, "tcp.test", kind::A).unwrap(), PATIENT).unwrap().unwrap();
    assert!(answer.is_truncated() && answer.ips().is_empty());
    let mut tcp = stage.tcp();
    let answer = tcp.ask(&Query::new(5, "tcp.test", kind::A).unwrap(), PATIENT).unwrap().unwrap();
    assert_eq!(answer.ips(), [awkward::addresses_of(1)[0]]);
    // On one connection a late answer does not hold up the one behind it.
    let queries = ["late.test", "tcp.test"].map(|name| Query::new(9, name, kind::A).unwrap());
    let answers = tcp.ask_all(&queries, PATIENT).unwrap();
    let names: Vec<Name> = answers.iter().map(|answer| answer.question().unwrap().name).collect();
    assert_eq!(names, [Name::parse("tcp.test").unwrap(), Name::parse("late.test").unwrap()]);
    assert_eq!(server.asked_for("TCP.test", kind::A).unwrap(), 3);
}

#[test]
fn wrong_answers_are_wrong_in_the_way_asked_for() {
    let stage = Stage::new("spoof");
    let server = &stage.server;
    let evil = ip("203.0.113.66");
    let other = SocketAddr::new(ip(SCRIPTED_ADDRESSES[0]), 5353);
    let spoofs = [
        Spoof::Id,
        Spoof::Question,
        Spoof::From(other),
        Spoof::Beside(evil),
        Spoof::Stranger(evil),
        Spoof::NoAnswer,
    ];
    for (number, spoof) in spoofs.into_iter().enumerate() {
        server.name(&format!("s{number}.test"), Reply::spoofed_then_right(spoof, addresses(60))).unwrap();
    }
    let mut client = stage.client();
    let hosts = awkward::addresses_of(1)[0];
    for (number, spoof) in (0_u16..).zip(spoofs) {
        let query = Query::new(number << 8, &format!("s{number}.test"), kind::A).unwrap();
        client.send(&query.bytes().unwrap()).unwrap();
        let [wrong, right] = [(), ()].map(|()| client.receive(PATIENT).unwrap().unwrap());
        assert_eq!((right.ips(), right.from), (vec![hosts], server.addresses()[0]));
        let [wrong_message, right_message] = [&wrong, &right].map(|answer| answer.message().unwrap());
        match spoof {
            Spoof::Id => assert_eq!(wrong.id(), Some(query.id ^ 1)),
            Spoof::Question => assert_ne!(wrong.question().unwrap().name, query.name),
            Spoof::From(_) => assert_eq!((wrong.from, &wrong.bytes), (other, &right.bytes)),
            Spoof::Beside(_) => {
                assert_eq!((wrong_message.authorities.len(), wrong_message.additionals.len()), (1, 1));
                assert_eq!(wrong_message.answers, right_message.answers);
            }
            Spoof::Stranger(_) => assert_eq!(wrong.ips(), [hosts, evil]),
            Spoof::NoAnswer => assert_eq!(wrong.bytes[2] & 0x80, 0),
        }
    }
}

#[test]
fn raw_custom_chained_and_huge_answers_arrive_byte_for_byte() {
    let stage = Stage::new("raw");
    let server = &stage.server;
    let raw: Vec<u8> = (0..=255).collect();
    server.name("raw.test", Reply::Raw(raw.clone(), false)).unwrap();
    server.name("raw-id.test", Reply::Raw(raw.clone(), true)).unwrap();
    server
        .name(
            "chain.test",
            Reply::chain(&["chain.test", "MiD.Test", "end.test"], 60, &[ip("192.0.2.1")]).unwrap(),
        )
        .unwrap();
    let text = Record::text(Name::parse("huge.test").unwrap(), 60, 64_900);
    server.name("huge.test", Reply::Records(vec![text])).unwrap();
    server
        .name(
            "custom.test",
            Reply::Custom(std::sync::Arc::new(|query: &Query, transport| {
                let rcode = if transport == Transport::Udp { 4 } else { 5 };
                vec![Response { rcode, ..Response::default() }.bytes(query, None).unwrap()]
            })),
        )
        .unwrap();
    let mut client = stage.client();
    client.send(&Query::new(1, "raw.test", kind::A).unwrap().bytes().unwrap()).unwrap();
    assert_eq!(client.receive(PATIENT).unwrap().unwrap().bytes, raw);
    let answer = client.ask(&Query::new(0x1234, "raw-id.test", kind::A).unwrap(), PATIENT).unwrap().unwrap();
    assert_eq!((&answer.bytes[..2], &answer.bytes[2..]), (&[0x12, 0x34][..], &raw[2..]));
    let answer = client.ask(&Query::new(2, "chain.test", kind::A).unwrap(), PATIENT).unwrap().unwrap();
    assert_eq!((answer.ips(), answer.message().unwrap().answers.len()), (vec![ip("192.0.2.1")], 3));
    assert!(answer.bytes.windows(4).any(|window| window == b"\x03MiD"));
    let custom = Query::new(3, "custom.test", kind::A).unwrap();
    assert_eq!(client.ask(&custom, PATIENT).unwrap().unwrap().rcode(), Some(4));
    let mut tcp = stage.tcp();
    assert_eq!(tcp.ask(&custom, PATIENT).unwrap().unwrap().rcode(), Some(5));
    let huge = Query::new(4, "huge.test", kind::TXT).unwrap();
    assert!(tcp.ask(&huge, PATIENT).unwrap().unwrap().bytes.len() > 65_000);
    assert!(client.ask(&huge, PATIENT).unwrap().unwrap().is_truncated());
    // What the server heard is what was sent, options and all; also what is no question.
    server.forget();
    let mut query = Query::new(5, "x.test", 4711).unwrap().in_mixed_case();
    query.edns = Some(Edns { size: 4000, dnssec: true, options: vec![(65_001, b"opaque".to_vec())] });
    client.ask(&query, PATIENT).unwrap().unwrap();
    client.send(b"no question").unwrap();
    client.ask(&custom, PATIENT).unwrap().unwrap();
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    assert_eq!((&asked[0].bytes, asked[0].transport), (&query.bytes().unwrap(), Transport::Udp));
    assert_eq!((&asked[1].bytes[..], asked[1].query()), (&b"no question"[..], None));
}

#[test]
fn resolvers_of_the_lab_find_the_scripted_zone_once_somebody_serves_it() {
    let lab = Lab::new(&LabSpec::standard("zone").and_then(LabSpec::with_dns).unwrap()).unwrap();
    let server = Scripted::at(&lab.internet().ns, &SCRIPTED_ADDRESSES.map(ip)).unwrap();
    server.name("www.scripted.test", addresses(60)).unwrap();
    let mut client = Client::new(&lab.cluster().ns, SocketAddr::new(ip(RESOLVER_ADDRESSES[0]), 53)).unwrap();
    let query = Query::new(1, "www.scripted.test", kind::A).unwrap();
    let answer = client.ask(&query, PATIENT).unwrap().unwrap();
    assert_eq!(answer.ips(), [awkward::addresses_of(1)[0]]);
}

/// How fast it is depends on the machine; what is asserted is that no answer is lost at full speed.
#[test]
fn a_hundred_thousand_questions_at_full_speed_are_all_answered() {
    let stage = Stage::new("speed");
    let unique = Unique { v4: awkward::V4.parse().unwrap(), v6: awkward::V6.parse().unwrap(), ttl: 60 };
    stage.server.below("wild.test", Reply::Unique(unique)).unwrap();
    let mut load = Load::new(stage.server.addresses()[0], 100_000, |number| format!("n{number}.wild.test"));
    load.pace = Pace::InFlight(64);
    let begin = Instant::now();
    let report = load.run(&stage.lab.cluster().ns).unwrap();
    println!("{:.0} answers/s in {:?}, {:?}", report.per_second(), begin.elapsed(), report.latency);
    assert_eq!((report.answered, report.failed, report.unanswered), (100_000, 0, 0));
    assert_eq!((stage.server.questions(), stage.server.answers()), (100_000, 100_000));
    let [median, most] = [50.0, 99.0].map(|percent| report.latency.percentile(percent));
    assert!(Duration::ZERO < median && median <= most && report.latency.len() == 100_000);
}
