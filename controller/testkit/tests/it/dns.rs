//! The DNS servers and clients, against each other and through a lab.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fw_testkit::dns::awkward::{self, addresses_of};
use fw_testkit::dns::wire::Edns;
use fw_testkit::dns::{Authority, Client, Forwarder, Query, Resolver, Software, TcpClient, framed, kind};
use fw_testkit::topology::{
    AUTHORITY_ADDRESSES, Lab, LabSpec, PUBLIC_RESOLVER_ADDRESSES, RESOLVER_ADDRESSES,
};

/// Longer than any answer takes on a busy machine.
const PATIENT: Duration = Duration::from_secs(20);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn dns_at(text: &str) -> SocketAddr {
    SocketAddr::new(ip(text), 53)
}

fn lab(label: &str) -> Lab {
    Lab::new(&LabSpec::standard(label).and_then(LabSpec::with_dns).unwrap()).unwrap()
}

#[test]
fn a_cluster_client_gets_its_answer_from_whichever_resolver_it_asks() {
    let lab = lab("resolvers");
    let all = RESOLVER_ADDRESSES.iter().chain(&PUBLIC_RESOLVER_ADDRESSES).chain(&AUTHORITY_ADDRESSES);
    for server in all {
        let mut client = Client::new(&lab.cluster().ns, dns_at(server)).unwrap();
        for (id, kind, expected) in [(1, kind::A, addresses_of(1)[0]), (2, kind::AAAA, addresses_of(1)[1])] {
            let query = Query::new(id, awkward::PLAIN, kind).unwrap().in_mixed_case();
            let answer = client.ask(&query, PATIENT).unwrap().unwrap();
            assert_eq!((answer.rcode(), answer.ips()), (Some(0), vec![expected]), "{server}");
            assert_eq!(answer.from, dns_at(server));
            // The case of the question comes back, letter by letter.
            assert_eq!(answer.question().unwrap().name, query.name, "{server}");
            assert_eq!(answer.message().unwrap().queries.len(), 1);
        }
    }
}

#[test]
fn every_awkward_name_is_answered_as_its_documentation_says() {
    let lab = lab("awkward");
    let mut authority = Client::new(&lab.cluster().ns, dns_at(AUTHORITY_ADDRESSES[0])).unwrap();
    let mut resolver = Client::new(&lab.cluster().ns, dns_at(RESOLVER_ADDRESSES[1])).unwrap();
    let long = [awkward::label_of_63_bytes(), awkward::name_of_253_bytes()];
    assert_eq!((long[0].split('.').next().unwrap().len(), long[1].len()), (63, 253));
    let two = |n: u8| Some((addresses_of(n)[0], addresses_of(n)[1]));
    let names: [(&str, Option<(IpAddr, IpAddr)>); 12] = [
        (awkward::PLAIN, two(1)),
        (awkward::OTHER, two(2)),
        (awkward::TTL_0, two(4)),
        (awkward::TTL_1, two(5)),
        (awkward::TTL_MAX, two(6)),
        (awkward::UNDERSCORE, two(8)),
        (awkward::PUNYCODE, two(9)),
        ("a.b.wild.example.test", two(12)),
        (&long[0], two(13)),
        (&long[1], two(14)),
        (awkward::CHAIN_END, two(15)),
        (awkward::COM, two(17)),
    ];
    let mut id = 0;
    let mut ask = |client: &mut Client, name: &str, kind: u16| {
        id += 1;
        client.ask(&Query::new(id, name, kind).unwrap().with_size(1232), PATIENT).unwrap().unwrap()
    };
    for client in [&mut authority, &mut resolver] {
        for (name, expected) in names {
            let (v4, v6) = expected.unwrap();
            assert_eq!(ask(client, name, kind::A).ips(), [v4], "{name}");
            assert_eq!(ask(client, name, kind::AAAA).ips(), [v6], "{name}");
        }
        for name in [awkward::NODATA, awkward::ONLY_V6] {
            let answer = ask(client, name, kind::A);
            assert_eq!((answer.rcode(), answer.ips()), (Some(0), vec![]), "{name}");
        }
        assert!(ask(client, awkward::ONLY_V4, kind::AAAA).ips().is_empty());
        assert_eq!(ask(client, awkward::NXDOMAIN, kind::A).rcode(), Some(3));
        assert_eq!(ask(client, "www.example.org", kind::A).rcode(), Some(3), "the root is the lab's own");
        // Hints are in no A record.
        assert!(ask(client, awkward::HINTS, kind::A).ips().is_empty());
        for (name, kind, number) in [(awkward::HINTS, kind::HTTPS, 10), (awkward::SVCB_HINTS, kind::SVCB, 11)]
        {
            let answer = ask(client, name, kind);
            for address in addresses_of(number) {
                let bytes = match address {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                };
                assert!(answer.bytes.windows(bytes.len()).any(|window| window == bytes), "{name}");
            }
            assert_eq!(answer.message().unwrap().answers.len(), 1);
        }
    }
    let ttls = |answer: fw_testkit::dns::Answer| answer.addresses().into_iter().map(|(_, ttl)| ttl).collect();
    let of: [Vec<u32>; 5] = [
        ttls(ask(&mut authority, awkward::TWO_TTLS, kind::A)),
        ttls(ask(&mut authority, awkward::TWO_TTLS, kind::AAAA)),
        ttls(ask(&mut authority, awkward::TTL_0, kind::A)),
        ttls(ask(&mut authority, awkward::TTL_1, kind::A)),
        ttls(ask(&mut authority, awkward::TTL_MAX, kind::A)),
    ];
    assert_eq!(of, [[300], [5], [0], [1], [0x7fff_ffff]]);
}

