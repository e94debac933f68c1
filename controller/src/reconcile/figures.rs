//! Counter values under names that outlive positions: where rules must be made again, they start from here.

use std::collections::BTreeMap;

use fw_nft::{Foreign, Observed};
use fw_ruleset::ir::{Rule, Ruleset, Statement};
use fw_ruleset::{Count, Counts};

/// Last known figures of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    named: BTreeMap<String, Count>,
    /// By chain, comment, and how many rules with the same comment come before in the chain.
    rules: BTreeMap<(String, String, usize), Count>,
    /// By comment alone, from a table whose chains are not ours.
    comments: BTreeMap<String, Count>,
}

impl Figures {
    /// Those of a ruleset of ours.
    pub(super) fn of(ruleset: &Ruleset, counts: &Counts) -> Self {
        let mut figures = Self { named: counts.named.clone(), ..Self::default() };
        for (chain, definition) in &ruleset.chains {
            for (position, comment, occurrence) in counted(&definition.rules) {
                if let Some(count) = counts.rules.get(&(chain.clone(), position)) {
                    figures.rules.insert((chain.clone(), comment, occurrence), *count);
                }
            }
        }
        figures
    }

    /// Those of a table of ours as it was found.
    pub(super) fn of_observed(observed: &Observed) -> Self {
        let mut figures = Self { named: observed.counters.clone(), ..Self::default() };
        for (name, chain) in &observed.chains {
            let mut seen: BTreeMap<String, usize> = BTreeMap::new();
            for rule in &chain.rules {
                let Some(count) = rule.count else { continue };
                let comment = rule.comment.clone().unwrap_or_default();
                let occurrence = next(&mut seen, &comment);
                figures.rules.insert((name.clone(), comment, occurrence), count);
            }
        }
        figures
    }

    /// Those of somebody else's table.
    pub(super) fn of_foreign(foreign: &Foreign) -> Self {
        Self { named: foreign.named.clone(), comments: foreign.comments.clone(), rules: BTreeMap::new() }
    }

    /// What is left of somebody else's table when `ruleset` has replaced it: the figures whose comment none of its
    /// rules has, for rules that later transactions bring.
    pub(super) fn left_by(mut self, ruleset: &Ruleset) -> Self {
        for chain in ruleset.chains.values() {
            for (_, comment, _) in counted(&chain.rules) {
                self.comments.remove(&comment);
            }
        }
        Self { comments: self.comments, ..Self::default() }
    }

    /// Takes a newer reading of our table; what is left of somebody else's stays.
    pub(super) fn renew(&mut self, ruleset: &Ruleset, counts: &Counts) {
        let comments = std::mem::take(&mut self.comments);
        *self = Self { comments, ..Self::of(ruleset, counts) };
    }

    /// Forgets what is left of somebody else's table: from now on new rules begin at 0.
    pub(super) fn settle(&mut self) {
        self.comments.clear();
    }

    /// Start values for the chains of a ruleset that `known` does not have, from what is left of somebody else's table.
    pub(super) fn for_new_chains(&self, known: &Ruleset, ruleset: &Ruleset) -> Counts {
        if self.comments.is_empty() {
            return Counts::default();
        }
        let left = Self { comments: self.comments.clone(), ..Self::default() };
        let mut counts = Counts { named: BTreeMap::new(), ..left.for_ruleset(ruleset) };
        counts.rules.retain(|(chain, _), _| !known.chains.contains_key(chain));
        counts
    }

    /// Fills in from older figures what this reading has not, or has lower.
    pub(super) fn fill_from(&mut self, older: &Self) {
        for (name, count) in &older.named {
            raise(self.named.entry(name.clone()).or_default(), *count);
        }
        for (key, count) in &older.rules {
            raise(self.rules.entry(key.clone()).or_default(), *count);
        }
    }

    /// Start values for every counter of a ruleset.
    pub(super) fn for_ruleset(&self, ruleset: &Ruleset) -> Counts {
        let mut comments = self.comments.clone();
        let mut counts = Counts { named: self.named.clone(), rules: BTreeMap::new() };
        for (chain, definition) in &ruleset.chains {
            for (position, comment, occurrence) in counted(&definition.rules) {
                let by_comment = comments.remove(&comment);
                let known = self.rules.get(&(chain.clone(), comment, occurrence)).copied().or(by_comment);
                if let Some(count) = known {
                    counts.rules.insert((chain.clone(), position), count);
                }
            }
        }
        counts
    }
}

