//! The fake's table and what nftables lets be done to it.

use std::collections::{BTreeMap, BTreeSet};

use fw_netlink::nft::{Element, Set as KernelSet};
use fw_ruleset::ir::{
    Chain, ChainKind, HookPoint, Key, NamedCounter, Rule, Set, SetKind, Statement, Test, Verdict,
};
use fw_ruleset::{Count, Counts, Op, Ruleset};

use crate::encode::base_chain;
use crate::error::Error;
use crate::error::libc_errno::{EBUSY, EEXIST, EINVAL, EMLINK, ENOENT, EOPNOTSUPP};
use crate::fake::learned::Learned;
use crate::lower::lower;
use crate::observe::{Observed, ObservedChain, ObservedRule, ObservedSet, add};
use crate::set::{check, definition, describe_key, elements, learned};

/// NFT_JUMP_STACK_SIZE: a chain 16 jumps below a base chain is one too deep (nft_chain_validate).
const JUMPS: usize = 16;

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) errno: i32,
    pub(super) detail: Option<String>,
    /// Found by validating the whole, not at a step.
    pub(super) invalid: bool,
}

impl Failure {
    pub(super) fn new(errno: i32) -> Self {
        Self { errno, detail: None, invalid: false }
    }

    fn at(errno: i32, detail: String) -> Self {
        Self { errno, detail: Some(detail), invalid: false }
    }

    fn invalid(errno: i32) -> Self {
        Self { errno, detail: None, invalid: true }
    }

    /// The chain an element leads to.
    pub(super) fn target(&self) -> Option<&str> {
        let detail = self.detail.as_deref()?;
        detail.rsplit_once("jump ").or_else(|| detail.rsplit_once("goto ")).map(|(_, chain)| chain)
    }
}

/// What our table holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub(super) ruleset: Ruleset,
    /// What user space put into sets outside of plans.
    pub(super) learned: Learned,
    named: BTreeMap<String, Count>,
    rules: BTreeMap<String, Vec<Count>>,
}

impl Contents {
    pub(super) fn step(&mut self, op: &Op) -> Result<(), Failure> {
        match op {
            // The fake's caller deals with tables.
            Op::DeleteTable | Op::CreateTable => Ok(()),
            Op::CreateCounter(name, start) => {
                create(&mut self.ruleset.counters, name, NamedCounter {})?;
                self.named.insert(name.clone(), *start);
                Ok(())
            }
            Op::CreateTimeout(name, timeout) => create(&mut self.ruleset.timeouts, name, *timeout),
            Op::CreateSet(name, set) => {
                check(set).map_err(|error| Failure::at(EINVAL, error.to_string()))?;
                let empty = Set { elements: BTreeMap::new(), ..set.clone() };
                create(&mut self.ruleset.sets, name, empty)
            }
            Op::CreateChain(name, chain) => {
                let empty = Chain { rules: Vec::new(), ..chain.clone() };
                create(&mut self.ruleset.chains, name, empty)
            }
            Op::FlushChain(name) => {
                self.chain(name)?.rules.clear();
                self.rules.remove(name);
                Ok(())
            }
            Op::AppendRule(name, rule, start) => self.append(name, rule, *start),
            Op::AddElements(name, list) => self.add_elements(name, list),
            Op::DeleteElements(name, list) => self.delete_elements(name, list),
            Op::DeleteChain(name) => {
                self.chain(name)?;
                if self.jump_targets().contains(name.as_str()) {
                    return Err(Failure::new(EBUSY));
                }
                self.ruleset.chains.remove(name);
                self.rules.remove(name);
                Ok(())
            }
            Op::DeleteSet(name) => {
                self.set(name)?;
                let used = |statement: &Statement| set_name(statement).is_some_and(|(used, _)| used == name);
                self.delete_unused(used)?;
                self.ruleset.sets.remove(name);
                self.learned.forget(name);
                Ok(())
            }
            Op::DeleteCounter(name) => {
                if !self.ruleset.counters.contains_key(name) {
                    return Err(Failure::new(ENOENT));
                }
                self.delete_unused(
                    |statement| matches!(statement, Statement::NamedCounter(used) if used == name),
                )?;
                self.ruleset.counters.remove(name);
                self.named.remove(name);
                Ok(())
            }
            Op::DeleteTimeout(name) => {
                if !self.ruleset.timeouts.contains_key(name) {
                    return Err(Failure::new(ENOENT));
                }
                self.delete_unused(
                    |statement| matches!(statement, Statement::CtTimeout(used) if used == name),
                )?;
                self.ruleset.timeouts.remove(name);
                Ok(())
            }
        }
    }

