//! Connections that live: whatever becomes of the policy or the name that opened them, their packets pass, and those
//! that are related to them.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use fw_bpf_common::Verdict;
use fw_controller::names::clock::monotonic;
use fw_policy::{ConntrackState, Packet, Transport};
use fw_testkit::traffic::craft::{Body, Crafted, Tag, flags};
use fw_testkit::traffic::range::{Range, Shot};

use super::site::Site;
use super::{Case, Ledger};

/// Connections of one batch.
const FLOWS: usize = 24;

/// A connection: its first packet, and the machine at the other end.
pub(super) struct Flow {
    packet: Packet,
    shot: Shot,
    other: usize,
}

/// What was sent in live connections.
#[derive(Default)]
pub(super) struct Tally {
    established: u64,
    related: u64,
    openings: u64,
    /// Openings inside a live connection whose allow has gone: the one difference there may be, where conntrack is not
    /// asked.
    bounced_openings: u64,
    /// Packets that only conntrack kept from the early drop.
    saved: u64,
}

impl Tally {
    /// `asks`: there are programs, and they ask conntrack, or do not.
    pub(super) fn check(&self, asks: Option<bool>) -> Result<()> {
        let Self { established, related, openings, bounced_openings, saved } = self;
        ensure!(
            *established > 100 && *related > 50 && *openings > 20,
            "too little in live connections: {self}"
        );
        ensure!((*saved > 10) == (asks == Some(true)), "kept from the early drop: {self}");
        ensure!(asks == Some(false) || *bounced_openings == 0, "dropped early in live connections: {self}");
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { established, related, openings, bounced_openings, saved } = self;
        write!(
            f,
            "in live connections {established} established, {related} related, {openings} openings of which \
             {bounced_openings} were dropped early; {saved} packets saved by conntrack"
        )
    }
}

/// Lets some of the accepted packets be answered.
pub(super) fn establish(site: &mut Site, cases: &[Case], fates: &[bool], tally: &mut Tally) -> Result<()> {
    let mut flows: Vec<Flow> = Vec::new();
    let step = (cases.len() / FLOWS / 2).max(1);
    let opened = cases.iter().zip(fates).filter(|(_, accepted)| **accepted).map(|(case, _)| case);
    for Case { packet, shot } in opened.step_by(step.min(3)) {
        let opens = match shot.packet.body {
            Body::Tcp { flags, .. } => flags == flags::SYN,
            Body::Udp { .. } => true,
            _ => false,
        };
        if opens && packet.state == ConntrackState::New && flows.len() < FLOWS {
            let mut machines = site.lab.machines();
            let other = machines.position(|machine| *machine.firewall_interface() == packet.output);
            let other = other.with_context(|| format!("no machine is behind {}", packet.output))?;
            flows.push(Flow { packet: packet.clone(), shot: shot.clone(), other });
        }
    }
    let stages: [Stage; 2] = [|flow| flow.back(flags::SYN | flags::ACK), |flow| flow.forth(flags::ACK)];
    send_all(site, &flows, &stages, tally)?;
    site.flows = flows;
    Ok(())
}

/// Sends what live connections send: data both ways, errors about both directions, an opening, an end.
pub(super) fn go_on(site: &mut Site, tally: &mut Tally) -> Result<()> {
    let flows = std::mem::take(&mut site.flows);
    let stages: [Stage; 7] = [
        |flow| flow.forth(flags::ACK | flags::PSH),
        |flow| flow.back(flags::ACK | flags::PSH),
        Flow::error_back,
        Flow::error_forth,
        |flow| flow.forth(flags::SYN),
        |flow| flow.back(flags::FIN | flags::ACK),
        |flow| flow.forth(flags::RST | flags::ACK),
    ];
    send_all(site, &flows, &stages, tally)
}

/// What each connection sends next.
type Stage = fn(&Flow) -> Result<Live>;

fn send_all(site: &mut Site, flows: &[Flow], stages: &[Stage], tally: &mut Tally) -> Result<()> {
    if flows.is_empty() {
        return Ok(());
    }
    let mut ledger = Ledger::new(site)?;
    for stage in stages {
        send(site, flows.iter().map(stage).collect(), &mut ledger, tally)?;
    }
    ledger.check(site)
}

