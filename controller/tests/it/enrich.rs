//! What the controller tells droptailer: why packets were dropped or accepted, and which were dropped early.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::dns::Reply;
use fw_testkit::dns::wire::kind;
use fw_testkit::traffic::craft::{Crafted, Tag};
use fw_testkit::traffic::inject::Injector;
use serde_json::{Value, json};

use crate::names::field::{Mode, Names, PORT, to_names};
use crate::names::steps::{query, scripted_address, spare};
use crate::rig::at;

const CLOSED: &str = "198.18.1.77";

fn question(action: &str, to: &str, port: u16) -> Value {
    json!({
        "action": action, "in": "vrf104009", "out": "vlan179", "source": "10.0.16.2", "destination": to,
        "protocol": 6, "ports": [40000, port],
    })
}

fn enrich(names: &Names, packet: Value) -> Result<Value> {
    let mut answer = names.daemon.request(&json!({"request": "enrich", "packets": [packet]}))?;
    Ok(answer[0].take())
}

#[test]
fn a_packet_is_told_its_rule_its_policy_its_name_and_what_would_have_allowed_it() -> Result<()> {
    for mode in [Mode::Tcx, Mode::Off] {
        let names = Names::new("enrich", mode, "", &[to_names("odd", "{matchPattern: '*.odd.test'}")])?;
        let script = names.scripted()?;
        for (name, address) in [("a.odd.test", spare(1)), ("www.elsewhere.test", spare(2))] {
            script.name(name, Reply::Addresses { addresses: vec![address], ttl: 60 })?;
            names.answer(scripted_address()?, &query(name, kind::A)?)?;
        }
        let answer = enrich(&names, question("accept", &spare(1).to_string(), PORT))?;
        let expected = json!({
            "rule": "accept traffic for np odd tcp, fqdn: *.odd.test", "policy": "firewall/odd", "fqdn": "a.odd.test",
        });
        ensure!(answer == expected, "{mode:?}: {answer:#}");
        // A name that no policy has is known all the same.
        let answer = enrich(&names, question("drop", &spare(2).to_string(), PORT))?;
        let hint = format!(
            "egress: [{{toFQDNs: [{{matchName: www.elsewhere.test}}], ports: [{{protocol: TCP, port: {PORT}}}]}}]"
        );
        let expected =
            json!({"rule": "count and log dropped packets", "fqdn": "www.elsewhere.test", "hint": hint});
        ensure!(answer == expected, "{mode:?}: {answer:#}");
        let answer = enrich(&names, question("drop", &spare(3).to_string(), PORT))?;
        ensure!(
            answer["fqdn"].is_null() && answer["hint"].as_str().is_some_and(|hint| hint.contains("cidr: "))
        );
    }
    Ok(())
}

#[test]
fn only_requests_with_packets_may_be_long_and_they_have_a_bound() -> Result<()> {
    let names =
        Names::new("enrich-bounds", Mode::Off, "", &[to_names("odd", "{matchPattern: '*.odd.test'}")])?;
    let packets = |count: usize| vec![question("drop", CLOSED, 80); count];
    let answers = names.daemon.request(&json!({"request": "enrich", "packets": packets(64)}))?;
    ensure!(answers.as_array().is_some_and(|answers| answers.len() == 64), "{answers}");
    let error = names.daemon.request(&json!({"request": "enrich", "packets": packets(65)}));
    ensure!(error.is_err_and(|error| error.to_string().contains("at most 64 packets")));
    let padded = json!({"request": "findings", "more": "x".repeat(4096)});
    let error = names.daemon.request(&padded);
    ensure!(error.is_err_and(|error| error.to_string().contains("at most 4096 bytes")));
    let error = names.daemon.request(&json!({"request": "enrich", "packets": "x".repeat(40_000)}));
    ensure!(error.is_err_and(|error| error.to_string().contains("one with packets 32768")));
    Ok(())
}

