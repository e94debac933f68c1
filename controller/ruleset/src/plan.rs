//! The smallest transaction that leads from one ruleset to another.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::ir::{Chain, CtTimeout, Key, Rule, Ruleset, Set, Verdict};

/// Packets and bytes of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the network header on.
    pub bytes: u64,
}

/// What counters stood at when they were last read.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// By name of the counter object.
    pub named: BTreeMap<String, Count>,
    /// Anonymous counters by chain and by the rule's position in it.
    pub rules: BTreeMap<(String, usize), Count>,
}

/// One step of a transaction, in terms of names; no handles are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Delete our table with all it holds (upgrade from a foreign table, or when a definition changed).
    DeleteTable,
    /// Create our table.
    CreateTable,
    /// Create a named counter with a start value.
    CreateCounter(String, Count),
    /// Create a conntrack timeout policy.
    CreateTimeout(String, CtTimeout),
    /// Create a set without its elements (`elements` is to be ignored).
    CreateSet(String, Set),
    /// Create a chain without its rules (`rules` is to be ignored).
    CreateChain(String, Chain),
    /// Delete all rules of a chain.
    FlushChain(String),
    /// Delete elements.
    DeleteElements(String, Vec<Key>),
    /// Append a rule; its anonymous counter starts at the value given.
    AppendRule(String, Rule, Count),
    /// Add elements.
    AddElements(String, Vec<(Key, Option<Verdict>)>),
    /// Delete an empty chain that nothing refers to.
    DeleteChain(String),
    /// Delete a set that nothing refers to.
    DeleteSet(String),
    /// Delete a counter that nothing refers to.
    DeleteCounter(String),
    /// Delete a conntrack timeout policy that nothing refers to.
    DeleteTimeout(String),
}

/// An ordered transaction.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// Steps in the order in which the kernel must see them.
    pub ops: Vec<Op>,
}

impl Plan {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// The transaction from `current` (what our table holds; `None` = no table of ours) to `wanted`.
///
/// Only differences become steps. A chain whose rules differ is emptied and filled again, with `counts` as start
/// values of its counters. Where the kind of a set, the hook of a chain or a timeout policy changed, which only an
/// upgrade of this program does, the table is deleted and made again in the same transaction.
pub fn plan(current: Option<&Ruleset>, wanted: &Ruleset, counts: &Counts) -> Plan {
    let Some(current) = current else {
        return Plan { ops: everything(&Ruleset::default(), wanted, counts, false) };
    };
    if is_redefined(current, wanted) {
        return Plan { ops: everything(current, wanted, counts, true) };
    }
    let mut steps = Steps::default();
    steps.counters(current, wanted, counts);
    steps.timeouts(current, wanted);
    steps.sets(current, wanted);
    steps.chains(current, wanted, counts);
    Plan { ops: steps.in_order() }
}

/// The steps that make the whole table, after deleting the one that is there.
fn everything(current: &Ruleset, wanted: &Ruleset, counts: &Counts, delete: bool) -> Vec<Op> {
    let mut steps = Steps::default();
    let nothing = Ruleset::default();
    steps.counters(&nothing, wanted, counts);
    steps.timeouts(&nothing, wanted);
    steps.sets(&nothing, wanted);
    steps.chains(&nothing, wanted, &moved(current, wanted, counts));
    let mut ops = if delete { vec![Op::DeleteTable] } else { Vec::new() };
    ops.push(Op::CreateTable);
    ops.extend(steps.in_order());
    ops
}

/// Counts of the rules of `current` under the places the same rules have in `wanted`.
fn moved(current: &Ruleset, wanted: &Ruleset, counts: &Counts) -> Counts {
    let mut result = Counts { named: counts.named.clone(), rules: BTreeMap::new() };
    for (name, chain) in &wanted.chains {
        let old = current.chains.get(name).map_or(&[][..], |chain| &chain.rules[..]);
        for (position, rule) in chain.rules.iter().enumerate() {
            let before = if old.is_empty() { Some(position) } else { same_rule(old, rule) };
            let count = before.and_then(|before| counts.rules.get(&(name.clone(), before)));
            if let Some(count) = count {
                result.rules.insert((name.clone(), position), *count);
            }
        }
    }
    result
}

/// Position of the rule that carries the same counter: the same rule, or else one with the same comment.
fn same_rule(rules: &[Rule], wanted: &Rule) -> Option<usize> {
    let equal = rules.iter().position(|rule| rule == wanted);
    equal.or_else(|| {
        let comment = wanted.comment.as_ref()?;
        rules.iter().position(|rule| rule.comment.as_ref() == Some(comment))
    })
}

fn is_redefined(current: &Ruleset, wanted: &Ruleset) -> bool {
    let set_changed = |(name, set): (&String, &Set)| {
        current
            .sets
            .get(name)
            .is_some_and(|old| (&old.key, old.kind, old.map) != (&set.key, set.kind, set.map))
    };
    let hook_changed =
        |(name, chain): (&String, &Chain)| current.chains.get(name).is_some_and(|old| old.hook != chain.hook);
    let timeout_changed =
        |(name, timeout): (&String, &CtTimeout)| current.timeouts.get(name).is_some_and(|old| old != timeout);
    wanted.sets.iter().any(set_changed)
        || wanted.chains.iter().any(hook_changed)
        || wanted.timeouts.iter().any(timeout_changed)
}

/// Steps sorted by what may refer to what: things exist before they are named, and are unnamed before they go.
#[derive(Default)]
struct Steps {
    create: Vec<Op>,
    flush: Vec<Op>,
    delete_elements: Vec<Op>,
    append: Vec<Op>,
    add_elements: Vec<Op>,
    delete_chains: Vec<Op>,
    delete: Vec<Op>,
}

impl Steps {
    fn in_order(self) -> Vec<Op> {
        let parts = [
            self.create,
            self.flush,
            self.delete_elements,
            self.append,
            self.add_elements,
            self.delete_chains,
            self.delete,
        ];
        parts.into_iter().flatten().collect()
    }

