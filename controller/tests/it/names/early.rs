//! The early drop as `explain` tells of it, and what others' rules make of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::dns::Reply;
use fw_testkit::dns::wire::kind;
use fw_testkit::nft;
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::range::{Range, Shot};
use fw_testkit::traffic::server::Server;
use fw_testkit::traffic::steady::Steady;
use serde_json::Value;

use super::field::{Mode, Names, PORT, to_names};
use super::steps::{in_all_modes_at_once, query, scripted_address, spare, spare6};
use crate::daemon::eventually;
use crate::rig::{at, fresh_port, policy};

/// The inside interface of the lab.
const INSIDE: &str = "vrf104009";

/// Dropped packets by the path of their counter.
fn drops(names: &Names) -> Result<BTreeMap<String, u64>> {
    // The status does not read the kernel again within 50 ms of the last reading.
    std::thread::sleep(Duration::from_millis(60));
    let status = names.daemon.status()?;
    let mut counts = BTreeMap::new();
    for (reason, places) in status["status"]["stats"]["drops"].as_object().context("drops by reason")? {
        for (place, count) in places.as_object().context("drops by place")? {
            let packets = count["packets"].as_u64().context("a drop has packets")?;
            counts.insert(format!("stats.drops.{reason}.{place}"), packets);
        }
    }
    Ok(counts)
}

