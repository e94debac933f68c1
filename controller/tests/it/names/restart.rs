//! What was learned outlives the controller: killed, stopped, flushed, moved to another data path, run dry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fw_testkit::dns::awkward;
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Reply, Scripted, Unique};
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::traffic::steady::Steady;
use serde_json::Value;

use super::field::{Mode, Names, PORT, to_names};
use super::knocker::Knocker;
use crate::daemon::{BINARY, eventually, findings};
use crate::rig::policy;

/// Port of the connections that stay open.
const ECHO: u16 = 7000;
/// Names that are learned beside the plain one.
const HOSTS: u8 = 40;
const FIRST_PACKET: Duration = Duration::from_millis(900);
/// Never learned.
const STRANGER: [u8; 4] = [198, 18, 60, 1];

fn web() -> String {
    let ports = format!("[{{port: {PORT}}}, {{port: {ECHO}}}]");
    policy("web", &format!("{{egress: [{{toFQDNs: [{{matchName: {}}}], ports: {ports}}}]}}", awkward::PLAIN))
}

fn policies() -> Vec<String> {
    vec![web(), to_names("hosts", "{matchPattern: '*.scripted.test'}")]
}

/// What was learned of a name, without what a question changes: the name, its addresses with the end of each in seconds
/// of the day, its policies.
type Line = (String, BTreeMap<String, i64>, Value);

/// A lab in which names have been learned.
struct Known {
    names: Names,
    _script: Scripted,
    /// All that is open.
    addresses: Vec<IpAddr>,
}

impl Known {
    fn new(label: &str, mode: Mode) -> Result<Self> {
        let names = Names::new(label, mode, "", &policies())?;
        let script = names.script()?;
        script.otherwise(Reply::Unique(Unique {
            v4: "198.19.0.0/16".parse()?,
            v6: "2001:db8:f00:1::/64".parse()?,
            ttl: 900,
        }));
        let mut addresses = names.resolve(awkward::PLAIN)?;
        for number in 1..=HOSTS {
            let answer = names.ask_script(&format!("host{number}.scripted.test"), kind::A)?;
            addresses.extend(answer.ips());
        }
        assert_eq!(addresses.len(), usize::from(HOSTS) + 2);
        Ok(Self { names, _script: script, addresses })
    }

    /// Each learned address takes a new connection, and no other does.
    fn all_open(&self, when: &str) -> Result<()> {
        for address in &self.addresses {
            ensure!(self.names.reaches(*address, PORT)?, "{when}, {address} is closed");
        }
        ensure!(!self.names.reaches(STRANGER.into(), PORT)?, "{when}, everything is open");
        Ok(())
    }