    fn counters(&mut self, current: &Ruleset, wanted: &Ruleset, counts: &Counts) {
        for name in wanted.counters.keys().filter(|name| !current.counters.contains_key(*name)) {
            let start = counts.named.get(name).copied().unwrap_or_default();
            self.create.push(Op::CreateCounter(name.clone(), start));
        }
        for name in current.counters.keys().filter(|name| !wanted.counters.contains_key(*name)) {
            self.delete.push(Op::DeleteCounter(name.clone()));
        }
    }

    fn timeouts(&mut self, current: &Ruleset, wanted: &Ruleset) {
        for (name, timeout) in
            wanted.timeouts.iter().filter(|(name, _)| !current.timeouts.contains_key(*name))
        {
            self.create.push(Op::CreateTimeout(name.clone(), *timeout));
        }
        for name in current.timeouts.keys().filter(|name| !wanted.timeouts.contains_key(*name)) {
            self.delete.push(Op::DeleteTimeout(name.clone()));
        }
    }

    fn sets(&mut self, current: &Ruleset, wanted: &Ruleset) {
        let empty = BTreeMap::new();
        for (name, set) in &wanted.sets {
            let old = current.sets.get(name);
            if old.is_none() {
                let definition = Set { elements: BTreeMap::new(), ..set.clone() };
                self.create.push(Op::CreateSet(name.clone(), definition));
            }
            self.elements(name, old.map_or(&empty, |old| &old.elements), &set.elements);
        }
        for (name, set) in current.sets.iter().filter(|(name, _)| !wanted.sets.contains_key(*name)) {
            // Elements go first: a chain they name may be deleted in this transaction too.
            self.elements(name, &set.elements, &empty);
            self.delete.push(Op::DeleteSet(name.clone()));
        }
    }

    fn elements(
        &mut self,
        set: &str,
        old: &BTreeMap<Key, Option<Verdict>>,
        new: &BTreeMap<Key, Option<Verdict>>,
    ) {
        // Both are sorted, so one walk finds the differences; looking each key up costs more than all the rest of a
        // plan for thousands of policies.
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        let (mut before, mut after) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (before.peek(), after.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let a = if order.is_le() { before.next() } else { None };
            let b = if order.is_ge() { after.next() } else { None };
            if a != b {
                gone.extend(a.map(|(key, _)| key.clone()));
                come.extend(b.map(|(key, verdict)| (key.clone(), verdict.clone())));
            }
        }
        if !gone.is_empty() {
            self.delete_elements.push(Op::DeleteElements(set.to_owned(), gone));
        }
        if !come.is_empty() {
            self.add_elements.push(Op::AddElements(set.to_owned(), come));
        }
    }

    fn chains(&mut self, current: &Ruleset, wanted: &Ruleset, counts: &Counts) {
        for (name, chain) in &wanted.chains {
            match current.chains.get(name) {
                None => {
                    let definition = Chain { rules: Vec::new(), ..chain.clone() };
                    self.create.push(Op::CreateChain(name.clone(), definition));
                    self.append_rules(name, chain, &[], counts);
                }
                Some(old) if old.rules != chain.rules => {
                    self.flush.push(Op::FlushChain(name.clone()));
                    self.append_rules(name, chain, &old.rules, counts);
                }
                Some(_) => {}
            }
        }
        for name in current.chains.keys().filter(|name| !wanted.chains.contains_key(*name)) {
            self.flush.push(Op::FlushChain(name.clone()));
            self.delete_chains.push(Op::DeleteChain(name.clone()));
        }
    }

    /// `old` are the rules that `counts` numbers; empty when `counts` has the numbers of `chain` itself.
    fn append_rules(&mut self, name: &str, chain: &Chain, old: &[Rule], counts: &Counts) {
        for (position, rule) in chain.rules.iter().enumerate() {
            let before = if old.is_empty() { Some(position) } else { same_rule(old, rule) };
            let start = before.and_then(|before| counts.rules.get(&(name.to_owned(), before)));
            self.append.push(Op::AppendRule(
                name.to_owned(),
                rule.clone(),
                start.copied().unwrap_or_default(),
            ));
        }
    }
}
