//! Answers of every kind on their way from a resolver through the proxy to a client, and into the data path.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Client, Query, Record, Reply, TcpClient, awkward, framed};
use fw_testkit::topology::{PUBLIC_RESOLVER_ADDRESSES, RESOLVER_ADDRESSES};

use super::field::{Mode, Names, to_names};
use super::steps::{
    at_port, in_all_modes_at_once, in_every_mode, query, scripted_address, scripted_address6, spare,
};
use crate::daemon::PATIENCE;

/// A question, its type, the number of its addresses ([`awkward::addresses_of`]), and the selector that counts.
type Case<'a> = (&'a str, u16, u8, &'a str);

const CASES: [Case<'_>; 12] = [
    ("example.com", kind::A, 16, "example.com"),
    ("example.com", kind::AAAA, 16, "example.com"),
    ("WWW.Example.Com", kind::A, 17, r"w{3}\.[a-z]+\.com"),
    (awkward::FOREIGN, kind::AAAA, 18, "target.example.com"),
    (awkward::UNDERSCORE, kind::A, 8, "_sip._tcp.example.test"),
    (awkward::PUNYCODE, kind::A, 9, "xn--bcher-kva.example.test"),
    (awkward::CHAIN, kind::A, 15, "hop8.chain.example.test"),
    (awkward::CHAIN, kind::AAAA, 15, "hop8.chain.example.test"),
    (awkward::ONLY_V4, kind::A, 7, "only-v?.example.test"),
    (awkward::HINTS, kind::HTTPS, 10, awkward::HINTS),
    (awkward::SVCB_HINTS, kind::SVCB, 11, "*.hints.example.test"),
    (awkward::OTHER, kind::A, 2, ""),
];

fn policies() -> [String; 2] {
    let named = "{matchName: Example.COM}, {matchRegex: 'w{3}\\.[a-z]+\\.com'}, {matchName: target.example.com.}, \
                 {matchName: _SIP._tcp.example.test}, {matchName: Bücher.example.test}, \
                 {matchName: HoP8.ChAiN.example.TEST.}, {matchPattern: 'ONLY-v*.example.test'}, \
                 {matchName: hints.example.test}, {matchPattern: '*.hints.example.test'}";
    let long = format!(
        "{{matchName: {}}}, {{matchName: {}}}",
        awkward::label_of_63_bytes(),
        awkward::name_of_253_bytes().to_ascii_uppercase()
    );
    [to_names("awkward", named), to_names("long", &long)]
}

#[test]
fn awkward_names_go_all_the_way_from_policy_to_packet() -> Result<()> {
    in_every_mode(|mode| {
        let names = Names::new("names-awkward", mode, "", &policies())?;
        let resolvers: Vec<IpAddr> = [RESOLVER_ADDRESSES[0], RESOLVER_ADDRESSES[1], "8.8.8.8"]
            .iter()
            .map(|address| address.parse())
            .collect::<Result<_, _>>()?;
        // A CNAME loop harms nobody, itself included.
        let looped = names.answer(resolvers[0], &query(awkward::LOOP, kind::A)?)?;
        ensure!(looped.ips().is_empty(), "a loop leads to {:?}", looped.ips());
        for (number, case) in CASES.iter().enumerate() {
            one_case(&names, resolvers[number % resolvers.len()], case)?;
        }
        for (name, number) in [(awkward::label_of_63_bytes(), 13), (awkward::name_of_253_bytes(), 14)] {
            let answer = names.answer(resolvers[0], &query(&name, kind::AAAA)?.in_mixed_case())?;
            names.expect_open(&at_port(&answer.ips()))?;
            ensure!(answer.ips() == [awkward::addresses_of(number)[1]], "{name}: {:?}", answer.ips());
        }
        names.counted("awkward", "tcp", "example.com").map(|packets| assert_eq!(packets, Some(2)))
    })
}

