//! One probe at a time: what is done, what was seen, which counter moved, and whether `explain` agrees.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fw_testkit::nft::{self, Counters};
use fw_testkit::topology::{Lab, Machine};
use fw_testkit::traffic::probe::{self, Outcome};

use crate::controller::Controller;
use crate::table::{Line, Table};

/// For probes that are answered.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// For probes that must stay unanswered: many round trips, and less than a second, after which TCP asks again.
pub(crate) const SILENCE: Duration = Duration::from_millis(300);
/// What a policy's or Service's comment begins with; the table leaves it out.
const ALLOWED: &str = "accept traffic for ";
/// The comment of the rule that counts what nothing allows.
pub(crate) const DENIED: &str = "count and log dropped packets";
/// The comment of source NAT to the internet.
pub(crate) const SNAT: &str = "snat for internet";
/// The counter of rate limits; their rules have no comment, for they stand in many chains.
pub(crate) const RATE_LIMIT: &str = "drop_ratelimit";
/// The comment of connections that exist.
pub(crate) const ESTABLISHED: &str = "accept established connections";
/// Stands for the counters of what the programs on the inside interfaces drop, before nftables has a rule for it.
pub(crate) const EARLY: &str = "early drop (tcx)";
/// What `explain` calls them: where the status shows them.
const EARLY_FIGURE: &str = "stats.drops.policy.tcx";
/// What the comments of the rules begin with that redirect DNS.
pub(crate) const REDIRECTED: &str = "dnat to dns proxy";
/// Addresses that the lab's Firewall translates to.
pub(crate) const TRANSLATED: [&str; 2] = ["203.0.113.10", "203.0.113.11"];

/// A machine of the lab.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Cluster,
    Internet,
    Partner,
}

/// How a probe asks.
#[derive(Clone, Copy)]
pub(crate) enum Ask {
    Tcp,
    Udp,
}

/// What is expected of a probe.
pub(crate) struct Check<'a> {
    /// Says what is done.
    pub(crate) probe: &'a str,
    /// A word for what should be seen.
    pub(crate) expected: &'a str,
    /// Counters that must move, by how much; the first is the one that is shown.
    pub(crate) rules: &'a [(&'a str, RangeInclusive<u64>)],
    /// The packet in the words of `explain`, and whether it should pass.
    pub(crate) packet: Option<(&'a str, bool)>,
}

/// What was seen.
pub(crate) struct Seen {
    /// For the table.
    pub(crate) text: String,
    /// What is wrong with it.
    pub(crate) complaint: Option<String>,
}

impl Seen {
    /// `text`, which is as expected if `well`.
    pub(crate) fn new(text: impl Into<String>, well: bool) -> Self {
        let complaint = (!well).then(|| "what was seen is not what was expected".to_owned());
        Self { text: text.into(), complaint }
    }
}

/// Everything the probes need.
pub(crate) struct Stage<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) controller: &'a Controller,
    pub(crate) table: &'a mut Table,
    /// Probes for which the running controller was asked to explain the packet.
    pub(crate) explained: usize,
}

