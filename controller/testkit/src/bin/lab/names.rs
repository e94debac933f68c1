//! The second act: policies with names, and an internet with DNS.

mod report;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::Netns;
use fw_testkit::dns::load::{Connect, Load, LoadReport, Pace};
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Answer, Client, Query, Reply, Scripted, TcpClient, Unique, awkward};
use fw_testkit::topology::{Lab, LabSpec, PUBLIC_RESOLVER_ADDRESSES, RESOLVER_ADDRESSES, SCRIPTED_ADDRESSES};
use fw_testkit::traffic::any::AnyServer;
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::probe;
use fw_testkit::traffic::range::{Range, Shot};
use ipnet::Ipv4Net;

use crate::controller::Controller;
use crate::stage::{Check, DENIED, EARLY, PATIENCE, Reading, SILENCE, Seen, Stage};
use crate::table::{Table, thousands};

/// Manifests of this act.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples/lab-names");
/// Comes while the controller runs.
const NAMES: &str = "names.yaml";
/// Width of the longest comment.
const RULE_WIDTH: usize = 41;
/// Where all servers of the internet listen, and what names open.
const PORT: u16 = 443;

const ALLOW_RESOLVER: &str = "accept traffic for np resolver udp";
const WEB: &str = "accept traffic for np web tcp, fqdn: www.example.test";
const COM: &str = "accept traffic for np web tcp, fqdn: www.example.com";
const WILD: &str = "accept traffic for np wild tcp, fqdn: *.wild.example.test";
const CDN: &str = "accept traffic for np cdn tcp, fqdn: hop3.chain.example.test";
const BIG: &str = "accept traffic for np big tcp, fqdn: sixty.example.test";
const API: &str = "accept traffic for np api tcp, fqdn: *.scripted.test";
const UDP_QUESTION: &str = "dnat to dns proxy udp";
const TCP_QUESTION: &str = "dnat to dns proxy tcp";
const FALLBACK: &str = "accept dns while the proxy is away udp";

/// Their answers say something else each time.
const ROTATING: &str = "rotating.scripted.test";
const MOVING: &str = "moving.scripted.test";
const REBINDING: &str = "rebinding.scripted.test";
/// Where the moving name is first, and later.
const BEFORE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 200, 1));
const AFTER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 200, 2));
/// Where clouds keep the secrets of a machine; a name that leads there is an attack.
const METADATA: &str = "169.254.169.254";
/// Questions about the rotating name.
const ROTATIONS: usize = 100;
/// Never-seen names whose latency is measured.
const MEASURED: usize = 300;
/// Where they are.
const UNIQUE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);
/// Asked for while the proxy is away, and where it is.
const LATE: (&str, Ipv4Addr) = ("late9999.scripted.test", Ipv4Addr::from_bits(UNIQUE.to_bits() + 9999));
/// SYNs of the flood.
const FLOOD: u16 = 1000;

/// The internet of this act.
struct World {
    lab: Lab,
    scripted: Scripted,
    _servers: AnyServer,
}

impl World {
    fn new() -> Result<Self> {
        let spec = LabSpec::standard("names")?.with_dns()?.with_internet_addresses(&[METADATA.parse()?]);
        let lab = Lab::new(&spec)?;
        let internet = &lab.internet().ns;
        let servers = AnyServer::new(internet, PORT)?;
        let at = SCRIPTED_ADDRESSES.map(str::parse).into_iter().collect::<Result<Vec<IpAddr>, _>>()?;
        let scripted = Scripted::at(internet, &at)?;
        let unique = Unique { v4: Ipv4Net::new(UNIQUE, 16)?, v6: "2001:db8:f00:1::/112".parse()?, ttl: 300 };
        scripted.below("scripted.test", Reply::Unique(unique))?;
        let pool = (0..=255).flat_map(|n| [[198, 18, 100, n], [198, 18, 101, n]]).take(500);
        let pool = pool.map(IpAddr::from).collect();
        scripted.name(ROTATING, Reply::Rotating { pool, choose: 8, ttl: 0 })?;
        scripted.name(MOVING, Reply::Addresses { addresses: vec![BEFORE], ttl: 1 })?;
        let inward = ["127.0.0.1", METADATA, "10.0.16.77"].map(str::parse);
        let addresses = inward.into_iter().collect::<Result<Vec<IpAddr>, _>>()?;
        scripted.name(REBINDING, Reply::Addresses { addresses, ttl: 60 })?;
        Ok(Self { lab, scripted, _servers: servers })
    }
}

