//! PolicySet to ruleset. The pieces, in the order of the data path: [`base`] (what always stands), [`policies`],
//! [`services`], [`fqdn`], [`dns`], [`nat`] and [`host`].

mod base;
pub(crate) mod dns;
pub(crate) mod fqdn;
mod host;
pub(crate) mod names;
mod nat;
pub(crate) mod policies;
pub(crate) mod ports;
pub(crate) mod prefixes;
mod services;

use std::collections::{BTreeMap, BTreeSet};

use fw_policy::{FastpathMode, NameEntry, Origin, PolicySet};

use crate::ir::Ruleset;

/// A compiled ruleset and what could not be compiled.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Compiled {
    /// What the kernel is to hold.
    pub ruleset: Ruleset,
    /// What was left out because it passed a bound; what is left out opens nothing.
    pub problems: Vec<Problem>,
}

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whose it is.
    pub origin: Origin,
    /// Reason and remedy.
    pub message: String,
}

/// How rules with names are told apart and where packets are stamped.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Names {
    /// Mark index of each entry, 1 and up. An entry without one opens nothing.
    pub indexes: BTreeMap<NameEntry, u32>,
    /// Who writes the index into the mark.
    pub stamp: Stamp,
}

/// Who writes an entry's index into the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Stamp {
    /// The eBPF program at TCX ingress.
    #[default]
    Program,
    /// nftables itself, from sets that user space fills.
    Sets,
}

impl Names {
    /// Indexes for a ruleset that nothing came before: entries in their order, from 1. Stamped by the program, unless
    /// the Firewall asks for none.
    pub fn fresh(set: &PolicySet) -> Self {
        let indexes = set.name_entries().into_keys().zip(1..).collect();
        let stamp = match set.firewall.fastpath.mode {
            FastpathMode::Off => Stamp::Sets,
            _ => Stamp::Program,
        };
        Self { indexes, stamp }
    }
}

/// Cells (prefix elements, port ranges and names) that policies may fill by default.
pub const DEFAULT_CELL_LIMIT: usize = 1_000_000;

/// Compiles a policy set as [`compile_with`] does, with fresh indexes for names.
pub fn compile(set: &PolicySet, cell_limit: usize) -> Compiled {
    compile_with(set, &Names::fresh(set), cell_limit)
}

/// Compiles a policy set. A pure function: the same objects give the same ruleset.
///
/// `cell_limit` bounds prefix elements, port ranges and names together. Past it the policies that ask for most are left
/// out, largest first, until the rest fits; each is a [`Problem`].
pub fn compile_with(set: &PolicySet, names: &Names, cell_limit: usize) -> Compiled {
    let mut ruleset = base::ruleset(&set.firewall);
    let (left_out, mut problems) = left_out(set, cell_limit);
    policies::add(&mut ruleset, set, &left_out);
    services::add(&mut ruleset, set);
    services::add_addresses(&mut ruleset, &set.load_balancer_addresses);
    problems.extend(fqdn::add(&mut ruleset, set, names, &left_out));
    dns::add(&mut ruleset, set);
    nat::add(&mut ruleset, &set.firewall);
    if let Some(host) = &set.firewall.host {
        host::add(&mut ruleset, host, set.intercepts_dns());
    }
    Compiled { ruleset, problems }
}

/// The names of the policies that do not fit, and the problems that say so.
fn left_out(set: &PolicySet, cell_limit: usize) -> (BTreeSet<String>, Vec<Problem>) {
    let mut sizes: Vec<(usize, &String)> =
        set.policies.iter().map(|(name, policy)| (policies::cells_of(policy), name)).collect();
    let mut total = sizes.iter().fold(0usize, |sum, (size, _)| sum.saturating_add(*size));
    sizes.sort_unstable();
    let mut names = BTreeSet::new();
    let mut problems = Vec::new();
    while total > cell_limit
        && let Some((size, name)) = sizes.pop()
    {
        total = total.saturating_sub(size);
        names.insert(name.clone());
        problems.push(Problem {
            origin: Origin::policy(name, ""),
            message: format!(
                "asks for {size} prefixes, port ranges and names, and all policies together may have {cell_limit}: \
                 it is not enforced and opens nothing; use fewer or wider blocks, or fewer exceptions"
            ),
        });
    }
    problems.sort_by(|a, b| a.origin.cmp(&b.origin));
    (names, problems)
}
