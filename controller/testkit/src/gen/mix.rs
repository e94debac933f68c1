//! What was generated: a comparison of two programs that drop everything proves nothing.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};
use fw_policy::{Learned, Packet, PolicySet, Why};

use crate::r#gen::policies::overlapping;

/// The mix of generated policies and packets (semantics.md section 8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    /// Packets.
    pub packets: usize,
    /// Those that the reference accepts.
    pub accepted: usize,
    /// IPv6 ones.
    pub ipv6: usize,
    /// How many packets each kind of reason decides.
    pub reasons: BTreeMap<&'static str, usize>,
    /// Policies.
    pub policies: usize,
    /// Those that match something that another one matches too.
    pub overlapping: usize,
}

impl Mix {
    /// Counts while nothing is learned; see [`Mix::with`].
    pub fn of(set: &PolicySet, packets: &[Packet]) -> Self {
        Self::with(set, &Learned::default(), packets)
    }

    /// Counts, with [`PolicySet::decide_with`] for the verdicts.
    pub fn with(set: &PolicySet, learned: &Learned, packets: &[Packet]) -> Self {
        let mut mix = Self {
            packets: packets.len(),
            policies: set.policies.len(),
            overlapping: overlapping(&set.policies).len(),
            ..Self::default()
        };
        for packet in packets {
            let decision = set.decide_with(packet, learned);
            mix.accepted += usize::from(decision.accepted);
            mix.ipv6 += usize::from(packet.source.is_ipv6());
            *mix.reasons.entry(reason(&decision.why)).or_default() += 1;
        }
        mix
    }

    /// Adds another mix, for runs of several rounds.
    pub fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.accepted += other.accepted;
        self.ipv6 += other.ipv6;
        self.policies += other.policies;
        self.overlapping += other.overlapping;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
    }

    /// As [`Mix::check`], and fails below 10 % of packets that names decide.
    pub fn check_names(&self) -> Result<()> {
        let by_name = self.reasons.get("name").copied().unwrap_or(0);
        ensure!(by_name * 10 >= self.packets, "fewer than 10 % by name: {self}");
        self.check()
    }

    /// Fails below 30 % accepts, 20 % overlapping policies or 10 % IPv6 packets.
    pub fn check(&self) -> Result<()> {
        let share = |part: usize, whole: usize| part * 100 >= whole;
        ensure!(self.packets > 0 && self.policies > 0, "nothing was generated: {self}");
        ensure!(share(self.accepted, self.packets * 30), "fewer than 30 % accepts: {self}");
        ensure!(share(self.overlapping, self.policies * 20), "fewer than 20 % overlapping policies: {self}");
        ensure!(share(self.ipv6, self.packets * 10), "fewer than 10 % IPv6: {self}");
        Ok(())
    }
}

fn reason(why: &Why) -> &'static str {
    match why {
        Why::Established => "established",
        Why::Icmp => "icmp",
        Why::Ingress { .. } => "ingress",
        Why::Egress { .. } => "egress",
        Why::Name { .. } => "name",
        Why::EncryptedDns { .. } => "encrypted dns",
        Why::DnsFallback { .. } => "dns fallback",
        Why::Service(_) => "service",
        Why::Drop(fw_policy::DropReason::Invalid) => "drop: invalid",
        Why::Drop(fw_policy::DropReason::Spoofed) => "drop: spoofed",
        Why::Drop(fw_policy::DropReason::UnsupportedProtocol) => "drop: unsupported protocol",
        Why::Drop(fw_policy::DropReason::EncryptedDns) => "drop: encrypted dns",
        Why::Drop(fw_policy::DropReason::Policy) => "drop: policy",
        Why::Drop(_) => "drop: other",
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: usize, whole: usize| part * 100 / whole.max(1);
        write!(
            f,
            "{} packets, {} % accepted, {} % IPv6; {} policies, {} % overlapping",
            self.packets,
            percent(self.accepted, self.packets),
            percent(self.ipv6, self.packets),
            self.policies,
            percent(self.overlapping, self.policies)
        )?;
        for (number, (reason, count)) in self.reasons.iter().enumerate() {
            write!(f, "{} {reason} {count}", if number == 0 { ";" } else { "," })?;
        }
        Ok(())
    }
}
