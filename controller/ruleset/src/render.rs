//! The ruleset as text for `nft -f` and for people.

use crate::ir::Ruleset;

/// Prints a ruleset as text that `nft -f` takes.
pub fn render(ruleset: &Ruleset) -> String {
    let _ = ruleset;
    String::new()
}
