//! Egress by names: one counter chain per policy, selector and protocol, found by the mark.
//!
//! ```text
//! map fqdn { type mark : verdict; elements = { 0x00000001 : goto egress-web_fqdn-www.example.com-tcp } }
//! chain egress { meta mark & 0x00ffffff vmap @fqdn … }       # the program at TCX ingress has written the index
//! chain egress-web_fqdn-www.example.com-tcp {
//!     counter accept comment "accept traffic for np web tcp, fqdn: www.example.com"
//! }
//! ```
//! Without the program the same indexes come from sets that user space fills, and whatever mark a packet carried is
//! overwritten before it is read:
//! ```text
//! chain egress { meta nfproto ipv4 jump fqdn4 … }
//! chain fqdn4 { meta mark set ip daddr map @fqdn4-0 goto fqdn_ports … }                  # a level per end time
//! chain fqdn_ports { meta mark set meta mark . meta l4proto . th dport map @fqdn_cells meta mark & … vmap @fqdn }
//! ```
//! A miss leaves the packet to the prefixes. Elements of the filled sets are numbers and name no chain, so a policy
//! can go while addresses of it are still there: its index then leads nowhere.

use std::collections::{BTreeMap, BTreeSet};

use fw_policy::{Fastpath, NameEntry, Origin, PolicySet, comment};

use super::base::{accept, address_field, chain, commented, destination, goto, jump, rule};
use super::{Names, Problem, Stamp, names};
use crate::ir::{
    Chain, Family, Field, Key, Rule, Ruleset, Selector, Set, SetKind, Side, Statement, Value, Verdict,
};

/// Verdict map from mark to counter chain.
const FQDN: &str = "fqdn";
/// Chain of [`Stamp::Sets`] that turns a class into the mark of an entry and looks that up, by
/// [`Fastpath::mark_mask`].
pub const FQDN_PORTS: &str = "fqdn_ports";

/// Map of [`Stamp::Sets`] from class, protocol and ports to the mark of an entry ([`Fastpath::mark_of`]).
pub const FQDN_CELLS: &str = "fqdn_cells";
/// Elements that [`FQDN_CELLS`] holds.
pub const MAX_FQDN_CELLS: u32 = 131_072;
/// Address maps of each family: one per step of an allowed address.
pub const FQDN_LEVELS: usize = 4;
/// Elements that each address map holds.
pub const MAX_FQDN_ADDRESSES: u32 = 262_144;

/// Map of [`Stamp::Sets`] from address to class (as a mark, not shifted), `fqdn4-0` to `fqdn6-3`. The first level
/// that holds the address decides.
pub fn fqdn_map(family: Family, level: usize) -> String {
    format!("{FQDN}{}-{level}", names::digit(family))
}

/// Adds what stands where a policy has names.
pub(super) fn add(
    ruleset: &mut Ruleset,
    set: &PolicySet,
    given: &Names,
    left_out: &BTreeSet<String>,
) -> Vec<Problem> {
    if !set.has_names() {
        return Vec::new();
    }
    let fastpath = &set.firewall.fastpath;
    let mut elements = BTreeMap::new();
    let mut too_high: BTreeMap<String, usize> = BTreeMap::new();
    for entry in set.name_entries().into_keys().filter(|entry| !left_out.contains(&entry.policy)) {
        let Some(index) = given.indexes.get(&entry) else { continue };
        match fastpath.mark_of(*index) {
            Some(mark) => {
                let target = add_counter_chain(ruleset, &entry);
                elements.insert(Key::Exact(vec![Value::Mark(mark)]), Some(Verdict::Goto(target)));
            }
            None => *too_high.entry(entry.policy).or_default() += 1,
        }
    }
    let map = Set { key: vec![Field::Mark], kind: SetKind::Exact, elements, map: true, origin: None };
    ruleset.sets.insert(FQDN.to_owned(), map);
    let rules = match given.stamp {
        Stamp::Program => vec![rule([by_mark(fastpath)])],
        Stamp::Sets => add_sets(ruleset, fastpath),
    };
    if let Some(egress) = ruleset.chains.get_mut("egress") {
        egress.rules.splice(0..0, rules);
    }
    too_high.into_iter().map(|(policy, count)| no_index_left(&policy, count, fastpath)).collect()
}

fn by_mark(fastpath: &Fastpath) -> Statement {
    Statement::VerdictMap { key: vec![Selector::Mark(fastpath.mark_mask)], map: FQDN.to_owned() }
}

fn add_counter_chain(ruleset: &mut Ruleset, entry: &NameEntry) -> String {
    let comment = comment::name(&entry.policy, &entry.selector, entry.protocol);
    let name = names::name_chain(entry);
    let rules = vec![commented([Statement::Counter, accept()], &comment)];
    let origin = Some(Origin::policy(&entry.policy, "spec.egress"));
    ruleset.chains.insert(name.clone(), Chain { hook: None, rules, origin });
    name
}

/// The sets and chains that do what the program does elsewhere, and the rules that lead there.
fn add_sets(ruleset: &mut Ruleset, fastpath: &Fastpath) -> Vec<Rule> {
    let learned = |key, kind| Set { key, kind, elements: BTreeMap::new(), map: true, origin: None };
    for family in Family::ALL {
        let mut rules = Vec::new();
        for level in 0..FQDN_LEVELS {
            let map = fqdn_map(family, level);
            let addresses = SetKind::Learned { size: MAX_FQDN_ADDRESSES };
            ruleset.sets.insert(map.clone(), learned(vec![address_field(family)], addresses));
            let class = Statement::SetMarkByMap { key: vec![destination(family)], map };
            rules.push(rule([class, goto(FQDN_PORTS)]));
        }
        ruleset.chains.insert(levels_chain(family), chain(rules));
    }
    let key = vec![Field::Mark, Field::Protocol, Field::Port];
    let cells = learned(key, SetKind::LearnedBoxes { size: MAX_FQDN_CELLS });
    ruleset.sets.insert(FQDN_CELLS.to_owned(), cells);
    let dport = Selector::Port { side: Side::Destination, protocol: None };
    let key = vec![Selector::Mark(u32::MAX), Selector::L4Protocol, dport];
    let index = Statement::SetMarkByMap { key, map: FQDN_CELLS.to_owned() };
    // One rule: where no cell holds the port, the mark is a class and must not be looked up as an index.
    ruleset.chains.insert(FQDN_PORTS.to_owned(), chain(vec![rule([index, by_mark(fastpath)])]));
    Family::ALL.map(|family| rule([Statement::Family(family), jump(&levels_chain(family))])).into()
}

fn levels_chain(family: Family) -> String {
    format!("{FQDN}{}", names::digit(family))
}

fn no_index_left(policy: &str, count: usize, fastpath: &Fastpath) -> Problem {
    let most = fastpath.mark_mask.checked_shr(fastpath.mark_mask.trailing_zeros()).unwrap_or(0);
    Problem {
        origin: Origin::policy(policy, "spec.egress"),
        message: format!(
            "{count} of its names (each with TCP and UDP of its own) have no number left: fastpath.markMask {:#010x} \
             has room for {most}; they are not enforced and open nothing; use a wider mask or fewer names",
            fastpath.mark_mask
        ),
    }
}
