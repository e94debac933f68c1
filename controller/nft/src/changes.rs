//! What a list of changes to elements comes to, for the real kernel and the fake alike.

use std::collections::BTreeMap;

use fw_ruleset::ir::Key;

use crate::kernel::{ElementChange, TimedElement};
use crate::set::describe_key;

/// Set and key of a change.
pub(crate) fn parts(change: &ElementChange) -> (&str, &Key) {
    match change {
        ElementChange::Put(set, element) => (set, &element.key),
        ElementChange::Remove(set, key) => (set, key),
    }
}

/// The element of a change for people.
pub(crate) fn place(change: &ElementChange) -> String {
    let (set, key) = parts(change);
    format!("element {} of set {set}", describe_key(key))
}

/// What is to be there afterwards; `None` for a removal, also by a time that is over (zero means "for ever" to the
/// kernel).
pub(crate) fn wanted(change: &ElementChange) -> Option<&TimedElement> {
    match change {
        ElementChange::Put(_, element) if element.expires_in_ms != Some(0) => Some(element),
        ElementChange::Put(..) | ElementChange::Remove(..) => None,
    }
}

/// The changes that count, with their places in the list: the last of each key, removals first, so that what is put
/// finds room.
pub(crate) fn effective(changes: &[ElementChange]) -> Vec<(usize, &ElementChange)> {
    let last: BTreeMap<(&str, &Key), usize> =
        changes.iter().enumerate().map(|(index, change)| (parts(change), index)).collect();
    let mut list: Vec<(usize, &ElementChange)> = changes
        .iter()
        .enumerate()
        .filter(|(index, change)| last.get(&parts(change)) == Some(index))
        .collect();
    list.sort_by_key(|(_, change)| wanted(change).is_some());
    list
}

#[cfg(test)]
mod tests {
    use fw_ruleset::ir::Value;

    use super::*;

    #[test]
    fn the_last_change_of_a_key_counts_and_removals_come_first() {
        let key = |port| Key::Exact(vec![Value::Port(port)]);
        let put = |port, left| {
            let element = TimedElement { key: key(port), mark: None, expires_in_ms: Some(left) };
            ElementChange::Put("a".to_owned(), element)
        };
        let remove = |port| ElementChange::Remove("a".to_owned(), key(port));
        let changes = [put(1, 5), put(2, 5), remove(1), put(3, 5), put(3, 0), remove(4), put(4, 7)];
        let places: Vec<usize> = effective(&changes).into_iter().map(|(index, _)| index).collect();
        assert_eq!(places, [2, 4, 1, 6]);
    }
}
