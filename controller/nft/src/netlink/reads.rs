//! What our table holds.
//!
//! Nobody else changes a table that our socket owns: its lists of rules, sets and elements stay as they are whatever
//! commits come in between, so one dump of each is exact. Chains and objects are counted over all tables of the family,
//! and hashes over what grows or expires: those are read again until nothing is missing. A table without an owner is
//! read as a whole between commits ([`fw_netlink::nft::steady`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fw_netlink::attr::{DecodeError, Writer};
use fw_netlink::message::{Head, Message, flag, subsystem};
use fw_netlink::nft::steady::{self, RuleOrder};
use fw_netlink::nft::{
    Chain, Element, INET, NamedCounter, Rule, RuleTally, RuleView, Set, UdpTimeout, decode_elements,
    elements_request, message, udata,
};
use fw_netlink::socket::{Answered, SocketError};
use fw_ruleset::ir::{CtTimeout, TABLE};
use fw_ruleset::{Count, Counts};

use super::{NetlinkKernel, count};
use crate::kernel::Foreign;
use crate::observe::{Observed, ObservedChain, ObservedRule, ObservedSet, add};

/// How often what the table is made of is listed before less than the kernel counts is taken for all: sets without a
/// name that went with their rule stay counted (nf_tables_unbind_set).
const LISTINGS: u32 = 8;
/// How often something of several parts is read until two in a row are equal.
const REPEATS: u32 = 16;
/// An element this close to its end may be in one list and not in the next.
const EXPIRY_GRAIN: Duration = Duration::from_millis(50);

/// What names an element within its set.
type ElementKey = (Option<Vec<u8>>, Option<Vec<u8>>, bool);

/// Chains, sets and objects of our table; of objects those kinds that we use.
#[derive(Default)]
struct Listing {
    chains: BTreeMap<String, ObservedChain>,
    /// Also those without a name of their own.
    sets: BTreeMap<String, Set>,
    counters: BTreeMap<String, Count>,
    timeouts: BTreeMap<String, CtTimeout>,
}

impl Listing {
    fn len(&self) -> usize {
        self.chains.len() + self.sets.len() + self.counters.len() + self.timeouts.len()
    }
}

