//! Bounds: who has to go so that something new has room, and how long answers may last when there is little of it.
//!
//! A name may go when all TTLs that were handed out for it are over and no live connection uses its addresses. So the
//! grace period goes first. The fuller it is the shorter are the TTLs handed out, so that names may go sooner; what a
//! client was promised is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::counters::{Eviction, Full};
use super::selectors::Selected;
use super::store::{NameId, Store};
use super::{Learner, MAX_ADDRESSES, MAX_FACTS, SECOND};
use crate::change::Nanos;
use crate::layout::SelectorId;

/// How long a name in use is left alone before it is looked at again.
const IN_USE: Nanos = 5 * SECOND;

/// Names that one look moves at most, so that no answer waits for thousands whose time has come together.
const MOVES: usize = 1_024;

/// Facts that are over and that one answer has to clear away at most.
const OVER: usize = 128;

/// Which queue: of all names, or of a pattern.
pub(super) type Of = Option<SelectorId>;

/// Names in the order in which they may go. Keys are set when a name is looked at, not when it is asked for: asking is
/// frequent, looking is not.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    /// May not go before the key.
    later: BTreeSet<(Nanos, NameId)>,
    /// May go; by the last time a client asked.
    idle: BTreeSet<(Nanos, NameId)>,
}

/// A name's place in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    of: Of,
    idle: bool,
    key: Nanos,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.later.len() + self.idle.len()
    }

    fn side(&mut self, idle: bool) -> &mut BTreeSet<(Nanos, NameId)> {
        if idle { &mut self.idle } else { &mut self.later }
    }
}

impl Store {
    fn queue(&mut self, of: Of) -> &mut Queue {
        match of {
            None => &mut self.all,
            Some(selector) => self.patterns.entry(selector).or_default(),
        }
    }

    /// Puts a new name into the queues it counts in.
    pub(super) fn enqueue(&mut self, id: NameId) {
        let Some(record) = self.get(id) else { return };
        let key = record.handed;
        let queues = queues_of(&record.selectors);
        for of in &queues {
            self.queue(*of).later.insert((key, id));
        }
        if let Some(record) = self.get_mut(id) {
            record.places = queues.into_iter().map(|of| Place { of, idle: false, key }).collect();
        }
    }

    /// Takes a name that has left the store out of its queues.
    pub(super) fn dequeue(&mut self, id: NameId, record: &super::store::NameRecord) {
        for Place { of, idle, key } in &record.places {
            let queue = self.queue(*of);
            queue.side(*idle).remove(&(*key, id));
            if let (Some(selector), 0) = (of, queue.len()) {
                self.patterns.remove(selector);
            }
        }
    }

    fn place(&mut self, of: Of, id: NameId, idle: bool, key: Nanos) {
        let place = self.get_mut(id).and_then(|record| record.places.iter_mut().find(|place| place.of == of));
        let Some(place) = place else { return };
        let old = std::mem::replace(place, Place { of, idle, key });
        let queue = self.queue(of);
        queue.side(old.idle).remove(&(old.key, id));
        queue.side(idle).insert((key, id));
    }

    /// Where a name belongs now.
    fn settled(&self, id: NameId, now: Nanos, in_use: &BTreeSet<IpAddr>) -> (bool, Nanos) {
        let Some(record) = self.get(id) else { return (true, 0) };
        if record.handed > now {
            return (false, record.handed);
        }
        if record.facts.iter().any(|(address, _)| in_use.contains(address)) {
            return (false, now + IN_USE);
        }
        (true, record.asked)
    }

    /// Moves names whose time has come among those that may go. False when some are left for the next time.
    fn settle(&mut self, of: Of, now: Nanos, in_use: &BTreeSet<IpAddr>) -> bool {
        for _ in 0..MOVES {
            let first = self.queue(of).later.first().copied();
            let Some((_, id)) = first.filter(|(key, _)| *key <= now) else { return true };
            let (idle, key) = self.settled(id, now, in_use);
            self.place(of, id, idle, key);
        }
        false
    }

    /// The name that may go and was asked for least recently, of those that were looked at.
    fn next_to_go(&mut self, of: Of, now: Nanos, in_use: &BTreeSet<IpAddr>) -> Option<NameId> {
        let mut is_settled = self.settle(of, now, in_use);
        loop {
            let Some((found, id)) = self.queue(of).idle.first().copied() else {
                if is_settled {
                    return None;
                }
                is_settled = self.settle(of, now, in_use);
                continue;
            };
            let (idle, key) = self.settled(id, now, in_use);
            if idle && key == found {
                return Some(id);
            }
            self.place(of, id, idle, key);
        }
    }
}

/// All names count in one queue; those that only patterns want also in the queues of these.
fn queues_of(selectors: &[Selected]) -> Vec<Of> {
    let exact = selectors.iter().any(|selected| selected.exact);
    let patterns = selectors.iter().filter(|_| !exact).map(|selected| Some(selected.id));
    std::iter::once(None).chain(patterns).collect()
}

