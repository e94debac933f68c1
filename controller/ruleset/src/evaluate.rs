//! Runs the ruleset on a packet: side two of the oracle. It knows nft's semantics and nothing of policies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fw_policy::{Packet, Transport};

use crate::ir::{Chain, Family, HookPoint, Key, Ruleset, Selector, Side, Statement, Test, Value, Verdict};

/// NFT_JUMP_STACK_SIZE (net/netfilter/nf_tables_core.c).
const JUMP_MAX: usize = 16;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Evaluation {
    /// True when no base chain of the forward hook dropped it.
    pub accepted: bool,
    /// Comment of the rule that gave the verdict; `None` when the chain's policy did.
    pub comment: Option<String>,
    /// Chain and position of every rule with a counter (anonymous or named) that counted it, in order.
    pub counted: Vec<(String, usize)>,
}

impl Evaluation {
    /// The comment of the last rule that counted the packet: the one that decided its fate, since every verdict
    /// that is not by a chain's policy is counted, and the policy's drops are counted before.
    pub fn last_counted<'a>(&self, ruleset: &'a Ruleset) -> Option<&'a str> {
        self.counted
            .iter()
            .rev()
            .find_map(|(chain, position)| ruleset.chains.get(chain)?.rules.get(*position)?.comment.as_deref())
    }
}

/// What the kernel has beside the ruleset when a packet comes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Dynamic {
    /// The packet's mark as it enters `forward`.
    pub mark: u32,
    /// By set: elements that user space put there ([`crate::ir::SetKind::Learned`] and
    /// [`crate::ir::SetKind::LearnedBoxes`]), in a map with their marks.
    pub elements: BTreeMap<String, BTreeMap<Key, Option<u32>>>,
}

/// Runs the forward hook on a packet without a mark while nothing is learned; see [`evaluate_with`].
pub fn evaluate(ruleset: &Ruleset, packet: &Packet) -> Evaluation {
    evaluate_with(ruleset, packet, &Dynamic::default())
}

/// Runs the forward hook on a packet. Buckets are never empty, dynamic sets never full; so what `limit over`
/// guards never happens and what `limit` lets through always does.
pub fn evaluate_with(ruleset: &Ruleset, packet: &Packet, dynamic: &Dynamic) -> Evaluation {
    let mut base: Vec<(i32, &String, &Chain, bool)> = ruleset
        .chains
        .iter()
        .filter_map(|(name, chain)| Some((name, chain, chain.hook?)))
        .filter(|(_, _, hook)| hook.point == HookPoint::Forward)
        .map(|(name, chain, hook)| (hook.priority, name, chain, hook.policy_drop))
        .collect();
    base.sort_by_key(|(priority, name, _, _)| (*priority, *name));
    let result = Evaluation { accepted: true, ..Evaluation::default() };
    let mut run = Run { ruleset, packet, dynamic, mark: dynamic.mark, result };
    for (_, name, chain, policy_drop) in base {
        run.result.accepted = match run.chain(name, chain, 0) {
            Outcome::Final(accepted) => accepted,
            Outcome::Continue => !policy_drop,
        };
        if !run.result.accepted {
            break;
        }
    }
    run.result
}

enum Outcome {
    /// Accepted or dropped.
    Final(bool),
    /// The chain ended, or returned.
    Continue,
}

struct Run<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    dynamic: &'a Dynamic,
    /// The packet's mark, which rules can set.
    mark: u32,
    result: Evaluation,
}