/// A packet in a live connection.
struct Live {
    packet: Packet,
    shot: Shot,
}

impl Flow {
    fn forth(&self, flags: u8) -> Result<Live> {
        let packet = Packet { state: ConntrackState::Established, ..self.packet.clone() };
        let mut shot = self.shot.clone();
        set_flags(&mut shot.packet, flags);
        Ok(Live { packet, shot })
    }

    fn back(&self, flags: u8) -> Result<Live> {
        let forth = &self.packet;
        let transport = match forth.transport {
            Transport::Tcp { source, destination } => {
                Transport::Tcp { source: destination, destination: source }
            }
            Transport::Udp { source, destination } => {
                Transport::Udp { source: destination, destination: source }
            }
            other => other,
        };
        let packet = Packet {
            input: forth.output.clone(),
            output: forth.input.clone(),
            source: forth.destination,
            destination: forth.source,
            transport,
            state: ConntrackState::New,
        };
        let mut crafted = Crafted::of(&packet, 0)?;
        set_flags(&mut crafted, flags);
        let packet = Packet { state: ConntrackState::Established, ..packet };
        Ok(Live { packet, shot: Shot { from: self.other, packet: crafted } })
    }

    /// The other end says that a packet has not arrived.
    fn error_back(&self) -> Result<Live> {
        error(self.forth(flags::ACK)?, self.back(flags::ACK)?)
    }

    fn error_forth(&self) -> Result<Live> {
        error(self.back(flags::ACK)?, self.forth(flags::ACK)?)
    }
}

/// An error about `lost`, on the way of `carrier`.
fn error(lost: Live, carrier: Live) -> Result<Live> {
    let (kind, code) = if carrier.packet.source.is_ipv4() { (3, 1) } else { (1, 0) };
    let quoted = lost.shot.packet.encode(Tag { run: 0, id: 0 })?.swap_remove(0);
    let (source, destination): (IpAddr, IpAddr) = (carrier.packet.source, carrier.packet.destination);
    let packet = Crafted::new(source, destination, Body::Error { kind, code, quoted });
    let shot = Shot { from: carrier.shot.from, packet };
    let state = ConntrackState::Related;
    Ok(Live { packet: Packet { transport: Transport::Icmp { kind, code }, state, ..carrier.packet }, shot })
}

fn set_flags(packet: &mut Crafted, flags: u8) {
    if let Body::Tcp { flags: own, .. } = &mut packet.body {
        *own = flags;
    }
}

/// Sends packets and compares with the reference; an opening may be dropped early.
fn send(site: &mut Site, live: Vec<Result<Live>>, ledger: &mut Ledger, tally: &mut Tally) -> Result<()> {
    let mut live: Vec<Live> = live.into_iter().collect::<Result<_>>()?;
    live.sort_by_key(|live| live.shot.from);
    let mut passes = Vec::new();
    for Live { packet, shot } in &live {
        let decision = site.set.decide(packet);
        ensure!(decision.accepted, "{packet} in a live connection: {decision:?}");
        let opens = matches!(shot.packet.body, Body::Tcp { flags: flags::SYN, .. });
        let (verdict, _) = site.judge(shot, true, monotonic())?;
        let (unless_known, _) = site.judge(shot, false, monotonic())?;
        tally.saved += u64::from(verdict != unless_known);
        let bounced = if let Verdict::Bounce(reason) = verdict {
            ensure!(opens && !site.asks, "{packet}: dropped early for {reason:?} in a live connection");
            ledger.bounced(reason);
            tally.bounced_openings += 1;
            true
        } else {
            ledger.counted(&decision.why);
            false
        };
        match packet.state {
            ConntrackState::Related => tally.related += 1,
            _ if opens => tally.openings += 1,
            _ => tally.established += 1,
        }
        passes.push(!bounced);
    }
    let shots: Vec<Shot> = live.iter().map(|live| live.shot.clone()).collect();
    let arrivals = Range::new(&site.lab)?.fire(&shots)?;
    for ((live, passes), arrivals) in live.iter().zip(passes).zip(&arrivals) {
        ensure!(
            arrivals.len() == usize::from(passes),
            "{} ({:?}) of a live connection came out at {arrivals:?}",
            live.packet,
            live.shot.packet.body
        );
    }
    Ok(())
}