/// Plays the act.
pub(crate) fn act(table: &mut Table) -> Result<()> {
    let mut controller = Controller::prepare("names", Path::new(EXAMPLES), &[NAMES])?;
    let world = World::new()?;
    let took = controller.start(&world.lab.firewall)?;
    table.say("\n");
    table.title("firewall-controller: names, by the rules of deploy/examples/lab-names");
    table.say(
        "  cluster 10.0.16.2 -- vrf104009 [firewall] vlan179 -- internet 198.18.0.0/15, 2001:db8:f00::/48,",
    );
    table.say("                                                       BIND for example.test, unbound at 203.0.113.53");
    table.say(&format!("rules in force {} ms after the start\n", took.as_millis()));
    table.columns(RULE_WIDTH);
    let failed = table.failed().len();
    let outcome = scenes(table, &world, &mut controller);
    crate::end_act(table, &mut controller, failed, outcome)
}

fn scenes(table: &mut Table, world: &World, controller: &mut Controller) -> Result<()> {
    let mut stage = Stage { lab: &world.lab, controller, table, explained: 0 };
    let direct = before(&mut stage)?;
    opened(&mut stage, &world.scripted)?;
    resolvers(&mut stage)?;
    never(&mut stage)?;
    let proxied = changing(&mut stage)?;
    let mut explained = stage.explained;
    let latency = report::Latency::new(controller, &direct, &proxied)?;
    explained += crash(table, &world.lab, controller)?;
    table.remark(&format!(
        "\nA name's line is a question and, the moment the answer is there, a connection to the address in it.\n\
         early drop: by an eBPF program, before conntrack and nftables. past the proxy: answered while it was away.\n\
         `firewall-controller explain` agrees about all {explained} packets that it was asked about."
    ));
    report::early_drops(table, &world.lab, controller)?;
    report::from_the_controller(table, controller)?;
    latency.print(table);
    Ok(())
}

/// What holds without names.
fn before(stage: &mut Stage<'_>) -> Result<LoadReport> {
    stage.table.heading("No policy has names yet");
    let mut report = LoadReport::default();
    let count = u64::try_from(MEASURED)?;
    let check = Check {
        probe: &format!("{MEASURED} DNS questions to {}", RESOLVER_ADDRESSES[0]),
        expected: "answered",
        rules: &[(ALLOW_RESOLVER, count..=count)],
        packet: None,
    };
    stage.check(&check, |stage| {
        report = measured(stage.lab, "direct")?;
        Ok(Seen::new(format!("{} answers", report.answered), report.answered == MEASURED))
    })?;
    dropped(stage, awkward::addresses_of(1)[0], "(www.example.test)", DENIED)?;
    let took = stage.controller.after_change(|| {
        stage.controller.edit(NAMES, &std::fs::read_to_string(Path::new(EXAMPLES).join(NAMES))?)
    })?;
    let begin = Instant::now();
    wait_until_armed(&stage.lab.firewall)?;
    let took = took + begin.elapsed();
    let how = &stage.controller.status()?["status"]["controller"]["names"]["fastpath"];
    let how = how.as_object().into_iter().flatten().filter_map(|(name, how)| {
        Some(format!("{name} {}", how.as_str().filter(|how| *how != "not there")?))
    });
    stage.table.remark(&format!(
        "--  {NAMES} added: eBPF programs judge and DNS goes through the proxy {} ms later\n--  {}",
        took.as_millis(),
        how.collect::<Vec<_>>().join("; ")
    ));
    Ok(report)
}

