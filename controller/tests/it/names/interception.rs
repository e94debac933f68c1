//! DNS from inside: redirected while the proxy answers, and what holds when it does not, or is passed by.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Client, Reply, Scripted, TcpClient, awkward};
use fw_testkit::traffic::any::AnyServer;
use fw_testkit::traffic::probe;
use nix::sys::signal::Signal;

use super::field::{BRIEFLY, Names, PORT, to_names};
use super::steps::{
    at_port, in_all_modes_at_once, in_every_mode, open_from, pass, query, scripted_address,
    scripted_address6, spare,
};
use crate::daemon::{PATIENCE, eventually, soak_factor};
use crate::rig::policy;

/// A resolver that `dnsFallback` knows, and one that it does not.
const KNOWN: &str = "8.8.8.8";
const UNKNOWN: &str = "203.0.113.53";

/// The ways by which DNS is redirected at this moment.
fn armed(names: &Names) -> Result<BTreeSet<String>> {
    let mut ways = BTreeSet::new();
    for set in ["dns_armed", "dns_armed6"] {
        let listing = names.lab.firewall.output("nft", &["list", "set", "inet", "firewall", set])?;
        ways.extend(
            ["tcp", "udp"]
                .iter()
                .filter(|way| listing.contains(&format!("{way} ")))
                .map(|way| format!("{set} {way}")),
        );
    }
    Ok(ways)
}

fn wait_until_disarmed(names: &Names) -> Result<Duration> {
    let began = Instant::now();
    eventually("DNS is redirected no more", || Ok(armed(names)?.is_empty()))?;
    Ok(began.elapsed())
}

fn http(name: &str) -> String {
    to_names(name, "{matchPattern: '*.example.test'}")
}

#[test]
fn the_redirect_is_armed_at_every_moment_while_the_proxy_answers() -> Result<()> {
    in_all_modes_at_once(|mode| {
        let names = Names::new("names-armed", mode, "", &[http("web")])?;
        let began = Instant::now();
        let mut listings = 0_u32;
        // Long enough for the redirect to be renewed, and often enough on a slow machine too.
        while began.elapsed() < Duration::from_secs(10) * soak_factor() || listings < 50 {
            // Commits go on meanwhile; the writer that renews is busy with them.
            if listings.is_multiple_of(8) {
                names
                    .write("", &[http("web"), to_names(&format!("web{listings}"), "{matchName: a.test}")])?;
            }
            let ways = armed(&names)?;
            ensure!(ways.len() == 4, "after {:?} and {listings} listings: {ways:?}", began.elapsed());
            listings += 1;
            pass(Duration::from_millis(5));
        }
        ensure!(
            began.elapsed() < Duration::from_secs(60) * soak_factor(),
            "{listings} took {:?}",
            began.elapsed()
        );
        Ok(())
    })
}

#[test]
fn a_proxy_that_does_not_answer_disarms_and_dns_follows_the_fallback() -> Result<()> {
    in_all_modes_at_once(|mode| {
        let mut names = Names::new("names-fallback", mode, "", &[http("web")])?;
        names.daemon.process()?.signal(Signal::SIGSTOP)?;
        let after = wait_until_disarmed(&names)?;
        ensure!(after < Duration::from_secs(5), "disarmed after {after:?}");
        let (mut by_udp, mut by_tcp) = directly_while_away(&names)?;
        names.daemon.process()?.signal(Signal::SIGCONT)?;
        names.wait_until_armed()?;
        connections_past_the_proxy_are_forgotten(&names, &mut by_udp, &mut by_tcp)?;

        let static_dns =
            policy("dns", "{egress: [{to: [{cidr: 1.1.1.1/32}], ports: [{protocol: UDP, port: 53}]}]}");
        let deny = "  dnsFallback: deny\n";
        names.rewrite(deny, &[http("web"), static_dns], "dns while the proxy is away", false)?;
        names.wait_until_armed()?;
        names.daemon.kill()?;
        wait_until_disarmed(&names)?;
        ensure!(unanswered(&names, KNOWN)?, "{KNOWN} answers though dnsFallback denies it");
        let answer = names.answer("1.1.1.1".parse()?, &query(awkward::UNDERSCORE, kind::A)?)?;
        ensure!(answer.ips() == [awkward::addresses_of(8)[0]], "{answer:?}");
        names.expect_closed(&at_port(&answer.ips()))?;
        // What was learned before stays: the redirect is another matter.
        names.expect_open(&at_port(&[awkward::addresses_of(1)[0]]))
    })
}

