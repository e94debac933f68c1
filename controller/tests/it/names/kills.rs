//! Killed between the two halves of an edit: what nftables knows and what the data path knows of a name.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::dns::awkward;
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Reply, Scripted, Unique};
use fw_testkit::r#gen::{self, Rng};
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::range::{Range, Shot};

use fw_controller::fault::POINTS;

use super::field::{Mode, Names, PORT, to_names};
use crate::daemon::{PATIENCE, eventually, soak_factor};
use crate::rig::{at, fresh_port};

/// The kernel, or one of its two halves, is being changed.
const IN_FLIGHT: [&str; 6] =
    ["after-withdraw", "before-build", "before-send", "after-send-before-ack", "after-ack", "before-install"];
/// Removed names whose addresses are tried again in every round.
const REMEMBERED: usize = 12;

fn name(number: usize) -> String {
    format!("host{number}.scripted.test")
}

fn address(number: usize) -> IpAddr {
    let [.., high, low] = number.to_be_bytes();
    IpAddr::from([198, 19, high, low])
}

/// The counter of the policy of a name.
fn entry(number: usize) -> String {
    format!("accept traffic for np edited-{number} tcp, fqdn: {}", name(number))
}

fn steady_entry() -> String {
    format!("accept traffic for np steady tcp, fqdn: {}", awkward::PLAIN)
}

/// A controller whose one policy is edited and which is killed again and again.
struct Victim {
    names: Names,
    _script: Scripted,
    /// Number of the name that the manifests allow.
    current: usize,
    /// Names that were learned and are not allowed any more.
    removed: VecDeque<usize>,
    learned: bool,
    /// Packets of the policy that is never edited.
    steady: u64,
}

impl Victim {
    fn new(label: &str, mode: Mode) -> Result<Self> {
        let names = Names::bare(&format!("{label}-{}", mode.name()), mode)?;
        let script = names.script()?;
        script.otherwise(Reply::Unique(Unique {
            v4: "198.19.0.0/16".parse()?,
            v6: "2001:db8:f00::/64".parse()?,
            ttl: 600,
        }));
        let mut victim =
            Self { names, _script: script, current: 1, removed: VecDeque::new(), learned: false, steady: 0 };
        victim.write()?;
        victim.names.start()?;
        victim.names.resolve(awkward::PLAIN)?;
        victim.names.daemon.stop()?;
        Ok(victim)
    }

    fn write(&self) -> Result<()> {
        let edited =
            to_names(&format!("edited-{}", self.current), &format!("{{matchName: {}}}", name(self.current)));
        let steady = to_names("steady", &format!("{{matchName: {}}}", awkward::PLAIN));
        self.names.write("", &[edited, steady])
    }

    fn trigger(&self) -> std::path::PathBuf {
        self.names.daemon.beside("fault")
    }

    /// Starts it, to be killed at a point once [`Victim::trigger`] is there.
    fn launch(&mut self, point: &str) -> Result<()> {
        let trigger = self.trigger();
        let trigger = trigger.to_str().context("a path that is not text")?;
        self.names.daemon.start(&self.names.lab.firewall, &[("FW_FAULT", point), ("FW_FAULT_FILE", trigger)])
    }

    fn wait_until_up(&self) -> Result<()> {
        self.names.daemon.wait_until_enforcing()?;
        self.names.wait_until_armed()
    }

    fn forget_current(&mut self) {
        if self.learned {
            self.removed.push_front(self.current);
            self.removed.truncate(REMEMBERED);
        }
        (self.current, self.learned) = (self.current + 1, false);
    }

    /// SYNs to addresses, each of a new connection; of each whether it came out.
    fn fire(&self, addresses: &[IpAddr]) -> Result<Vec<bool>> {
        let syn = |to: &IpAddr| Crafted::syn(at("10.0.16.2", fresh_port()), (*to, PORT).into());
        let shots: Vec<Shot> = addresses.iter().map(|to| Shot { from: 0, packet: syn(to) }).collect();
        let arrived = Range::new(&self.names.lab)?.fire(&shots)?;
        Ok(arrived.iter().map(|arrivals| !arrivals.is_empty()).collect())
    }