#[test]
fn chains_are_followed_in_their_own_case_and_loops_end() {
    let lab = lab("chains");
    for server in [RESOLVER_ADDRESSES[0], PUBLIC_RESOLVER_ADDRESSES[1]] {
        let mut client = Client::new(&lab.cluster().ns, dns_at(server)).unwrap();
        let query = Query::new(1, awkward::CHAIN, kind::A).unwrap();
        let answer = client.ask(&query, PATIENT).unwrap().unwrap();
        assert_eq!(answer.ips(), [addresses_of(15)[0]], "{server}");
        let records = answer.message().unwrap().answers;
        assert_eq!(records.len(), 9, "{server}: eight hops and an address: {records:?}");
        assert!(
            answer.bytes.windows(4).any(|window| window == b"HoP8"),
            "{server}: {}",
            answer.bytes.escape_ascii()
        );
        let query = Query::new(2, awkward::LOOP, kind::A).unwrap();
        let answer = client.ask(&query, PATIENT).unwrap().unwrap();
        assert!(answer.ips().is_empty() && answer.rcode() != Some(3), "{server}: {answer:?}");
    }
    let mut resolver = Client::new(&lab.cluster().ns, dns_at(RESOLVER_ADDRESSES[0])).unwrap();
    let answer = resolver.ask(&Query::new(3, awkward::FOREIGN, kind::AAAA).unwrap(), PATIENT).unwrap();
    assert_eq!(answer.unwrap().ips(), [addresses_of(18)[1]]);
}

#[test]
fn answers_too_large_for_udp_are_cut_and_whole_over_tcp() {
    let lab = lab("large");
    let cluster = &lab.cluster().ns;
    for server in [AUTHORITY_ADDRESSES[1], RESOLVER_ADDRESSES[1]].map(dns_at) {
        let mut udp = Client::new(cluster, server).unwrap();
        let mut tcp = TcpClient::connect(cluster, server, PATIENT).unwrap();
        let plain = |id, kind| Query::new(id, awkward::SIXTY, kind).unwrap();
        // 512 bytes without EDNS; 1,232 hold 60 A records and not 60 AAAA records.
        let cut = udp.ask(&plain(1, kind::A), PATIENT).unwrap().unwrap();
        assert!(cut.is_truncated() && cut.bytes.len() <= 512, "{server}: {}", cut.bytes.len());
        let whole = udp.ask(&plain(2, kind::A).with_size(1232), PATIENT).unwrap().unwrap();
        assert!(!whole.is_truncated() && whole.ips().len() == 60 && whole.bytes.len() <= 1232);
        let cut = udp.ask(&plain(3, kind::AAAA).with_size(1232), PATIENT).unwrap().unwrap();
        assert!(cut.is_truncated() && cut.bytes.len() <= 1232);
        assert_eq!(tcp.ask(&plain(4, kind::AAAA), PATIENT).unwrap().unwrap().ips().len(), 60);
        let text = Query::new(5, awkward::LONG_TEXT, kind::TXT).unwrap();
        let answer = tcp.ask(&text, PATIENT).unwrap().unwrap();
        assert!(answer.bytes.len() > 5000 && !answer.is_truncated(), "{}", answer.bytes.len());
        assert!(udp.ask(&text.with_size(1232), PATIENT).unwrap().unwrap().is_truncated());
    }
}