/// Never-seen names, one question after the other, all answered by the server that the lab has written.
fn measured(lab: &Lab, label: &'static str) -> Result<LoadReport> {
    let resolver = SocketAddr::new(RESOLVER_ADDRESSES[0].parse()?, 53);
    let mut load = Load::new(resolver, MEASURED, move |number| format!("{label}{number:04}.scripted.test"));
    load.pace = Pace::InFlight(1);
    // As careful resolvers of hosts do: a port for each question.
    load.ports = MEASURED;
    load.run(&lab.cluster().ns)
}

/// Names that stay where they are.
fn opened(stage: &mut Stage<'_>, scripted: &Scripted) -> Result<()> {
    stage.table.heading("What a name opens, and what it does not");
    let [v4, v6] = awkward::addresses_of(1);
    dropped(stage, v4, "(nobody asked yet)", EARLY)?;
    by_name(stage, awkward::PLAIN, RESOLVER_ADDRESSES[0], v4, "", WEB)?;
    by_name(stage, awkward::PLAIN, RESOLVER_ADDRESSES[1], v6, "by IPv6", WEB)?;
    by_name(stage, MOVING, RESOLVER_ADDRESSES[0], BEFORE, "(TTL 1 s)", API)?;
    scripted.name(MOVING, Reply::Addresses { addresses: vec![AFTER], ttl: 1 })?;
    let other_port = SocketAddr::new(v4, 80);
    connect(stage, other_port, &format!("TCP {other_port} (port not opened)"), None, EARLY)?;
    denied_name(stage)?;
    by_name(stage, "a.b.wild.example.test", RESOLVER_ADDRESSES[0], awkward::addresses_of(12)[0], "", WILD)?;
    by_name(stage, awkward::CHAIN, RESOLVER_ADDRESSES[0], awkward::addresses_of(15)[0], "(8 CNAMEs)", CDN)?;
    over_tcp(stage)?;
    truncated(stage)
}

/// A name that leads to an address, asked for and then connected to.
fn by_name(
    stage: &mut Stage<'_>,
    name: &str,
    resolver: &str,
    address: IpAddr,
    what: &str,
    rule: &str,
) -> Result<()> {
    let answer = ask(stage.lab, resolver, name, kind_of(address))?;
    ensure!(answer.ips().contains(&address), "{name} is {:?}, not {address}", answer.ips());
    let probe = format!("{name} {what}");
    connect(stage, SocketAddr::new(address, PORT), probe.trim_end(), Some("opens"), rule)
}

/// A TCP connection from the cluster: through, by the rule, if `opens` has a word for it; else dropped.
fn connect(
    stage: &mut Stage<'_>,
    to: SocketAddr,
    probe: &str,
    opens: Option<&str>,
    rule: &str,
) -> Result<()> {
    let packet = packet(stage.lab, to);
    let check = Check {
        probe,
        expected: opens.unwrap_or("dropped"),
        rules: &[(rule, 1..=1)],
        packet: stage.controller.is_running().then_some((packet.as_str(), opens.is_some())),
    };
    stage.check(&check, |stage| {
        let patience = if opens.is_some() { PATIENCE } else { SILENCE };
        let outcome = probe::tcp_connect(&stage.lab.cluster().ns, None, to, patience)?;
        Ok(match outcome {
            Ok(_) => Seen::new(format!("{} connects", to.ip()), opens.is_some()),
            Err(probe::Outcome::Refused(why)) => Seen::new(why.to_lowercase(), false),
            Err(_) => Seen::new("nothing", opens.is_none()),
        })
    })
}

fn dropped(stage: &mut Stage<'_>, address: IpAddr, what: &str, rule: &str) -> Result<()> {
    let to = SocketAddr::new(address, PORT);
    connect(stage, to, &format!("TCP {to} {what}"), None, rule)
}

/// In the words of `explain`.
fn packet(lab: &Lab, to: SocketAddr) -> String {
    let own = if to.is_ipv4() { lab.cluster().v4() } else { lab.cluster().v6() };
    format!("tcp {} -> {to} in vrf104009 out vlan179", SocketAddr::new(own, 40_000))
}

