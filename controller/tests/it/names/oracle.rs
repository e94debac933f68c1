//! The three-way oracle with names: the reference, the tables with the ruleset's evaluator, and the kernel agree on
//! every packet, in every mode of the data path, on its fate and on who counts it; and the early drop takes only what
//! nftables would drop, also while connections live.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fw_bpf_common::{Reason, Verdict};
use fw_controller::names::clock::monotonic;
use fw_names::change::Nanos;
use fw_policy::{ConntrackState, Encrypted, Learned, Packet, PolicySet, Protocol, Transport, Why};
use fw_ruleset::{evaluate_with, superset};
use fw_testkit::r#gen::{self, Mix, Rng, World};
use fw_testkit::topology::LabSpec;
use fw_testkit::traffic::conntrack;
use fw_testkit::traffic::craft::{Body, flags};
use fw_testkit::traffic::range::{Range, Shot};

use self::site::Site;
use super::field::Mode;
use crate::daemon::soak_factor;

mod live;
mod site;
mod tables;

/// Rounds with policies of their own, each followed by some edits; every set meets two batches of packets.
const ROUNDS: u32 = 2;
const EDITS: usize = 3;
const PACKETS: usize = 260;
/// Seconds of the answers that are over before the second batch, and of the others. Ends are whole seconds of the
/// clock: an answer that must not be kept is allowed for up to a second.
const SHORT: u32 = 0;
const LONG: u32 = 3000;
/// The clocks of the kernel lag by a tick, which is 10 ms at most.
const TICK: Nanos = 30_000_000;
/// The firewall limits echo requests in all and per source, which the reference leaves out.
const MOST_ECHOS: usize = 5;

/// A packet and how it is sent.
struct Case {
    packet: Packet,
    shot: Shot,
}

/// What was seen in all.
#[derive(Default)]
struct Tally {
    mix: Mix,
    bounced: u64,
    bounced_by_name_over: u64,
    bounced_datagrams: u64,
    stamped: u64,
    live: live::Tally,
}

impl Tally {
    /// Percent of the packets.
    fn share_of_names(&self) -> usize {
        self.mix.reasons.get("name").copied().unwrap_or(0) * 100 / self.mix.packets.max(1)
    }

    /// Whether everything was met that the comparison is about.
    fn check(&self, mode: Mode, asks: bool) -> Result<()> {
        self.mix.check()?;
        let Self { bounced, bounced_by_name_over: over, bounced_datagrams: datagrams, stamped, .. } = self;
        let share = self.share_of_names();
        ensure!(share >= 20, "only {share} % were decided by names");
        let programs = mode != Mode::Off;
        let had = [*bounced > 50, *over > 0, *stamped > 100];
        ensure!(had == [programs; 3], "enough bounced, over, stamped: {had:?}");
        ensure!((*datagrams > 50) == (programs && asks), "{datagrams} datagrams were dropped early");
        self.live.check(programs.then_some(asks))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mix, bounced, bounced_by_name_over: over, bounced_datagrams: datagrams, stamped, live } =
            self;
        let share = self.share_of_names();
        write!(
            f,
            "{mix}; {share} % decided by names; {bounced} dropped early, {over} of them after a name was over, \
             {datagrams} of them datagrams, {stamped} stamped; {live}"
        )
    }
}

/// Packets whose flows nobody has seen in this site.
struct Packets {
    next_port: u16,
    seen: BTreeSet<(IpAddr, IpAddr, Transport)>,
    echos: BTreeSet<IpAddr>,
}

impl Packets {
    fn new() -> Self {
        Self { next_port: 2000, seen: BTreeSet::new(), echos: BTreeSet::new() }
    }