impl Run<'_> {
    fn chain(&mut self, name: &str, chain: &Chain, depth: usize) -> Outcome {
        for (position, rule) in chain.rules.iter().enumerate() {
            let mut verdict = None;
            for statement in &rule.body {
                match self.statement(statement, name, position) {
                    Step::Next => {}
                    Step::Break => break,
                    Step::Verdict(given) => {
                        verdict = Some(given);
                        break;
                    }
                }
            }
            match verdict {
                None => {}
                Some(Verdict::Return) => return Outcome::Continue,
                Some(Verdict::Accept) => return self.decided(true, rule.comment.as_deref()),
                Some(Verdict::Drop) => return self.decided(false, rule.comment.as_deref()),
                Some(Verdict::Goto(target)) => return self.enter(&target, depth),
                Some(Verdict::Jump(target)) => match self.enter(&target, depth + 1) {
                    Outcome::Continue => {}
                    Outcome::Final(accepted) => return Outcome::Final(accepted),
                },
            }
        }
        Outcome::Continue
    }

    fn decided(&mut self, accepted: bool, comment: Option<&str>) -> Outcome {
        self.result.comment = comment.map(str::to_owned);
        Outcome::Final(accepted)
    }

    /// A missing chain or too deep a nest is refused by the kernel at load; here it drops.
    fn enter(&mut self, target: &str, depth: usize) -> Outcome {
        match self.ruleset.chains.get(target) {
            Some(chain) if depth < JUMP_MAX => self.chain(target, chain, depth),
            _ => Outcome::Final(false),
        }
    }

    fn statement(&mut self, statement: &Statement, chain: &str, position: usize) -> Step {
        let holds = match statement {
            Statement::State(states) => states.contains(&self.packet.state),
            Statement::Family(family) => self.family() == *family,
            Statement::Match(selector, test) => self.test(*selector, test),
            Statement::ConcatInSet { key, set } => self.lookup(key, set).is_some(),
            Statement::Limit(limit) => !limit.over,
            Statement::LimitPerKey { limit, .. } => !limit.over,
            // Only NAT uses it, and NAT decides no verdict.
            Statement::HashEquals { .. } => false,
            Statement::VerdictMap { key, map } => {
                return match self.lookup(key, map) {
                    Some(Some(verdict)) => Step::Verdict(verdict),
                    _ => Step::Break,
                };
            }
            Statement::Counter | Statement::NamedCounter(_) => {
                let here = (chain.to_owned(), position);
                if self.result.counted.last() != Some(&here) {
                    self.result.counted.push(here);
                }
                true
            }
            Statement::Log { .. } | Statement::Snat(_) | Statement::Masquerade => true,
            Statement::Redirect(_) | Statement::CtTimeout(_) => true,
            Statement::SetMarkByMap { key, map } => match self.learned_mark(key, map) {
                Some(mark) => {
                    self.mark = mark;
                    true
                }
                None => false,
            },
            Statement::Verdict(verdict) => return Step::Verdict(verdict.clone()),
        };
        if holds { Step::Next } else { Step::Break }
    }

    fn family(&self) -> Family {
        Family::of(self.packet.source)
    }

    fn test(&self, selector: Selector, test: &Test) -> bool {
        let Some(value) = self.read(selector) else { return false };
        match test {
            Test::Equal(wanted) => value == *wanted,
            Test::NotEqual(unwanted) => value != *unwanted,
            Test::Range(first, last) => *first <= value && value <= *last,
            Test::InSet(set) => self.find(set, &[value]).is_some(),
            Test::NotInSet(set) => self.find(set, &[value]).is_none(),
        }
    }

    fn lookup(&self, key: &[Selector], set: &str) -> Option<Option<Verdict>> {
        self.find(set, &self.read_key(key)?)
    }

    fn read_key(&self, key: &[Selector]) -> Option<Vec<Value>> {
        key.iter().map(|selector| self.read(*selector)).collect()
    }

    fn find(&self, set: &str, values: &[Value]) -> Option<Option<Verdict>> {
        let verdict = find_in(&self.ruleset.sets.get(set)?.elements, values).cloned();
        verdict.or_else(|| self.dynamic.elements.get(set).and_then(|set| find_in(set, values)).map(|_| None))
    }

    fn learned_mark(&self, key: &[Selector], map: &str) -> Option<u32> {
        // A map that the ruleset does not have holds nothing, whatever user space believes.
        self.ruleset.sets.get(map)?;
        *find_in(self.dynamic.elements.get(map)?, &self.read_key(key)?)?
    }

    /// What the selector reads; `None` where the packet has no such field, which ends the rule.
    fn read(&self, selector: Selector) -> Option<Value> {
        let packet = self.packet;
        match selector {
            Selector::InputInterface => Some(Value::IfName(packet.input.clone())),
            Selector::OutputInterface => Some(Value::IfName(packet.output.clone())),
            Selector::L4Protocol => Some(Value::Protocol(self.protocol())),
            Selector::Address { side, family, prefix } if family == self.family() => {
                let address = match side {
                    Side::Source => packet.source,
                    Side::Destination => packet.destination,
                };
                Some(masked(address, prefix))
            }
            Selector::Address { .. } => None,
            Selector::Port { side, protocol } => {
                if protocol.is_some_and(|wanted| wanted.number() != self.protocol()) {
                    return None;
                }
                let (source, destination) = match packet.transport {
                    Transport::Tcp { source, destination } | Transport::Udp { source, destination } => {
                        (source, destination)
                    }
                    // The kernel would read whatever stands there; our rules look at the protocol as well.
                    Transport::Icmp { .. } | Transport::Other(_) => return None,
                };
                Some(Value::Port(if side == Side::Source { source } else { destination }))
            }
            Selector::IcmpType(family) => match packet.transport {
                Transport::Icmp { kind, .. } if family == self.family() => Some(Value::IcmpType(kind)),
                _ => None,
            },
            Selector::Mark(mask) => Some(Value::Mark(self.mark & mask)),
        }
    }

    fn protocol(&self) -> u8 {
        match (self.packet.transport, self.family()) {
            (Transport::Tcp { .. }, _) => 6,
            (Transport::Udp { .. }, _) => 17,
            (Transport::Icmp { .. }, Family::V4) => 1,
            (Transport::Icmp { .. }, Family::V6) => 58,
            (Transport::Other(number), _) => number,
        }
    }
}

/// The data of the element that holds a key: itself, as a range, or as a box. Keys that are alike stand together (see
/// the order of [`Key`]), so that only boxes are looked at one by one.
fn find_in<'a, T>(elements: &'a BTreeMap<Key, T>, values: &[Value]) -> Option<&'a T> {
    if let Some(data) = elements.get(&Key::Exact(values.to_vec())) {
        return Some(data);
    }
    let boxes = Key::Box(Vec::new(), Vec::new());
    if let [value] = values {
        // Ranges of a set are disjoint: only the last one that begins at or before the value can hold it. After it in
        // the order come those that begin later, and boxes.
        let first_after = Key::Range(value.clone(), Value::Mark(u32::MAX));
        let before = elements.range(..=first_after).next_back();
        if let Some((Key::Range(first, last), data)) = before
            && first <= value
            && value <= last
        {
            return Some(data);
        }
    }
    let holds = |key: &Key| match key {
        Key::Exact(_) | Key::Range(..) => false,
        Key::Box(first, last) => {
            first.len() == values.len()
                && values
                    .iter()
                    .zip(first.iter().zip(last))
                    .all(|(value, (first, last))| first <= value && value <= last)
        }
    };
    elements.range(boxes..).find(|(key, _)| holds(key)).map(|(_, data)| data)
}

enum Step {
    Next,
    Break,
    Verdict(Verdict),
}

fn masked(address: IpAddr, prefix: u8) -> Value {
    let masked = ipnet::IpNet::new(address, prefix).map(|net| net.network()).unwrap_or(address);
    match masked {
        IpAddr::V4(v4) => Value::Ipv4(v4),
        IpAddr::V6(v6) => Value::Ipv6(v6),
    }
}
