//! Counter values that never go down.
//!
//! The kernel's figures can: somebody runs `nft reset counters` (which sends no event), or the table has to be made
//! again. What we publish is what was last seen plus what came since. A series ends when its counter leaves our
//! ruleset; the same name made again begins at 0.

use std::collections::BTreeMap;

use fw_ruleset::ir::{Rule, Ruleset, Statement};
use fw_ruleset::{Count, Counts};
use serde::{Deserialize, Serialize};

/// Identity of a series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Key {
    /// A named counter.
    Named(String),
    /// The anonymous counters of the rules with one comment in one chain.
    Rule {
        /// The chain.
        chain: String,
        /// The comment; empty where a rule has none.
        comment: String,
    },
}

/// All published values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    #[serde(with = "entries")]
    series: BTreeMap<Key, Series>,
    /// Times a value in the kernel was found lower than before.
    pub resets: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Series {
    /// What went before the kernel's present figure: packets, bytes.
    base: (u64, u64),
    /// The kernel's figure when last read.
    last: (u64, u64),
}

impl Published {
    /// Takes a reading of the whole ruleset. Series that it does not have wait: at a cold start the base ruleset is in
    /// force before the one that has them.
    pub fn observe(&mut self, ruleset: &Ruleset, counts: &Counts) {
        for (key, (packets, bytes)) in readings(ruleset, counts) {
            let series = self.series.entry(key).or_default();
            if packets < series.last.0 || bytes < series.last.1 {
                self.resets = self.resets.saturating_add(1);
                series.carry();
            }
            series.last = (packets, bytes);
        }
    }

    /// Ends the series whose counters a ruleset does not have, before their names can come again.
    pub fn retain(&mut self, ruleset: &Ruleset) {
        self.series.retain(|key, _| match key {
            Key::Named(name) => ruleset.counters.contains_key(name),
            Key::Rule { chain, comment } => ruleset.chains.get(chain).is_some_and(|chain| {
                let has = |rule: &Rule| rule.comment.as_deref().unwrap_or_default() == comment;
                chain.rules.iter().any(|rule| has(rule) && rule.body.contains(&Statement::Counter))
            }),
        });
    }

    /// The table is gone and what it counted with it: the next readings start at 0.
    pub fn table_lost(&mut self) {
        for series in self.series.values_mut() {
            series.carry();
        }
    }

    /// The published value.
    pub fn get(&self, key: &Key) -> Option<Count> {
        self.series.get(key).map(|series| Count {
            packets: series.base.0.saturating_add(series.last.0),
            bytes: series.base.1.saturating_add(series.last.1),
        })
    }
}

impl Series {
    fn carry(&mut self) {
        self.base.0 = self.base.0.saturating_add(self.last.0);
        self.base.1 = self.base.1.saturating_add(self.last.1);
        self.last = (0, 0);
    }
}

/// One figure per key that the ruleset has; 0 where the counts have none.
fn readings(ruleset: &Ruleset, counts: &Counts) -> BTreeMap<Key, (u64, u64)> {
    let mut readings = BTreeMap::new();
    for name in ruleset.counters.keys() {
        let count = counts.named.get(name).copied().unwrap_or_default();
        readings.insert(Key::Named(name.clone()), (count.packets, count.bytes));
    }
    for (chain, definition) in &ruleset.chains {
        for (position, rule) in definition.rules.iter().enumerate() {
            if !rule.body.contains(&Statement::Counter) {
                continue;
            }
            let count = counts.rules.get(&(chain.clone(), position)).copied().unwrap_or_default();
            let comment = rule.comment.clone().unwrap_or_default();
            let sum: &mut (u64, u64) =
                readings.entry(Key::Rule { chain: chain.clone(), comment }).or_default();
            *sum = (sum.0.saturating_add(count.packets), sum.1.saturating_add(count.bytes));
        }
    }
    readings
}