/// A query that nobody redirects; the client stays for later.
fn directly_while_away(names: &Names) -> Result<(Client, TcpClient)> {
    let server = SocketAddr::new(KNOWN.parse()?, 53);
    let cluster = &names.lab.cluster().ns;
    let mut by_udp = Client::new(cluster, server)?;
    let [address, address6] = awkward::addresses_of(1);
    let direct = by_udp.ask(&query(awkward::PLAIN, kind::A)?, PATIENCE)?.context("8.8.8.8 is let through")?;
    ensure!(direct.ips() == [address], "{direct:?}");
    let mut by_tcp = TcpClient::connect(cluster, server, PATIENCE)?;
    let direct = by_tcp.ask(&query(awkward::PLAIN, kind::AAAA)?, PATIENCE)?.context("by TCP as well")?;
    ensure!(direct.ips() == [address6], "{direct:?}");
    names.answer("2001:4860:4860::8888".parse()?, &query(awkward::PLAIN, kind::A)?)?;
    ensure!(unanswered(names, UNKNOWN)?, "a resolver that nobody knows is let through");
    names.expect_closed(&at_port(&[address, address6]))?;
    Ok((by_udp, by_tcp))
}

fn unanswered(names: &Names, resolver: &str) -> Result<bool> {
    let server = SocketAddr::new(resolver.parse()?, 53);
    let mut client = Client::new(&names.lab.cluster().ns, server)?;
    Ok(client.ask(&query(awkward::OTHER, kind::A)?, BRIEFLY)?.is_none())
}

/// The redirect is per conntrack entry, and these had been opened without it.
fn connections_past_the_proxy_are_forgotten(
    names: &Names,
    udp: &mut Client,
    tcp: &mut TcpClient,
) -> Result<()> {
    let [address, _] = awkward::addresses_of(1);
    eventually("the same socket is redirected", || {
        udp.ask(&query(awkward::PLAIN, kind::A)?, BRIEFLY)?;
        names.reaches(address, PORT)
    })?;
    let asked = tcp.ask(&query(awkward::ONLY_V4, kind::A)?, Duration::from_secs(1));
    ensure!(matches!(asked, Ok(None) | Err(_)), "a TCP connection past the proxy goes on: {asked:?}");
    Ok(())
}

#[test]
fn encrypted_dns_follows_the_policies_or_is_denied_or_allowed() -> Result<()> {
    in_every_mode(|mode| {
        let to_all = "[{port: 853}, {protocol: UDP, port: 853}, {port: 443}]";
        let policies = [
            policy("known", &format!("{{egress: [{{to: [{{cidr: 198.18.1.0/24}}], ports: {to_all}}}]}}")),
            policy(
                "named",
                &format!("{{egress: [{{toFQDNs: [{{matchName: dot.odd.test}}], ports: {to_all}}}]}}"),
            ),
            http("web"),
        ];
        let names = Names::new("names-encrypted", mode, "", &policies)?;
        let internet = &names.lab.internet().ns;
        let _servers = [AnyServer::new(internet, 853)?, AnyServer::new(internet, 443)?];
        let server = names.scripted()?;
        let named = IpAddr::from([198, 18, 3, 1]);
        server.name("dot.odd.test", Reply::Addresses { addresses: vec![named], ttl: 300 })?;
        names.answer(scripted_address()?, &query("dot.odd.test", kind::A)?)?;

        let other = IpAddr::from([198, 18, 2, 1]);
        let at = |address, port| SocketAddr::new(address, port);
        let endpoint = spare(17);
        names.expect_open(&[at(spare(1), 853), at(named, 853), at(endpoint, 443), at(named, 443)])?;
        names.expect_closed(&[at(other, 853), at(other, 443)])?;

        let endpoints = "dohEndpoints: [198.18.1.16/28, 198.18.2.0/28, 198.18.3.0/24]";
        let allow = format!("  dns: {{dot: allow, doh: allow, {endpoints}}}\n");
        names.rewrite(&allow, &policies, "accept encrypted dns tcp", true)?;
        names.wait_open(at(other, 853))?;
        names.expect_open(&[at(other, 443), at(spare(1), 853), at(spare(1), 443), at(named, 853)])?;
        names.expect_closed(&[at(IpAddr::from([198, 18, 2, 99]), 443), at(other, PORT)])?;
        ensure!(datagram_returns(&names, at(other, 853), PATIENCE)?, "DNS over QUIC is allowed");

        let deny = format!("  dns: {{dot: deny, doh: deny, {endpoints}}}\n");
        names.rewrite(&deny, &policies, "drop_encrypted_dns", true)?;
        names.wait_closed(at(spare(1), 853))?;
        names.expect_closed(&[at(named, 853), at(endpoint, 443), at(named, 443), at(other, 853)])?;
        ensure!(!datagram_returns(&names, at(spare(1), 853), BRIEFLY)?, "DNS over QUIC is denied");
        // HTTPS to what is no known endpoint is as the policies say.
        names.expect_open(&[at(spare(1), 443)])
    })
}

