//! A firing range: packets in at any machine of a lab, and for each of them where it came out.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use fw_policy::Transport;

use crate::Netns;
use crate::topology::{Lab, Machine};
use crate::traffic::craft::{Body, Crafted, ECHO_V4, ECHO_V6, Seen, Tag};
use crate::traffic::inject::Injector;
use crate::traffic::sniff::Sniffer;

/// One packet and the machine that sends it.
#[derive(Clone, Debug)]
pub struct Shot {
    /// Index of the machine in [`Lab::machines`].
    pub from: usize,
    /// The packet.
    pub packet: Crafted,
}

/// A packet that came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Index of the machine in [`Lab::machines`].
    pub at: usize,
    /// The packet as it arrived.
    pub seen: Seen,
}

/// Sends batches of packets through a lab's firewall and sees which arrive.
#[derive(Debug)]
pub struct Range<'a> {
    lab: &'a Lab,
    injectors: Vec<Injector>,
    sniffers: Vec<Sniffer>,
}

/// Far below `net.core.netdev_max_backlog`, which other labs use at the same time.
const IN_FLIGHT: usize = 128;

impl<'a> Range<'a> {
    /// Opens the sockets at all machines.
    pub fn new(lab: &'a Lab) -> Result<Self> {
        Ok(Self {
            lab,
            injectors: lab.machines().map(Injector::on).collect::<Result<_>>()?,
            sniffers: lab.machines().map(Sniffer::on).collect::<Result<_>>()?,
        })
    }

    /// Sends the shots, each after the one before has come out or died, as far as they come from different
    /// machines; gives for each shot where it arrived (nowhere = dropped; more than once would be a surprise
    /// worth a failure).
    ///
    /// Fails if a link or a socket lost a packet, for then "did not arrive" would not mean "dropped".
    pub fn fire(&mut self, shots: &[Shot]) -> Result<Vec<Vec<Arrival>>> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        // Unique in this process; other processes' packets are in other namespaces.
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let lost_before = self.lost_by_links()?;
        for sniffer in &mut self.sniffers {
            sniffer.tagged()?;
            sniffer.statistics()?;
        }
        let mut fates = vec![Vec::new(); shots.len()];
        let mut first = 0;
        for group in shots.chunk_by(|a, b| a.from == b.from) {
            let packets = encode(group, run, first)?;
            let from = group.first().map_or(0, |shot| shot.from);
            let injector =
                self.injectors.get_mut(from).with_context(|| format!("there is no machine {from}"))?;
            for step in packets.chunks(IN_FLIGHT) {
                injector.send_in_step(step, IN_FLIGHT)?;
                collect(&mut self.sniffers, run, shots, &mut fates)?;
            }
            first += group.len();
        }
        for (sniffer, machine) in self.sniffers.iter().zip(self.lab.machines()) {
            let statistics = sniffer.statistics()?;
            ensure!(
                statistics.dropped == 0,
                "the sniffer in {} lost {}",
                machine.ns.name(),
                statistics.dropped
            );
        }
        let lost = self.lost_by_links()?.saturating_sub(lost_before);
        ensure!(
            lost == 0,
            "{lost} packets were lost by links, not dropped by rules; is the machine overloaded?"
        );
        Ok(fates)
    }

    /// Makes the machines deaf to what is sent to them: no resets, no port unreachables, no echo replies. What
    /// arrives is still seen.
    pub fn silence_machines(&self) -> Result<()> {
        for machine in self.lab.machines() {
            crate::nft::load(
                &machine.ns,
                "table inet silent {\nchain input {\ntype filter hook input priority -400; policy drop;\n}\n}\n",
            )?;
        }
        Ok(())
    }

    fn lost_by_links(&self) -> Result<u64> {
        let mut lost = 0;
        for ns in self.lab.machines().map(|machine| &machine.ns).chain([&self.lab.firewall]) {
            lost += lost_by_links(ns)?;
        }
        Ok(lost)
    }
}

impl Lab {
    /// Index of a machine in [`Lab::machines`].
    pub fn index_of(&self, machine: &Machine) -> Option<usize> {
        self.machines().position(|other| std::ptr::eq(other, machine))
    }
}

fn encode(shots: &[Shot], run: u32, first: usize) -> Result<Vec<Vec<u8>>> {
    let mut packets = Vec::with_capacity(shots.len());
    for (number, shot) in shots.iter().enumerate() {
        packets.extend(shot.packet.encode(Tag { run, id: u32::try_from(first + number)? })?);
    }
    Ok(packets)
}

fn collect(sniffers: &mut [Sniffer], run: u32, shots: &[Shot], fates: &mut [Vec<Arrival>]) -> Result<()> {
    for (at, sniffer) in sniffers.iter_mut().enumerate() {
        for seen in sniffer.tagged()?.into_iter().filter(|seen| seen.tag.run == run) {
            let id = usize::try_from(seen.tag.id)?;
            let shot = shots.get(id).context("a tag that was never sent")?;
            if !is_echo_reply_to(&seen, &shot.packet) {
                fates[id].push(Arrival { at, seen });
            }
        }
    }
    Ok(())
}

/// A host that answers an echo request returns its payload, tag and all.
fn is_echo_reply_to(seen: &Seen, sent: &Crafted) -> bool {
    matches!(
        (seen.transport, &sent.body),
        (Transport::Icmp { kind: 0, .. }, Body::Icmp { kind: ECHO_V4, .. })
            | (Transport::Icmp { kind: 129, .. }, Body::Icmp { kind: ECHO_V6, .. })
    )
}

/// Packets that the interfaces of a namespace could not hand to their peers.
fn lost_by_links(ns: &Netns) -> Result<u64> {
    let text = ns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let mut lost = 0;
    for line in text.lines().filter_map(|line| line.split_once(':')) {
        // Receive: bytes packets errs drop fifo frame compressed multicast; transmit: bytes packets errs drop …
        let transmit_drop = line.1.split_whitespace().nth(11).context("/proc/net/dev has too few columns")?;
        lost += transmit_drop.parse::<u64>()?;
    }
    Ok(lost)
}
