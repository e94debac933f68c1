//! What happens to what was learned when policies, addresses and time go.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Reply, Scripted};
use fw_testkit::traffic::probe;
use fw_testkit::traffic::server::{Server, Service};

use super::field::{Names, PORT, to_names};
use super::steps::{
    at_port, in_all_modes_at_once, in_every_mode, pass, query, scripted_address, spare, spare6,
};
use crate::daemon::{PATIENCE, eventually, soak_factor};
use crate::rig::policy;

/// Where a server of this file returns what it gets.
const ECHO: u16 = 8090;

/// A policy for selectors (YAML flow style) and ports.
fn to_ports(name: &str, selectors: &str, ports: &str) -> String {
    policy(name, &format!("{{egress: [{{toFQDNs: [{selectors}], ports: [{ports}]}}]}}"))
}

/// A connection that can be asked whether it still carries bytes.
struct Live(TcpStream);

impl Live {
    fn open(names: &Names, to: SocketAddr) -> Result<Self> {
        let stream = probe::tcp_connect(&names.lab.cluster().ns, None, to, PATIENCE)?;
        let mut live = Self(stream.map_err(|outcome| anyhow::anyhow!("{to} is closed: {outcome:?}"))?);
        live.0.set_read_timeout(Some(PATIENCE))?;
        live.until(b'\n')?;
        Ok(live)
    }