impl NetlinkKernel {
    /// Dumps something of our table and gives in how many parts it came. A commit in between is an error unless the table
    /// is ours alone.
    pub(super) fn dump(
        &mut self,
        message: u8,
        fill: impl FnOnce(&mut Writer<'_>),
        take: impl FnMut(&Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<u32, SocketError> {
        let head = Head {
            subsystem: subsystem::NFTABLES,
            message,
            flags: flag::DUMP,
            family: INET,
            ..Head::default()
        };
        let Answered { torn, parts } = self.socket.request_through(head, fill, take)?;
        if torn && !self.owned { Err(SocketError::Interrupted) } else { Ok(parts) }
    }

    /// A read that nobody's commit came into.
    pub(super) fn between_commits<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, SocketError>,
    ) -> Result<T, SocketError> {
        let Some(before) = steady::settled(&mut self.socket)? else { return Err(SocketError::Interrupted) };
        let value = read(self);
        // What was torn may also look wrong.
        if self.get_generation()? == before { value } else { Err(SocketError::Interrupted) }
    }

    /// A read of our table, which others can change only when we do not own it.
    fn of_one_state<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, SocketError>,
    ) -> Result<T, SocketError> {
        if self.owned { read(self) } else { self.between_commits(read) }
    }

    pub(super) fn read_contents(&mut self) -> Result<Observed, SocketError> {
        self.of_one_state(|kernel| {
            let generation = kernel.get_generation()?;
            let Listing { mut chains, sets, counters, timeouts } = kernel.listing()?;
            kernel.read_rules(&mut chains)?;
            let mut observed_sets = BTreeMap::new();
            for (name, definition) in sets {
                if definition.flags & Set::ANONYMOUS != 0 {
                    continue;
                }
                let elements = match ObservedSet::has_own_life(&definition) {
                    true => Vec::new(),
                    false => kernel.read_elements(&name, definition.flags & Set::INTERVAL == 0)?,
                };
                observed_sets.insert(name, ObservedSet { definition, elements });
            }
            Ok(Observed { generation, owned: kernel.owned, chains, sets: observed_sets, counters, timeouts })
        })
    }

    /// Lists what the table is made of until it is as much as the kernel counts.
    fn listing(&mut self) -> Result<Listing, SocketError> {
        let mut listing = Listing::default();
        for attempt in 0..LISTINGS {
            std::thread::sleep(Duration::from_millis(attempt.into()));
            let uses = self.find_table()?.map_or(0, |table| table.uses);
            self.list_chains(&mut listing.chains)?;
            self.list_sets(&mut listing.sets)?;
            self.list_counters(&mut listing.counters)?;
            self.list_timeouts(&mut listing.timeouts)?;
            if listing.len() == usize::try_from(uses).unwrap_or(usize::MAX) {
                break;
            }
        }
        Ok(listing)
    }

    fn list_chains(&mut self, chains: &mut BTreeMap<String, ObservedChain>) -> Result<u32, SocketError> {
        self.dump(
            message::GET_CHAIN,
            |w| Chain::select(w, TABLE),
            |answer| {
                let chain = Chain::decode(answer.attrs())?;
                if chain.table == TABLE {
                    chains.insert(chain.name, ObservedChain { base: chain.base, rules: Vec::new() });
                }
                Ok(())
            },
        )
    }

    fn list_sets(&mut self, sets: &mut BTreeMap<String, Set>) -> Result<u32, SocketError> {
        self.dump(
            message::GET_SET,
            |w| Set::select(w, TABLE),
            |answer| {
                let definition = Set::decode(answer.attrs())?;
                if definition.table == TABLE {
                    sets.insert(definition.name.clone(), definition);
                }
                Ok(())
            },
        )
    }

    fn list_counters(&mut self, counters: &mut BTreeMap<String, Count>) -> Result<u32, SocketError> {
        self.dump(
            message::GET_OBJECT,
            |w| NamedCounter::select(w, TABLE),
            |answer| {
                if let Some(object) = NamedCounter::decode(answer.attrs())?
                    && object.table == TABLE
                {
                    counters.insert(object.name, count(object.counter));
                }
                Ok(())
            },
        )
    }

    fn list_timeouts(&mut self, timeouts: &mut BTreeMap<String, CtTimeout>) -> Result<u32, SocketError> {
        self.dump(
            message::GET_OBJECT,
            |w| UdpTimeout::select(w, TABLE),
            |answer| {
                if let Some(object) = UdpTimeout::decode(answer.attrs())?
                    && object.table == TABLE
                {
                    // One that is not of our making equals none that we would want.
                    let same = object.unreplied == object.replied && object.family == Some(u16::from(INET));
                    let seconds = if same { object.replied } else { 0 };
                    timeouts.insert(object.name, CtTimeout { seconds });
                }
                Ok(())
            },
        )
    }

    /// Only what is asked for takes room in a dump. So all of one part were counted in one go; of more parts others'
    /// objects may be counted wrongly, but not twice in the same way.
    fn named_counters(&mut self) -> Result<BTreeMap<String, Count>, SocketError> {
        let mut counters = BTreeMap::new();
        if self.list_counters(&mut counters)? <= 1 {
            return Ok(counters);
        }
        for _ in 0..REPEATS {
            let mut again = BTreeMap::new();
            self.list_counters(&mut again)?;
            let is_same = again.keys().eq(counters.keys());
            counters = again;
            if is_same {
                return Ok(counters);
            }
        }
        Err(SocketError::Interrupted)
    }

    fn read_rules(&mut self, chains: &mut BTreeMap<String, ObservedChain>) -> Result<(), SocketError> {
        let mut order = RuleOrder::default();
        let mut is_strange = false;
        self.dump(
            message::GET_RULE,
            |w| Rule::select(w, TABLE),
            |answer| {
                let view = RuleView::decode(answer.attrs())?;
                order.follow(view.chain, view.handle, view.position);
                let rule = Rule::decode(answer.attrs())?;
                let comment = udata::find_comment(&rule.userdata);
                match chains.get_mut(&rule.chain) {
                    Some(chain) => chain.rules.push(ObservedRule::new(rule.exprs, comment)),
                    None => is_strange = true,
                }
                Ok(())
            },
        )?;
        if order.is_broken() || is_strange { Err(SocketError::Interrupted) } else { Ok(()) }
    }

    /// Figures of all rules, in order.
    fn tallies(&mut self, mut take: impl FnMut(RuleTally, bool)) -> Result<(), SocketError> {
        let mut order = RuleOrder::default();
        self.dump(
            message::GET_RULE,
            |w| Rule::select(w, TABLE),
            |answer| {
                let tally = RuleTally::decode(answer.attrs())?;
                let begins = order.follow(tally.chain.as_bytes(), tally.handle, tally.position);
                take(tally, begins);
                Ok(())
            },
        )?;
        if order.is_broken() { Err(SocketError::Interrupted) } else { Ok(()) }
    }

    pub(super) fn read_foreign(&mut self) -> Result<Foreign, SocketError> {
        self.of_one_state(|kernel| {
            let mut comments: BTreeMap<String, Count> = BTreeMap::new();
            kernel.tallies(|tally, _| {
                if let (Some(comment), Some(counter)) = (tally.comment, tally.counter) {
                    add(comments.entry(comment).or_default(), count(counter));
                }
            })?;
            Ok(Foreign { named: kernel.named_counters()?, comments })
        })
    }

    pub(super) fn read_counts(&mut self) -> Result<Counts, SocketError> {
        self.of_one_state(|kernel| {
            let mut counts = Counts::default();
            let mut position = 0;
            kernel.tallies(|tally, begins| {
                position = if begins { 0 } else { position + 1 };
                if let Some(counter) = tally.counter {
                    counts.rules.insert((tally.chain, position), count(counter));
                }
            })?;
            counts.named = kernel.named_counters()?;
            Ok(counts)
        })
    }

    /// Elements that come only by commits. `is_hash`: they have no order of their own.
    fn read_elements(&mut self, set: &str, is_hash: bool) -> Result<Vec<Element>, SocketError> {
        let (mut elements, parts) = self.dump_elements(set)?;
        // A tree or a list that is ours alone stays as it is. A hash grows a moment after its elements came.
        if parts <= 1 || (self.owned && !is_hash) {
            return Ok(elements.into_values().collect());
        }
        for _ in 0..REPEATS {
            let (again, _) = self.dump_elements(set)?;
            if again == elements {
                return Ok(again.into_values().collect());
            }
            elements = again;
        }
        Err(SocketError::Interrupted)
    }

    /// Elements that also come and go by time: all that stay are there.
    pub(super) fn read_timed_elements(&mut self, set: &str) -> Result<Vec<Element>, SocketError> {
        let mut asked = Instant::now();
        let (mut elements, parts) = self.dump_elements(set)?;
        if parts <= 1 {
            return Ok(elements.into_values().collect());
        }
        for _ in 0..REPEATS {
            let again_asked = Instant::now();
            let (again, _) = self.dump_elements(set)?;
            let passed = asked.elapsed() + EXPIRY_GRAIN;
            let ends = |element: &Element| {
                element.expiration_ms.is_some_and(|left| Duration::from_millis(left) <= passed)
            };
            let stays = elements.iter().all(|(key, element)| again.contains_key(key) || ends(element));
            let is_new = again.keys().any(|key| !elements.contains_key(key));
            (elements, asked) = (again, again_asked);
            if stays && !is_new {
                return Ok(elements.into_values().collect());
            }
        }
        Err(SocketError::Interrupted)
    }

    /// One dump by key, since a walk over a hash that grows or shrinks meanwhile meets some twice (nft_rhash_walk); and in
    /// how many parts it came.
    fn dump_elements(&mut self, set: &str) -> Result<(BTreeMap<ElementKey, Element>, u32), SocketError> {
        let mut elements = BTreeMap::new();
        let parts = self.dump(
            message::GET_ELEMENTS,
            |w| elements_request(w, TABLE, set),
            |answer| {
                let (_, _, list) = decode_elements(answer.attrs())?;
                elements.extend(list.into_iter().map(|element| (key_of(&element), element)));
                Ok(())
            },
        )?;
        Ok((elements, parts))
    }
}

fn key_of(element: &Element) -> ElementKey {
    (element.key.clone(), element.key_end.clone(), element.interval_end)
}
