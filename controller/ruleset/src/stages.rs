//! A long plan as several transactions, of which exactly one changes what is enforced.
//!
//! What packets cannot reach can be made and filled before, and what they cannot reach any more can be removed after.
//! Whoever stops in between leaves objects that nothing refers to; the next plan completes or removes them, since
//! [`crate::plan`] compares with all that is there.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{Chain, NamedCounter, Ruleset, Set, Statement, Test, Verdict};
use crate::plan::{Op, Plan};

/// Chains and sets that packets may reach, by the base chains and what these lead to.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Live {
    /// Names of chains.
    pub chains: BTreeSet<String>,
    /// Names of sets and maps.
    pub sets: BTreeSet<String>,
    /// Names of base chains, which are among the chains too.
    pub base: BTreeSet<String>,
}

/// A plan in three parts, each a list of transactions to be committed in this order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stages {
    /// Make and fill what nothing live refers to: any number of them leaves every packet its verdict.
    pub prepare: Vec<Plan>,
    /// Everything that changes what is enforced. Empty when nothing does.
    pub switch: Plan,
    /// Remove what nothing live refers to any more.
    pub clean: Vec<Plan>,
}

impl Live {
    /// What packets may reach in a ruleset.
    pub fn of(ruleset: &Ruleset) -> Self {
        let chains = ruleset.chains.iter().map(|(name, chain)| (name.as_str(), chain.hook.is_some()));
        let of_chain = |name: &str| {
            let rules = ruleset.chains.get(name).map(|chain| &chain.rules[..]).unwrap_or_default();
            let mut found = Reached::default();
            rules.iter().flat_map(|rule| &rule.body).for_each(|statement| found.add(statement));
            found
        };
        let of_set = |name: &str| {
            let elements = ruleset.sets.get(name).map(|set| &set.elements);
            elements.into_iter().flat_map(BTreeMap::values).flatten().filter_map(target).collect()
        };
        Self::reached(chains, of_chain, of_set)
    }

    /// What is reached from base chains. `chains` says of each whether it is one; the others, what a chain's rules and
    /// a set's elements lead to.
    pub fn reached<'a>(
        chains: impl Iterator<Item = (&'a str, bool)>,
        of_chain: impl Fn(&str) -> Reached<'a>,
        of_set: impl Fn(&str) -> Vec<&'a str>,
    ) -> Self {
        let mut waiting: Vec<&str> = chains.filter(|(_, is_base)| *is_base).map(|(name, _)| name).collect();
        let base = waiting.iter().map(|name| (*name).to_owned()).collect();
        let mut live = Self { base, ..Self::default() };
        while let Some(name) = waiting.pop() {
            if !live.chains.insert(name.to_owned()) {
                continue;
            }
            let reached = of_chain(name);
            waiting.extend(reached.chains);
            for set in reached.sets {
                if live.sets.insert(set.to_owned()) {
                    waiting.extend(of_set(set));
                }
            }
        }
        live
    }
}

/// What the rules of one chain refer to.
#[derive(Clone, Debug, Default)]
pub struct Reached<'a> {
    /// Chains they jump or go to.
    pub chains: Vec<&'a str>,
    /// Sets and maps they look up or fill.
    pub sets: Vec<&'a str>,
}

impl<'a> Reached<'a> {
    fn add(&mut self, statement: &'a Statement) {
        match statement {
            Statement::Verdict(verdict) => self.chains.extend(target(verdict)),
            Statement::Match(_, Test::InSet(set) | Test::NotInSet(set))
            | Statement::ConcatInSet { set, .. }
            | Statement::LimitPerKey { set, .. } => self.sets.push(set),
            Statement::VerdictMap { map, .. } | Statement::SetMarkByMap { map, .. } => self.sets.push(map),
            _ => {}
        }
    }
}

fn target(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prepare,
    Switch,
    Clean,
}

impl Plan {
    /// Objects, rules and elements it touches: what the kernel's time for it grows with.
    pub fn weight(&self) -> usize {
        self.ops.iter().map(weight).sum()
    }

    /// The plan in stages; no transaction of the first and the last is heavier than `limit`. `live` is what packets may
    /// reach before it, `wanted` where it leads.
    ///
    /// A plan that makes or replaces the table is one transaction: a table of that name is taken for a whole one by
    /// whoever finds it.
    pub fn stages(self, live: &Live, wanted: &Ruleset, limit: usize) -> Stages {
        if self.ops.iter().any(|op| matches!(op, Op::CreateTable | Op::DeleteTable)) {
            return Stages { switch: self, ..Stages::default() };
        }
        let (mut prepare, mut switch, mut clean) = (Vec::new(), Vec::new(), Vec::new());
        for op in self.ops {
            match stage(&op, live, wanted) {
                Stage::Prepare => prepare.push(op),
                Stage::Switch => switch.push(op),
                Stage::Clean => clean.push(op),
            }
        }
        Stages { prepare: parts(prepare, limit), switch: Plan { ops: switch }, clean: parts(clean, limit) }
    }