/// The resolver's answer comes in the case of the question, also from the cache, and opens what the policy names.
fn one_case(names: &Names, resolver: IpAddr, (name, kind, number, selector): &Case<'_>) -> Result<()> {
    let addresses = awkward::addresses_of(*number);
    let wanted: Vec<IpAddr> = match *kind {
        kind::A => vec![addresses[0]],
        kind::AAAA => vec![addresses[1]],
        _ => addresses.to_vec(),
    };
    let others = [query(name, *kind)?, query(&name.to_uppercase(), *kind)?];
    let answer = names.answer(resolver, &query(name, *kind)?.in_mixed_case())?;
    ensure!(answer.rcode() == Some(0), "{name}: rcode {:?}", answer.rcode());
    if matches!(*kind, kind::A | kind::AAAA) {
        ensure!(answer.ips() == wanted, "{name} has {:?}", answer.ips());
    }
    if selector.is_empty() {
        return names.expect_closed(&at_port(&wanted));
    }
    names.expect_open(&at_port(&wanted)).with_context(|| format!("{name} {kind}"))?;
    for again in others {
        names.answer(resolver, &again)?;
    }
    let counted = names.counted("awkward", "tcp", &selector.replace('?', "*"))?.unwrap_or_default();
    ensure!(counted >= u64::try_from(wanted.len())?, "{selector} has counted {counted} for {name}");
    Ok(())
}

#[test]
fn odd_ttls_open_at_least_once_and_leave_no_longer_than_the_allow() -> Result<()> {
    in_every_mode(|mode| {
        let policies = [
            to_names("odd", "{matchPattern: '*.odd.test'}"),
            to_names("two", "{matchName: two-ttls.example.test}"),
        ];
        let names = Names::new("names-ttls", mode, "", &policies)?;
        let server = names.scripted()?;
        // 2^31 and above count as 0 (RFC 2181 section 8); 3600 is the default of ttlMax.
        let ttls = [(0, 0), (1, 1), (300, 300), (0x7fff_ffff, 3600), (0x8000_0000, 0), (u32::MAX, 0)];
        for (number, (said, heard)) in (1..).zip(ttls) {
            let name = format!("ttl{said}.odd.test");
            server.name(&name, Reply::Addresses { addresses: vec![spare(number)], ttl: said })?;
            let answer = names.answer(scripted_address()?, &query(&name, kind::A)?)?;
            ensure!(answer.addresses() == [(spare(number), heard)], "{name}: {:?}", answer.addresses());
            names.expect_open(&at_port(&[spare(number)])).context(name)?;
        }
        each_family_has_its_own_ttl(&names)
    })
}

/// A with 300 seconds beside AAAA with 5, from real servers.
fn each_family_has_its_own_ttl(names: &Names) -> Result<()> {
    names.resolve(awkward::TWO_TTLS)?;
    let mut learned = names.learned(awkward::TWO_TTLS)?;
    learned.sort();
    let [(_, v4), (_, v6)] = learned.as_slice() else { anyhow::bail!("learned {learned:?}") };
    let apart = (second_of_day(v4)? - second_of_day(v6)?).rem_euclid(86_400);
    ensure!((285..=300).contains(&apart), "A ends {apart} s after AAAA");
    Ok(())
}

/// Of `2026-01-31T23:59:59Z`.
fn second_of_day(time: &str) -> Result<i32> {
    let clock = time.get(11..19).with_context(|| format!("{time:?} is no time"))?;
    clock.split(':').try_fold(0, |sum, part| Ok(sum * 60 + part.parse::<i32>()?))
}

#[test]
fn failures_reach_the_client_from_the_resolver_it_asked_and_close_nothing() -> Result<()> {
    in_all_modes_at_once(|mode| {
        let names =
            Names::new("names-failures", mode, "", &[to_names("odd", "{matchPattern: '*.odd.test'}")])?;
        let server = names.scripted()?;
        let (v4, v6) = (scripted_address()?, scripted_address6()?);
        // TTL 0: the next question is asked again.
        server.name("flips.odd.test", Reply::Addresses { addresses: vec![spare(1)], ttl: 0 })?;
        names.answer(v4, &query("flips.odd.test", kind::A)?)?;
        for (reply, rcode) in [(Reply::Records(vec![]), 0), (Reply::Rcode(3), 3), (Reply::Rcode(2), 2)] {
            server.name("flips.odd.test", reply)?;
            for resolver in [v4, v6] {
                let answer = names.answer(resolver, &query("flips.odd.test", kind::A)?)?;
                ensure!((answer.rcode(), answer.ips().len()) == (Some(rcode), 0), "{answer:?}");
            }
            let answer = names.answer_by_tcp(v6, &query("flips.odd.test", kind::A)?)?;
            ensure!(answer.rcode() == Some(rcode), "{answer:?}");
            names.expect_open(&at_port(&[spare(1)]))?;
        }
        a_silent_upstream_is_servfail(&names, &server)
    })
}