/// JSON has text keys only, so the map is stored as a list of pairs.
mod entries {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Key, Series};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<Key, Series>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Key, Series>, D::Error> {
        Ok(Vec::<(Key, Series)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use fw_ruleset::ir::{Chain, NamedCounter};
    use proptest::prelude::*;

    use super::*;

    fn ruleset(chains: &[&str]) -> Ruleset {
        let mut ruleset = Ruleset::default();
        ruleset.counters.insert("drop_total".to_owned(), NamedCounter::default());
        for name in chains {
            let rule = Rule { body: vec![Statement::Counter], comment: Some("accept".to_owned()) };
            ruleset.chains.insert((*name).to_owned(), Chain { rules: vec![rule], ..Chain::default() });
        }
        ruleset
    }

    fn counts(drop_total: u64, web: u64) -> Counts {
        let count = |packets| Count { packets, bytes: packets * 100 };
        Counts {
            named: [("drop_total".to_owned(), count(drop_total))].into(),
            rules: [(("web".to_owned(), 0), count(web))].into(),
        }
    }

    fn web() -> Key {
        Key::Rule { chain: "web".to_owned(), comment: "accept".to_owned() }
    }

    fn packets(published: &Published, key: &Key) -> Option<u64> {
        published.get(key).map(|count| count.packets)
    }

    #[test]
    fn a_decrease_in_the_kernel_is_a_reset_and_published_values_never_go_down() {
        let mut published = Published::default();
        published.observe(&ruleset(&["web"]), &counts(10, 5));
        published.observe(&ruleset(&["web"]), &counts(2, 6));
        assert_eq!(packets(&published, &Key::Named("drop_total".to_owned())), Some(12));
        assert_eq!(packets(&published, &web()), Some(6));
        assert_eq!(published.resets, 1);
    }

    #[test]
    fn a_lost_table_goes_on_from_what_was_last_seen() {
        let mut published = Published::default();
        published.observe(&ruleset(&["web"]), &counts(10, 5));
        published.table_lost();
        assert_eq!(packets(&published, &web()), Some(5));
        published.observe(&ruleset(&["web"]), &counts(0, 7));
        assert_eq!(packets(&published, &web()), Some(12));
        assert_eq!(published.resets, 0);
    }

    #[test]
    fn a_repair_that_restored_the_last_values_goes_on_without_a_jump() {
        let mut published = Published::default();
        published.observe(&ruleset(&["web"]), &counts(10, 5));
        published.observe(&ruleset(&["web"]), &counts(10, 5));
        published.observe(&ruleset(&["web"]), &counts(11, 6));
        assert_eq!(packets(&published, &web()), Some(6));
    }

    #[test]
    fn a_deleted_series_ends_and_the_same_name_begins_at_zero() {
        let mut published = Published::default();
        published.observe(&ruleset(&["web"]), &counts(10, 5));
        published.retain(&ruleset(&[]));
        assert_eq!(packets(&published, &web()), None);
        published.observe(&ruleset(&["web"]), &counts(10, 1));
        assert_eq!(packets(&published, &web()), Some(1));
        assert_eq!(published.resets, 0);
    }

    #[test]
    fn values_survive_being_stored() {
        let mut published = Published::default();
        published.observe(&ruleset(&["web"]), &counts(10, 5));
        published.observe(&ruleset(&["web"]), &counts(1, 1));
        let stored = serde_json::to_vec(&published).unwrap();
        assert_eq!(serde_json::from_slice::<Published>(&stored).unwrap(), published);
    }

    #[test]
    fn equal_comments_in_one_chain_are_summed() {
        let mut ruleset = ruleset(&["web"]);
        let rule = ruleset.chains["web"].rules[0].clone();
        ruleset.chains.get_mut("web").unwrap().rules.push(rule);
        let mut counts = counts(0, 5);
        counts.rules.insert(("web".to_owned(), 1), Count { packets: 7, bytes: 1 });
        let mut published = Published::default();
        published.observe(&ruleset, &counts);
        assert_eq!(packets(&published, &web()), Some(12));
    }

    proptest! {
        #[test]
        fn no_sequence_of_readings_lowers_a_value(readings in proptest::collection::vec((0_u64..50, any::<bool>()), 1..40)) {
            let mut published = Published::default();
            let mut highest = 0;
            for (value, lost) in readings {
                if lost {
                    published.table_lost();
                }
                published.observe(&ruleset(&["web"]), &counts(value, value));
                let now = packets(&published, &web()).unwrap();
                prop_assert!(now >= highest);
                highest = now;
            }
        }
    }
}