    /// Does to a ruleset in memory what the kernel does to its table.
    pub fn apply_to(&self, ruleset: &mut Ruleset) {
        for op in &self.ops {
            step(ruleset, op);
        }
    }

    /// True when it changes what is enforced. After [`crate::plan`] to `wanted`, false means that `wanted` is what is
    /// enforced, whatever there is beside it that nothing leads to. `live` is what packets may reach before.
    pub fn switches(&self, live: &Live, wanted: &Ruleset) -> bool {
        self.ops.iter().any(|op| stage(op, live, wanted) == Stage::Switch)
    }
}

fn weight(op: &Op) -> usize {
    match op {
        Op::AddElements(_, list) => 1 + list.len(),
        Op::DeleteElements(_, list) => 1 + list.len(),
        _ => 1,
    }
}

fn stage(op: &Op, live: &Live, wanted: &Ruleset) -> Stage {
    let chain = |name: &String| match wanted.chains.get(name) {
        // A base chain is reached as soon as it is there, and until it is gone.
        Some(chain) if chain.hook.is_some() => Stage::Switch,
        _ if live.base.contains(name) => Stage::Switch,
        None => Stage::Clean,
        Some(_) if live.chains.contains(name) => Stage::Switch,
        Some(_) => Stage::Prepare,
    };
    let set = |name: &String| match wanted.sets.contains_key(name) {
        false => Stage::Clean,
        true if live.sets.contains(name) => Stage::Switch,
        true => Stage::Prepare,
    };
    match op {
        Op::DeleteTable | Op::CreateTable => Stage::Switch,
        Op::CreateCounter(..) | Op::CreateTimeout(..) => Stage::Prepare,
        Op::CreateChain(name, _)
        | Op::FlushChain(name)
        | Op::AppendRule(name, ..)
        | Op::DeleteChain(name) => chain(name),
        Op::CreateSet(name, _) | Op::AddElements(name, _) | Op::DeleteElements(name, _) => set(name),
        Op::DeleteSet(_) | Op::DeleteCounter(_) | Op::DeleteTimeout(_) => Stage::Clean,
    }
}

/// Transactions of at most `limit` each, in the same order; long lists of elements are cut.
fn parts(ops: Vec<Op>, limit: usize) -> Vec<Plan> {
    let limit = limit.max(2);
    let mut parts: Vec<Plan> = Vec::new();
    let mut filled = limit;
    for op in ops.into_iter().flat_map(|op| pieces(op, limit - 1)) {
        let weight = weight(&op);
        if filled + weight > limit {
            parts.push(Plan::default());
            filled = 0;
        }
        filled += weight;
        if let Some(part) = parts.last_mut() {
            part.ops.push(op);
        }
    }
    parts
}

fn pieces(op: Op, length: usize) -> Vec<Op> {
    match op {
        Op::AddElements(set, list) if list.len() > length => {
            list.chunks(length).map(|part| Op::AddElements(set.clone(), part.to_vec())).collect()
        }
        Op::DeleteElements(set, list) if list.len() > length => {
            list.chunks(length).map(|part| Op::DeleteElements(set.clone(), part.to_vec())).collect()
        }
        op => vec![op],
    }
}

fn step(ruleset: &mut Ruleset, op: &Op) {
    match op {
        Op::DeleteTable => *ruleset = Ruleset::default(),
        Op::CreateTable => {}
        Op::CreateCounter(name, _) => {
            ruleset.counters.insert(name.clone(), NamedCounter {});
        }
        Op::CreateTimeout(name, timeout) => {
            ruleset.timeouts.insert(name.clone(), *timeout);
        }
        Op::CreateSet(name, set) => {
            ruleset.sets.insert(name.clone(), Set { elements: BTreeMap::new(), ..set.clone() });
        }
        Op::CreateChain(name, chain) => {
            ruleset.chains.insert(name.clone(), Chain { rules: Vec::new(), ..chain.clone() });
        }
        Op::FlushChain(name) => {
            if let Some(chain) = ruleset.chains.get_mut(name) {
                chain.rules.clear();
            }
        }
        Op::AppendRule(name, rule, _) => {
            if let Some(chain) = ruleset.chains.get_mut(name) {
                chain.rules.push(rule.clone());
            }
        }
        Op::AddElements(name, list) => {
            if let Some(set) = ruleset.sets.get_mut(name) {
                set.elements.extend(list.iter().cloned());
            }
        }
        Op::DeleteElements(name, list) => {
            if let Some(set) = ruleset.sets.get_mut(name) {
                list.iter().for_each(|key| drop(set.elements.remove(key)));
            }
        }
        Op::DeleteChain(name) => drop(ruleset.chains.remove(name)),
        Op::DeleteSet(name) => drop(ruleset.sets.remove(name)),
        Op::DeleteCounter(name) => drop(ruleset.counters.remove(name)),
        Op::DeleteTimeout(name) => drop(ruleset.timeouts.remove(name)),
    }
}