/// conntrack forgets a redirected question after 3 s; an answer later than that would come from the proxy's own address.
fn a_silent_upstream_is_servfail(names: &Names, server: &fw_testkit::dns::Scripted) -> Result<()> {
    server.name("silent.odd.test", Reply::Silence)?;
    let resolvers = [scripted_address()?, scripted_address6()?].map(|address| SocketAddr::new(address, 53));
    let mut clients = Vec::new();
    for resolver in resolvers {
        let mut client = Client::new(&names.lab.cluster().ns, resolver)?;
        client.send(&query("silent.odd.test", kind::A)?.bytes()?)?;
        clients.push((client, resolver));
    }
    let by_tcp = names.answer_by_tcp(scripted_address()?, &query("silent.odd.test", kind::A)?)?;
    ensure!(by_tcp.rcode() == Some(2), "{by_tcp:?}");
    for (mut client, resolver) in clients {
        let answer = client.receive(PATIENCE)?.context("a silent upstream is answered with SERVFAIL")?;
        ensure!((answer.from, answer.rcode()) == (resolver, Some(2)), "{resolver} was asked: {answer:?}");
    }
    Ok(())
}

#[test]
fn answers_of_every_size_arrive_whole_by_udp_or_tcp() -> Result<()> {
    in_every_mode(|mode| {
        let selectors = "{matchName: sixty.example.test}, {matchName: huge.odd.test}";
        let names = Names::new("names-sizes", mode, "", &[to_names("sizes", selectors)])?;
        let resolvers = [RESOLVER_ADDRESSES[0].parse()?, PUBLIC_RESOLVER_ADDRESSES[1].parse()?];
        let sixty = |family: usize| -> Vec<IpAddr> {
            (0..60).map(|n| awkward::addresses_of(100 + n)[family]).collect()
        };
        for resolver in resolvers {
            let plain = query(awkward::SIXTY, kind::A)?;
            let cut = names.answer(resolver, &plain)?;
            ensure!(cut.is_truncated() && cut.bytes.len() <= 512, "{} bytes", cut.bytes.len());
            ensure!(names.answer_by_tcp(resolver, &plain)?.ips() == sixty(0));
            let fits = names.answer(resolver, &plain.with_size(1232))?;
            ensure!(!fits.is_truncated() && (513..=1232).contains(&fits.bytes.len()));
            ensure!(fits.ips() == sixty(0));
            let larger = query(awkward::SIXTY, kind::AAAA)?.with_size(1232);
            let cut = names.answer(resolver, &larger)?;
            ensure!(cut.is_truncated() && cut.bytes.len() <= 1232, "{} bytes", cut.bytes.len());
            ensure!(names.answer_by_tcp(resolver, &larger)?.ips() == sixty(1));
            let text = names.answer_by_tcp(resolver, &query(awkward::LONG_TEXT, kind::TXT)?)?;
            ensure!(!text.is_truncated() && text.bytes.len() > 5000, "{} bytes", text.bytes.len());
        }
        names.expect_open(&at_port(&sixty(0)))?;
        names.expect_open(&at_port(&sixty(1)))?;
        more_than_4096_bytes_of_addresses(&names)
    })
}

fn more_than_4096_bytes_of_addresses(names: &Names) -> Result<()> {
    let server = names.scripted()?;
    let huge: Vec<IpAddr> = (0..300).map(|n| IpAddr::from([0x2001, 0xdb8, 0xf00, 0, 0, 0, 2, n])).collect();
    server.name("huge.odd.test", Reply::Addresses { addresses: huge.clone(), ttl: 60 })?;
    let question = query("huge.odd.test", kind::AAAA)?;
    ensure!(names.answer(scripted_address()?, &question)?.is_truncated(), "300 addresses in a datagram");
    let answer = names.answer_by_tcp(scripted_address6()?, &question)?;
    ensure!(answer.bytes.len() > 4096 && answer.ips() == huge, "{} bytes", answer.bytes.len());
    names.expect_open(&at_port(&huge[..3]))?;
    names.expect_open(&at_port(&huge[297..]))?;
    ensure!(names.learned_addresses("huge.odd.test")? == huge);
    Ok(())
}

