//! A JSON tree that is not being read at the moment.

use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::reading::Reading;

/// A JSON tree, kept as its text. Each map of a tree takes a node for eleven entries, 632 bytes, however few it has:
/// a policy is 400 bytes of text and 6 kB as a tree, and there are thousands of them.
///
/// Two are equal when their trees are: the keys of a text are sorted.
#[derive(Clone)]
pub struct Compact {
    text: Box<str>,
    /// What it was read as, once somebody asked; the text never changes.
    reading: OnceLock<Arc<Reading>>,
}

impl PartialEq for Compact {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Compact {}

impl Compact {
    /// The tree, made anew. `null` where it is deeper than serde_json reads (128): no source reads anything deeper.
    #[must_use]
    pub fn tree(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// What it says as an object of ours.
    pub(crate) fn reading(&self) -> &Reading {
        self.reading.get_or_init(|| Arc::new(Reading::of(&self.tree())))
    }

    /// The text: no spaces, keys sorted.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl From<&Value> for Compact {
    fn from(tree: &Value) -> Self {
        Self { text: tree.to_string().into_boxed_str(), reading: OnceLock::new() }
    }
}

impl From<Value> for Compact {
    fn from(tree: Value) -> Self {
        Self::from(&tree)
    }
}

impl Default for Compact {
    fn default() -> Self {
        Self::from(&Value::Null)
    }
}

impl fmt::Debug for Compact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Compact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.tree().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Compact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_was_kept_comes_back(tree in any_tree()) {
            let kept = Compact::from(&tree);
            prop_assert_eq!(kept.tree(), tree);
            let stored = serde_json::to_string(&kept).unwrap();
            prop_assert_eq!(stored.as_str(), kept.text());
            prop_assert_eq!(serde_json::from_str::<Compact>(&stored).unwrap(), kept);
        }
    }
}