    fn until(&mut self, end: u8) -> Result<()> {
        let mut byte = [0];
        while byte[0] != end {
            self.0.read_exact(&mut byte).context("the connection carries nothing any more")?;
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.0.write_all(b"still there?")?;
        self.until(b'?')
    }
}

fn says(server: &Scripted, name: &str, addresses: &[IpAddr], ttl: u32) -> Result<()> {
    server.name(name, Reply::Addresses { addresses: addresses.to_vec(), ttl }).map(drop)
}

#[test]
fn an_address_closes_when_the_last_policy_that_names_it_goes_and_live_connections_stay() -> Result<()> {
    in_every_mode(|mode| {
        let both = format!("{{port: {PORT}}}, {{port: {ECHO}}}");
        let one = to_ports("one", "{matchName: one.odd.test}", &both);
        let two = to_ports("two", "{matchPattern: 'two.*.test'}", &both);
        let stays = to_names("zz-stays", "{matchName: stays.odd.test}");
        let names = Names::new("names-shared", mode, "", &[one, two.clone(), stays.clone()])?;
        let server = names.scripted()?;
        let (shared, echo) = (spare(1), SocketAddr::new(spare(1), ECHO));
        let _echo = Server::tcp(&names.lab.internet().ns, &[echo], Service::Echo)?;
        for name in ["one.odd.test", "two.odd.test"] {
            says(&server, name, &[shared], 300)?;
            names.answer(scripted_address()?, &query(name, kind::A)?)?;
        }
        says(&server, "stays.odd.test", &[spare6(2)], 300)?;
        names.answer(scripted_address()?, &query("stays.odd.test", kind::AAAA)?)?;
        let mut live = Live::open(&names, echo)?;
        names.expect_open(&at_port(&[shared, spare6(2)]))?;
        ensure!(names.counted("one", "tcp", "one.odd.test")? == Some(2), "the first policy counts both");

        names.rewrite("", &[two, stays.clone()], "np one tcp", false)?;
        names.expect_open(&at_port(&[shared]))?;
        ensure!(names.counted("two", "tcp", "two.*.test")? == Some(1), "the other policy counts the next");
        live.check()?;

        names.rewrite("", &[stays], "np two tcp", false)?;
        names.expect_closed(&[SocketAddr::new(shared, PORT), echo])?;
        live.check()?;
        names.expect_open(&at_port(&[spare6(2)]))?;
        let stays = names.counted("zz-stays", "tcp", "stays.odd.test")?;
        ensure!(stays == Some(2), "a policy that stays keeps its count: {stays:?}");
        Ok(())
    })
}

#[test]
fn a_renamed_policy_keeps_what_was_learned_and_counts_anew() -> Result<()> {
    in_every_mode(|mode| {
        let named = |name: &str| to_names(name, "{matchName: www.odd.test}");
        let names = Names::new("names-renamed", mode, "", &[named("before")])?;
        let server = names.scripted()?;
        says(&server, "www.odd.test", &[spare(1)], 300)?;
        names.answer(scripted_address()?, &query("www.odd.test", kind::A)?)?;
        names.expect_open(&at_port(&[spare(1)]))?;
        names.rewrite("", &[named("after")], "np before tcp", false)?;
        names.wait_open(SocketAddr::new(spare(1), PORT))?;
        ensure!(names.counted("before", "tcp", "www.odd.test")?.is_none(), "the old name still counts");
        ensure!(names.counted("after", "tcp", "www.odd.test")? == Some(1), "the new name counts from 0");

        // A policy for other ports of a name that is known opens them without another question …
        let more = to_ports("more", "{matchPattern: '*.odd.test'}", "{port: 8081}");
        let _more = fw_testkit::traffic::any::AnyServer::new(&names.lab.internet().ns, 8081)?;
        names.rewrite("", &[named("after"), more.clone()], "np more tcp", true)?;
        names.wait_open(SocketAddr::new(spare(1), 8081))?;
        // … and one for a name that nobody allowed so far at the next question, also when the cache answers it.
        says(&server, "cached.even.test", &[spare(2)], 300)?;
        names.answer(scripted_address()?, &query("cached.even.test", kind::A)?)?;
        let even = to_names("even", "{matchPattern: '*.even.test'}");
        names.rewrite("", &[named("after"), more, even], "np even tcp", true)?;
        names.expect_closed(&at_port(&[spare(2)]))?;
        names.answer(scripted_address()?, &query("cached.even.test", kind::A)?)?;
        names.expect_open(&at_port(&[spare(2)]))?;
        ensure!(server.asked_for("cached.even.test", kind::A)? == 1, "the cache did not answer");
        Ok(())
    })
}

#[test]
fn where_ports_of_policies_overlap_the_smallest_policy_and_selector_counts() -> Result<()> {
    in_every_mode(|mode| {
        let policies = [
            to_ports(
                "b-range",
                "{matchPattern: '*.odd.test'}, {matchName: a.odd.test}",
                "{port: 8000, endPort: 8080}",
            ),
            to_ports("c-single", "{matchName: a.odd.test}", "{port: 8080}, {port: 8081}"),
            to_ports("a-udp", "{matchName: a.odd.test}", "{protocol: UDP, port: 1, endPort: 65535}"),
        ];
        let names = Names::new("names-overlap", mode, "", &policies)?;
        let server = names.scripted()?;
        let internet = &names.lab.internet().ns;
        let others = [7999, 8000, 8001, 8081, 8082];
        let _others = others
            .iter()
            .map(|port| fw_testkit::traffic::any::AnyServer::new(internet, *port))
            .collect::<Result<Vec<_>>>()?;
        says(&server, "a.odd.test", &[spare(1)], 300)?;
        names.answer(scripted_address()?, &query("a.odd.test", kind::A)?)?;
        let at = |port| SocketAddr::new(spare(1), port);
        names.expect_open(&[at(8000), at(8001), at(PORT), at(8081)])?;
        names.expect_closed(&[at(7999), at(8082)])?;
        // Both selectors of `b-range` match: exact names come first.
        ensure!(names.counted("b-range", "tcp", "a.odd.test")? == Some(3), "8000, 8001 and {PORT}");
        ensure!(names.counted("b-range", "tcp", "*.odd.test")? == Some(0), "the pattern counts nothing");
        ensure!(names.counted("c-single", "tcp", "a.odd.test")? == Some(1), "8081 alone");
        // A datagram that comes back proves both ways; its policy is the first, but of another protocol.
        let mut client = fw_testkit::dns::Client::new(&names.lab.cluster().ns, at(8082))?;
        client.send(b"hello")?;
        let answer = client.receive(PATIENCE)?.context("UDP is open at every port")?;
        ensure!((answer.bytes.as_slice(), answer.from) == (&b"hello"[..], at(8082)));
        ensure!(names.counted("a-udp", "udp", "a.odd.test")? == Some(1));
        Ok(())
    })
}

/// Short clamps: TTLs of 1 to 2 s and 1 s of grace.
const SHORT: &str = "  dns: {ttlMin: 1, ttlMax: 2, grace: 1}\n";

#[test]
fn an_idle_address_closes_and_one_in_use_stays_open_for_new_connections() -> Result<()> {
    in_all_modes_at_once(|mode| {
        let ports = format!("{{port: {PORT}}}, {{port: {ECHO}}}");
        let names = Names::new(
            "names-expiry",
            mode,
            SHORT,
            &[to_ports("odd", "{matchPattern: '*.odd.test'}", &ports)],
        )?;
        let server = names.scripted()?;
        let echo = SocketAddr::new(spare(2), ECHO);
        let _echo = Server::tcp(&names.lab.internet().ns, &[echo], Service::Echo)?;
        let (idle, used) = ("idle.odd.test", "used.odd.test");
        says(&server, idle, &[spare(1), spare6(1)], 86_400)?;
        says(&server, used, &[spare(2)], 1)?;
        for (name, kind) in [(idle, kind::A), (idle, kind::AAAA), (used, kind::A)] {
            let answer = names.answer(scripted_address()?, &query(name, kind)?)?;
            ensure!(answer.addresses().iter().all(|(_, ttl)| *ttl <= 2), "{:?}", answer.addresses());
        }
        names.expect_open(&at_port(&[spare(1), spare6(1)]))?;
        let mut live = Live::open(&names, echo)?;
        // From now on the names lead elsewhere: what the background refresh hears keeps nothing of the old open.
        for name in [idle, used] {
            says(&server, name, &[spare(9)], 1)?;
        }
        // Longer than any TTL and grace, several times over.
        let began = Instant::now();
        let long = Duration::from_secs(8) * soak_factor();
        while began.elapsed() < long {
            // One SYN each: a retransmitted one would hide a moment in which it is closed.
            ensure!(names.reaches(spare(2), PORT)?, "in use, but closed after {:?}", began.elapsed());
            live.check()?;
            pass(Duration::from_millis(20));
        }
        names.wait_closed(SocketAddr::new(spare(1), PORT))?;
        names.wait_closed(SocketAddr::new(spare6(1), PORT))?;
        if soak_factor() > 1 {
            drop(live);
            eventually_closed_in_soak(&names, SocketAddr::new(spare(2), PORT))?;
        }
        Ok(())
    })
}

/// An address in use is kept by steps of half a minute; after the last connection it closes within two of them. (The
/// probe of a connection that was closed at once is none.)
fn eventually_closed_in_soak(names: &Names, to: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(90);
    while names.reaches(to.ip(), to.port())? {
        if Instant::now() > deadline {
            bail!("{to} is still open");
        }
        pass(Duration::from_secs(1));
    }
    Ok(())
}

/// A client that asks again and again for a name whose answers rotate always reaches what it was told.
#[test]
fn ttls_in_answers_are_never_longer_than_the_clamp_nor_than_the_allow() -> Result<()> {
    in_all_modes_at_once(|mode| {
        let names =
            Names::new("names-clamp", mode, SHORT, &[to_names("odd", "{matchPattern: '*.odd.test'}")])?;
        let server = names.scripted()?;
        says(&server, "long.odd.test", &[spare(1)], 100_000)?;
        says(&server, "other.even.test", &[spare(3)], 100_000)?;
        let other = names.answer(scripted_address()?, &query("other.even.test", kind::A)?)?;
        ensure!(other.addresses() == [(spare(3), 100_000)], "what opens nothing keeps its TTLs: {other:?}");
        let began = Instant::now();
        let mut oldest: Option<(Instant, u32)> = None;
        while began.elapsed() < Duration::from_secs(6) {
            let answer = names.answer(scripted_address()?, &query("long.odd.test", kind::A)?)?;
            let [(address, ttl)] = answer.addresses()[..] else { bail!("{answer:?}") };
            ensure!(address == spare(1) && (1..=2).contains(&ttl), "TTL {ttl}");
            let (asked, ttl) = *oldest.get_or_insert((Instant::now(), ttl));
            if asked.elapsed()
                >= Duration::from_secs(u64::from(ttl)).saturating_sub(Duration::from_millis(150))
            {
                // Just before the first answer is over.
                names.expect_open(&at_port(&[spare(1)]))?;
                oldest = None;
            }
            pass(Duration::from_millis(50));
        }
        ensure!(
            server.asked_for("long.odd.test", kind::A)? < 5,
            "the cache answers for as long as the server says"
        );
        eventually("names in use are refreshed", || Ok(!names.learned("long.odd.test")?.is_empty()))
    })
}