/// Answered like any other, and it opens nothing.
fn denied_name(stage: &mut Stage<'_>) -> Result<()> {
    let address = awkward::addresses_of(2)[0];
    let answer = ask(stage.lab, RESOLVER_ADDRESSES[0], awkward::OTHER, kind::A)?;
    ensure!(answer.ips() == [address], "{} is {:?}", awkward::OTHER, answer.ips());
    let probe = format!("{} (in no policy)", awkward::OTHER);
    connect(stage, SocketAddr::new(address, PORT), &probe, None, EARLY)
}

/// Two questions in one segment of one TCP connection.
fn over_tcp(stage: &mut Stage<'_>) -> Result<()> {
    let check = Check {
        probe: &format!("{}, A and AAAA over TCP", awkward::COM),
        expected: "opens",
        rules: &[(COM, 2..=2), (TCP_QUESTION, 1..=1)],
        packet: Some((&packet(stage.lab, SocketAddr::new(awkward::addresses_of(17)[0], PORT)), true)),
    };
    stage.check(&check, |stage| {
        let ns = &stage.lab.cluster().ns;
        let server = SocketAddr::new(RESOLVER_ADDRESSES[0].parse()?, 53);
        let questions = [Query::new(1, awkward::COM, kind::A)?, Query::new(2, awkward::COM, kind::AAAA)?];
        let answers = TcpClient::connect(ns, server, PATIENCE)?.ask_all(&questions, PATIENCE)?;
        let mut connected = 0;
        for address in answers.iter().flat_map(Answer::ips) {
            let outcome = probe::tcp_connect(ns, None, SocketAddr::new(address, PORT), PATIENCE)?;
            connected += usize::from(outcome.is_ok());
        }
        Ok(Seen::new(format!("{connected} of 2 connect"), connected == 2))
    })
}

/// What does not fit into a datagram is cut, says so, and comes whole over TCP.
fn truncated(stage: &mut Stage<'_>) -> Result<()> {
    let server = SocketAddr::new(RESOLVER_ADDRESSES[0].parse()?, 53);
    let query = Query::new(3, awkward::SIXTY, kind::A)?;
    let check = Check {
        probe: &format!("{} over UDP", awkward::SIXTY),
        expected: "cut",
        rules: &[(UDP_QUESTION, 1..=1)],
        packet: None,
    };
    stage.check(&check, |stage| {
        let answer = Client::new(&stage.lab.cluster().ns, server)?.ask(&query, PATIENCE)?;
        let answer = answer.context("no answer")?;
        let (bytes, cut) = (answer.bytes.len(), answer.is_truncated());
        let text = format!("{bytes} bytes{}", if cut { ", TC" } else { "" });
        Ok(Seen::new(text, cut && bytes <= 512))
    })?;
    let answer = TcpClient::connect(&stage.lab.cluster().ns, server, PATIENCE)?.ask(&query, PATIENCE)?;
    let answer = answer.context("no answer over TCP")?;
    let ips = answer.ips();
    ensure!(ips.len() == 60, "{} has {} addresses over TCP, not 60", awkward::SIXTY, ips.len());
    let last = *ips.last().context("no address")?;
    let probe = format!("{}, the last, over TCP", awkward::SIXTY);
    connect(stage, SocketAddr::new(last, PORT), &probe, Some("opens"), BIG)
}

/// Names that do not stay where they are, and very many of them.
fn changing(stage: &mut Stage<'_>) -> Result<LoadReport> {
    stage.table.heading("Many answers, and the end of one");
    let proxied = measured(stage.lab, "proxied")?;
    at_once(stage, &format!("{ROTATING}, {ROTATIONS} times"), ROTATIONS, |_| ROTATING.to_owned())?;
    let never_seen = format!("{MEASURED} never-seen names of a wildcard");
    at_once(stage, &never_seen, MEASURED, |number| format!("new{number:04}.scripted.test"))?;
    wait_until_expired(stage.controller)?;
    dropped(stage, BEFORE, "(name has moved)", EARLY)?;
    by_name(stage, MOVING, RESOLVER_ADDRESSES[0], AFTER, "again", API)?;
    Ok(proxied)
}