    /// Aimed at what is open, and at what was.
    fn batch(
        &mut self,
        rng: &mut Rng,
        world: &World,
        set: &PolicySet,
        aim: &Learned,
        now: &Learned,
    ) -> Result<Vec<Case>> {
        let mut packets = r#gen::packets_with(rng, world, set, aim, PACKETS)?;
        let more = r#gen::packets_with(rng, world, set, now, PACKETS)?;
        let by_name = |packet: &Packet| matches!(set.decide_with(packet, now).why, Why::Name { .. });
        packets.extend(more.into_iter().filter(by_name));
        rng.shuffle(&mut packets);
        let mut cases = Vec::new();
        let mut echos = 0;
        for mut packet in packets {
            self.next_port = if self.next_port > 60_000 { 2000 } else { self.next_port + 1 };
            match &mut packet.transport {
                Transport::Tcp { source, destination } | Transport::Udp { source, destination } => {
                    *source = self.next_port;
                    // DNS over TLS has rules of its own.
                    if rng.percent(2) {
                        *destination = 853;
                    }
                }
                Transport::Icmp { kind: 8 | 128, .. } => {
                    echos += 1;
                    if echos > MOST_ECHOS || !self.echos.insert(packet.source) {
                        continue;
                    }
                }
                Transport::Icmp { .. } | Transport::Other(_) => {}
            }
            if self.seen.insert((packet.source, packet.destination, packet.transport)) {
                let mut shot = world.shot(&packet, cases.len())?;
                vary(rng, &packet, &mut shot);
                cases.push(Case { packet, shot });
            }
        }
        // A packet alone in its group is sent in step with the others: fewer groups are quicker.
        cases.sort_by_key(|case| case.shot.from);
        Ok(cases)
    }
}

/// Segments of connections that conntrack has not seen, and openings that it calls invalid.
fn vary(rng: &mut Rng, packet: &Packet, shot: &mut Shot) {
    let Body::Tcp { flags, .. } = &mut shot.packet.body else { return };
    match packet.state {
        ConntrackState::New if rng.percent(12) => *flags = flags::ACK,
        ConntrackState::Invalid if rng.percent(50) => {
            *flags = flags::SYN;
            shot.packet.bad_checksum = true;
        }
        _ => {}
    }
}

/// What the kernel's counters must say in the end.
struct Ledger {
    expected: BTreeMap<String, u64>,
    drops: [u64; 2],
}

impl Ledger {
    /// From what they say now.
    fn new(site: &Site) -> Result<Self> {
        Ok(Self { expected: by_comment(site)?, drops: site.drops()? })
    }

    fn counted(&mut self, why: &Why) {
        *self.expected.entry(why.counter()).or_default() += 1;
    }

    fn bounced(&mut self, reason: Reason) {
        self.drops[reason as usize] += 1;
    }

    fn check(&self, site: &Site) -> Result<()> {
        let counted = by_comment(site)?;
        for comment in self.expected.keys().chain(counted.keys()).collect::<BTreeSet<_>>() {
            let get = |map: &BTreeMap<String, u64>| map.get(comment).copied().unwrap_or(0);
            let (expected, counted) = (get(&self.expected), get(&counted));
            ensure!(expected == counted, "{comment:?}: {expected} are expected, the kernel counts {counted}");
        }
        let (expected, dropped) = (self.drops, site.drops()?);
        ensure!(dropped == expected, "early drops by reason: {expected:?} are expected, not {dropped:?}");
        Ok(())
    }
}

fn by_comment(site: &Site) -> Result<BTreeMap<String, u64>> {
    let counters = fw_testkit::nft::counters(&site.lab.firewall)?.by_comment;
    Ok(counters.into_iter().map(|(comment, count)| (comment, count.packets)).collect())
}

/// Sends all packets and compares the three; those that came out.
fn compare(site: &mut Site, cases: &[Case], now: Nanos, tally: &mut Tally) -> Result<Vec<bool>> {
    let learned = site.learned(now);
    let mut dynamic = site.dynamic(now);
    let mut ledger = Ledger::new(site)?;
    let mut fates = Vec::new();
    for Case { packet, shot } in cases {
        let decision = site.set.decide_with(packet, &learned);
        let (verdict, mark) = site.judge(shot, false, now)?;
        dynamic.mark = mark;
        let evaluation = evaluate_with(&site.ruleset, packet, &dynamic);
        ensure!(
            decision.accepted == evaluation.accepted,
            "{packet}: the reference says {decision:?}, the ruleset {evaluation:?} after {verdict:?}"
        );
        tally.stamped += u64::from(matches!(verdict, Verdict::Stamp(_)));
        if let Verdict::Bounce(reason) = verdict {
            ensure!(!decision.accepted, "{packet}: dropped early for {reason:?}, but {decision:?}");
            ledger.bounced(reason);
            tally.bounced += 1;
            tally.bounced_datagrams += u64::from(matches!(shot.packet.body, Body::Udp { .. }));
            tally.bounced_by_name_over += u64::from(reason == Reason::Expired);
        } else {
            ledger.counted(&decision.why);
        }
        fates.push(decision.accepted);
    }
    let shots: Vec<Shot> = cases.iter().map(|case| case.shot.clone()).collect();
    let arrivals = Range::new(&site.lab)?.fire(&shots)?;
    for ((case, accepted), arrivals) in cases.iter().zip(&fates).zip(&arrivals) {
        ensure!(
            arrivals.len() == usize::from(*accepted),
            "{}: the reference says {:?}, in the kernel it came out at {arrivals:?}",
            case.packet,
            site.set.decide_with(&case.packet, &learned)
        );
    }
    ledger.check(site)?;
    Ok(fates)
}