    fn delete_unused(&self, used: impl Fn(&Statement) -> bool) -> Result<(), Failure> {
        if self.statements().any(|(_, statement)| used(statement)) {
            Err(Failure::new(EBUSY))
        } else {
            Ok(())
        }
    }

    fn statements(&self) -> impl Iterator<Item = (&String, &Statement)> {
        let chains = self.ruleset.chains.iter();
        chains.flat_map(|(name, chain)| {
            chain.rules.iter().flat_map(move |r| r.body.iter().map(move |s| (name, s)))
        })
    }

    fn chain(&mut self, name: &str) -> Result<&mut Chain, Failure> {
        self.ruleset.chains.get_mut(name).ok_or(Failure::new(ENOENT))
    }

    fn set(&mut self, name: &str) -> Result<&mut Set, Failure> {
        self.ruleset.sets.get_mut(name).ok_or(Failure::new(ENOENT))
    }

    fn append(&mut self, name: &str, rule: &Rule, start: Count) -> Result<(), Failure> {
        self.chain(name)?;
        lower(rule, start).map_err(|error| Failure::at(EINVAL, error.to_string()))?;
        for statement in &rule.body {
            self.refers(statement)?;
        }
        self.chain(name)?.rules.push(rule.clone());
        self.rules.entry(name.to_owned()).or_default().push(start);
        Ok(())
    }

    /// Whether all that a statement names is there and of the right kind.
    fn refers(&self, statement: &Statement) -> Result<(), Failure> {
        if let Some((name, use_)) = set_name(statement) {
            let Some(set) = self.ruleset.sets.get(name) else {
                return Err(Failure::at(ENOENT, "expression lookup".to_owned()));
            };
            let dynamic = matches!(set.kind, SetKind::Dynamic { .. });
            let fits = match use_ {
                Use::Map => set.map && !learned(set),
                Use::Marks => set.map && learned(set),
                // A map is also a set of its keys.
                Use::Set => true,
                Use::Update => dynamic,
            };
            return if fits { Ok(()) } else { Err(Failure::at(EINVAL, "expression lookup".to_owned())) };
        }
        match statement {
            Statement::NamedCounter(name) if !self.ruleset.counters.contains_key(name) => {
                Err(Failure::at(ENOENT, "expression objref".to_owned()))
            }
            Statement::CtTimeout(name) if !self.ruleset.timeouts.contains_key(name) => {
                Err(Failure::at(ENOENT, "expression objref".to_owned()))
            }
            Statement::Verdict(verdict) => self.leads(verdict),
            _ => Ok(()),
        }
    }

    /// Whether the chain a verdict leads to is there and not a base chain (nft_verdict_init).
    fn leads(&self, verdict: &Verdict) -> Result<(), Failure> {
        let Some(name) = target(verdict) else { return Ok(()) };
        match self.ruleset.chains.get(name) {
            None => Err(Failure::new(ENOENT)),
            Some(chain) if chain.hook.is_some() => Err(Failure::new(EOPNOTSUPP)),
            Some(_) => Ok(()),
        }
    }

