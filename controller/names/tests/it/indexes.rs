//! Mark indexes and when they are free.

use std::collections::{BTreeMap, BTreeSet};

use fw_names::Indexes;
use fw_names::indexes::{COOL_DOWN, Side};
use fw_policy::{FqdnSelector, NameEntry, Protocol};
use proptest::prelude::*;

fn entry(policy: &str) -> NameEntry {
    let selector = FqdnSelector::Name("a.example".to_owned());
    NameEntry { policy: policy.to_owned(), selector, protocol: Protocol::Tcp }
}

fn entries(policies: &[&str]) -> BTreeSet<NameEntry> {
    policies.iter().map(|policy| entry(policy)).collect()
}

fn empty(mask: u32) -> Indexes {
    Indexes::adopt(mask, BTreeMap::new(), &BTreeSet::new(), &BTreeSet::new())
}

#[test]
fn entries_keep_their_index_and_new_ones_get_the_lowest() {
    let mut indexes = empty(0xff);
    assert_eq!(indexes.assign(&entries(&["b", "c"])), [(entry("b"), 1), (entry("c"), 2)].into());
    let more = indexes.assign(&entries(&["a", "b", "c"]));
    assert_eq!(more, [(entry("a"), 3), (entry("b"), 1), (entry("c"), 2)].into());
}

#[test]
fn an_index_is_free_a_second_after_both_sides_dropped_it() {
    let mut indexes = empty(0xff);
    indexes.assign(&entries(&["a", "b"]));
    let gone = indexes.retire(&entries(&["b"]));
    assert_eq!(gone, [1].into());
    indexes.dropped(Side::DataPath, &gone, 5);
    assert_eq!(indexes.pending(Side::DataPath), BTreeSet::new());
    assert_eq!(indexes.pending(Side::Nft), gone);
    assert_eq!(indexes.free(u64::MAX), BTreeSet::new());
    indexes.dropped(Side::Nft, &gone, 7);
    assert_eq!(indexes.free(7 + COOL_DOWN - 1), BTreeSet::new());
    // Until then the same entry, come back, gets another one.
    assert_eq!(indexes.assign(&entries(&["a", "b"]))[&entry("a")], 3);
    assert_eq!(indexes.free(7 + COOL_DOWN), gone);
    assert_eq!(indexes.assign(&entries(&["a", "b", "c"]))[&entry("c")], 1);
}

#[test]
fn the_mask_bounds_the_indexes_and_who_gets_none_is_missing() {
    let mut indexes = empty(0b110_0000);
    assert_eq!(indexes.capacity(), 3);
    let got = indexes.assign(&entries(&["a", "b", "c", "d"]));
    assert_eq!(got, [(entry("a"), 1), (entry("b"), 2), (entry("c"), 3)].into());
}

#[test]
fn what_the_kernel_has_and_nobody_knows_is_retired_first() {
    let known = [(entry("a"), 4), (entry("b"), 5), (entry("c"), 5), (entry("d"), 300)].into();
    let mut indexes = Indexes::adopt(0xff, known, &[4, 5, 6].into(), &[4, 7].into());
    assert_eq!(indexes.assigned(), &[(entry("a"), 4)].into());
    // 5 is claimed twice, 6 and 7 by nobody; 300 is no index under this mask.
    assert_eq!(indexes.pending(Side::Nft), [5, 6, 300].into());
    assert_eq!(indexes.pending(Side::DataPath), [7].into());
    let got = indexes.assign(&entries(&["a", "b", "c", "d", "e", "f"]));
    assert_eq!(got.values().copied().collect::<BTreeSet<u32>>(), [1, 2, 3, 4, 8, 9].into());
}

#[derive(Clone, Debug)]
enum Step {
    Policies(BTreeSet<u8>),
    Drop(bool, u8),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        proptest::collection::btree_set(0_u8..8, 0..6).prop_map(Step::Policies),
        (any::<bool>(), 1_u8..12).prop_map(|(side, index)| Step::Drop(side, index)),
        (0..2 * COOL_DOWN).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn an_index_never_changes_hands_before_its_time(steps in proptest::collection::vec(step(), 1..60)) {
        let mut indexes = empty(0xf);
        let mut now = 0;
        let mut owners: BTreeMap<u32, NameEntry> = BTreeMap::new();
        // By index: which sides still know it since it was retired, and the last drop.
        let mut retired: BTreeMap<u32, (BTreeSet<Side>, u64)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Policies(policies) => {
                    let wanted: BTreeSet<NameEntry> =
                        policies.iter().map(|policy| entry(&policy.to_string())).collect();
                    for index in indexes.retire(&wanted) {
                        owners.remove(&index);
                        retired.insert(index, ([Side::DataPath, Side::Nft].into(), 0));
                    }
                    for (entry, index) in indexes.assign(&wanted) {
                        if let Some((sides, dropped)) = retired.get(&index) {
                            prop_assert!(sides.is_empty() && now >= dropped + COOL_DOWN);
                        }
                        prop_assert!(owners.insert(index, entry.clone()).is_none_or(|owner| owner == entry));
                    }
                }
                Step::Drop(side, index) => {
                    let side = if side { Side::DataPath } else { Side::Nft };
                    let index = u32::from(index);
                    indexes.dropped(side, &[index].into(), now);
                    if let Some((sides, dropped)) = retired.get_mut(&index)
                        && sides.remove(&side)
                    {
                        *dropped = now;
                    }
                }
                Step::Wait(time) => {
                    now += time;
                    for index in indexes.free(now) {
                        let (sides, dropped) = &retired[&index];
                        prop_assert!(sides.is_empty() && now >= dropped + COOL_DOWN);
                        retired.remove(&index);
                    }
                }
            }
        }
    }
}