fn datagram_returns(names: &Names, to: SocketAddr, patience: Duration) -> Result<bool> {
    let mut client = Client::new(&names.lab.cluster().ns, to)?;
    client.send(b"hello")?;
    Ok(client.receive(patience)?.is_some())
}

#[test]
fn an_answer_that_did_not_come_through_the_proxy_opens_nothing() -> Result<()> {
    in_every_mode(|mode| {
        let past =
            "{egress: [{to: [{cidr: 203.0.113.51/32}], ports: [{protocol: UDP, port: 5300}, {port: 853}]}]}";
        let names = Names::new(
            "names-past",
            mode,
            "",
            &[policy("past", past), to_names("odd", "{matchPattern: '*.odd.test'}")],
        )?;
        let at = |port| Ok::<_, anyhow::Error>(SocketAddr::new(scripted_address()?, port));
        let server = Scripted::new(&names.lab.internet().ns, &[at(5300)?, at(853)?, at(53)?])?;
        server.name("www.odd.test", Reply::Addresses { addresses: vec![spare(1)], ttl: 300 })?;
        let cluster = &names.lab.cluster().ns;
        let asked = Client::new(cluster, at(5300)?)?.ask(&query("www.odd.test", kind::A)?, PATIENCE)?;
        ensure!(asked.is_some_and(|answer| answer.ips() == [spare(1)]), "port 5300 is allowed");
        let mut by_tcp = TcpClient::connect(cluster, at(853)?, PATIENCE)?;
        let asked = by_tcp.ask(&query("www.odd.test", kind::A)?, PATIENCE)?;
        ensure!(asked.is_some_and(|answer| answer.ips() == [spare(1)]), "port 853 is allowed");
        names.expect_closed(&at_port(&[spare(1)]))?;
        ensure!(names.learned("www.odd.test")?.is_empty(), "learned past the proxy");
        names.answer(scripted_address()?, &query("www.odd.test", kind::A)?)?;
        names.expect_open(&at_port(&[spare(1)]))
    })
}

#[test]
fn the_port_of_the_proxy_is_closed_to_everybody_outside() -> Result<()> {
    in_every_mode(|mode| {
        let names = Names::new("names-port", mode, "", &[http("web")])?;
        let outside = &names.lab.internet().ns;
        let boxes = ["203.0.113.1", "2001:db8:179::1", "10.0.16.1"];
        let doors: Vec<SocketAddr> =
            boxes.iter().map(|address| Ok(SocketAddr::new(address.parse()?, 5353))).collect::<Result<_>>()?;
        ensure!(open_from(outside, &doors)?.is_empty(), "open from outside");
        for door in &doors {
            let mut client = Client::new(outside, *door)?;
            ensure!(client.ask(&query(awkward::PLAIN, kind::A)?, BRIEFLY)?.is_none(), "{door} answers");
        }
        // The listener is there: the cluster reaches it, and only the guard keeps the others out.
        let inside = SocketAddr::new("10.0.16.1".parse()?, 5353);
        let connected = probe::tcp_connect(&names.lab.cluster().ns, None, inside, PATIENCE)?;
        ensure!(connected.is_ok(), "the cluster does not reach the proxy: {connected:?}");
        let counted =
            names.lab.firewall.output("nft", &["list", "counter", "inet", "firewall", "drop_dns_proxy"])?;
        ensure!(!counted.contains("packets 0 "), "nothing was counted: {counted}");
        // Another machine's DNS that passes through the box from outside is none of the proxy's business.
        ensure!(armed(&names)?.len() == 4);
        Ok(())
    })
}

