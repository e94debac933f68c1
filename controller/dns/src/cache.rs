//! Answers kept for as long as their TTLs say.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::Limits;
use crate::index::Index;
use crate::wire::{Answer, Lifetime};

/// What an entry costs beside its bytes: the slot, the map's entry, two allocations.
const OVERHEAD: usize = 160;

#[derive(Debug)]
struct Slot {
    hash: u64,
    key: Box<[u8]>,
    message: Vec<u8>,
    answer: Answer,
    resolver: Option<SocketAddr>,
    stored: Instant,
    expires: Instant,
    /// Used since the hand last passed.
    used: bool,
}

impl Slot {
    fn cost(&self) -> usize {
        self.key.len() + self.message.len() + OVERHEAD
    }
}

/// Something kept.
#[derive(Debug)]
pub(crate) struct Hit {
    /// With its upstream's TTLs.
    pub(crate) message: Vec<u8>,
    pub(crate) answer: Answer,
    /// Seconds since it was stored.
    pub(crate) age: u32,
}

/// Bounded in entries and bytes. At a bound the clock's hand goes round: what has expired or was not used since its last
/// round goes (the second chance of CLOCK is near enough to least recently used, and costs a hit one store).
#[derive(Debug, Default)]
pub(crate) struct Cache {
    map: Index<usize>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    hand: usize,
    bytes: usize,
}

impl Cache {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The answer to what [`crate::wire::Query::cache_key`] wrote, from the same resolver.
    pub(crate) fn get(
        &mut self,
        (hash, key): (u64, &[u8]),
        resolver: Option<SocketAddr>,
        now: Instant,
    ) -> Option<Hit> {
        let index = self.map.get(hash)?;
        let slot = self.slots.get_mut(index)?.as_mut().filter(|slot| &*slot.key == key)?;
        if now >= slot.expires {
            self.remove(index);
            return None;
        }
        if slot.resolver != resolver {
            return None;
        }
        slot.used = true;
        let age = u32::try_from(now.saturating_duration_since(slot.stored).as_secs()).unwrap_or(u32::MAX);
        Some(Hit { message: slot.message.clone(), answer: slot.answer, age })
    }

    /// Who answered this question last.
    pub(crate) fn resolver(&self, hash: u64, key: &[u8]) -> Option<SocketAddr> {
        let index = self.map.get(hash)?;
        self.slots.get(index)?.as_ref().filter(|slot| &*slot.key == key)?.resolver
    }

    /// What every other call wants beside the key.
    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        self.map.hash(key)
    }

    /// Keeps an answer if it may be kept; says how many others had to go before their time.
    pub(crate) fn put(
        &mut self,
        (hash, key): (u64, Box<[u8]>),
        (message, answer): (&[u8], &Answer),
        resolver: Option<SocketAddr>,
        limits: &Limits,
        now: Instant,
    ) -> usize {
        let seconds = match answer.lifetime {
            Lifetime::None => 0,
            Lifetime::Positive(seconds) => seconds.min(limits.cache_ttl),
            Lifetime::Negative(seconds) => seconds.min(limits.cache_negative_ttl),
        };
        if let Some(index) = self.map.get(hash) {
            self.remove(index);
        }
        // An hour is too long and a century too: Instant is signed 64 bits of seconds inside, so this cannot overflow.
        let expires = now + Duration::from_secs(u64::from(seconds));
        let Some(message) = answer.for_cache(message).filter(|_| seconds > 0) else { return 0 };
        let slot = Slot { hash, key, message, answer: *answer, resolver, stored: now, expires, used: false };
        if slot.cost() > limits.cache_bytes || limits.cache_entries == 0 {
            return 0;
        }
        let evicted = self.make_room(slot.cost(), limits, now);
        self.bytes += slot.cost();
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.map.insert(slot.hash, index);
        self.slots[index] = Some(slot);
        evicted
    }

    /// Lets go of what is over new bounds.
    pub(crate) fn shrink(&mut self, limits: &Limits, now: Instant) -> usize {
        self.make_room(0, limits, now)
    }

    fn make_room(&mut self, cost: usize, limits: &Limits, now: Instant) -> usize {
        let adding = usize::from(cost > 0);
        let mut evicted = 0;
        while self.len() > 0
            && (self.len() + adding > limits.cache_entries || self.bytes + cost > limits.cache_bytes)
        {
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(slot) = self.slots.get_mut(self.hand).and_then(Option::as_mut) else { continue };
            let expired = now >= slot.expires;
            if expired || !std::mem::take(&mut slot.used) {
                evicted += usize::from(!expired);
                self.remove(self.hand);
            }
        }
        evicted
    }

    fn remove(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index).and_then(Option::take) {
            self.bytes -= slot.cost();
            self.map.remove(slot.hash, index);
            self.free.push(index);
        }
    }
}
