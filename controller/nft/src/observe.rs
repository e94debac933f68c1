//! What the kernel holds, and what that is in our terms.

use std::collections::BTreeMap;

use fw_netlink::nft::{BaseChain, Counter, Element, ElementData, Expr, Quota, Set as KernelSet, Verdict};
use fw_ruleset::ir::{Chain, ChainKind, CtTimeout, Hook, HookPoint, NamedCounter, Rule};
use fw_ruleset::{Count, Counts, Live, Reached, Ruleset};

use crate::encode::base_chain;
use crate::lower::lower;
use crate::set::raise;

/// Our table as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Observed {
    /// Generation at which it was read.
    pub generation: u32,
    /// True when this kernel object owns the table: others cannot change it.
    pub owned: bool,
    /// Chains by name.
    pub chains: BTreeMap<String, ObservedChain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, ObservedSet>,
    /// Named counters.
    pub counters: BTreeMap<String, Count>,
    /// Conntrack timeout policies.
    pub timeouts: BTreeMap<String, CtTimeout>,
}

/// A chain as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ObservedChain {
    /// Set for base chains.
    pub base: Option<BaseChain>,
    /// Its rules in order.
    pub rules: Vec<ObservedRule>,
}

/// A rule as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ObservedRule {
    /// Its expressions; counters are set to 0, their figures are in `count`.
    pub exprs: Vec<Expr>,
    /// Its comment.
    pub comment: Option<String>,
    /// Its first anonymous counter.
    pub count: Option<Count>,
}

/// A set as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ObservedSet {
    /// Its definition.
    pub definition: KernelSet,
    /// Its elements; not read where they come and go by themselves.
    pub elements: Vec<Element>,
}

impl ObservedChain {
    fn exprs(&self) -> impl Iterator<Item = &Expr> {
        self.rules.iter().flat_map(|rule| &rule.exprs)
    }
}

/// The chain an element leads to.
fn target(element: &Element) -> Option<&str> {
    match &element.data {
        Some(ElementData::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) => Some(chain),
        _ => None,
    }
}

impl ObservedSet {
    /// True when elements come and go by rules, by user space outside of plans, or by time.
    pub(crate) fn has_own_life(definition: &KernelSet) -> bool {
        definition.flags & (KernelSet::EVAL | KernelSet::TIMEOUT | KernelSet::CONCAT) != 0
    }
}

impl ObservedRule {
    /// A rule from the kernel's expressions.
    pub(crate) fn new(mut exprs: Vec<Expr>, comment: Option<String>) -> Self {
        let mut count = None;
        for expr in &mut exprs {
            match expr {
                Expr::Counter(counter) => {
                    count.get_or_insert(Count { packets: counter.packets, bytes: counter.bytes });
                    *counter = Counter::default();
                }
                Expr::Quota(Quota { consumed, .. }) => *consumed = 0,
                _ => {}
            }
        }
        Self { exprs, comment, count }
    }

    fn is(&self, rule: &Rule) -> bool {
        self.comment == rule.comment && lower(rule, Count::default()).is_ok_and(|exprs| exprs == self.exprs)
    }
}

impl Observed {
    /// The figures of all counters.
    pub fn counts(&self) -> Counts {
        let mut rules = BTreeMap::new();
        for (name, chain) in &self.chains {
            for (position, rule) in chain.rules.iter().enumerate() {
                if let Some(count) = rule.count {
                    rules.insert((name.clone(), position), count);
                }
            }
        }
        Counts { named: self.counters.clone(), rules }
    }