/// What a follower was told until nothing came for a while.
fn told(stream: &UnixStream) -> Result<(Vec<Value>, u64)> {
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let (mut packets, mut lost) = (Vec::new(), 0);
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => bail!("the stream has ended"),
            Ok(_) => {
                let mut value: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
                match value["lost"].as_u64() {
                    Some(more) => lost += more,
                    None => packets.push(value["early"].take()),
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok((packets, lost)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn follow(names: &Names) -> Result<UnixStream> {
    let mut stream = names.daemon.connect()?;
    stream.write_all(b"{\"request\":\"follow-early-drops\"}\n")?;
    let mut line = String::new();
    BufReader::with_capacity(1, &stream).read_line(&mut line)?;
    ensure!(line == "{\"result\":null}\n", "{line}");
    Ok(stream)
}

/// Early drops: all, those without a sample, and those that found the ring full.
fn early(names: &Names) -> Result<(u64, u64, u64)> {
    let figures = &names.figures()?["earlyDrops"];
    let number = |key: &str| figures[key].as_u64().with_context(|| format!("{key} in {figures}"));
    Ok((number("total")?, number("notLogged")?, number("ringFull")?))
}

/// Sends SYNs to where nothing is allowed, as fast as it goes.
fn flood(names: &Names, count: u64) -> Result<Duration> {
    let syn = Crafted::syn(at("10.0.16.2", 4000), SocketAddr::new(CLOSED.parse()?, 4000));
    let packets = syn.encode(Tag { run: 0, id: 0 })?;
    let mut injector = Injector::on(names.lab.cluster())?;
    let began = Instant::now();
    let all: Vec<&Vec<u8>> = packets.iter().cycle().take(usize::try_from(count)?).collect();
    injector.send(&all)?;
    Ok(began.elapsed())
}

#[test]
fn followers_are_told_every_early_drop_or_how_many_they_were_not_told() -> Result<()> {
    let odd = [to_names("odd", "{matchPattern: '*.odd.test'}")];
    let names = Names::new("follow", Mode::Tcx, "  dropLog: {rate: 0}\n", &odd)?;
    // While nobody follows, they are logged.
    flood(&names, 1)?;
    crate::daemon::eventually("it is a line of the log", || {
        Ok(names.daemon.lines()?.iter().any(|line| line.contains(CLOSED) && line.contains("early")))
    })?;
    let stream = follow(&names)?;
    let before = early(&names)?;
    flood(&names, 20)?;
    let (packets, lost) = told(&stream)?;
    ensure!(packets.len() == 20 && lost == 0, "{} and {lost} lost", packets.len());
    let (frame, input) = (&packets[0]["frame"], &packets[0]["in"]);
    // 198.18.1.77 in hexadecimal.
    ensure!(
        frame.as_str().is_some_and(|frame| frame.contains("c612014d")) && input == "vrf104009",
        "{packets:?}"
    );
    let logged = names.daemon.lines()?.iter().filter(|line| line.contains(CLOSED)).count();
    ensure!(logged == 1, "it is logged while somebody follows");

    // Nobody reads: what the queue has no room for is lost, and said.
    let took = flood(&names, 60_000)?;
    let (packets, lost) = told(&stream)?;
    let after = early(&names)?;
    let (dropped, not_given, ring_full) = (after.0 - before.0 - 20, after.1 - before.1, after.2 - before.2);
    eprintln!(
        "{dropped} dropped in {took:?}: {} told, {lost} lost, {ring_full} of them in the ring",
        packets.len()
    );
    ensure!(dropped == 60_000, "{dropped}");
    ensure!(not_given == ring_full, "no rate is set: {not_given} and {ring_full}");
    ensure!(packets.len() as u64 + lost == dropped, "{} and {lost} of {dropped}", packets.len());

    // With a limit: told, kept back by it, and lost are all there is.
    names.write("  dropLog: {rate: 10}\n", &odd)?;
    names.daemon.wait_until("the limit is in force", |status| {
        status["status"]["controller"]["transactions"]["commits"].as_u64().is_some_and(|commits| commits > 1)
    })?;
    let before = early(&names)?;
    flood(&names, 5_000)?;
    let (packets, lost) = told(&stream)?;
    let after = early(&names)?;
    let (dropped, not_given, ring_full) = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
    ensure!(dropped == 5_000 && not_given > 0, "{dropped}, {not_given} kept back");
    let suppressed = not_given - ring_full;
    let all = packets.len() as u64 + suppressed + lost;
    ensure!(all == dropped, "{} told, {suppressed} kept back, {lost} lost of {dropped}", packets.len());
    Ok(())
}
