//! Reads of one state of a ruleset that others change.
//!
//! A dump goes on in its next part by counting objects of the kernel's lists from the first (nf_tables_dump_rules and its
//! like; sets by nft_rhash_walk and its like). Counted are those too that a transaction under way has put there
//! and nobody sees yet; so what was read may come again, and once the transaction is given up, as much is skipped. Only
//! commits raise the generation and set NLM_F_DUMP_INTR, and they do so a moment before the lists change
//! (nf_tables_commit). So a state is what lies between two equal generations of which the first was [`settled`], and
//! within it the rules of a dump are checked by what each says of the one before it: [`RuleOrder`].

use std::collections::BTreeSet;

use super::{Generation, message};
use crate::message::{Head, Message, subsystem};
use crate::socket::{Socket, SocketError};

/// The generation of the ruleset of the socket's network namespace.
pub fn generation(socket: &mut Socket) -> Result<u32, SocketError> {
    let head = Head { subsystem: subsystem::NFTABLES, message: message::GET_GENERATION, ..Head::default() };
    let mut id = 0;
    let take = |message: &Message<'_>| {
        id = Generation::decode(message.attrs())?.id;
        Ok(())
    };
    socket.ask(head, |_| {}, take)?;
    Ok(id)
}

/// The generation, when no commit is under way; `None` when one was.
///
/// A commit raises the generation's number first and shows its rules a moment later (nf_tables_commit). A dump that begins
/// between the two has the new number and changes under it, and nothing in it tells: rules came twice. A transaction waits
/// for the one before it to end, and an empty one changes nothing.
pub fn settled(socket: &mut Socket) -> Result<Option<u32>, SocketError> {
    let before = generation(socket)?;
    socket.empty_transaction(subsystem::NFTABLES)?;
    Ok((generation(socket)? == before).then_some(before))
}

/// Whether the rules of a dump, of one table or one chain, came one after the other.
#[derive(Clone, Debug, Default)]
pub struct RuleOrder {
    chain: Vec<u8>,
    /// Chains that came before.
    ended: BTreeSet<Vec<u8>>,
    last: Option<u64>,
    broken: bool,
}

impl RuleOrder {
    /// The next rule; `position` is the handle of the one before it in its chain (NFTA_RULE_POSITION). True when it is the
    /// first of its chain.
    pub fn follow(&mut self, chain: &[u8], handle: u64, position: Option<u64>) -> bool {
        let begins = self.last.is_none() || self.chain != chain;
        if begins {
            if self.last.is_some() {
                self.ended.insert(std::mem::take(&mut self.chain));
            }
            self.chain = chain.to_vec();
            self.broken |= position.is_some() || self.ended.contains(chain);
        } else {
            self.broken |= position != self.last;
        }
        self.last = Some(handle);
        begins
    }

    /// True when rules came twice or were skipped.
    pub fn is_broken(&self) -> bool {
        self.broken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rules of chains as a dump has them: chain, handle, handle before.
    fn dump(lengths: &[u8]) -> Vec<(Vec<u8>, u64, Option<u64>)> {
        let mut rules = Vec::new();
        for (chain, length) in (0_u8..).zip(lengths) {
            let mut before = None;
            for _ in 0..*length {
                let handle = u64::try_from(rules.len()).unwrap() + 7;
                rules.push((vec![chain], handle, before));
                before = Some(handle);
            }
        }
        rules
    }

    fn is_broken(rules: &[(Vec<u8>, u64, Option<u64>)]) -> bool {
        let mut order = RuleOrder::default();
        for (chain, handle, position) in rules {
            order.follow(chain, *handle, *position);
        }
        order.is_broken()
    }

    proptest! {
        #[test]
        fn a_dump_that_repeats_or_skips_rules_is_noticed_unless_whole_ends_of_chains_are_missing(
            lengths in prop::collection::vec(1_u8..5, 1..6), part in 0_usize..30, shift in 1_usize..5,
        ) {
            let rules = dump(&lengths);
            prop_assert!(!is_broken(&rules));
            let part = part % rules.len();
            let (read, rest) = rules.split_at(part);
            let again = part.saturating_sub(shift);
            prop_assert!(again == part || is_broken(&[read, &rules[again..]].concat()), "repeated");
            let left = &rest[shift.min(rest.len())..];
            let begins_chain = left.first().is_none_or(|rule| rule.2.is_none());
            prop_assert_eq!(is_broken(&[read, left].concat()), !begins_chain, "skipped");
        }
    }
}
