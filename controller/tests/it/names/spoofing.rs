//! Answers that nobody asked for, wrong ones, and bytes that are none.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fw_testkit::Netns;
use fw_testkit::dns::scripted::{Custom, Transport};
use fw_testkit::dns::wire::{Name, Query, Record, Response, kind};
use fw_testkit::dns::{Client, Reply, Scripted, Spoof, TcpClient};
use fw_testkit::r#gen::{self, Rng};
use fw_testkit::topology::SCRIPTED_ADDRESSES;
use serde_json::Value;

use super::field::{Mode, Names, PORT, to_names};
use crate::daemon::{PATIENCE, eventually, soak_factor};

/// What wrong answers say.
const BAD: [u8; 4] = [198, 18, 66, 6];
/// What right answers say.
const GOOD: [u8; 4] = [198, 18, 66, 1];
/// Port of the proxy.
const PROXY: u16 = 5353;
/// Datagrams sent before the receiver has its turn.
const BURST: usize = 64;

fn modes() -> &'static [Mode] {
    if soak_factor() > 1 { &Mode::ALL } else { &[Mode::Tcx, Mode::Off] }
}

fn rig(label: &str, mode: Mode) -> Result<(Names, Scripted)> {
    let names = Names::new(label, mode, "", &[to_names("all", "{matchPattern: '*.scripted.test'}")])?;
    let script = names.script()?;
    script.otherwise(good());
    Ok((names, script))
}

fn good() -> Reply {
    Reply::Addresses { addresses: vec![GOOD.into()], ttl: 300 }
}

/// An answer that says the wrong address for the name asked for.
fn bad_answer(query: &Query) -> Result<Vec<u8>> {
    let record = Record::address(query.name.clone(), 300, BAD.into());
    Response { answers: vec![record], ..Response::default() }.bytes(query, None)
}

fn good_answer(query: &Query) -> Result<Vec<u8>> {
    let record = Record::address(query.name.clone(), 300, GOOD.into());
    Response { answers: vec![record], ..Response::default() }.bytes(query, None)
}

/// Wrong answers of each kind around the right one: other ids, another question, questions instead of answers, and
/// records that cannot be read.
fn storm_of(each: u16) -> Custom {
    Arc::new(move |query: &Query, _: Transport| {
        let (Ok(bad), Ok(good)) = (bad_answer(query), good_answer(query)) else { return Vec::new() };
        let mut messages = Vec::new();
        for number in 0..each {
            let mut other_id = bad.clone();
            // Never the right one: the lowest 15 bits differ.
            let id = query.id ^ (1 + number);
            other_id[..2].copy_from_slice(&id.to_be_bytes());
            let elsewhere = Name::parse(&format!("other{number}.scripted.test")).ok();
            let other_name = elsewhere.map(|name| Query { name, ..query.clone() });
            let mut question = bad.clone();
            question[2] &= 0x7f;
            let cut = bad[..bad.len() - 5].to_vec();
            messages.extend([other_id, question, cut]);
            messages.extend(other_name.and_then(|query| bad_answer(&query).ok()));
        }
        messages.push(good);
        messages
    })
}

/// Sizes and everything that was counted of strangers.
fn spoofs(names: &Names) -> Result<[u64; 3]> {
    let figures = names.figures()?;
    let spoofs = &figures["proxy"]["spoofs"];
    let one = |label: &str| spoofs[label].as_u64().with_context(|| format!("no {label}: {spoofs}"));
    Ok([one("id")?, one("question")?, one("malformed")?])
}

/// Entries of all maps and sets that names fill.
fn learned(names: &Names) -> Result<(Value, Value)> {
    let figures = names.figures()?;
    let used = |name: &str| figures["maps"][name]["used"].clone();
    let sizes = serde_json::json!([used("ALLOW4"), used("ALLOW6")]);
    let learned = &figures["learned"];
    Ok((serde_json::json!([learned["names"], learned["addresses"], learned["facts"]]), sizes))
}

