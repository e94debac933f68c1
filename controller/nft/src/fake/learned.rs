//! The fake's elements that user space puts into sets outside of plans.

use std::collections::BTreeMap;

use fw_ruleset::Ruleset;
use fw_ruleset::ir::{Field, Key, Set, SetKind, Value};

use crate::changes::{effective, parts, place, wanted};
use crate::error::libc_errno::{EEXIST, EINVAL};
use crate::error::{Error, Refusal};
use crate::kernel::{ElementChange, TimedElement};
use crate::set::learned;

/// Elements by set and key: the mark, and when they expire.
#[derive(Clone, Debug, Default)]
pub(super) struct Learned {
    sets: BTreeMap<String, BTreeMap<Key, Entry>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    mark: Option<u32>,
    until_ms: Option<u64>,
}

impl Entry {
    fn lives(&self, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|until| until > now_ms)
    }
}

impl Learned {
    pub(super) fn forget(&mut self, set: &str) {
        self.sets.remove(set);
    }

    /// Applies all changes or none.
    pub(super) fn update(
        &mut self,
        ruleset: &Ruleset,
        changes: &[ElementChange],
        now_ms: u64,
    ) -> Result<(), Error> {
        let mut after = self.clone();
        for (index, change) in effective(changes) {
            let (name, key) = parts(change);
            let set = definition(ruleset, name)?;
            if !fits(set, key) {
                return Err(refuse(changes, index, EINVAL));
            }
            let elements = after.sets.entry(name.to_owned()).or_default();
            elements.retain(|_, entry| entry.lives(now_ms));
            let Some(element) = wanted(change) else {
                elements.remove(key);
                continue;
            };
            let timed = element.expires_in_ms.is_none() || matches!(set.kind, SetKind::Learned { .. });
            if element.mark.is_some() != set.map || !timed {
                return Err(refuse(changes, index, EINVAL));
            }
            if elements.keys().any(|other| other != key && overlap(other, key)) {
                return Err(refuse(changes, index, EEXIST));
            }
            let until_ms = element.expires_in_ms.map(|left| now_ms.saturating_add(left));
            elements.insert(key.clone(), Entry { mark: element.mark, until_ms });
        }
        for (name, elements) in &after.sets {
            if elements.len() > size(definition(ruleset, name)?) {
                return Err(Error::Full { set: name.clone() });
            }
        }
        *self = after;
        Ok(())
    }

    pub(super) fn list(&self, ruleset: &Ruleset, set: &str, now_ms: u64) -> Result<Vec<TimedElement>, Error> {
        definition(ruleset, set)?;
        let elements = self.sets.get(set).into_iter().flatten().filter(|(_, entry)| entry.lives(now_ms));
        Ok(elements
            .map(|(key, entry)| TimedElement {
                key: key.clone(),
                mark: entry.mark,
                expires_in_ms: entry.until_ms.map(|until| until.saturating_sub(now_ms)),
            })
            .collect())
    }
}

fn definition<'a>(ruleset: &'a Ruleset, name: &str) -> Result<&'a Set, Error> {
    ruleset.sets.get(name).filter(|set| learned(set)).ok_or(Error::Stale)
}

fn size(set: &Set) -> usize {
    match set.kind {
        SetKind::Learned { size } | SetKind::LearnedBoxes { size } => {
            usize::try_from(size).unwrap_or(usize::MAX)
        }
        SetKind::Exact | SetKind::Interval | SetKind::Dynamic { .. } => 0,
    }
}

fn fits(set: &Set, key: &Key) -> bool {
    let typed = |values: &[Value]| {
        let mut fields = values.iter().zip(&set.key);
        values.len() == set.key.len() && fields.all(|(value, field)| is_of(value, *field))
    };
    match (set.kind, key) {
        (SetKind::Learned { .. }, Key::Exact(values)) => typed(values),
        (SetKind::LearnedBoxes { .. }, Key::Box(first, last)) => {
            typed(first) && typed(last) && first.iter().zip(last).all(|(first, last)| first <= last)
        }
        _ => false,
    }
}

fn is_of(value: &Value, field: Field) -> bool {
    matches!(
        (value, field),
        (Value::Ipv4(_), Field::Ipv4)
            | (Value::Ipv6(_), Field::Ipv6)
            | (Value::Protocol(_), Field::Protocol)
            | (Value::Port(_), Field::Port)
            | (Value::IfName(_), Field::IfName)
            | (Value::Mark(_), Field::Mark)
    )
}

/// Whether two boxes share a point.
fn overlap(a: &Key, b: &Key) -> bool {
    let (Key::Box(first_a, last_a), Key::Box(first_b, last_b)) = (a, b) else { return false };
    let apart = |index: usize| last_a[index] < first_b[index] || last_b[index] < first_a[index];
    !(0..first_a.len()).any(apart)
}

pub(super) fn refuse(changes: &[ElementChange], index: usize, errno: i32) -> Error {
    let place = changes.get(index).map_or_else(String::new, place);
    let refusal = Refusal { op: index, place, origin: None, detail: None, errno, text: None, others: 0 };
    Error::Refused(Box::new(refusal))
}
