//! What only the controller knows of a logged packet: the rule and the policy that decided, the name of its other side,
//! and what would have let it pass.
//!
//! By the compiled ruleset: it is asked as the kernel would be, whose cost does not grow with the number of policies.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError, Weak};

use fw_droptailer::control::{Enrichment, Question};
use fw_droptailer::record::Action;
use fw_policy::{
    ConntrackState, DropReason, IfName, ObjectKind, Origin, Packet, PolicySet, Protocol, Transport,
};
use fw_ruleset::ir::{Family, Key, Ruleset, Statement, Value};
use fw_ruleset::{Dynamic, FQDN_CELLS, evaluate_with, fqdn_map};
use serde_json::{Value as Json, json};

use crate::names::{Asked, Told};
use crate::reconcile::Judged;

/// Answers that are remembered: packets that are dropped again and again are asked about again and again.
const MAX_CACHED: usize = 4096;

/// Interface of a packet that was dropped before it was routed; it leads nowhere.
const NOWHERE: &str = "lo";

/// Answers questions about packets; remembers the answers for as long as the same rules are in force.
#[derive(Debug, Default)]
pub struct Enricher(Mutex<Cache>);

#[derive(Debug, Default)]
struct Cache {
    of: Weak<Judged>,
    answers: BTreeMap<Asking, Enrichment>,
    packets: u64,
    hits: u64,
    emptied: u64,
}

/// All that an answer depends on beside the rules in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asking {
    /// Without its source port, which no rule looks at.
    packet: Packet,
    action: Action,
    is_routed: bool,
    told: Told,
}

/// What the thread of names is asked about a packet.
pub fn asked(question: &Question) -> Asked {
    let service = question.ports.and_then(|(_, port)| {
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == question.protocol)?;
        Some((protocol, port))
    });
    Asked { source: question.source, destination: question.destination, service }
}

impl Enricher {
    /// Answers questions in their order. Blocks for as long as it takes to compute.
    pub fn answer(
        &self,
        judged: &std::sync::Arc<Judged>,
        questions: &[Question],
        told: &[Told],
    ) -> Vec<Enrichment> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = std::ptr::eq(cache.of.as_ptr(), std::sync::Arc::as_ptr(judged));
        if !is_same {
            cache.answers.clear();
            cache.of = std::sync::Arc::downgrade(judged);
        }
        let told = told.iter().cloned().chain(std::iter::repeat(Told::default()));
        questions.iter().zip(told).map(|(question, told)| cache.answer(judged, question, told)).collect()
    }

    /// Its figures.
    pub fn figures(&self) -> Json {
        let cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "packets": cache.packets, "cacheHits": cache.hits, "cacheEmptied": cache.emptied,
            "cached": cache.answers.len(), "maxCached": MAX_CACHED,
        })
    }
}

impl Cache {
    fn answer(&mut self, judged: &Judged, question: &Question, told: Told) -> Enrichment {
        self.packets += 1;
        let Some(packet) = packet(question) else {
            return Enrichment { fqdn: told.destination.or(told.source), ..Enrichment::default() };
        };
        let asking = Asking { packet, action: question.action, is_routed: !question.output.is_empty(), told };
        if let Some(known) = self.answers.get(&asking) {
            self.hits += 1;
            return known.clone();
        }
        let answer = enrich(judged, &asking);
        if self.answers.len() >= MAX_CACHED {
            self.answers.clear();
            self.emptied += 1;
        }
        self.answers.insert(asking, answer.clone());
        answer
    }
}

/// `None`: an interface that no rule can name, a packet without its ports, or one of two families.
fn packet(question: &Question) -> Option<Packet> {
    if question.source.is_ipv4() != question.destination.is_ipv4() {
        return None;
    }
    let output = if question.output.is_empty() { NOWHERE } else { question.output.as_str() };
    let source = 0;
    let transport = match (question.protocol, question.ports, question.icmp) {
        (6, Some((_, destination)), _) => Transport::Tcp { source, destination },
        (17, Some((_, destination)), _) => Transport::Udp { source, destination },
        (1 | 58, _, Some((kind, code))) => Transport::Icmp { kind, code },
        (6 | 17 | 1 | 58, ..) => return None,
        (other, ..) => Transport::Other(other),
    };
    Some(Packet {
        input: question.input.parse().ok()?,
        output: output.parse().ok()?,
        source: question.source,
        destination: question.destination,
        transport,
        // Rules log what opens a connection.
        state: ConntrackState::New,
    })
}

fn enrich(judged: &Judged, asking: &Asking) -> Enrichment {
    let Asking { packet, told, .. } = asking;
    let inside = &judged.set.firewall.inside.interfaces;
    let fqdn = match (inside.contains(&packet.input), inside.contains(&packet.output)) {
        (true, _) => told.destination.clone(),
        (false, true) => told.source.clone(),
        (false, false) => told.destination.clone().or_else(|| told.source.clone()),
    };
    let decided = decide(judged, asking);
    let hint = decided.hint(judged, asking, fqdn.as_deref());
    Enrichment { rule: decided.rule, policy: decided.policy, fqdn, hint }
}

