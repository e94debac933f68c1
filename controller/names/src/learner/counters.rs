//! What happened, and how full it is.

use std::collections::BTreeMap;

use crate::judge::Refusal;
use crate::name::Name;

/// Which bound keeps an answer back. Nothing that may be dropped is left: all of it is inside a TTL handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Full {
    /// `dns.maxNames`.
    Names,
    /// `dns.maxNamesPerPattern`.
    Pattern,
    /// `dns.maxAddressesPerName`.
    Addresses,
    /// Addresses of all names, [`super::MAX_ADDRESSES`], [`super::MAX_FACTS`].
    Total,
    /// Classes of the data path.
    Classes,
}

/// Why something was forgotten before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Eviction {
    /// A name, for `dns.maxNames`.
    Name,
    /// A name, for `dns.maxNamesPerPattern`.
    Pattern,
    /// An address of a name, for `dns.maxAddressesPerName`.
    Address,
    /// A name, for [`super::MAX_ADDRESSES`], [`super::MAX_FACTS`].
    Total,
}

/// Counts since the start; none goes down.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Answers that a selector matched.
    pub lessons: u64,
    /// Name and address pairs that were new.
    pub learned: u64,
    /// Pairs that were known, and last longer.
    pub renewed: u64,
    /// Pairs that ended in their time.
    pub expired: u64,
    /// Times a pair was kept because its address was in use.
    pub extended: u64,
    /// Addresses not learned.
    pub refused: BTreeMap<Refusal, u64>,
    /// Addresses not learned by name; bounded, the first names.
    pub refused_names: BTreeMap<Name, u64>,
    /// Forgotten before their time.
    pub evicted: BTreeMap<Eviction, u64>,
    /// Answers kept back.
    pub held: BTreeMap<Full, u64>,
    /// Answers whose TTLs were lowered below `dns.ttlMax` because of a bound.
    pub shortened: u64,
    /// Answers to names beyond all policies that hold an allowed address.
    pub shared: u64,
    /// Cells left out because a class had too many; they stay closed.
    pub cells_left_out: u64,
    /// Allows that stay closed because there was no free class.
    pub without_class: u64,
}

/// Sizes and their bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Names.
    pub names: usize,
    /// `dns.maxNames`.
    pub max_names: usize,
    /// Names of the pattern that has most.
    pub fullest_pattern: usize,
    /// `dns.maxNamesPerPattern`.
    pub max_names_per_pattern: usize,
    /// Addresses of the name that has most.
    pub longest_name: usize,
    /// `dns.maxAddressesPerName`.
    pub max_addresses_per_name: usize,
    /// Addresses.
    pub addresses: usize,
    /// Bound of the addresses.
    pub max_addresses: usize,
    /// Name and address pairs.
    pub facts: usize,
    /// Classes in the data path.
    pub classes: usize,
    /// Bound of the classes.
    pub max_classes: usize,
}
