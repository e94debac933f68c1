//! PolicySet in, typed nftables ruleset out; evaluator, renderer and planner; pure.
//!
//! [`compile`] turns a [`fw_policy::PolicySet`] into a [`Ruleset`]: a typed, ordered subset of nft. [`render`]
//! prints it as text that `nft -f` takes, [`evaluate`] runs it on a packet (side two of the oracle), [`superset`]
//! says what of it static rules may accept (for the program that drops packets early), and [`plan`] computes the smallest transaction that leads from one ruleset to another.

mod compile;
mod evaluate;
pub mod ir;
mod plan;
mod render;
mod stages;
mod superset;

pub use compile::dns::dns_armed;
pub use compile::fqdn::{FQDN_CELLS, FQDN_LEVELS, FQDN_PORTS, MAX_FQDN_ADDRESSES, MAX_FQDN_CELLS, fqdn_map};
pub use compile::names::name_chain;
pub use compile::{Compiled, DEFAULT_CELL_LIMIT, Names, Problem, Stamp, compile, compile_with};
pub use evaluate::{Dynamic, Evaluation, evaluate, evaluate_with};
pub use ir::Ruleset;
pub use plan::{Count, Counts, Op, Plan, plan};
pub use render::{render, rule_text};
pub use stages::{Live, Reached, Stages};
pub use superset::{MAX_SUPERSET_CELLS, Superset, superset};