    /// What was learned.
    fn view(&self) -> Result<Vec<Line>> {
        let output = self.names.daemon.ask(&["dns", "--json"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let all: Value = serde_json::from_str(&text).with_context(|| format!("{output:?}"))?;
        let list = all["learned"]["names"].as_array().context("no list of names")?;
        let one = |name: &Value| {
            let ends = name["addresses"].as_object().context("no addresses")?;
            let ends = ends.iter().map(|(address, end)| Ok((address.clone(), second_of_day(end)?)));
            Ok((name["name"].to_string(), ends.collect::<Result<_>>()?, name["policies"].clone()))
        };
        list.iter().map(one).collect()
    }

    /// The same was learned, and ends at the same time; clocks are carried over to within a second.
    fn expect_view(&self, expected: &[Line], when: &str) -> Result<()> {
        let found = self.view()?;
        assert_eq!(found.len(), expected.len(), "{when}");
        for (is, was) in found.iter().zip(expected) {
            assert_eq!((&is.0, &is.2), (&was.0, &was.2), "{when}");
            assert!(is.1.keys().eq(was.1.keys()), "{when}: {is:?} instead of {was:?}");
            let moved = is.1.values().zip(was.1.values()).any(|(is, was)| (is - was).abs() > 1);
            ensure!(!moved, "{when}, {} ends at another time: {:?} instead of {:?}", is.0, is.1, was.1);
        }
        Ok(())
    }

    /// Every pin with its inode: what is pinned anew has another one.
    fn pins(&self) -> Result<BTreeMap<String, u64>> {
        let mut pins = BTreeMap::new();
        list(&self.names.daemon.pins(), &mut pins)?;
        Ok(pins)
    }

    /// Programs on the interface, as `ip` says: the ids of XDP programs.
    fn on_interface(&self) -> Result<Vec<String>> {
        let text = self.names.lab.firewall.output("ip", &["link", "show", "dev", "vrf104009"])?;
        Ok(text.lines().filter(|line| line.contains("prog/xdp")).map(|line| line.trim().to_owned()).collect())
    }

    fn knocker(&self, patience: Duration) -> Result<Knocker> {
        let some = [self.addresses[0], self.addresses[1], self.addresses[2]];
        Knocker::new(&self.names.lab.cluster().ns, &some, PORT, patience)
    }
}

/// Seconds since midnight of a time like `2026-01-02T03:04:05Z`.
fn second_of_day(time: &Value) -> Result<i64> {
    let text = time.as_str().context("a time is no text")?;
    let clock = text.split_once('T').context("no time of day")?.1;
    let mut parts =
        clock.trim_end_matches('Z').splitn(3, ':').map(|part| part.split('.').next().unwrap_or(part));
    let mut next = || -> Result<i64> { Ok(parts.next().context("a time is cut")?.parse()?) };
    Ok(next()? * 3600 + next()? * 60 + next()?)
}

fn list(folder: &Path, pins: &mut BTreeMap<String, u64>) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            list(&entry.path(), pins)?;
        } else {
            pins.insert(entry.path().display().to_string(), meta.ino());
        }
    }
    Ok(())
}

fn links(pins: &BTreeMap<String, u64>) -> usize {
    pins.keys().filter(|pin| pin.contains("/links/")).count()
}

fn outlives_the_controller(mode: Mode) -> Result<()> {
    let mut known = Known::new("outlives", mode)?;
    let (cluster, internet) = (&known.names.lab.cluster().ns, &known.names.lab.internet().ns);
    let server = Server::tcp(internet, &[SocketAddr::new(known.addresses[0], ECHO)], Service::Echo)?;
    let steady = Steady::tcp(cluster, None, server.addresses()[0], 3, Duration::from_millis(5))?;
    let knocker = known.knocker(FIRST_PACKET)?;
    let (view, pins, programs) = (known.view()?, known.pins()?, known.on_interface()?);
    assert_eq!(view.len(), usize::from(HOSTS) + 1);
    assert_eq!(links(&pins) > 0, mode != Mode::Off, "{pins:?}");

    for how in ["kill -9", "SIGTERM"] {
        if how == "SIGTERM" {
            known.names.daemon.stop()?
        } else {
            known.names.daemon.kill()?
        }
        known.all_open(&format!("after {how}"))?;
        known.names.start()?;
        known.all_open(&format!("restarted after {how}"))?;
        known.expect_view(&view, &format!("restarted after {how}"))?;
        assert_eq!(known.pins()?, pins, "restarted after {how}");
        assert_eq!(known.on_interface()?, programs, "restarted after {how}");
        let lines = known.names.daemon.lines()?.join("\n");
        ensure!(mode == Mode::Off || lines.contains("Adopted"), "nothing was adopted:\n{lines}");
    }
    let knocks = knocker.stop()?;
    ensure!(knocks.lost.is_empty() && knocks.opened > 100, "connections were lost: {knocks:?}");
    let report = steady.stop()?;
    assert_eq!((report.flows, report.breaks.as_slice(), report.retransmits), (3, &[][..], 0), "{report:?}");
    eprintln!("{}: {} connections opened across two restarts, none lost", mode.name(), knocks.opened);
    Ok(())
}

#[test]
fn learned_names_outlive_the_controller_and_the_next_one_forgets_nothing() -> Result<()> {
    Mode::ALL.iter().try_for_each(|mode| outlives_the_controller(*mode).context(mode.name()))
}

