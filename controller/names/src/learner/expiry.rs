//! What happens as time goes by: ends, extensions, rewrites, refreshes.

use std::net::IpAddr;

use super::lesson::whole_seconds;
use super::store::{AHEAD, NameId};
use super::{Family, Learner, SECOND};
use crate::change::Nanos;
use crate::journal::Fact;
use crate::name::Name;

/// Facts that one call looks at, so that no answer waits for it: some milliseconds.
pub(super) const BATCH: usize = 4_096;
/// By so much an address in use is extended.
const STEP: Nanos = 30 * SECOND;
/// So long before its TTL is over an answer is refreshed.
const REFRESH_AHEAD: Nanos = 2 * SECOND;
/// A refresh that brought nothing is tried again after this.
const RETRY: Nanos = 5 * SECOND;
/// A name that a client asked for within this is refreshed though no policy spells it out.
const LATELY: Nanos = 30 * SECOND;
/// Questions of one call, and the time to the next one after so many.
const QUESTIONS: usize = 32;
const PAUSE: Nanos = SECOND / 10;

impl Learner {
    /// Looks at the facts whose time has come, at most `limit`; returns those that were extended.
    pub(super) fn check_facts(&mut self, limit: usize) -> Vec<Fact> {
        let mut extended = Vec::new();
        for _ in 0..limit {
            let Some((at, id, address)) = self.store.checks.first().copied() else { break };
            if at > self.now {
                break;
            }
            extended.extend(self.check_fact(id, address));
        }
        extended
    }

    fn check_fact(&mut self, id: NameId, address: IpAddr) -> Option<Fact> {
        let kept = self.store.kept(id, address)?;
        let is_near = kept.until <= self.now.saturating_add(AHEAD);
        let mut fact = None;
        if is_near && self.in_use.contains(&address) {
            let mut longer = kept;
            longer.until = whole_seconds(self.now.saturating_add(STEP));
            self.store.put_fact(id, address, longer, self.now);
            self.counters.extended += 1;
            fact = self.store.get(id).map(|record| record.fact(address, &longer));
        } else if kept.until <= self.now {
            self.store.remove_fact(id, address);
            self.counters.expired += 1;
            return None;
        }
        self.store.check_again(id, address, self.now);
        fact
    }

    /// Addresses with more ends than steps, when the first step is over.
    pub(super) fn check_rewrites(&mut self) {
        while let Some((at, address)) = self.store.rewrites.first().copied().filter(|(at, _)| *at <= self.now)
        {
            self.store.rewrites.remove(&(at, address));
            if let Some(record) = self.store.addresses.get_mut(&address) {
                record.rewrite = None;
            }
            self.store.touched.insert(address);
        }
    }

    /// A name has an answer until `end`.
    pub(super) fn answered(&mut self, id: NameId, family: Family, end: Nanos) {
        // Not before a second is over, however short the TTL.
        let stale = end.saturating_sub(REFRESH_AHEAD).max(self.now.saturating_add(SECOND));
        if let Some(record) = self.store.get_mut(id) {
            record.stale[family as usize] = Some(stale);
        }
        self.queue_refresh(id);
    }

    /// The queue's key is never later than what is due; it may be earlier.
    fn queue_refresh(&mut self, id: NameId) {
        let Some(record) = self.store.get_mut(id) else { return };
        let due = record.stale.iter().flatten().min().copied();
        let Some(due) = due.filter(|due| record.refresh.is_none_or(|queued| *due < queued)) else { return };
        if let Some(queued) = record.refresh.replace(due) {
            self.store.refresh.remove(&(queued, id));
        }
        self.store.refresh.insert((due, id));
    }

    pub(super) fn questions(&mut self) -> Vec<(Name, Family)> {
        let mut questions = Vec::new();
        if self.now < self.refresh_pause {
            return questions;
        }
        for _ in 0..BATCH {
            if questions.len() >= QUESTIONS {
                self.refresh_pause = self.now.saturating_add(PAUSE);
                break;
            }
            let Some((at, id)) = self.store.refresh.first().copied().filter(|(at, _)| *at <= self.now) else {
                break;
            };
            self.store.refresh.remove(&(at, id));
            self.questions_of(id, &mut questions);
        }
        questions
    }

    fn questions_of(&mut self, id: NameId, questions: &mut Vec<(Name, Family)>) {
        let now = self.now;
        let Some(record) = self.store.get_mut(id) else { return };
        record.refresh = None;
        let (is_exact, selectors) = (record.is_exact(), record.selectors.clone());
        let is_used = now.saturating_sub(record.asked) <= LATELY;
        // Patterns may hold thousands of names; when room is scarce they are not kept alive by ourselves.
        if !is_exact && (!is_used || self.is_tight(&selectors)) {
            return;
        }
        let Some(record) = self.store.get_mut(id) else { return };
        for family in [Family::V4, Family::V6] {
            if let Some(stale) = record.stale[family as usize].as_mut().filter(|stale| **stale <= now) {
                *stale = now.saturating_add(RETRY);
                questions.push((record.name.clone(), family));
            }
        }
        self.queue_refresh(id);
    }
}