impl Stage<'_> {
    pub(crate) fn machine(&self, at: At) -> Result<&Machine> {
        match at {
            At::Cluster => Ok(self.lab.cluster()),
            At::Internet => Ok(self.lab.internet()),
            At::Partner => self.lab.outside.get(1).context("the lab has no partner"),
        }
    }

    /// Runs a probe between two readings of the counters, and prints its line.
    pub(crate) fn check(
        &mut self,
        check: &Check<'_>,
        work: impl FnOnce(&Self) -> Result<Seen>,
    ) -> Result<()> {
        let before = self.read()?;
        self.check_since(&before, check, work)
    }

    /// All counters as they are now.
    pub(crate) fn read(&self) -> Result<Reading> {
        Ok(Reading {
            kernel: nft::counters(&self.lab.firewall)?,
            early_drops: self.controller.early_drops()?,
        })
    }

    /// As [`Stage::check`], for what has been going on since an earlier reading.
    pub(crate) fn check_since(
        &mut self,
        before: &Reading,
        check: &Check<'_>,
        work: impl FnOnce(&Self) -> Result<Seen>,
    ) -> Result<()> {
        let seen = work(self).with_context(|| check.probe.to_owned())?;
        let after = self.read()?;
        let moved = moved(before, &after);
        let mut complaints: Vec<String> = seen.complaint.into_iter().collect();
        complaints.extend(wrong_moves(check.rules, &moved));
        complaints.extend(self.disagreement(check)?);
        let shown = check.rules.first();
        let find = |rule: &str| moved.iter().find(|(name, ..)| name == rule);
        let counter = shown.map(|(rule, _)| match find(rule) {
            Some((_, by, now)) => (*by, *now),
            None => (0, after.packets(rule)),
        });
        let rule = shown.map_or("", |(rule, _)| rule.strip_prefix(ALLOWED).unwrap_or(rule));
        self.table.line(&Line {
            cells: [check.probe.to_owned(), check.expected.to_owned(), seen.text, rule.to_owned()],
            counter,
            complaints,
        });
        Ok(())
    }

    /// A question from one machine to a server of another: allowed by the rule with this comment, or by none.
    pub(crate) fn ask(
        &mut self,
        ask: Ask,
        way: (At, At),
        to: &str,
        what: &str,
        rule: Option<&str>,
    ) -> Result<()> {
        let to: SocketAddr = to.parse().with_context(|| to.to_owned())?;
        let (from, target) = (self.machine(way.0)?, self.machine(way.1)?);
        let own = if to.is_ipv4() { from.v4() } else { from.v6() };
        let protocol = match ask {
            Ask::Tcp => "tcp",
            Ask::Udp => "udp",
        };
        let packet = format!(
            "{protocol} {} -> {to} in {} out {}",
            SocketAddr::new(own, 40_000),
            from.firewall_interface(),
            target.firewall_interface()
        );
        let probe = format!("{} {to} {what}", protocol.to_uppercase());
        let translated = way == (At::Cluster, At::Internet) && to.is_ipv4();
        let check = Check {
            probe: probe.trim_end(),
            expected: if rule.is_some() { "passes" } else { "dropped" },
            rules: &[(rule.unwrap_or(DENIED), 1..=if rule.is_some() { 1 } else { 2 })],
            packet: Some((&packet, rule.is_some())),
        };
        self.check(&check, |stage| {
            let patience = if rule.is_some() { PATIENCE } else { SILENCE };
            let ns = &stage.machine(way.0)?.ns;
            let outcome = match ask {
                Ask::Tcp => probe::tcp(ns, None, to, patience)?,
                Ask::Udp => probe::udp(ns, None, to, patience)?,
            };
            Ok(judge(&outcome, rule.is_some(), own, translated))
        })
    }

    /// What the running controller says of the packet, where it says something else.
    fn disagreement(&mut self, check: &Check<'_>) -> Result<Option<String>> {
        let Some((packet, passes)) = check.packet else { return Ok(None) };
        let answer = self.controller.explain(packet)?;
        self.explained += 1;
        let counter = answer["counter"].as_str().unwrap_or_default();
        let explained = |rule| if rule == EARLY { EARLY_FIGURE } else { rule };
        let names_it = check.rules.iter().any(|(rule, _)| explained(rule) == counter);
        let agrees = answer["accepted"] == passes && names_it;
        Ok((!agrees).then(|| format!("explain says otherwise of {packet}: {answer}")))
    }
}

/// What an answer means. Only IPv4 to the internet is translated.
fn judge(outcome: &Outcome, passes: bool, own: IpAddr, translated: bool) -> Seen {
    match outcome {
        Outcome::Answered { seen_as } => {
            let source = seen_as.ip();
            let right = if translated {
                TRANSLATED.iter().any(|address| address.parse() == Ok(source))
            } else {
                source == own
            };
            Seen::new(format!("from {source}"), passes && right)
        }
        Outcome::Refused(why) => Seen::new(why.to_lowercase(), false),
        Outcome::Silent => Seen::new("nothing", !passes),
    }
}

/// Counters at about one time.
pub(crate) struct Reading {
    kernel: Counters,
    early_drops: u64,
}

impl Reading {
    /// Packets counted by a rule's comment or under a name.
    pub(crate) fn packets(&self, rule: &str) -> u64 {
        match rule {
            RATE_LIMIT => self.kernel.named(rule),
            EARLY => self.early_drops,
            comment => self.kernel.comment(comment),
        }
    }
}

/// Rules that decided over packets between two readings: name, by how much, and where the counter stands.
fn moved(before: &Reading, after: &Reading) -> Vec<(String, u64, u64)> {
    let rules = after.kernel.by_comment.keys().map(String::as_str).chain([RATE_LIMIT, EARLY]);
    rules
        .filter(|rule| !rule.starts_with("count ") || *rule == DENIED)
        .filter_map(|rule| {
            let (then, now) = (before.packets(rule), after.packets(rule));
            (now != then).then(|| (rule.to_owned(), now.saturating_sub(then), now))
        })
        .collect()
}

/// Counters that should have moved, and did not or by too much, and those that moved and should not have.
fn wrong_moves(expected: &[(&str, RangeInclusive<u64>)], moved: &[(String, u64, u64)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (rule, by) in expected {
        let seen = moved.iter().find(|(name, ..)| name == rule).map_or(0, |(_, by, _)| *by);
        if !by.contains(&seen) {
            wrong.push(format!("{rule:?} moved by {seen}, not by {} to {}", by.start(), by.end()));
        }
    }
    for (name, by, _) in moved {
        // They accompany decisions and make none.
        let aside = name == ESTABLISHED || name == SNAT || name.starts_with(REDIRECTED);
        if !aside && !expected.iter().any(|(rule, _)| rule == name) {
            wrong.push(format!("{name:?} moved by {by}, and should not"));
        }
    }
    wrong
}