#[derive(Debug, Default)]
struct Decided {
    rule: Option<String>,
    policy: Option<String>,
    why: Option<DropReason>,
    /// Said in place of a hint.
    note: Option<String>,
}

fn decide(judged: &Judged, asking: &Asking) -> Decided {
    let ruleset = &judged.ruleset;
    if !asking.is_routed && is_for_the_box(judged, &asking.packet) {
        return Decided {
            rule: drop_of_input(ruleset),
            note: Some("none: it was for the firewall itself, which host protection guards".to_owned()),
            ..Decided::default()
        };
    }
    let dynamic = learned(&judged.set, &asking.packet, asking.told.index);
    let evaluation = evaluate_with(ruleset, &asking.packet, &dynamic);
    let rule = evaluation.comment.clone();
    let rule = rule.or_else(|| evaluation.last_counted(ruleset).map(str::to_owned));
    let policy = if evaluation.accepted { object_of(ruleset, &evaluation.counted) } else { None };
    match (asking.action, evaluation.accepted) {
        (Action::Accept, true) => Decided { rule, policy, ..Decided::default() },
        // The rules of now decide otherwise than those of then; which those were is not known any more.
        (Action::Accept, false) => Decided::default(),
        (Action::Drop, true) => {
            let by = policy.map_or_else(|| rule.unwrap_or_default(), |policy| format!("policy {policy}"));
            Decided { note: Some(format!("none: it passes now by {by}")), ..Decided::default() }
        }
        (Action::Drop, false) => {
            Decided { why: rule.as_deref().and_then(reason), rule, ..Decided::default() }
        }
    }
}

impl Decided {
    fn hint(&self, judged: &Judged, asking: &Asking, name: Option<&str>) -> Option<String> {
        if asking.action == Action::Accept {
            return None;
        }
        let hint = || Some(judged.set.hint(&asking.packet, self.why?, name).text());
        self.note.clone().or_else(hint)
    }
}

/// The reason whose counter has this comment.
fn reason(comment: &str) -> Option<DropReason> {
    use DropReason::{Bgp, EncryptedDns, Invalid, Policy, Spoofed, UnsupportedProtocol};
    let all = [Policy, Spoofed, UnsupportedProtocol, EncryptedDns, Bgp, Invalid];
    all.into_iter().find(|reason| reason.counter() == comment)
}

/// What the kernel has beside the ruleset: the index of a name in the mark, or in the maps that stand in for it.
fn learned(set: &PolicySet, packet: &Packet, index: Option<u32>) -> Dynamic {
    const CLASS: u32 = 1;
    let Some(mark) = index.and_then(|index| set.firewall.fastpath.mark_of(index)) else {
        return Dynamic::default();
    };
    let Some((protocol, port)) = packet.transport.service() else { return Dynamic::default() };
    let (family, address) = match packet.destination {
        IpAddr::V4(address) => (Family::V4, Value::Ipv4(address)),
        IpAddr::V6(address) => (Family::V6, Value::Ipv6(address)),
    };
    let class = Key::Exact(vec![address]);
    let cell = Key::Exact(vec![Value::Mark(CLASS), Value::Protocol(protocol.number()), Value::Port(port)]);
    let elements = [
        (fqdn_map(family, 0), [(class, Some(CLASS))].into()),
        (FQDN_CELLS.to_owned(), [(cell, Some(mark))].into()),
    ];
    Dynamic { mark, elements: elements.into() }
}

/// The policy or Service that the last counting chain belongs to, `namespace/name`.
fn object_of(ruleset: &Ruleset, counted: &[(String, usize)]) -> Option<String> {
    let origin = |(chain, _): &(String, usize)| ruleset.chains.get(chain)?.origin.as_ref();
    let Origin { kind, namespace, name, .. } = counted.iter().rev().find_map(origin)?;
    let decides = matches!(kind, ObjectKind::ClusterwideNetworkPolicy | ObjectKind::Service);
    decides.then(|| format!("{namespace}/{name}"))
}

/// Without a way out a packet was dropped in the hook `input`, or by an eBPF program before it was routed; the programs
/// drop only what comes from inside and is not for the box.
fn is_for_the_box(judged: &Judged, packet: &Packet) -> bool {
    let is_inside = |name: &IfName| judged.set.firewall.inside.interfaces.contains(name);
    !is_inside(&packet.input) || judged.own_addresses.contains(&packet.destination)
}

/// The comment of the last counting rule of the chain `input`, where host protection is on.
fn drop_of_input(ruleset: &Ruleset) -> Option<String> {
    let rules = &ruleset.chains.get("input")?.rules;
    let counts =
        |statement: &Statement| matches!(statement, Statement::NamedCounter(name) if name == "drop_host");
    rules.iter().rev().find(|rule| rule.body.iter().any(counts))?.comment.clone()
}

#[cfg(test)]
mod tests;