fn explained(names: &Names, protocol: &str, to: SocketAddr) -> Result<Value> {
    let from = if to.is_ipv4() { "10.0.16.2:4000" } else { "[2001:db8:10:16::2]:4000" };
    let packet = format!("{protocol} {from} -> {to} in {INSIDE} out vlan179");
    let output = names.daemon.ask(&["explain", "--json", "--packet", &packet])?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{packet}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Sends a packet of a new connection and looks where it ends.
fn ends_where_explained(names: &Names, protocol: &str, to: SocketAddr) -> Result<Value> {
    let answer = explained(names, protocol, to)?;
    let before = drops(names)?;
    let from = at(if to.is_ipv4() { "10.0.16.2" } else { "2001:db8:10:16::2" }, fresh_port());
    let packet = if protocol == "tcp" { Crafted::syn(from, to) } else { Crafted::udp(from, to) };
    let arrivals = Range::new(&names.lab)?.fire(&[Shot { from: 0, packet }])?;
    let passed = !arrivals[0].is_empty();
    ensure!(answer["accepted"] == passed, "passed: {passed}, but {answer:#}");
    let after = drops(names)?;
    let moved: Vec<(&String, u64)> = after
        .iter()
        .map(|(path, count)| (path, count - before.get(path).copied().unwrap_or_default()))
        .filter(|(_, more)| *more > 0)
        .collect();
    let counter = answer["counter"].as_str().context("a counter")?;
    let expected = match (passed, answer["dropped_early"].is_string()) {
        (true, _) => vec![],
        (false, true) => vec![counter],
        // By the comment of the rule; its path is that of nftables' policy drop.
        (false, false) if counter == "count and log dropped packets" => vec!["stats.drops.policy.nftables"],
        (false, false) => bail!("{answer:#}"),
    };
    let counted: Vec<&str> = moved.iter().map(|(path, _)| path.as_str()).collect();
    ensure!(counted == expected && moved.iter().all(|(_, more)| *more == 1), "{moved:?}, not {answer:#}");
    Ok(answer)
}

#[test]
fn explain_names_where_a_packet_is_dropped_early_and_there_it_is_counted() -> Result<()> {
    in_all_modes_at_once(|mode| {
        let static_rule = policy(
            "static",
            &format!("{{egress: [{{to: [{{cidr: 198.18.1.9/32}}], ports: [{{port: {PORT}}}]}}]}}"),
        );
        let names = Names::new(
            "explain",
            mode,
            "  dns: {ttlMin: 1, ttlMax: 3, grace: 1}\n",
            &[to_names("odd", "{matchPattern: '*.odd.test'}"), static_rule],
        )?;
        let script = names.scripted()?;
        for (name, address) in [("a.odd.test", spare(1)), ("b.odd.test", spare(2))] {
            script.name(name, Reply::Addresses { addresses: vec![address], ttl: 3 })?;
            names.answer(scripted_address()?, &query(name, kind::A)?)?;
        }
        let (learned, over) = (SocketAddr::new(spare(1), PORT), SocketAddr::new(spare(2), PORT));
        let answer = ends_where_explained(&names, "tcp", learned).context("while it is learned")?;
        ensure!(answer["dropped_early"].is_null() && answer["accepted"] == true, "{answer:#}");
        script.name("b.odd.test", Reply::Addresses { addresses: vec![spare(4)], ttl: 3 })?;

        let asks = names.figures()?["conntrack"] == "yes";
        let place = match mode {
            Mode::Native | Mode::Generic => Some("xdp"),
            Mode::Tcx => Some("tcx"),
            Mode::Off => None,
        };
        ensure!(place.is_none() || asks, "this kernel can be asked: {:?}", names.figures()?["conntrack"]);
        let closed = [
            ("tcp", SocketAddr::new(spare(3), PORT)),
            ("tcp", SocketAddr::new(spare(9), PORT + 1)),
            ("udp", SocketAddr::new(spare(3), PORT)),
            ("tcp", SocketAddr::new(spare6(3), PORT)),
            ("udp", SocketAddr::new(spare6(3), PORT)),
        ];
        for (protocol, to) in closed {
            let answer = ends_where_explained(&names, protocol, to)?;
            let early = place.map(|place| format!("by {place} on {INSIDE}, for policy"));
            ensure!(answer["dropped_early"].as_str() == early.as_deref(), "{protocol} {to}: {answer:#}");
        }
        let answer = ends_where_explained(&names, "tcp", SocketAddr::new(spare(9), PORT))?;
        ensure!(answer["accepted"] == true && answer["dropped_early"].is_null(), "{answer:#}");

        // Explained from the maps of this moment: a name that has allowed it is over.
        eventually("the name leads elsewhere", || {
            Ok(!names.learned_addresses("b.odd.test")?.contains(&over.ip()))
        })?;
        let answer = ends_where_explained(&names, "tcp", over).context("after it is over")?;
        let is_early = answer["dropped_early"].is_string();
        ensure!(is_early == place.is_some(), "{answer:#}");
        Ok(())
    })
}

/// Live datagrams in a conntrack zone of somebody else's: the early drop asks another one, and would take them for new.
const ZONES: &str = "table inet theirs { chain raw { type filter hook prerouting priority raw; \
                     udp dport 7001 ct zone set 7; udp sport 7001 ct zone set 7; }; }";

#[test]
fn where_others_set_conntrack_zones_nothing_is_dropped_early_and_live_connections_go_on() -> Result<()> {
    for mode in [Mode::Native, Mode::Tcx] {
        let to_udp =
            policy("udp", "{egress: [{to: [{cidr: 203.0.113.2/32}], ports: [{port: 7001, protocol: UDP}]}]}");
        let by_name = to_names("odd", "{matchPattern: '*.odd.test'}");
        let names = Names::new("zones", mode, "", &[by_name.clone(), to_udp])?;
        nft::load(&names.lab.firewall, ZONES)?;
        let server = Server::udp(&names.lab.internet().ns, &[at("203.0.113.2", 7001)])?;
        let pace = Duration::from_millis(5);
        let (from, to) = (at("10.0.16.2", 0), server.addresses()[0]);
        let live = Steady::udp(&names.lab.cluster().ns, from, to, pace)?;
        let answered = |more: u64| {
            let before = live.report().answered;
            eventually("the live connection goes on", || Ok(live.report().answered > before + more))
        };
        answered(20)?;
        // With the policy goes what let datagrams through unasked.
        names.rewrite("", std::slice::from_ref(&by_name), "accept traffic for np udp udp", false)?;
        let told = |status: &Value| {
            let problems = status["status"]["controller"]["problems"].as_array().cloned().unwrap_or_default();
            problems.iter().any(|line| line.as_str().is_some_and(|line| line.contains("conntrack zone")))
        };
        let status = names.daemon.wait_until("it says what keeps it from dropping early", told)?;
        let lines = status["status"]["controller"]["problems"].to_string();
        ensure!(
            lines.contains("nothing is dropped early") && lines.contains("chain raw of table theirs"),
            "{lines}"
        );
        answered(100)?;
        let closed = SocketAddr::new(spare(3), PORT);
        let answer = ends_where_explained(&names, "tcp", closed).context(mode.name())?;
        ensure!(answer["dropped_early"].is_null(), "{answer:#}");
        let report = live.stop()?;
        ensure!(report.sent == report.answered && report.breaks.is_empty(), "{}: {report:?}", mode.name());

        nft::load(&names.lab.firewall, "delete table inet theirs")?;
        let more = to_names("even", "{matchPattern: '*.even.test'}");
        names.rewrite("", &[by_name, more], "accept traffic for np even tcp", true)?;
        names.daemon.wait_until("nothing speaks against dropping early any more", |status| !told(status))?;
        let answer = ends_where_explained(&names, "tcp", closed).context(mode.name())?;
        ensure!(answer["dropped_early"].is_string(), "{answer:#}");
    }
    Ok(())
}