/// Waits until the moving name is no longer where it was.
fn wait_until_expired(controller: &Controller) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while controller.ask(&["dns", MOVING])?.contains(&format!("{BEFORE} ")) {
        ensure!(Instant::now() < deadline, "{MOVING} still is at {BEFORE}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Questions one after the other, and a connection to the first address of each answer the moment it is there.
fn at_once(
    stage: &mut Stage<'_>,
    probe: &str,
    count: usize,
    name: impl Fn(usize) -> String + Send + Sync + 'static,
) -> Result<()> {
    let packets = u64::try_from(count)?;
    let check = Check { probe, expected: "opens", rules: &[(API, packets..=packets)], packet: None };
    stage.check(&check, |stage| {
        let resolver = SocketAddr::new(RESOLVER_ADDRESSES[0].parse()?, 53);
        let mut load = Load::new(resolver, count, name);
        load.pace = Pace::InFlight(1);
        load.connect = Some((Connect::Tcp, PORT));
        let report = load.run(&stage.lab.cluster().ns)?;
        let text = format!("{} by the first SYN", report.first.at_once);
        let well = report.first.at_once == count;
        Ok(Seen { text, complaint: (!well).then(|| format!("{report:?}")) })
    })
}

/// Whoever is asked, one resolver answers, and the client does not notice.
fn resolvers(stage: &mut Stage<'_>) -> Result<()> {
    stage.table.heading("Whom clients ask");
    for resolver in [PUBLIC_RESOLVER_ADDRESSES[2], PUBLIC_RESOLVER_ADDRESSES[6], "192.0.2.99"] {
        let what = if resolver == "192.0.2.99" { " (nobody is there)" } else { "" };
        let check = Check {
            probe: &format!("DNS to {resolver}{what}"),
            expected: "answered",
            rules: &[(UDP_QUESTION, 1..=1)],
            packet: None,
        };
        stage.check(&check, |stage| {
            let answer = ask(stage.lab, resolver, awkward::PLAIN, kind::A)?;
            let well = answer.from == SocketAddr::new(resolver.parse()?, 53);
            Ok(Seen::new(format!("by {}", answer.from.ip()), well))
        })?;
    }
    Ok(())
}

/// What no answer opens, and what costs no connection entry.
fn never(stage: &mut Stage<'_>) -> Result<()> {
    stage.table.heading("What no answer opens");
    let answer = ask(stage.lab, RESOLVER_ADDRESSES[0], REBINDING, kind::A)?;
    ensure!(answer.ips().len() == 3, "{REBINDING} is {:?}", answer.ips());
    let to = SocketAddr::new(METADATA.parse()?, PORT);
    connect(stage, to, &format!("{REBINDING}, {METADATA}"), None, DENIED)?;
    let mut range = Range::new(stage.lab)?;
    let own = stage.lab.cluster().v4();
    let shots: Vec<Shot> = (0..FLOOD)
        .map(|n| {
            let packet = Crafted::syn((own, 1024 + n).into(), ([198, 18, 77, 1], PORT).into());
            Shot { from: 0, packet }
        })
        .collect();
    let flood = u64::from(FLOOD);
    let check = Check {
        probe: &format!("{} SYNs to 198.18.77.1:{PORT}", thousands(flood)),
        expected: "dropped",
        rules: &[(EARLY, flood..=flood)],
        packet: Some((&packet(stage.lab, ([198, 18, 77, 1], PORT).into()), false)),
    };
    stage.check(&check, |_| {
        let passed = range.fire(&shots)?.iter().filter(|arrivals| !arrivals.is_empty()).count();
        let text = if passed == 0 { "nothing".to_owned() } else { format!("{passed} packets") };
        Ok(Seen::new(text, passed == 0))
    })
}

/// The controller is gone from one moment to the next, and comes back. Packets that it was asked to explain.
fn crash(table: &mut Table, lab: &Lab, controller: &mut Controller) -> Result<usize> {
    table.heading("kill -9 of the controller");
    let known = report::lasting(controller)?;
    controller.kill()?;
    let killed = Instant::now();
    let mut stage = Stage { lab, controller, table, explained: 0 };
    let v4 = awkward::addresses_of(1)[0];
    connect(&mut stage, SocketAddr::new(v4, PORT), "www.example.test, controller dead", Some("passes"), WEB)?;
    fallback(&mut stage, killed)?;
    let begin: Reading = stage.read()?;
    let took = controller.start(&lab.firewall)?;
    let waiting = Instant::now();
    wait_until_armed(&lab.firewall)?;
    table.remark(&format!(
        "--  the next one is at work {} ms after its start",
        (took + waiting.elapsed()).as_millis()
    ));
    let mut stage = Stage { lab, controller, table, explained: 0 };
    let check = Check { probe: "names it knows", expected: "as before", rules: &[], packet: None };
    stage.check_since(&begin, &check, |stage| {
        let now = report::lasting(stage.controller)?;
        let text = format!("{} of {}", known.intersection(&now).count(), known.len());
        Ok(Seen::new(text, known.is_subset(&now) && known.len() > MEASURED))
    })?;
    connect(&mut stage, SocketAddr::new(v4, PORT), "www.example.test, not asked again", Some("passes"), WEB)?;
    dropped(&mut stage, LATE.1.into(), "(past the proxy)", EARLY)?;
    by_name(&mut stage, LATE.0, "8.8.8.8", LATE.1.into(), "asked again", API)?;
    Ok(stage.explained)
}

/// The redirection ends by itself when nobody renews it. What is answered meanwhile opens nothing.
fn fallback(stage: &mut Stage<'_>, killed: Instant) -> Result<()> {
    let resolver = PUBLIC_RESOLVER_ADDRESSES[2];
    let check = Check {
        probe: &format!("DNS to {resolver}, {}", LATE.0),
        expected: "answered",
        rules: &[(FALLBACK, 1..=2)],
        packet: None,
    };
    stage.check(&check, |stage| {
        let query = Query::new(4, LATE.0, kind::A)?;
        let server = SocketAddr::new(resolver.parse()?, 53);
        while killed.elapsed() < PATIENCE {
            // A client of its own each time: what was redirected once stays so for its connection entry.
            let answer =
                Client::new(&stage.lab.cluster().ns, server)?.ask(&query, Duration::from_millis(100));
            if let Ok(Some(answer)) = answer {
                let after = killed.elapsed().as_secs_f64();
                return Ok(Seen::new(format!("{after:.1} s after the kill"), answer.ips().len() == 1));
            }
        }
        Ok(Seen::new("nothing", false))
    })
}

/// Asks from the cluster over UDP.
fn ask(lab: &Lab, resolver: &str, name: &str, kind: u16) -> Result<Answer> {
    let server = SocketAddr::new(resolver.parse()?, 53);
    let answer = Client::new(&lab.cluster().ns, server)?.ask(&Query::new(0x4242, name, kind)?, PATIENCE)?;
    answer.with_context(|| format!("{resolver} does not answer for {name}"))
}

fn kind_of(address: IpAddr) -> u16 {
    if address.is_ipv4() { kind::A } else { kind::AAAA }
}

/// Waits until DNS of both families and transports is redirected.
fn wait_until_armed(firewall: &Netns) -> Result<()> {
    let deadline = Instant::now() + 4 * PATIENCE;
    loop {
        let mut ways = 0;
        for set in ["dns_armed", "dns_armed6"] {
            let listing = firewall.output("nft", &["list", "set", "inet", "firewall", set])?;
            ways += ["tcp", "udp"].iter().filter(|word| listing.contains(&format!("{word} "))).count();
        }
        if ways == 4 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("DNS is redirected by {ways} of 4 ways");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