fn nothing_bad(names: &Names) -> Result<()> {
    ensure!(!names.reaches(BAD.into(), PORT)?, "the address of wrong answers is open");
    ensure!(names.reaches(GOOD.into(), PORT)?, "the address of right answers is closed");
    let listed = names.daemon.ask(&["dns", "--json"])?.stdout;
    let bad = IpAddr::from(BAD).to_string();
    ensure!(!String::from_utf8_lossy(&listed).contains(&bad), "it was learned");
    let sets = names.lab.firewall.output("nft", &["list", "ruleset"])?;
    ensure!(!sets.contains(&bad), "it is in a set");
    Ok(())
}

#[test]
fn wrong_answers_by_the_ten_thousand_are_counted_and_open_nothing() -> Result<()> {
    const NAMES: u64 = 100;
    const EACH: u16 = 30;
    for mode in modes() {
        let (names, script) = rig("wrong", *mode)?;
        script.otherwise(Reply::Custom(storm_of(EACH)));
        for number in 0..NAMES {
            let answer = names.ask_script(&format!("victim{number}.scripted.test"), kind::A)?;
            assert_eq!(answer.ips(), [IpAddr::from(GOOD)], "{number}");
        }
        let sent = NAMES * u64::from(EACH);
        eventually("everything has been looked at", || Ok(spoofs(&names)?.iter().sum::<u64>() >= 4 * sent))?;
        assert_eq!(spoofs(&names)?, [sent, sent, 2 * sent], "id, question, malformed");
        let (sizes, _) = learned(&names)?;
        assert_eq!(sizes, serde_json::json!([NAMES, 1, NAMES]), "names, addresses, facts");
        nothing_bad(&names).context(mode.name())?;

        // From another server or port than was asked, and records beside the answer.
        let strangers = [
            Spoof::From(SocketAddr::new(SCRIPTED_ADDRESSES[0].parse()?, 5300)),
            Spoof::From(SocketAddr::new("203.0.113.2".parse()?, 53)),
        ];
        for (number, spoof) in strangers.into_iter().enumerate() {
            let bad = Reply::Addresses { addresses: vec![BAD.into()], ttl: 300 };
            script.otherwise(Reply::Each(vec![Reply::Spoofed(spoof, Box::new(bad)), good()]));
            for name in 0..50 {
                let answer = names.ask_script(&format!("stranger{number}-{name}.scripted.test"), kind::A)?;
                assert_eq!(answer.ips(), [IpAddr::from(GOOD)], "{spoof:?}");
            }
        }
        for (number, spoof) in
            [Spoof::Beside(BAD.into()), Spoof::Stranger(BAD.into())].into_iter().enumerate()
        {
            script.otherwise(Reply::Spoofed(spoof, Box::new(good())));
            for name in 0..50 {
                let answer = names.ask_script(&format!("beside{number}-{name}.scripted.test"), kind::A)?;
                ensure!(answer.ips().contains(&IpAddr::from(GOOD)), "{spoof:?}");
            }
        }
        nothing_bad(&names).context(mode.name())?;
    }
    Ok(())
}