#[test]
fn questions_share_a_tcp_connection_however_their_bytes_arrive() -> Result<()> {
    in_every_mode(|mode| {
        let names =
            Names::new("names-tcp", mode, "", &[to_names("web", "{matchPattern: '*.example.test'}")])?;
        let [v4, v6] = awkward::addresses_of(1);
        for (resolver, name) in RESOLVER_ADDRESSES.iter().zip([awkward::PLAIN, "a.wild.example.test"]) {
            let server = SocketAddr::new(resolver.parse()?, 53);
            let questions: [Query; 2] =
                [query(name, kind::A)?.in_mixed_case(), query(name, kind::AAAA)?.with_size(1232)];
            let bytes = [framed(&questions[0].bytes()?)?, framed(&questions[1].bytes()?)?];
            let second = bytes[0].len();
            // Inside the first length prefix, inside the first message, and inside the second length prefix.
            let cuts = [1, 9, second + 1];
            let mut client = TcpClient::connect(&names.lab.cluster().ns, server, PATIENCE)?;
            client.send_split(&bytes.concat(), &cuts, Duration::from_millis(20))?;
            let mut left = questions.to_vec();
            while !left.is_empty() {
                let answer = client.receive(PATIENCE)?.context("both questions are answered")?;
                let at = left.iter().position(|asked| Some(asked.id) == answer.id());
                let asked = left.remove(at.context("an answer to a question that was asked once")?);
                let echoed = answer.question().context("the answer has a question")?;
                ensure!(
                    (echoed.name, echoed.kind) == (asked.name, asked.kind),
                    "the wrong question came back"
                );
                ensure!(answer.ips().len() == 1, "{:?}", answer.ips());
                names.expect_open(&at_port(&answer.ips()))?;
            }
        }
        names.expect_open(&at_port(&[v4, v6]))
    })
}

/// All other records of an answer: out of the chain, in other sections, of other types.
#[test]
fn records_that_do_not_answer_the_question_open_nothing() -> Result<()> {
    use fw_testkit::dns::{Name, Spoof};
    in_every_mode(|mode: Mode| {
        let names = Names::new("names-extra", mode, "", &[to_names("odd", "{matchPattern: '*.odd.test'}")])?;
        let server = names.scripted()?;
        let right = |n: u8| Box::new(Reply::Addresses { addresses: vec![spare(n)], ttl: 60 });
        server.name("stranger.odd.test", Reply::Spoofed(Spoof::Stranger(spare(101)), right(1)))?;
        server.name("beside.odd.test", Reply::Spoofed(Spoof::Beside(spare(102)), right(2)))?;
        // An address of a name that the policy allows, but that nobody asked for and nothing leads to.
        let own = Name::parse("sibling.odd.test")?;
        let other = Name::parse("elsewhere.odd.test")?;
        let records = vec![
            Record::address(own, 60, spare(3)),
            Record::address(other, 60, spare(103)),
            Record::cname(Name::parse("unasked.odd.test")?, 60, &Name::parse("elsewhere.odd.test")?),
        ];
        server.name("sibling.odd.test", Reply::Records(records))?;
        for (number, name) in (1..).zip(["stranger.odd.test", "beside.odd.test", "sibling.odd.test"]) {
            let answer = names.answer(scripted_address()?, &query(name, kind::A)?)?;
            ensure!(answer.ips().contains(&spare(number)), "{name}: {:?}", answer.ips());
            names.expect_open(&at_port(&[spare(number)]))?;
        }
        let extra = [spare(101), spare(102), spare(103)];
        names.expect_closed(&at_port(&extra))?;
        let learned = names.figures()?["learned"]["addresses"].clone();
        ensure!(learned == 3, "{learned} addresses are learned");
        ensure!(names.learned("elsewhere.odd.test")?.is_empty());
        Ok(())
    })
}
