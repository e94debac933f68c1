//! Another `spec.fastpath.markMask`: bits that were one entry's mark are another's from one commit on, and no packet
//! may be marked before it and judged after it.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Reply, Scripted, Unique};
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::range::{Range, Shot};

use super::field::{Mode, Names, PORT, to_names};
use super::knocker::Knocker;
use crate::daemon::{eventually, soak_factor};
use crate::rig::{at, documents, firewall_with, fresh_port};

/// Under the second mask the mark that index 2 has under the first one is that of index 1, and index 4's is 2's; the
/// other way round index 1's is that of 2, and 2's that of 4.
const MASKS: [&str; 2] = ["0x00ffff00", "0x01fffe00"];
const HOSTS: usize = 4;

fn name(host: usize) -> String {
    format!("host{host}.scripted.test")
}

fn address(host: usize) -> IpAddr {
    let [.., high, low] = host.to_be_bytes();
    IpAddr::from([198, 19, high, low])
}

/// A controller with a policy for each host; they are numbered in that order.
struct Marked {
    names: Names,
    _script: Scripted,
}

impl Marked {
    fn new(label: &str, mode: Mode) -> Result<Self> {
        let names = Names::bare(&format!("{label}-{}", mode.name()), mode)?;
        let script = names.script()?;
        script.otherwise(Reply::Unique(Unique {
            v4: "198.19.0.0/16".parse()?,
            v6: "2001:db8:f00::/64".parse()?,
            ttl: 900,
        }));
        let mut marked = Self { names, _script: script };
        marked.write(MASKS[0])?;
        marked.names.start()?;
        for host in 1..=HOSTS {
            let answer = marked.names.ask_script(&name(host), kind::A)?;
            assert_eq!(answer.ips(), [address(host)]);
        }
        Ok(marked)
    }