impl Learner {
    /// Makes room for one more name.
    pub(super) fn room_for_name(&mut self, selectors: &[Selected]) -> Result<(), Full> {
        for of in queues_of(selectors) {
            let (bound, eviction, full) = match of {
                None => (self.table.dns.max_names, Eviction::Name, Full::Names),
                Some(_) => (self.table.dns.max_names_per_pattern, Eviction::Pattern, Full::Pattern),
            };
            let bound = usize::try_from(bound).unwrap_or(usize::MAX);
            if bound == 0 {
                return Err(full);
            }
            while self.store.queue(of).len() >= bound {
                self.evict_name(of, eviction).ok_or(full)?;
            }
        }
        Ok(())
    }

    /// Makes room for one more address of a name. The name itself may lose others, but does not go.
    pub(super) fn room_for_fact(&mut self, id: NameId, address: IpAddr) -> Result<(), Full> {
        let bound = usize::try_from(self.table.dns.max_addresses_per_name).unwrap_or(usize::MAX);
        if self.store.get(id).is_some_and(|record| record.facts.len() >= bound) {
            self.evict_address(id, bound)?;
        }
        let is_new = !self.store.addresses.contains_key(&address);
        while self.store.facts >= MAX_FACTS || (is_new && self.store.addresses.len() >= MAX_ADDRESSES) {
            let next = self.store.next_to_go(None, self.now, &self.in_use).filter(|next| *next != id);
            self.store.remove_name(next.ok_or(Full::Total)?);
            count(&mut self.counters.evicted, Eviction::Total);
        }
        Ok(())
    }

    fn evict_name(&mut self, of: Of, eviction: Eviction) -> Option<()> {
        // What is over goes first, and is no eviction.
        if self.store.checks.first().is_some_and(|(at, ..)| *at <= self.now) {
            let before = self.store.queue(of).len();
            self.check_facts(OVER);
            if self.store.queue(of).len() < before {
                return Some(());
            }
        }
        let id = self.store.next_to_go(of, self.now, &self.in_use)?;
        self.store.remove_name(id);
        count(&mut self.counters.evicted, eviction);
        Some(())
    }

    /// Forgets the address of a name whose handed-out TTL ended first.
    fn evict_address(&mut self, id: NameId, bound: usize) -> Result<(), Full> {
        let Some(record) = self.store.get(id) else { return Ok(()) };
        let surplus = (record.facts.len() + 1).saturating_sub(bound);
        let may_go = record
            .facts
            .iter()
            .filter(|(address, kept)| kept.handed <= self.now && !self.in_use.contains(address));
        let mut may_go: Vec<(Nanos, IpAddr)> =
            may_go.map(|(address, kept)| (kept.handed, *address)).collect();
        if may_go.len() < surplus {
            return Err(Full::Addresses);
        }
        may_go.sort_unstable();
        for (_, address) in may_go.into_iter().take(surplus) {
            self.store.drop_fact(id, address);
            count(&mut self.counters.evicted, Eviction::Address);
        }
        Ok(())
    }

    /// Seconds that an answer for a name with these selectors may be kept by its client.
    ///
    /// The whole `ttlMax` while at most a quarter of the names are inside a TTL; from half of them on `ttlMin`, which
    /// leaves half of the room to names that come and go every few seconds; halvings in between.
    pub(super) fn ttl_cap(&mut self, selectors: &[Selected]) -> u32 {
        let (min, max) = (self.table.dns.ttl_min, self.table.dns.ttl_max.max(self.table.dns.ttl_min));
        let steps = (max / min.max(1)).max(1).ilog2() + 1;
        let mut shift = 0;
        for of in queues_of(selectors) {
            let bound = match of {
                None => self.table.dns.max_names,
                Some(_) => self.table.dns.max_names_per_pattern,
            };
            shift = shift.max(self.shift(of, u64::from(bound), u64::from(steps)));
        }
        shift =
            shift.max(steps_of(self.store.addresses.len() as u64, MAX_ADDRESSES as u64, u64::from(steps)));
        shift = shift.max(steps_of(self.store.facts as u64, MAX_FACTS as u64, u64::from(steps)));
        let shift = u32::try_from(shift).unwrap_or(u32::MAX);
        max.checked_shr(shift).unwrap_or(0).max(min)
    }

    fn shift(&mut self, of: Of, bound: u64, steps: u64) -> u64 {
        if steps_of(self.store.queue(of).len() as u64, bound, steps) == 0 {
            return 0;
        }
        self.store.settle(of, self.now, &self.in_use);
        steps_of(self.store.queue(of).later.len() as u64, bound, steps)
    }

    /// Names of the pattern that has most.
    pub(super) fn fullest_pattern(&self) -> usize {
        self.store.patterns.values().map(Queue::len).max().unwrap_or(0)
    }

    /// True when a bound shortens the TTLs of such a name.
    pub(super) fn is_tight(&mut self, selectors: &[Selected]) -> bool {
        self.ttl_cap(selectors) < self.table.dns.ttl_max
    }
}

/// How many of `steps` halvings: none up to a quarter of the bound, all from half of it.
fn steps_of(size: u64, bound: u64, steps: u64) -> u64 {
    let quarter = bound / 4;
    (size.saturating_sub(quarter) * steps).div_ceil(quarter.max(1)).min(steps)
}

/// Counts by reason.
pub(super) fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
    *counts.entry(key).or_default() += 1;
}
