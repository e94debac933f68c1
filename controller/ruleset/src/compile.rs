//! PolicySet to ruleset.

use fw_policy::{Origin, PolicySet};

use crate::ir::Ruleset;

/// A compiled ruleset and what could not be compiled.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Compiled {
    /// What the kernel is to hold.
    pub ruleset: Ruleset,
    /// What was left out because it passed a bound; what is left out opens nothing.
    pub problems: Vec<Problem>,
}

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whose it is.
    pub origin: Origin,
    /// Reason and remedy.
    pub message: String,
}

/// Compiles a policy set. A pure function: the same objects give the same ruleset.
pub fn compile(set: &PolicySet) -> Compiled {
    let _ = set;
    Compiled::default()
}