#[test]
fn a_table_that_is_lost_comes_back_with_what_was_learned() -> Result<()> {
    // Without the maps only the journal knows.
    for (mode, with_maps) in [(Mode::Tcx, true), (Mode::Tcx, false), (Mode::Off, false)] {
        let mut known = Known::new("lost", mode)?;
        known.names.daemon.kill()?;
        fw_testkit::nft::load(&known.names.lab.firewall, "flush ruleset")?;
        if !with_maps && known.names.daemon.pins().exists() {
            fs::remove_dir_all(known.names.daemon.pins())?;
        }
        known.names.start()?;
        // The maps that stand in for eBPF are filled right after the table is there.
        let last = known.addresses[known.addresses.len() - 1];
        eventually("what was learned is open", || known.names.reaches(last, PORT))?;
        known.all_open("after a cold start").context(mode.name())?;
        assert_eq!(known.view()?.len(), usize::from(HOSTS) + 1);
    }
    Ok(())
}

fn is_flushed(known: &Known, when: &str) -> Result<()> {
    let rules = known.names.lab.firewall.output("nft", &["list", "ruleset"])?;
    ensure!(rules.trim().is_empty(), "{when} there are rules:\n{rules}");
    let pins = known.pins()?;
    ensure!(!pins.keys().any(|pin| pin.contains("/links/") || pin.contains("/maps/")), "{when}: {pins:?}");
    ensure!(known.on_interface()?.is_empty(), "{when} a program is on the interface");
    ensure!(known.names.reaches(STRANGER.into(), PORT)?, "{when} something is still closed");
    Ok(())
}

#[test]
fn flush_takes_programs_links_and_pins_away_with_the_table() -> Result<()> {
    for mode in Mode::ALL {
        let mut known = Known::new("flush", mode)?;
        ensure!(known.names.daemon.ask(&["flush"])?.status.success());
        is_flushed(&known, "after flush").context(mode.name())?;
        ensure!(known.names.daemon.ask(&["flush", "--undo"])?.status.success());
        known.names.daemon.wait_until_enforcing()?;
        known.names.wait_until_armed()?;
        let plain = known.addresses[0];
        ensure!(!known.names.reaches(plain, PORT)?, "{}: flush forgot nothing", mode.name());
        known.names.resolve(awkward::PLAIN)?;
        ensure!(known.names.reaches(plain, PORT)?, "{}: nothing is learned after flush --undo", mode.name());

        let (state, pins) = (known.names.daemon.state(), known.names.daemon.pins());
        let socket = known.names.daemon.beside("control.sock");
        known.names.daemon.kill()?;
        let mut orphan = known.names.lab.firewall.command(BINARY);
        orphan.arg("flush").arg("--state-dir").arg(&state).arg("--control-socket").arg(&socket);
        let output = orphan.arg("--bpf-dir").arg(&pins).output()?;
        ensure!(output.status.success(), "{output:?}");
        is_flushed(&known, "after flush of an orphan").context(mode.name())?;
        ensure!(!state.join("names.journal").exists(), "{}: the journal is left", mode.name());
    }
    Ok(())
}

/// Moves to another mode under traffic; for how long what is allowed was closed.
fn switch(known: &mut Known, to: Mode, restart: bool) -> Result<Duration> {
    let knocker = known.knocker(Duration::from_millis(30))?;
    if restart {
        known.names.daemon.stop()?;
    }
    known.names.mode = to;
    known.names.write("", &policies())?;
    if restart {
        known.names.start()?;
    }
    let path = if to == Mode::Off { "nftables sets" } else { "eBPF" };
    eventually("the other data path is in use", || {
        let figures = known.names.figures()?;
        let said = figures["fastpath"].to_string();
        Ok(figures["dataPath"] == path && (said.contains(to.name()) || to == Mode::Off))
    })?;
    known.all_open("after the switch")?;
    let lacks = links(&known.pins()?) == 0;
    assert_eq!(lacks, to == Mode::Off, "programs in mode {}", to.name());
    let xdp = known.on_interface()?.len();
    assert_eq!(xdp > 0, matches!(to, Mode::Native | Mode::Generic), "XDP programs in mode {}", to.name());
    let knocks = knocker.stop()?;
    eprintln!(
        "to {}{}: {} connections, {} lost, closed for {:?}",
        to.name(),
        if restart { " by a restart" } else { "" },
        knocks.opened,
        knocks.lost.len(),
        knocks.closed_for(),
    );
    ensure!(knocks.closed_for() < Duration::from_secs(2), "{:?}", knocks.lost);
    Ok(knocks.closed_for())
}