/// Sends many datagrams from an address; in bursts, so that what is lost is not lost by a full buffer.
fn flood(ns: &Netns, from: SocketAddr, to: &[SocketAddr], bytes: &[u8], count: usize) -> Result<()> {
    ns.run(|| -> Result<()> {
        let socket = UdpSocket::bind(from)?;
        for number in 0..count {
            // What the other side refuses by ICMP is an error of the next call.
            let _ = socket.send_to(bytes, to[number % to.len()]);
            if number % BURST == BURST - 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    })?
}

#[test]
fn unsolicited_answers_reach_no_map() -> Result<()> {
    const FLOOD: usize = 20_000;
    for mode in modes() {
        let (names, script) = rig("unsolicited", *mode)?;
        names.ask_script("first.scripted.test", kind::A)?;
        let before = (learned(&names)?, spoofs(&names)?);
        let query = Query::new(7, "victim.scripted.test", kind::A)?;
        let bad = bad_answer(&query)?;

        // To the socket by which the proxy asks, from the server it asks, while it waits for the answer.
        script.name("victim.scripted.test", Reply::Silence)?;
        let server = script.addresses()[0];
        let mut client = Client::new(&names.lab.cluster().ns, server)?;
        client.send(&query.bytes()?)?;
        eventually("the server is asked", || Ok(script.asked_for("victim.scripted.test", kind::A)? > 0))?;
        let asked = script.asked().pop().context("nobody asked")?;
        let id = asked.query().context("not a question")?.id;
        let wrong = Query { id: id ^ 1, ..query.clone() };
        // Its port is free for somebody else.
        drop(script);
        let internet = &names.lab.internet().ns;
        flood(internet, server, &[asked.from], &bad_answer(&wrong)?, FLOOD)?;
        let counted = || Ok::<_, anyhow::Error>(spoofs(&names)?[0] - before.1[0]);
        counted_most(&counted, FLOOD).context("of wrong ids to the socket that asks")?;

        // To its listening port: from outside the firewall drops them, from inside the proxy does.
        let outside = SocketAddr::new("203.0.113.1".parse()?, PROXY);
        let dropped = |names: &Names| {
            Ok::<_, anyhow::Error>(fw_testkit::nft::counters(&names.lab.firewall)?.named("drop_dns_proxy"))
        };
        let dropped_before = dropped(&names)?;
        flood(internet, SocketAddr::new("203.0.113.2".parse()?, 53), &[outside], &bad, FLOOD)?;
        let counted = || Ok::<_, anyhow::Error>(dropped(&names)? - dropped_before);
        counted_most(&counted, FLOOD).context("dropped by nftables")?;
        let no_question = |names: &Names| -> Result<u64> {
            Ok(names.figures()?["proxy"]["queries"]["dropped_no_question"].as_u64().unwrap_or(0))
        };
        let ignored_before = no_question(&names)?;
        let inside = SocketAddr::new("10.0.16.1".parse()?, PROXY);
        flood(&names.lab.cluster().ns, "10.0.16.2:53".parse()?, &[inside], &bad, FLOOD)?;
        let counted = || Ok::<_, anyhow::Error>(no_question(&names)? - ignored_before);
        counted_most(&counted, FLOOD).context("dropped by the proxy")?;
        assert_eq!(learned(&names)?, before.0, "{}: maps or what was learned changed", mode.name());
        nothing_bad(&names).context(mode.name())?;
    }
    Ok(())
}

/// Waits until most were counted: what a full buffer loses, or what comes when its socket has closed, is the kernel's to
/// count. None is counted twice.
fn counted_most(counted: &impl Fn() -> Result<u64>, sent: usize) -> Result<()> {
    let sent = u64::try_from(sent)?;
    let result = eventually("most of them are counted", || Ok(counted()? >= sent / 2));
    result.with_context(|| format!("{:?} of {sent}", counted()))?;
    std::thread::sleep(Duration::from_millis(200));
    let said = counted()?;
    eprintln!("{said} of {sent} were counted");
    ensure!(said <= sent, "{said} of {sent}");
    Ok(())
}

/// Messages that parsers get wrong, for one question.
fn hostile(query: &Query, rng: &mut Rng) -> Result<Vec<Vec<u8>>> {
    let good = bad_answer(query)?;
    let question_end = query.bytes()?.len();
    let mut all: Vec<Vec<u8>> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
    for pointer in [12, question_end, question_end + 1, 0x3fff] {
        // An owner that points at itself, into the question, or past the end.
        let mut message = good.clone();
        let pointer = 0xc000 | u16::try_from(pointer)?;
        message.truncate(question_end);
        message.extend(pointer.to_be_bytes());
        message.extend([0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 198, 18, 66, 6]);
        all.push(message);
    }
    for (at, count) in [(4, 0), (4, 2), (6, u16::MAX), (8, u16::MAX), (10, u16::MAX)] {
        let mut message = good.clone();
        message[at..at + 2].copy_from_slice(&u16::to_be_bytes(count));
        all.push(message);
    }
    for _ in 0..60 {
        let mut message = good.clone();
        for _ in 0..=rng.below(4) {
            let at = 2 + rng.below(message.len() - 2);
            message[at] = u8::try_from(rng.bits() & 0xff)?;
        }
        all.push(message);
    }
    let text = Record::text(query.name.clone(), 300, 60_000);
    all.push(Response { answers: vec![text], ..Response::default() }.bytes(query, None)?);
    Ok(all)
}

/// Resident memory of the controller, in KiB.
fn resident(names: &mut Names) -> Result<u64> {
    let id = names.daemon.process()?.id();
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

#[test]
fn hostile_bytes_crash_nothing_and_fill_nothing() -> Result<()> {
    /// KiB that it may grow by: caches and buffers that are bounded by themselves.
    const ROOM: u64 = 64 << 10;
    let seed = r#gen::seed();
    eprintln!("FW_SEED={seed}");
    let (mut names, script) = rig("hostile", Mode::Tcx)?;
    names.ask_script("first.scripted.test", kind::A)?;
    let sent = Arc::new(AtomicUsize::new(0));
    let its = Arc::clone(&sent);
    // As answers; of names that no policy has, so that none of them may open anything, then the right one.
    let make: Custom = Arc::new(move |query: &Query, _: Transport| {
        let mut rng = Rng::new(seed ^ u64::from(query.id));
        let mut messages = hostile(query, &mut rng).unwrap_or_default();
        messages.retain(|message| message.len() < 60_000);
        its.fetch_add(messages.len(), Ordering::Relaxed);
        messages.extend(good_answer(query));
        messages
    });
    script.otherwise(Reply::Custom(make));
    let rounds = 100 * soak_factor();
    let before = resident(&mut names)?;
    let learned_before = learned(&names)?;
    for number in 0..rounds {
        let answer = names.ask_script(&format!("hostile{number}.elsewhere.test"), kind::A)?;
        ensure!(answer.rcode().is_some(), "{answer:?}");
    }
    assert_eq!(learned(&names)?, learned_before, "names of no policy were learned");

    // The same as questions, over UDP and TCP.
    let query = Query::new(9, "question.elsewhere.test", kind::A)?;
    let corpus = hostile(&query, &mut Rng::new(seed))?;
    script.otherwise(good());
    let cluster = &names.lab.cluster().ns;
    let server = script.addresses()[0];
    for _ in 0..rounds / 10 {
        for message in &corpus {
            let small = message.get(..message.len().min(1400)).unwrap_or_default();
            flood(cluster, "10.0.16.2:0".parse()?, &[server], small, 1)?;
        }
        let mut client = TcpClient::connect(cluster, server, PATIENCE)?;
        for message in &corpus {
            let mut framed = fw_testkit::dns::framed(message)?;
            // As an answer it would be dropped; as a question it is read.
            if let Some(flags) = framed.get_mut(4) {
                *flags &= 0x7f;
            }
            if client.send(&framed).is_err() {
                // It has closed the connection, as it may.
                client = TcpClient::connect(cluster, server, PATIENCE)?;
            }
        }
    }
    let answer = names.ask_script("last.scripted.test", kind::A)?;
    assert_eq!(answer.ips(), [IpAddr::from(GOOD)]);
    let after = resident(&mut names)?;
    eprintln!("{} hostile answers; {before} KiB before, {after} KiB after", sent.load(Ordering::Relaxed));
    ensure!(after < before + ROOM, "from {before} to {after} KiB");
    nothing_bad(&names)
}