/// Other policies by name, one after the other: add, change, remove, rename.
fn edit_names(rng: &mut Rng, world: &World, set: &mut PolicySet, number: usize) -> Result<()> {
    let names = set.policies.keys().filter(|name| name.starts_with("names-")).cloned().collect::<Vec<_>>();
    let name = rng.pick(&names).context("no policy by name is left")?.clone();
    match number % 4 {
        0 => drop(set.policies.remove(&name)),
        1 => drop(set.policies.insert(name, r#gen::names_policy(rng, world)?)),
        2 => {
            let policy = set.policies.remove(&name).context("it was there")?;
            set.policies.insert(format!("names-renamed-{number}"), policy);
        }
        _ => drop(set.policies.insert(format!("names-new-{number}"), r#gen::names_policy(rng, world)?)),
    }
    Ok(())
}

/// The Firewall's part of what names are about.
fn settings(rng: &mut Rng, mark_mask: u32, set: &mut PolicySet) -> Result<()> {
    let choices = [Encrypted::Policy, Encrypted::Deny, Encrypted::Allow];
    let dns = &mut set.firewall.dns;
    (dns.ttl_min, dns.grace) = (SHORT, 0);
    dns.dot = *rng.pick(&choices).context("three")?;
    dns.doh = *rng.pick(&choices).context("three")?;
    dns.doh_endpoints = ["1.2.0.0/24".parse()?, "2001:db8:a::/120".parse()?].into();
    set.firewall.fastpath.mark_mask = mark_mask;
    Ok(())
}

/// Some names are asked for, one in three of them with a short answer: both sets.
type Asked = [BTreeMap<String, BTreeSet<IpAddr>>; 2];

fn ask(rng: &mut Rng, names: &BTreeMap<String, BTreeSet<IpAddr>>, share: usize) -> Asked {
    let mut asked = Asked::default();
    for (name, addresses) in names {
        if rng.percent(share) {
            asked[usize::from(rng.percent(33))].insert(name.clone(), addresses.clone());
        }
    }
    asked
}

fn expect_learned(site: &Site, expected: &Learned, now: Nanos) -> Result<()> {
    let learned = site.learned_by_the_learner(now);
    for address in expected.addresses.keys().chain(learned.addresses.keys()) {
        let (expected, learned) = (expected.addresses.get(address), learned.addresses.get(address));
        ensure!(expected == learned, "{address}: learned {learned:?} instead of {expected:?}");
    }
    Ok(())
}

/// One set of policies against two batches: with all answers, and after the short ones are over.
fn meet(site: &mut Site, world: &World, rng: &mut Rng, asked: &Asked, tally: &mut Tally) -> Result<()> {
    site.teach(&asked[0], LONG)?;
    let mut packets = Packets::new();
    let mut short = SHORT;
    let all = loop {
        let over = site.teach(&asked[1], short)?;
        let now = monotonic();
        let all = site.learned(now);
        expect_learned(site, &all, now)?;
        let cases = packets.batch(rng, world, &site.set, &all, &all)?;
        let before = monotonic();
        let so_far =
            Mix::with(&site.set, &all, &cases.iter().map(|case| case.packet.clone()).collect::<Vec<_>>());
        if before + 500_000_000 > over {
            short += 1;
            continue;
        }
        let result = compare(site, &cases, now, tally);
        // On a machine that is too slow some answers were over before the last packet: once more, with longer ones.
        if monotonic() + TICK > over {
            short += 1;
            conntrack::flush(&site.lab.firewall)?;
            continue;
        }
        let fates = result.context("while all answers live")?;
        tally.mix.add(&so_far);
        live::establish(site, &cases, &fates, &mut tally.live)?;
        std::thread::sleep(Duration::from_nanos((over + TICK).saturating_sub(monotonic())));
        break all;
    };
    let now = monotonic();
    let left = site.learned(now);
    expect_learned(site, &left, now)?;
    let cases = packets.batch(rng, world, &site.set, &all, &left)?;
    compare(site, &cases, now, tally).context("after the short answers")?;
    let sent: Vec<Packet> = cases.into_iter().map(|case| case.packet).collect();
    tally.mix.add(&Mix::with(&site.set, &left, &sent));
    Ok(())
}

/// Policies that leave something closed: now and then one opens every port of everything, and nothing is dropped early.
fn policies(rng: &mut Rng, world: &World, policies: usize, services: usize) -> Result<PolicySet> {
    loop {
        let set = r#gen::policy_set(rng, world, policies, services)?;
        let table = superset(&set, &BTreeSet::new());
        let every_port = (Protocol::Tcp, 0, u16::MAX);
        if !table.iter().any(|(net, cells)| net.prefix_len() == 0 && cells.contains(&every_port)) {
            return Ok(set);
        }
    }
}

/// The same packets with and without the early drop.
fn with_and_without(mode: Mode, asks: bool, rng: &mut Rng) -> Result<(Mix, u64)> {
    let spec = LabSpec::standard(&format!("superset-{}", mode.name()))?;
    let spec = spec.with_second_inside()?.with_second_outside()?;
    let world = World::of(&spec)?;
    let mut site = Site::new(&spec, mode, asks, 0x00ff_ffff)?;
    Range::new(&site.lab)?.silence_machines()?;
    let (mut mix, before) = (Mix::default(), site.drops()?);
    for _ in 0..4 * soak_factor() {
        let mut set = policies(rng, &world, 40, 10)?;
        settings(rng, 0x00ff_ffff, &mut set)?;
        site.adopt(&set)?;
        let nothing = Learned::default();
        let cases = Packets::new().batch(rng, &world, &set, &nothing, &nothing)?;
        let mut fates = Vec::new();
        for bounce in [true, false] {
            site.bounce(bounce)?;
            let before = site.drops()?;
            let shots: Vec<Shot> = cases.iter().map(|case| case.shot.clone()).collect();
            let arrivals = Range::new(&site.lab)?.fire(&shots)?;
            fates.push(arrivals.into_iter().map(|arrivals| arrivals.len()).collect::<Vec<_>>());
            ensure!(bounce || site.drops()? == before, "it drops though it is off");
            conntrack::flush(&site.lab.firewall)?;
        }
        for (number, case) in cases.iter().enumerate() {
            let (with, without) = (fates[0][number], fates[1][number]);
            ensure!(
                with == without,
                "{}: {with} came out with the early drop, {without} without",
                case.packet
            );
            let accepted = set.decide(&case.packet).accepted;
            ensure!(
                without == usize::from(accepted),
                "{}: the reference has accepted: {accepted}",
                case.packet
            );
        }
        mix.add(&Mix::of(&set, &cases.into_iter().map(|case| case.packet).collect::<Vec<_>>()));
    }
    let dropped = site.drops()?.iter().zip(before).map(|(now, before)| now - before).sum();
    Ok((mix, dropped))
}

#[test]
fn what_static_rules_accept_is_never_dropped_early() -> Result<()> {
    let seed = r#gen::seed();
    eprintln!("FW_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut all = Mix::default();
    for (mode, asks) in [(Mode::Native, true), (Mode::Generic, true), (Mode::Tcx, true), (Mode::Tcx, false)] {
        let (mut mix, mut dropped) = (Mix::default(), 0);
        // Not every set of policies leaves the early drop enough to do.
        for _ in 0..3 {
            let round = with_and_without(mode, asks, &mut rng);
            let (round, bounced) = round.with_context(|| format!("FW_SEED={seed} {} {asks}", mode.name()))?;
            mix.add(&round);
            dropped += bounced;
            if dropped > 15 {
                break;
            }
        }
        eprintln!("{}, conntrack asked: {asks}: {mix}; {dropped} dropped early", mode.name());
        ensure!(dropped > 15, "FW_SEED={seed} {}: the early drop had little to do", mode.name());
        all.add(&mix);
    }
    all.check().with_context(|| format!("FW_SEED={seed}"))
}

fn run(mode: Mode, asks: bool) -> Result<()> {
    let seed = r#gen::seed();
    eprintln!("FW_SEED={seed} {}", mode.name());
    let mut rng = Rng::new(seed);
    let mut tally = Tally::default();
    let rounds = ROUNDS * soak_factor();
    for round in 0..3 * rounds {
        // Not every seed brings enough of everything in as many rounds.
        if round >= rounds && tally.check(mode, asks).is_ok() {
            break;
        }
        // The default, one in the middle, and one at the upper end.
        let mark_mask = *rng.pick(&[0x00ff_ffff, 0x000f_ff00, 0xfff0_0000]).context("three")?;
        play(mode, asks, mark_mask, &mut rng, &mut tally)
            .with_context(|| format!("FW_SEED={seed} {} round {round}", mode.name()))?;
    }
    eprintln!("{}: {tally}", mode.name());
    tally.check(mode, asks).with_context(|| format!("FW_SEED={seed}"))
}

fn play(mode: Mode, asks: bool, mark_mask: u32, rng: &mut Rng, tally: &mut Tally) -> Result<()> {
    let spec = LabSpec::standard(&format!("oracle-{}-{}", mode.name(), u8::from(asks)))?;
    let spec = spec.with_second_inside()?.with_second_outside()?;
    let world = World::of(&spec)?;
    let mut site = Site::new(&spec, mode, asks, mark_mask)?;
    Range::new(&site.lab)?.silence_machines()?;
    let mut set = policies(rng, &world, 24, 6)?;
    let mut names = r#gen::add_names(rng, &world, &mut set, 12)?.names;
    settings(rng, mark_mask, &mut set)?;
    for edit in 0..=EDITS {
        if edit > 0 {
            r#gen::edit(rng, &world, &mut set, &BTreeSet::new(), edit)?;
            edit_names(rng, &world, &mut set, edit)?;
            // Answers rotate: names get the addresses of others.
            let mut addresses: Vec<_> = names.values().cloned().collect();
            addresses.rotate_left(1 + rng.below(3));
            names = names.into_keys().zip(addresses).collect();
        }
        site.adopt(&set)?;
        live::go_on(&mut site, &mut tally.live).with_context(|| format!("after edit {edit}"))?;
        conntrack::flush(&site.lab.firewall)?;
        let asked = ask(rng, &names, if edit == 0 { 70 } else { 30 });
        meet(&mut site, &world, rng, &asked, tally).with_context(|| format!("edit {edit}"))?;
        site.collect()?;
    }
    Ok(())
}

#[test]
fn with_xdp_in_the_driver_names_decide_in_the_kernel_as_in_the_reference() -> Result<()> {
    run(Mode::Native, true)
}

#[test]
fn with_generic_xdp_names_decide_in_the_kernel_as_in_the_reference() -> Result<()> {
    run(Mode::Generic, true)
}

#[test]
fn with_tcx_alone_names_decide_in_the_kernel_as_in_the_reference() -> Result<()> {
    run(Mode::Tcx, true)
}

#[test]
fn with_xdp_that_does_not_ask_conntrack_names_decide_as_in_the_reference() -> Result<()> {
    run(Mode::Native, false)
}

#[test]
fn with_generic_xdp_that_does_not_ask_conntrack_names_decide_as_in_the_reference() -> Result<()> {
    run(Mode::Generic, false)
}

#[test]
fn with_tcx_that_does_not_ask_conntrack_names_decide_as_in_the_reference() -> Result<()> {
    run(Mode::Tcx, false)
}

#[test]
fn without_ebpf_names_decide_in_the_kernel_as_in_the_reference() -> Result<()> {
    run(Mode::Off, false)
}
