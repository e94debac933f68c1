//! One change after the other.

use std::collections::BTreeSet;

use anyhow::Result;
use fw_policy::PolicySet;

use crate::r#gen::{Rng, World, policy};

/// What an edit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// A new policy.
    Add(String),
    /// Other contents.
    Change(String),
    /// One less.
    Remove(String),
    /// The same contents under another name.
    Rename {
        /// Before.
        from: String,
        /// After.
        to: String,
    },
}

/// Makes edit number `number` on the policies; the four kinds take turns. Policies in `keep` stay as they are.
pub fn edit(
    rng: &mut Rng,
    world: &World,
    set: &mut PolicySet,
    keep: &BTreeSet<String>,
    number: usize,
) -> Result<Edit> {
    let candidates: Vec<String> = set.policies.keys().filter(|name| !keep.contains(*name)).cloned().collect();
    let added = format!("edit-{number}");
    let name = match rng.pick(&candidates) {
        Some(name) if !number.is_multiple_of(4) => name.clone(),
        _ => {
            set.policies.insert(added.clone(), policy(rng, world)?);
            return Ok(Edit::Add(added));
        }
    };
    Ok(match number % 4 {
        1 => {
            set.policies.insert(name.clone(), policy(rng, world)?);
            Edit::Change(name)
        }
        2 => {
            if let Some(policy) = set.policies.remove(&name) {
                set.policies.insert(added.clone(), policy);
            }
            Edit::Rename { from: name, to: added }
        }
        _ => {
            set.policies.remove(&name);
            Edit::Remove(name)
        }
    })
}
