//! Which selectors match a name.
//!
//! All of them are compiled once. An exact name costs one look into a map, whatever their number; patterns cost a
//! binary search and only those are tried whose literal end and start fit; expressions run as sets of automata, in time
//! linear in the name.

mod globs;
mod regexes;

use std::collections::{BTreeMap, BTreeSet};

use fw_policy::FqdnSelector;

use crate::name::{Name, NameError};
use globs::Globs;
use regexes::Regexes;

/// Selectors, compiled.
#[derive(Debug, Default)]
pub struct Matcher {
    /// Sorted, each once; others refer to them by position.
    selectors: Vec<FqdnSelector>,
    exact: BTreeMap<Name, Vec<usize>>,
    globs: Globs,
    regexes: Regexes,
    unusable: BTreeMap<FqdnSelector, Unusable>,
}

/// Why a selector matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No name.
    #[error("the name cannot be read")]
    Name(#[source] NameError),
    /// No regular expression, or one that needs more than [`Unusable::REGEX_SIZE`] octets.
    #[error("the regular expression cannot be used: {0}")]
    Regex(String),
}

impl Unusable {
    /// Octets that one compiled expression may take.
    pub const REGEX_SIZE: usize = 256 * 1024;
}

impl Matcher {
    /// Compiles selectors; one that cannot be used matches nothing, see [`Matcher::unusable`].
    pub fn new(selectors: impl IntoIterator<Item = FqdnSelector>) -> Self {
        let selectors: BTreeSet<FqdnSelector> = selectors.into_iter().collect();
        let mut matcher = Self { selectors: selectors.into_iter().collect(), ..Self::default() };
        let mut globs = Vec::new();
        let mut regexes = Vec::new();
        for (id, selector) in matcher.selectors.iter().enumerate() {
            match selector {
                FqdnSelector::Pattern(pattern) if pattern.contains('*') => globs.push((id, pattern.as_str())),
                FqdnSelector::Name(text) | FqdnSelector::Pattern(text) => match Name::from_text(text) {
                    Ok(name) => matcher.exact.entry(name).or_default().push(id),
                    Err(error) => {
                        matcher.unusable.insert(selector.clone(), Unusable::Name(error));
                    }
                },
                FqdnSelector::Regex(regex) => regexes.push((id, regex.as_str())),
            }
        }
        matcher.globs = Globs::new(globs);
        let (compiled, refused) = Regexes::new(regexes);
        matcher.regexes = compiled;
        for (id, reason) in refused {
            matcher.unusable.insert(matcher.selectors[id].clone(), Unusable::Regex(reason));
        }
        matcher
    }

    /// The selectors that match, in order.
    ///
    /// A pattern's `*` stands for any number of `[-a-z0-9_.]`; so no pattern matches a name with other octets.
    pub fn matches(&self, name: &Name) -> Vec<&FqdnSelector> {
        self.positions(name).into_iter().filter_map(|position| self.selectors.get(position)).collect()
    }

    /// The same as positions in [`Matcher::selectors`].
    pub fn positions(&self, name: &Name) -> Vec<usize> {
        let mut positions = self.exact.get(name).cloned().unwrap_or_default();
        let text = if name.is_root() { "" } else { name.as_str() };
        if !name.is_escaped() {
            self.globs.each_match(text, |id| positions.push(id));
        }
        self.regexes.each_match(text, |id| positions.push(id));
        positions.sort_unstable();
        positions
    }

    /// Selectors that match nothing, and why.
    pub fn unusable(&self) -> &BTreeMap<FqdnSelector, Unusable> {
        &self.unusable
    }

    /// All selectors, sorted.
    pub fn selectors(&self) -> &[FqdnSelector] {
        &self.selectors
    }
}