    /// What packets may reach in it.
    pub fn live(&self) -> Live {
        // What an expression that we do not know refers to is unknown too.
        if self
            .chains
            .values()
            .flat_map(ObservedChain::exprs)
            .any(|expr| matches!(expr, Expr::Unknown { .. }))
        {
            let base = self.chains.iter().filter(|(_, chain)| chain.base.is_some());
            return Live {
                chains: self.chains.keys().cloned().collect(),
                sets: self.sets.keys().cloned().collect(),
                base: base.map(|(name, _)| name.clone()).collect(),
            };
        }
        let chains = self.chains.iter().map(|(name, chain)| (name.as_str(), chain.base.is_some()));
        let of_chain = |name: &str| {
            let mut reached = Reached::default();
            for expr in self.chains.get(name).into_iter().flat_map(ObservedChain::exprs) {
                match expr {
                    Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => reached.chains.push(chain),
                    Expr::Lookup(lookup) => reached.sets.push(&lookup.set),
                    Expr::Dynset(dynset) => reached.sets.push(&dynset.set),
                    _ => {}
                }
            }
            reached
        };
        let of_set = |name: &str| {
            let elements = self.sets.get(name).map(|set| &set.elements[..]).unwrap_or_default();
            elements.iter().filter_map(target).collect()
        };
        Live::reached(chains, of_chain, of_set)
    }

    /// Anonymous counters by comment, summed: to carry figures over when chains have other names now.
    pub fn counts_by_comment(&self) -> BTreeMap<String, Count> {
        let mut sums: BTreeMap<String, Count> = BTreeMap::new();
        for rule in self.chains.values().flat_map(|chain| &chain.rules) {
            if let (Some(comment), Some(count)) = (&rule.comment, rule.count) {
                add(sums.entry(comment.clone()).or_default(), count);
            }
        }
        sums
    }
}

pub(crate) fn add(sum: &mut Count, count: Count) {
    sum.packets = sum.packets.saturating_add(count.packets);
    sum.bytes = sum.bytes.saturating_add(count.bytes);
}

/// What an observed table holds in our terms, so that [`fw_ruleset::plan`] can start from it.
///
/// A chain whose rules are exactly those that a wanted chain of that name lowers to IS that chain. Any other
/// non-empty chain comes back with one rule that equals none we would write, so that the planner flushes or deletes
/// it. Rules are never read back into statements: what we did not write is replaced, not understood.
pub fn recognise(observed: &Observed, wanted: &Ruleset) -> Ruleset {
    let chains = observed.chains.iter().map(|(name, chain)| {
        let wanted = wanted.chains.get(name);
        (name.clone(), recognise_chain(chain, wanted))
    });
    let sets = observed.sets.iter().map(|(name, set)| {
        let wanted = wanted.sets.get(name);
        (name.clone(), raise(&set.definition, &set.elements, wanted))
    });
    Ruleset {
        counters: observed.counters.keys().map(|name| (name.clone(), NamedCounter {})).collect(),
        timeouts: observed.timeouts.clone(),
        sets: sets.collect(),
        chains: chains.collect(),
    }
}

fn recognise_chain(observed: &ObservedChain, wanted: Option<&Chain>) -> Chain {
    if let Some(wanted) = wanted {
        let hook = wanted.hook.as_ref().map(base_chain) == observed.base;
        let rules = wanted.rules.len() == observed.rules.len()
            && wanted.rules.iter().zip(&observed.rules).all(|(rule, observed)| observed.is(rule));
        if hook && rules {
            return wanted.clone();
        }
    }
    let foreign = Rule { body: Vec::new(), comment: Some("(not written by this controller)".to_owned()) };
    Chain {
        hook: observed.base.as_ref().and_then(raise_hook),
        rules: if observed.rules.is_empty() { Vec::new() } else { vec![foreign] },
        origin: wanted.and_then(|wanted| wanted.origin.clone()),
    }
}

fn raise_hook(base: &BaseChain) -> Option<Hook> {
    Some(Hook {
        kind: match base.kind.as_str() {
            "filter" => ChainKind::Filter,
            "nat" => ChainKind::Nat,
            _ => return None,
        },
        point: match base.hook {
            0 => HookPoint::Prerouting,
            1 => HookPoint::Input,
            2 => HookPoint::Forward,
            4 => HookPoint::Postrouting,
            _ => return None,
        },
        priority: base.priority,
        policy_drop: base.policy == 0,
    })
}