    fn add_elements(&mut self, name: &str, list: &[(Key, Option<Verdict>)]) -> Result<(), Failure> {
        self.set(name)?;
        for (key, verdict) in list {
            let at = |failure: Failure| {
                let arrow = verdict.as_ref().and_then(target).map(|chain| format!(" : jump {chain}"));
                let text = format!("element {}{}", describe_key(key), arrow.unwrap_or_default());
                Failure { detail: Some(text), ..failure }
            };
            let set = self.set(name)?;
            let kind_fits = match key {
                Key::Exact(values) => set.kind != SetKind::Interval && values.len() == set.key.len(),
                Key::Range(first, last) => set.kind == SetKind::Interval && first <= last,
                Key::Box(..) => false,
            };
            // No plan puts elements into sets that user space fills.
            if !kind_fits || learned(set) || set.map != verdict.is_some() {
                return Err(at(Failure::new(EINVAL)));
            }
            if let Some(verdict) = verdict {
                self.leads(verdict).map_err(at)?;
            }
            let set = self.set(name)?;
            match set.elements.get(key) {
                Some(there) if there == verdict => {}
                Some(_) => return Err(at(Failure::new(EEXIST))),
                None if overlaps(set, key) => return Err(at(Failure::new(EEXIST))),
                None => drop(set.elements.insert(key.clone(), verdict.clone())),
            }
        }
        Ok(())
    }

    fn delete_elements(&mut self, name: &str, list: &[Key]) -> Result<(), Failure> {
        let set = self.set(name)?;
        for key in list {
            if set.elements.remove(key).is_none() {
                return Err(Failure::at(ENOENT, format!("element {}", describe_key(key))));
            }
        }
        Ok(())
    }

    /// Chains that rules or elements lead to; a chain that leads to itself is no exception (nf_tables_delchain).
    fn jump_targets(&self) -> BTreeSet<&str> {
        let rules = self.statements().filter_map(|(_, s)| match s {
            Statement::Verdict(verdict) => target(verdict),
            _ => None,
        });
        rules.chain(self.ruleset.sets.values().flat_map(set_targets)).collect()
    }