fn raise(count: &mut Count, other: Count) {
    count.packets = count.packets.max(other.packets);
    count.bytes = count.bytes.max(other.bytes);
}

/// The rules with an anonymous counter: position, comment, occurrence of the comment.
fn counted(rules: &[Rule]) -> Vec<(usize, String, usize)> {
    let mut seen = BTreeMap::new();
    let mut found = Vec::new();
    for (position, rule) in rules.iter().enumerate() {
        if rule.body.contains(&Statement::Counter) {
            let comment = rule.comment.clone().unwrap_or_default();
            let occurrence = next(&mut seen, &comment);
            found.push((position, comment, occurrence));
        }
    }
    found
}

fn next(seen: &mut BTreeMap<String, usize>, comment: &str) -> usize {
    let count = seen.entry(comment.to_owned()).or_default();
    let occurrence = *count;
    *count += 1;
    occurrence
}

#[cfg(test)]
mod tests {
    use fw_ruleset::ir::Chain;

    use super::*;

    fn rule(comment: &str, counter: bool) -> Rule {
        let body = if counter { vec![Statement::Counter] } else { Vec::new() };
        Rule { body, comment: Some(comment.to_owned()) }
    }

    fn ruleset(rules: Vec<Rule>) -> Ruleset {
        let mut ruleset = Ruleset::default();
        ruleset.chains.insert("forward".to_owned(), Chain { rules, ..Chain::default() });
        ruleset
    }

    fn at(position: usize) -> (String, usize) {
        ("forward".to_owned(), position)
    }

    #[test]
    fn figures_follow_their_rules_to_new_positions() {
        let before = ruleset(vec![rule("a", true), rule("b", true), rule("b", true)]);
        let after = ruleset(vec![
            rule("x", true),
            rule("b", true),
            rule("a", false),
            rule("b", true),
            rule("a", true),
        ]);
        let count = |packets| Count { packets, bytes: 10 * packets };
        let counts = Counts {
            rules: [(at(0), count(1)), (at(1), count(2)), (at(2), count(3))].into(),
            ..Counts::default()
        };
        let moved = Figures::of(&before, &counts).for_ruleset(&after);
        assert_eq!(moved.rules, [(at(1), count(2)), (at(3), count(3)), (at(4), count(1))].into());
    }

    #[test]
    fn a_foreign_tables_figures_go_to_the_first_rule_with_the_comment() {
        let count = Count { packets: 7, bytes: 8 };
        let foreign = Foreign {
            named: [("drop_total".to_owned(), count)].into(),
            comments: [("b".to_owned(), count)].into(),
        };
        let wanted = ruleset(vec![rule("a", true), rule("b", true), rule("b", true)]);
        let counts = Figures::of_foreign(&foreign).for_ruleset(&wanted);
        assert_eq!(counts.rules, [(at(1), count)].into());
        assert_eq!(counts.named["drop_total"], count);
    }

    #[test]
    fn what_is_left_of_a_foreign_table_waits_for_its_rules() {
        let count = |packets| Count { packets, bytes: packets };
        let foreign = Foreign {
            named: BTreeMap::new(),
            comments: [("a".to_owned(), count(1)), ("b".to_owned(), count(2))].into(),
        };
        let base = ruleset(vec![rule("a", true)]);
        let mut figures = Figures::of_foreign(&foreign).left_by(&base);
        figures.renew(&base, &Counts { rules: [(at(0), count(5))].into(), ..Counts::default() });
        let mut wanted = ruleset(vec![rule("a", true)]);
        let rules = vec![rule("b", true), rule("a", true)];
        wanted.chains.insert("new".to_owned(), Chain { rules, ..Chain::default() });
        assert_eq!(figures.for_new_chains(&base, &wanted).rules, [(("new".to_owned(), 0), count(2))].into());
        figures.settle();
        assert_eq!(figures.for_new_chains(&base, &wanted), Counts::default());
    }

    #[test]
    fn what_a_reading_lost_is_filled_in_from_the_one_before() {
        let wanted = ruleset(vec![rule("a", true), rule("b", true)]);
        let count = |packets| Count { packets, bytes: packets };
        let older = Counts { rules: [(at(0), count(5)), (at(1), count(6))].into(), ..Counts::default() };
        let newer = Counts { rules: [(at(0), count(0)), (at(1), count(9))].into(), ..Counts::default() };
        let mut figures = Figures::of(&wanted, &newer);
        figures.fill_from(&Figures::of(&wanted, &older));
        assert_eq!(figures.for_ruleset(&wanted).rules, [(at(0), count(5)), (at(1), count(9))].into());
    }
}