#[test]
fn another_mode_takes_over_all_that_was_learned() -> Result<()> {
    let mut known = Known::new("switch", Mode::Native)?;
    for restart in [true, false] {
        for mode in [Mode::Tcx, Mode::Off, Mode::Native, Mode::Off, Mode::Generic, Mode::Native] {
            switch(&mut known, mode, restart).with_context(|| format!("to {}", mode.name()))?;
        }
    }
    Ok(())
}

#[test]
fn programs_that_nobody_wants_any_more_are_taken_off_at_the_next_start() -> Result<()> {
    let mut known = Known::new("unwanted", Mode::Native)?;
    known.names.daemon.kill()?;
    // Nothing says any more what was wanted before.
    fs::remove_dir_all(known.names.daemon.state())?;
    known.names.mode = Mode::Off;
    let cidr = policy("fixed", "{egress: [{to: [{cidr: 198.18.60.0/24}], ports: [{port: 8080}]}]}");
    known.names.write("", &[cidr])?;
    known.names.daemon.start_in(&known.names.lab)?;
    eventually("its links are gone", || Ok(links(&known.pins()?) == 0))?;
    ensure!(known.on_interface()?.is_empty());
    ensure!(
        known.names.reaches(STRANGER.into(), PORT)?,
        "the programs drop what they do not know to be allowed"
    );
    ensure!(!known.names.reaches(known.addresses[0], PORT)?, "a name without a policy is open");
    Ok(())
}

#[test]
fn a_dry_run_and_bad_objects_close_no_name() -> Result<()> {
    for mode in [Mode::Tcx, Mode::Off] {
        let known = Known::new("dry", mode)?;
        let counted = known.names.counted("web", "tcp", awkward::PLAIN)?;
        known.names.write("  dryrun: true", &[to_names("other", "{matchName: other.example.test}")])?;
        known
            .names
            .daemon
            .wait_until("it runs dry", |status| status["status"]["controller"]["dryRun"].is_object())?;
        known.all_open("in a dry run").context(mode.name())?;
        known.names.resolve(awkward::OTHER)?;
        let [other, _] = awkward::addresses_of(2);
        ensure!(!known.names.reaches(other, PORT)?, "{}: a dry run opened a name", mode.name());
        let answer = known.names.ask_script("host77.scripted.test", kind::A)?;
        ensure!(
            known.names.reaches(answer.ips()[0], PORT)?,
            "{}: nothing is learned in a dry run",
            mode.name()
        );
        ensure!(known.names.counted("web", "tcp", awkward::PLAIN)? >= counted, "counters fell in a dry run");

        let bad = [
            policy("bad-pattern", "{egress: [{toFQDNs: [{matchPattern: 'a..b'}], ports: [{port: 80}]}]}"),
            policy("bad-regex", "{egress: [{toFQDNs: [{matchRegex: '('}], ports: [{port: 80}]}]}"),
            policy("bad-name", "{egress: [{toFQDNs: [{matchName: 'a b'}], ports: [{port: 80}]}]}"),
        ];
        let all: Vec<String> = policies().into_iter().chain(bad).collect();
        known.names.write("", &all)?;
        let status = known.names.daemon.wait_until("it complains of the bad objects", |status| {
            let lines = findings(status);
            ["bad-pattern", "bad-regex", "bad-name"]
                .iter()
                .all(|bad| lines.iter().any(|line| line.contains(bad)))
        })?;
        let named: BTreeSet<String> = findings(&status).into_iter().collect();
        ensure!(!named.iter().any(|line| line.contains("policy web")), "{named:?}");
        known.names.daemon.write("broken.yaml", "kind: [")?;
        known.names.daemon.wait_until("it complains of the broken file", |status| {
            findings(status).iter().any(|line| line.contains("broken.yaml"))
        })?;
        known.all_open("beside bad objects").context(mode.name())?;
        ensure!(!known.names.reaches(other, PORT)?, "{}: a bad object opened a name", mode.name());
    }
    Ok(())
}