    /// Packets by comment. As text: of a table without its owner `nft -j` (1.0.6) prints nothing after a flag that it
    /// does not know, and calls that a success.
    fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let rules = self.names.lab.firewall.output("nft", &["list", "ruleset"])?;
        let mut counters = BTreeMap::new();
        for line in rules.lines() {
            let Some((_, rest)) = line.split_once("counter packets ") else { continue };
            let Some((_, comment)) = rest.split_once("comment \"") else { continue };
            let packets = rest.split_whitespace().next().unwrap_or_default();
            counters.insert(comment.trim_end_matches('"').to_owned(), packets.parse()?);
        }
        ensure!(counters.contains_key(&steady_entry()), "no counter of the steady policy in\n{rules}");
        Ok(counters)
    }

    /// Packets of the policy of a name.
    fn counted(&self, number: usize) -> Result<u64> {
        self.counters()?.get(&entry(number)).copied().with_context(|| format!("no counter {}", entry(number)))
    }

    /// Whatever the kernel holds now: no address of a name that is gone is open, nothing of it is counted for another
    /// one, and what is not edited goes on. `old`: the last edit may not have begun.
    fn look(&mut self, old: bool) -> Result<()> {
        let before = self.counters()?;
        let holds_current = before.contains_key(&entry(self.current));
        let mut gone: Vec<usize> = self.removed.iter().copied().collect();
        if old && !holds_current {
            gone.retain(|number| !before.contains_key(&entry(*number)));
        }
        let mut targets: Vec<IpAddr> = gone.iter().map(|number| address(*number)).collect();
        targets.push(awkward::addresses_of(1)[0]);
        let mut passed = self.fire(&targets)?;
        if passed.pop() != Some(true) {
            let rules = self.names.lab.firewall.output("nft", &["list", "ruleset"])?;
            bail!("a name that was not edited is closed:\n{rules}");
        }
        self.steady += 1;
        for (number, passed) in gone.iter().zip(passed) {
            ensure!(!passed, "{} of {} passes, whose policy is gone", address(*number), name(*number));
        }
        let after = self.counters()?;
        for (comment, packets) in &after {
            let is_name = comment.contains("fqdn: host");
            let moved = before.get(comment) != Some(packets);
            ensure!(!is_name || !moved, "{comment:?} was counted for the address of a removed policy");
        }
        assert_eq!(after.get(&steady_entry()), Some(&self.steady), "{after:?}");
        Ok(())
    }

    /// Asks for the current name under traffic: from then on its address is open and counted.
    fn learn(&mut self) -> Result<()> {
        let answer = self.names.ask_script(&name(self.current), kind::A)?;
        assert_eq!(answer.ips(), [address(self.current)]);
        let before = self.counted(self.current)?;
        ensure!(self.fire(&[address(self.current)])? == [true], "{} is closed", name(self.current));
        let after = self.counted(self.current)?;
        ensure!(after == before + 1, "{}: {before}, then {after}", entry(self.current));
        self.learned = true;
        Ok(())
    }

    /// Waits until it was killed; false when it got through without passing the point.
    fn is_killed(&mut self, point: &str) -> Result<bool> {
        use std::os::unix::process::ExitStatusExt as _;
        let wanted = entry(self.current);
        let (mut ended, mut is_through) = (None, false);
        let names = &mut self.names;
        eventually(&format!("it is killed at {point} or is through"), || {
            ended = names.daemon.process()?.try_wait()?;
            if ended.is_none() && !is_through {
                let text = names.daemon.ask(&["status", "-o", "json"])?.stdout;
                is_through = String::from_utf8_lossy(&text).contains(&wanted);
                // What comes after the commit has a moment.
                std::thread::sleep(std::time::Duration::from_millis(150));
                ended = names.daemon.process()?.try_wait()?;
            }
            Ok(ended.is_some() || is_through)
        })?;
        match ended {
            Some(status) => ensure!(status.signal() == Some(9), "{point}: {status}"),
            None => self.names.daemon.kill()?,
        }
        Ok(ended.is_some())
    }

    /// An edit of a controller that runs and has learned; true when it was killed in it.
    fn edit_running(&mut self, point: &str) -> Result<bool> {
        fs::write(self.trigger(), "")?;
        self.forget_current();
        self.write()?;
        let status = self.names.daemon.process()?.wait(PATIENCE).with_context(|| format!("at {point}"))?;
        ensure!(!status.success(), "it ended by itself at {point}");
        fs::remove_file(self.trigger())?;
        // eBPF lets go of it before nftables hears of the edit; without eBPF there is only nftables.
        let old = self.names.mode == Mode::Off;
        self.look(old).with_context(|| format!("killed at {point} while it ran"))?;
        Ok(true)
    }

    /// An edit that a controller meets on its way up; true when it was killed in it.
    fn edit_starting(&mut self, point: &str) -> Result<bool> {
        fs::write(self.trigger(), "")?;
        self.forget_current();
        self.write()?;
        self.launch(point)?;
        let killed = self.is_killed(point)?;
        fs::remove_file(self.trigger())?;
        self.look(true).with_context(|| format!("killed at {point} on its way up"))?;
        Ok(killed)
    }
}

