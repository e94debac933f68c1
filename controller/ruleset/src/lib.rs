//! PolicySet in, typed nftables ruleset out; evaluator, renderer and planner; pure.
//!
//! [`compile`] turns a [`fw_policy::PolicySet`] into a [`Ruleset`]: a typed, ordered subset of nft. [`render`]
//! prints it as text that `nft -f` takes, [`evaluate`] runs it on a packet (side two of the oracle), and
//! [`plan`] computes the smallest transaction that leads from one ruleset to another.

mod compile;
mod evaluate;
pub mod ir;
mod plan;
mod render;

pub use compile::{Compiled, DEFAULT_CELL_LIMIT, Names, Problem, Stamp, compile, compile_with};
pub use evaluate::{Evaluation, evaluate};
pub use ir::Ruleset;
pub use plan::{Count, Counts, Op, Plan, plan};
pub use render::{render, rule_text};