#[test]
fn questions_for_names_that_no_policy_allows_are_refused_where_the_firewall_says_so() -> Result<()> {
    in_every_mode(|mode| {
        let policies = [to_names("odd", "{matchPattern: '*.odd.test'}")];
        let names = Names::new("names-others", mode, "", &policies)?;
        let server = names.scripted()?;
        server.below("test", Reply::Addresses { addresses: vec![spare(1)], ttl: 0 })?;
        let rcode = |name: &str, resolver| -> Result<Option<u8>> {
            Ok(names.answer(resolver, &query(name, kind::A)?.in_mixed_case())?.rcode())
        };
        let (v4, v6) = (scripted_address()?, scripted_address6()?);
        ensure!(rcode("data.tunnel.test", v4)? == Some(0), "by default everything is answered");
        names.expect_closed(&at_port(&[spare(1)]))?;
        for (word, code) in [("refused", 5), ("nxdomain", 3)] {
            names.write(&format!("  dns: {{otherNames: {word}}}\n"), &policies)?;
            eventually(word, || Ok(rcode("data.tunnel.test", v4)? == Some(code)))?;
            server.forget();
            for resolver in [v4, v6] {
                ensure!(rcode("more.data.tunnel.test", resolver)? == Some(code));
                ensure!(rcode("odd.test", resolver)? == Some(code), "the pattern does not match its own end");
                ensure!(rcode("www.odd.test", resolver)? == Some(0));
            }
            let by_tcp = names.answer_by_tcp(v6, &query("data.tunnel.test", kind::TXT)?)?;
            ensure!(by_tcp.rcode() == Some(code));
            let leaked: Vec<_> =
                server.asked().iter().filter_map(fw_testkit::dns::scripted::Asked::query).collect();
            let www = fw_testkit::dns::Name::parse("www.odd.test")?;
            ensure!(
                leaked.iter().all(|query| query.name.to_lowercase() == www),
                "asked upstream: {leaked:?}"
            );
            ensure!(!leaked.is_empty(), "the allowed name was not asked upstream");
        }
        names.expect_open(&at_port(&[spare(1)]))
    })
}

#[test]
fn dns_is_redirected_without_any_name_only_where_the_firewall_says_always() -> Result<()> {
    in_every_mode(|mode| {
        let names = Names::new("names-always", mode, "  dns: {intercept: always}\n", &[])?;
        for resolver in [UNKNOWN, "2001:db8:179::53"] {
            let answer = names.answer(resolver.parse()?, &query(awkward::PLAIN, kind::A)?)?;
            ensure!(answer.ips() == [awkward::addresses_of(1)[0]], "{answer:?}");
        }
        names.expect_closed(&at_port(&awkward::addresses_of(1)))?;
        let learned = names.figures()?["learned"]["addresses"].clone();
        ensure!(learned == 0, "{learned} addresses are learned without a policy");
        names.rewrite("", &[], "dns_redirect", false)?;
        eventually("DNS follows the policies, of which there are none", || unanswered(&names, UNKNOWN))
    })
}

/// Both are inside: what one of them asks for is open to the other.
#[test]
fn two_inside_interfaces_are_redirected_and_stamped_alike() -> Result<()> {
    in_every_mode(|mode| {
        let two = |spec: fw_testkit::topology::LabSpec| spec.with_second_inside();
        let names = Names::in_lab("names-two", mode, two, "", &[http("web")])?;
        let [first, second] = [&names.lab.inside[0].ns, &names.lab.inside[1].ns];
        for (asker, name, number) in [(first, awkward::PLAIN, 1), (second, awkward::UNDERSCORE, 8)] {
            let addresses = awkward::addresses_of(number);
            for (kind, resolver) in [(kind::A, UNKNOWN), (kind::AAAA, "2001:db8:179::53")] {
                let server = SocketAddr::new(resolver.parse()?, 53);
                let answer = Client::new(asker, server)?.ask(&query(name, kind)?, PATIENCE)?;
                let answer = answer.context("both interfaces are redirected")?;
                ensure!(answer.from == server && answer.ips().len() == 1, "{answer:?}");
            }
            for client in [first, second] {
                for to in at_port(&addresses) {
                    ensure!(probe::tcp_connect(client, None, to, PATIENCE)?.is_ok(), "{to} is closed");
                }
            }
        }
        ensure!(names.counted("web", "tcp", "*.example.test")? == Some(8));
        let other = at_port(&awkward::addresses_of(17));
        ensure!(open_from(second, &other)?.is_empty(), "open without a name");
        Ok(())
    })
}