/// Points that an edit passes in a mode, in random order, each as often as any other.
struct Deck {
    mode: Mode,
    left: Vec<&'static str>,
}

impl Deck {
    fn draw(&mut self, rng: &mut Rng) -> Result<&'static str> {
        if self.left.is_empty() {
            // The stamp's marks are those of a program.
            let passed = |point: &&str| self.mode != Mode::Off || *point != "before-marks";
            self.left = POINTS.into_iter().filter(passed).collect();
            rng.shuffle(&mut self.left);
        }
        self.left.pop().context("no point")
    }
}

/// Kills at random points; the number of those in flight.
fn kill_at_random(mode: Mode, rounds: usize, seed: u64) -> Result<usize> {
    let mut rng = Rng::new(seed ^ mode.name().len() as u64);
    let mut victim = Victim::new("kills", mode)?;
    let mut deck = Deck { mode, left: Vec::new() };
    let (mut kills, mut in_flight) = (0, 0);
    while kills < rounds {
        let point = deck.draw(&mut rng)?;
        victim.launch(point)?;
        victim.wait_until_up()?;
        let context =
            |what: &str, number| format!("FW_SEED={seed} {} kill {number} at {point}: {what}", mode.name());
        victim.look(false).with_context(|| context("after a restart", kills))?;
        victim.learn().with_context(|| context("learning", kills))?;
        let killed = victim.edit_running(point).with_context(|| context("edit", kills))?;
        (kills, in_flight) = (kills + 1, in_flight + usize::from(killed && IN_FLIGHT.contains(&point)));
        while kills < rounds && rng.percent(50) {
            let point = deck.draw(&mut rng)?;
            let killed = victim.edit_starting(point).with_context(|| context(point, kills))?;
            (kills, in_flight) = (kills + 1, in_flight + usize::from(killed && IN_FLIGHT.contains(&point)));
        }
    }
    victim.launch("after-persist")?;
    victim.wait_until_up()?;
    victim.look(false)?;
    victim.learn()?;
    eprintln!("{}: {kills} kills, {in_flight} of them in flight", mode.name());
    Ok(in_flight)
}

fn kill_in(modes: [(Mode, usize); 2]) -> Result<()> {
    let seed = r#gen::seed();
    eprintln!("FW_SEED={seed}");
    let factor = usize::try_from(soak_factor())?;
    let (mut kills, mut in_flight) = (0, 0);
    for (mode, rounds) in modes {
        kills += rounds * factor;
        in_flight += kill_at_random(mode, rounds * factor, seed)?;
    }
    // Two of three points are in flight, but not every edit at a start passes every point.
    ensure!(in_flight * 3 >= kills, "only {in_flight} of {kills} kills were in flight");
    Ok(())
}

#[test]
fn a_kill_at_any_step_counts_and_accepts_nothing_for_another_name() -> Result<()> {
    kill_in([(Mode::Tcx, 30), (Mode::Native, 6)])
}

#[test]
fn a_kill_at_any_step_is_as_harmless_without_ebpf() -> Result<()> {
    kill_in([(Mode::Off, 30), (Mode::Generic, 6)])
}

#[test]
fn an_index_that_a_killed_edit_left_behind_is_given_to_nobody() -> Result<()> {
    for mode in Mode::ALL {
        let mut victim = Victim::new("index", mode)?;
        victim.launch("before-install")?;
        victim.wait_until_up()?;
        victim.learn()?;
        victim.edit_running("before-install").context(mode.name())?;
        // The next edit takes the lowest index that is free, and its entry is in nftables when this kill comes.
        let killed = victim.edit_starting("before-install").context(mode.name())?;
        ensure!(killed, "{}: it did not pass before-install", mode.name());
        victim.edit_starting("before-install").context(mode.name())?;
        victim.launch("after-persist")?;
        victim.wait_until_up()?;
        victim.look(false).context(mode.name())?;
        victim.learn().context(mode.name())?;
    }
    Ok(())
}