    /// What nf_tables_validate checks from every base chain: depth of jumps, and where translation is allowed.
    pub(super) fn validate(&self) -> Result<(), Failure> {
        let mut depths: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, chain) in &self.ruleset.chains {
            if let Some(hook) = &chain.hook {
                let place = (hook.kind == ChainKind::Nat).then_some(hook.point);
                self.walk(name, 0, &mut depths)?;
                self.translation(name, place, &mut BTreeSet::new())?;
            }
        }
        Ok(())
    }

    /// Visits a chain at a depth unless it was visited at that depth or deeper already.
    fn walk<'a>(
        &'a self,
        name: &'a str,
        depth: usize,
        seen: &mut BTreeMap<&'a str, usize>,
    ) -> Result<(), Failure> {
        if depth == JUMPS {
            return Err(Failure::invalid(EMLINK));
        }
        if seen.get(name).is_some_and(|before| *before >= depth) && depth > 0 {
            return Ok(());
        }
        seen.insert(name, depth);
        for next in self.successors(name) {
            self.walk(next, depth + 1, seen)?;
        }
        Ok(())
    }

    fn translation<'a>(
        &'a self,
        name: &'a str,
        place: Option<HookPoint>,
        seen: &mut BTreeSet<&'a str>,
    ) -> Result<(), Failure> {
        if !seen.insert(name) {
            return Ok(());
        }
        let misplaced = |statement: &Statement| match statement {
            Statement::Snat(_) | Statement::Masquerade => place != Some(HookPoint::Postrouting),
            Statement::Redirect(_) => place != Some(HookPoint::Prerouting),
            _ => false,
        };
        let chain = self.ruleset.chains.get(name);
        if chain.is_some_and(|c| c.rules.iter().any(|rule| rule.body.iter().any(misplaced))) {
            return Err(Failure::invalid(EOPNOTSUPP));
        }
        self.successors(name).into_iter().try_for_each(|next| self.translation(next, place, seen))
    }

    /// Chains that a chain leads to, by its rules and by the maps they look up.
    fn successors<'a>(&'a self, name: &str) -> Vec<&'a str> {
        let Some(chain) = self.ruleset.chains.get(name) else { return Vec::new() };
        let mut list = Vec::new();
        for statement in chain.rules.iter().flat_map(|rule| &rule.body) {
            if let Statement::Verdict(verdict) = statement {
                list.extend(target(verdict));
            }
            // Also where only the keys are looked up (nft_lookup_validate).
            let set = set_name(statement).and_then(|(name, _)| self.ruleset.sets.get(name));
            list.extend(set.into_iter().flat_map(set_targets));
        }
        list
    }

    pub(super) fn count_rule(&mut self, chain: &str, position: usize, count: Count) {
        if let Some(sum) = self.rules.get_mut(chain).and_then(|counts| counts.get_mut(position)) {
            add(sum, count);
        }
    }

    pub(super) fn count_named(&mut self, name: &str, count: Count) {
        if let Some(sum) = self.named.get_mut(name) {
            add(sum, count);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let mut rules = BTreeMap::new();
        for (name, counts) in &self.rules {
            let bodies = self.ruleset.chains.get(name).map_or(&[][..], |chain| &chain.rules[..]);
            for (position, (count, rule)) in counts.iter().zip(bodies).enumerate() {
                if rule.body.contains(&Statement::Counter) {
                    rules.insert((name.clone(), position), *count);
                }
            }
        }
        Counts { named: self.named.clone(), rules }
    }

    /// As the kernel would dump it.
    pub(super) fn observe(&self, generation: u32) -> Result<Observed, Error> {
        let mut observed = Observed {
            generation,
            owned: true,
            counters: self.named.clone(),
            timeouts: self.ruleset.timeouts.clone(),
            ..Observed::default()
        };
        let lower_error = |place: &str| {
            let place = place.to_owned();
            move |source| Error::Lower { place, source }
        };
        for (name, chain) in &self.ruleset.chains {
            let counts = self.rules.get(name).map_or(&[][..], |counts| &counts[..]);
            let mut rules = Vec::new();
            for (rule, count) in chain.rules.iter().zip(counts) {
                let exprs = lower(rule, *count).map_err(lower_error(name))?;
                rules.push(ObservedRule::new(exprs, rule.comment.clone()));
            }
            let base = chain.hook.as_ref().map(base_chain);
            observed.chains.insert(name.clone(), ObservedChain { base, rules });
        }
        for (name, set) in &self.ruleset.sets {
            let keys = set.elements.iter().map(|(key, verdict)| (key, verdict.as_ref()));
            let list = elements(keys).map_err(lower_error(name))?;
            let elements: Vec<Element> = list.into_iter().map(|(_, element)| element).collect();
            let definition: KernelSet = definition(name, set, 1);
            observed.sets.insert(name.clone(), ObservedSet { definition, elements });
        }
        Ok(observed)
    }
}

fn create<T>(map: &mut BTreeMap<String, T>, name: &str, value: T) -> Result<(), Failure> {
    if map.contains_key(name) {
        return Err(Failure::new(EEXIST));
    }
    map.insert(name.to_owned(), value);
    Ok(())
}

fn target(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}

fn set_targets(set: &Set) -> impl Iterator<Item = &str> {
    set.elements.values().flatten().filter_map(target)
}

enum Use {
    Set,
    Map,
    Marks,
    Update,
}

fn set_name(statement: &Statement) -> Option<(&String, Use)> {
    match statement {
        Statement::Match(_, Test::InSet(set) | Test::NotInSet(set)) => Some((set, Use::Set)),
        Statement::ConcatInSet { set, .. } => Some((set, Use::Set)),
        Statement::VerdictMap { map, .. } => Some((map, Use::Map)),
        Statement::SetMarkByMap { map, .. } => Some((map, Use::Marks)),
        Statement::LimitPerKey { set, .. } => Some((set, Use::Update)),
        _ => None,
    }
}

/// Whether a range meets another one of an interval set.
fn overlaps(set: &Set, key: &Key) -> bool {
    let Key::Range(first, last) = key else { return false };
    set.elements.keys().any(|other| match other {
        Key::Range(from, to) => from <= last && first <= to,
        Key::Exact(_) | Key::Box(..) => false,
    })
}