    fn write(&self, mask: &str) -> Result<()> {
        let fastpath = format!("  fastpath: {{mode: {}, markMask: '{mask}'}}", self.names.mode.name());
        let policies =
            (1..=HOSTS).map(|host| to_names(&format!("p{host}"), &format!("{{matchName: {}}}", name(host))));
        let all: Vec<String> = std::iter::once(firewall_with(&fastpath)).chain(policies).collect();
        self.names.daemon.write("all.yaml", &documents(&all.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    fn rules(&self) -> Result<String> {
        self.names.lab.firewall.output("nft", &["list", "table", "inet", "firewall"])
    }

    /// Packets of each host's policy. As text: of a table without its owner `nft -j` (1.0.6) prints nothing.
    fn counters(&self) -> Result<BTreeMap<usize, u64>> {
        let rules = self.rules()?;
        let count = |host| {
            let comment = format!("\"accept traffic for np p{host} tcp, fqdn: {}\"", name(host));
            let line = rules.lines().find(|line| line.contains(&comment)).context("a host has no counter")?;
            let packets = line.split_once("counter packets ").context("no counter")?.1;
            Ok((host, packets.split_whitespace().next().unwrap_or_default().parse()?))
        };
        (1..=HOSTS).map(count).collect()
    }

    /// Sends the first packet of a connection to each host and looks who counts it: that host's policy, or none where
    /// `may_drop`.
    fn each_counts_its_own(&self, may_drop: bool) -> Result<()> {
        for host in 1..=HOSTS {
            let mut expected = self.counters()?;
            let packet = Crafted::syn(at("10.0.16.2", fresh_port()), (address(host), PORT).into());
            let arrivals = Range::new(&self.names.lab)?.fire(&[Shot { from: 0, packet }])?;
            let passed = !arrivals[0].is_empty();
            ensure!(passed || may_drop, "{} is closed", name(host));
            *expected.entry(host).or_default() += u64::from(passed);
            let counted = self.counters()?;
            ensure!(counted == expected, "{}, passed: {passed}: {counted:?}, not {expected:?}", name(host));
        }
        Ok(())
    }

    /// Ends when it has killed itself.
    fn wait_until_killed(&mut self) -> Result<()> {
        use std::os::unix::process::ExitStatusExt as _;
        let mut ended = None;
        eventually("it is killed", || {
            ended = self.names.daemon.process()?.try_wait()?;
            Ok(ended.is_some())
        })?;
        let signal = ended.context("it ended")?.signal();
        ensure!(signal == Some(9), "it ended by itself");
        Ok(())
    }

    fn all_open_again(&self) -> Result<()> {
        for host in 1..=HOSTS {
            eventually(&format!("{} is open again", name(host)), || self.names.reaches(address(host), PORT))?;
        }
        self.each_counts_its_own(false)
    }
}

/// Killed when nftables has the new mask and the data path has been told nothing yet, or has what was learned anew and
/// does not mark: whatever is marked by then stays so until the next start, and the moment lasts as long as the test
/// wants.
fn killed_at(point: &str, from: Mode, to: Mode, restart: bool) -> Result<()> {
    let mut marked = Marked::new(if restart { "mask-start" } else { "mask-kill" }, from)?;
    marked.each_counts_its_own(false)?;
    let file = marked.names.daemon.beside("fault");
    let trigger = file.to_str().context("a path that is not text")?.to_owned();
    let fault = [("FW_FAULT", point), ("FW_FAULT_FILE", trigger.as_str())];
    marked.names.daemon.kill()?;
    if restart {
        // The edit comes while nobody runs, and the first commit of the next process is the one with the new mask.
        fs::remove_file(marked.names.daemon.state().join("snapshot.json"))?;
        fs::write(&file, "")?;
    } else {
        marked.names.daemon.start(&marked.names.lab.firewall, &fault)?;
        marked.names.daemon.wait_until_enforcing()?;
        marked.names.wait_until_armed()?;
        marked.each_counts_its_own(false)?;
        fs::write(&file, "")?;
    }
    marked.names.mode = to;
    marked.write(MASKS[1])?;
    if restart {
        marked.names.daemon.start(&marked.names.lab.firewall, &fault)?;
    }
    marked.wait_until_killed()?;
    ensure!(marked.rules()?.contains(MASKS[1]), "nftables does not have the new mask");
    marked.each_counts_its_own(true).context("between the commit and the data path")?;
    marked.names.start()?;
    marked.all_open_again().context("after the next start")
}

fn in_each_way(restart: bool) -> Result<()> {
    let ways = [
        (Mode::Tcx, Mode::Tcx),
        (Mode::Off, Mode::Off),
        (Mode::Native, Mode::Native),
        (Mode::Tcx, Mode::Off),
        (Mode::Off, Mode::Tcx),
    ];
    for (from, to) in ways {
        let points: &[&str] =
            if to == Mode::Off { &["before-install"] } else { &["before-install", "before-marks"] };
        for point in points {
            killed_at(point, from, to, restart)
                .with_context(|| format!("from {} to {}, {point}", from.name(), to.name()))?;
        }
    }
    Ok(())
}

#[test]
fn a_kill_in_an_edit_of_the_mask_leaves_no_mark_that_is_another_entrys() -> Result<()> {
    in_each_way(false)
}

#[test]
fn a_start_with_another_mask_lets_no_mark_of_the_old_one_be_another_entrys() -> Result<()> {
    in_each_way(true)
}

/// Only one host is contacted, all the time, while the mask changes and the mode with it.
#[test]
fn edits_of_the_mask_under_traffic_count_nothing_for_another_entry_and_open_again_by_themselves() -> Result<()>
{
    let mut marked = Marked::new("mask-live", Mode::Tcx)?;
    let edits = [
        (Mode::Tcx, MASKS[1]),
        (Mode::Tcx, MASKS[0]),
        (Mode::Off, MASKS[1]),
        (Mode::Off, MASKS[0]),
        (Mode::Tcx, MASKS[1]),
        (Mode::Off, MASKS[0]),
        (Mode::Native, MASKS[1]),
        (Mode::Native, MASKS[0]),
    ];
    for (mode, mask) in std::iter::repeat_n(edits, usize::try_from(soak_factor())?).flatten() {
        let before = marked.counters()?;
        let busy = 2;
        let clients = [address(busy); 3];
        let cluster = &marked.names.lab.cluster().ns;
        let knocker = Knocker::new(cluster, &clients, PORT, Duration::from_millis(30))?;
        marked.names.mode = mode;
        marked.write(mask)?;
        let path = if mode == Mode::Off { "nftables sets" } else { "eBPF" };
        eventually("the edit is in force", || {
            Ok(marked.rules()?.contains(mask) && marked.names.figures()?["dataPath"] == path)
        })?;
        eventually("it is open again", || marked.names.reaches(address(busy), PORT))?;
        let knocks = knocker.stop()?;
        eprintln!(
            "{} {mask}: {} connections, closed for {:?}",
            mode.name(),
            knocks.opened,
            knocks.closed_for()
        );
        ensure!(knocks.opened > 0 && knocks.closed_for() < Duration::from_secs(2), "{:?}", knocks.lost);
        let after = marked.counters()?;
        if after[&busy] <= before[&busy] {
            bail!("the edit took the counter away: {before:?}, {after:?}");
        }
        let others = |counts: BTreeMap<usize, u64>| counts.into_iter().filter(move |(host, _)| *host != busy);
        ensure!(
            others(after.clone()).eq(others(before.clone())),
            "{} {mask}: {before:?}, {after:?}",
            mode.name()
        );
        marked.all_open_again().with_context(|| format!("{} {mask}", mode.name()))?;
    }
    Ok(())
}
