//! The smallest transaction that leads from one ruleset to another.

use std::collections::BTreeMap;

use crate::ir::{Chain, Key, Rule, Ruleset, Set, Verdict};

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
/// `counts` gives start values to rules and counters that have to be made again.
pub fn plan(current: Option<&Ruleset>, wanted: &Ruleset, counts: &Counts) -> Plan {
    let _ = (current, wanted, counts);
    Plan::default()
}