#[test]
fn questions_are_pipelined_on_one_connection_and_length_prefixes_split() {
    let lab = lab("pipelined");
    let server = dns_at(RESOLVER_ADDRESSES[0]);
    let mut client = TcpClient::connect(&lab.cluster().ns, server, PATIENT).unwrap();
    let pair = [kind::A, kind::AAAA].map(|kind| Query::new(kind, awkward::PLAIN, kind).unwrap());
    let mut answers = client.ask_all(&pair, PATIENT).unwrap();
    answers.sort_by_key(fw_testkit::dns::Answer::id);
    assert_eq!(answers.iter().flat_map(|answer| answer.ips()).collect::<Vec<_>>(), addresses_of(1));
    let bytes: Vec<u8> = pair.iter().flat_map(|query| framed(&query.bytes().unwrap()).unwrap()).collect();
    let second = bytes.len() / 2;
    client.send_split(&bytes, &[1, second + 1], Duration::from_millis(30)).unwrap();
    for _ in 0..2 {
        let answer = client.receive(PATIENT).unwrap().unwrap();
        assert_eq!(answer.rcode(), Some(0));
        assert_eq!(answer.ips().len(), 1);
    }
}

#[test]
fn knot_and_bind_serve_the_same_zones_and_edns_reaches_bind() {
    let lab =
        Lab::new(&LabSpec::standard("bind").unwrap().with_internet_addresses(&AUTHORITY_ADDRESSES.map(ip)))
            .unwrap();
    let zones = awkward::zones().unwrap();
    let addresses = AUTHORITY_ADDRESSES.map(ip);
    {
        let _knot = Authority::new(&lab.internet().ns, &addresses, &zones).unwrap();
        let mut client = Client::new(&lab.cluster().ns, dns_at(AUTHORITY_ADDRESSES[0])).unwrap();
        for (id, name, number) in
            [(1, awkward::PLAIN, 1), (2, "a.wild.example.test", 12), (3, awkward::COM, 17)]
        {
            let answer = client.ask(&Query::new(id, name, kind::A).unwrap(), PATIENT).unwrap().unwrap();
            assert_eq!(answer.ips(), [addresses_of(number)[0]], "{name}");
        }
    }
    let _authority = Authority::with(Software::Bind, &lab.internet().ns, &addresses, &zones).unwrap();
    let mut client = Client::new(&lab.cluster().ns, dns_at(AUTHORITY_ADDRESSES[1])).unwrap();
    let mut query = Query::new(1, awkward::CHAIN, kind::AAAA).unwrap();
    // A cookie (RFC 7873): a server that reads it answers with one of its own.
    query.edns = Some(Edns { size: 4096, dnssec: true, options: vec![(10, vec![7; 8])] });
    let answer = client.ask(&query, PATIENT).unwrap().unwrap();
    assert_eq!(answer.ips(), [addresses_of(15)[1]]);
    assert_eq!(answer.message().unwrap().answers.len(), 9);
    let edns = answer.message().unwrap().edns.unwrap();
    assert!(edns.option(hickory_proto::rr::rdata::opt::EdnsCode::Cookie).is_some(), "{edns:?}");
}

#[test]
fn plain_forwarders_forward() {
    let lab = lab("forwarders");
    let upstream = dns_at(RESOLVER_ADDRESSES[0]);
    for (number, program) in (1..).zip([Forwarder::Unbound, Forwarder::Dnsmasq, Forwarder::DnsmasqUncached]) {
        let own = lab.cluster().v4();
        let _forwarder =
            Resolver::forwarder(program, &lab.cluster().ns, &[own], upstream, "example.test").unwrap();
        let mut client = Client::new(&lab.cluster().ns, SocketAddr::new(own, 53)).unwrap();
        let answer = client.ask(&Query::new(number, awkward::PLAIN, kind::A).unwrap(), PATIENT).unwrap();
        assert_eq!(answer.unwrap().ips(), [addresses_of(1)[0]], "{program:?}");
    }
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let lab = Lab::standard("broken").unwrap();
    let nowhere = [ip("203.0.113.99")];
    let zones = awkward::zones().unwrap();
    for software in [Software::Knot, Software::Bind] {
        let error = Authority::with(software, &lab.internet().ns, &nowhere, &zones).unwrap_err();
        assert!(format!("{error:#}").contains("203.0.113.99"), "{error:#}");
    }
}
