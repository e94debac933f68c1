//! Runs the ruleset on a packet: side two of the oracle.

use fw_policy::Packet;

use crate::ir::Ruleset;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Evaluation {
    /// True when no base chain of the forward hook dropped it.
    pub accepted: bool,
    /// Comment of the rule that gave the verdict; `None` when the chain's policy did.
    pub comment: Option<String>,
    /// Chain and position of every rule with a counter (anonymous or named) that counted it, in order.
    pub counted: Vec<(String, usize)>,
}

/// Runs the forward hook on a packet. Buckets are never empty, dynamic sets never full.
pub fn evaluate(ruleset: &Ruleset, packet: &Packet) -> Evaluation {
    let _ = (ruleset, packet);
    Evaluation::default()
}
