//! From an answer to facts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::counters::Full;
use super::room::count;
use super::selectors::Selected;
use super::store::{Kept, News};
use super::{Family, Learner, Lesson, SECOND, SharedAddress};
use crate::answer::Answer;
use crate::change::Nanos;
use crate::journal::Fact;
use crate::judge::{Refusal, Ruling, judge};
use crate::name::Name;
use crate::records::kind;

/// Names whose refusals are counted one by one.
const REFUSED_NAMES: usize = 1_024;
/// Shared addresses that are remembered.
const SHARED: usize = 256;

/// Who gets the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Client,
    Refresh,
}

/// What a name of the chain is to learn.
struct Wanted<'a> {
    hop: usize,
    name: &'a Name,
    selectors: Vec<Selected>,
}

impl Learner {
    pub(super) fn teach(&mut self, answer: &Answer, asker: Asker) -> Lesson {
        let wanted: Vec<Wanted<'_>> = answer
            .chain
            .iter()
            .enumerate()
            .map(|(hop, link)| Wanted { hop, name: &link.name, selectors: self.selectors_of(&link.name) })
            .filter(|wanted| !wanted.selectors.is_empty())
            .collect();
        let mut lesson = Lesson::default();
        if wanted.is_empty() {
            self.note_shared(answer);
            return lesson;
        }
        self.counters.lessons += 1;
        let cap = wanted
            .iter()
            .map(|wanted| self.ttl_cap(&wanted.selectors))
            .min()
            .unwrap_or(self.table.dns.ttl_max);
        let rulings: BTreeMap<IpAddr, Result<Ruling, Refusal>> = answer
            .addresses
            .iter()
            .map(|address| (address.address, judge(address.address, &self.table)))
            .collect();
        for wanted in &wanted {
            let addresses = self.learnable(answer, wanted, &rulings, &mut lesson);
            if addresses.is_empty() {
                continue;
            }
            match self.teach_name(wanted, &addresses, cap, asker, &mut lesson) {
                Ok(()) => lesson.opens = true,
                Err(full) => lesson.hold = Some(full),
            }
            self.note_answer(wanted.name, answer.kind, &addresses, cap);
        }
        if let Some(full) = lesson.hold {
            count(&mut self.counters.held, full);
        } else if lesson.opens {
            lesson.ttl_max = Some(cap);
            self.counters.shortened += u64::from(cap < self.table.dns.ttl_max);
        }
        lesson
    }

    fn selectors_of(&self, name: &Name) -> Vec<Selected> {
        let known = self.store.by_name.get(name).and_then(|id| self.store.get(*id));
        known.map_or_else(|| self.selectors.select(name), |record| record.selectors.clone())
    }

    /// Addresses a name may learn, with their TTL and whether only its exact selectors may open them.
    fn learnable(
        &mut self,
        answer: &Answer,
        wanted: &Wanted<'_>,
        rulings: &BTreeMap<IpAddr, Result<Ruling, Refusal>>,
        lesson: &mut Lesson,
    ) -> BTreeMap<IpAddr, (u32, bool)> {
        let is_exact = wanted.selectors.iter().any(|selected| selected.exact);
        let mut addresses: BTreeMap<IpAddr, (u32, bool)> = BTreeMap::new();
        for address in &answer.addresses {
            let Some(ttl) = answer.ttl_from(wanted.hop, address) else { continue };
            let ruling = match rulings.get(&address.address) {
                Some(Ok(Ruling::Exact)) if !is_exact => Err(Refusal::Private),
                Some(ruling) => *ruling,
                None => continue,
            };
            match ruling {
                Ok(ruling) => {
                    let known = addresses.entry(address.address).or_insert((ttl, ruling == Ruling::Exact));
                    known.0 = known.0.max(ttl);
                }
                Err(refusal) => self.refuse(wanted.name, refusal, lesson),
            }
        }
        addresses
    }

    fn refuse(&mut self, name: &Name, refusal: Refusal, lesson: &mut Lesson) {
        *lesson.refused.entry(refusal).or_default() += 1;
        count(&mut self.counters.refused, refusal);
        let names = &mut self.counters.refused_names;
        if names.len() < REFUSED_NAMES || names.contains_key(name) {
            count(names, name.clone());
        }
    }

    fn teach_name(
        &mut self,
        wanted: &Wanted<'_>,
        addresses: &BTreeMap<IpAddr, (u32, bool)>,
        cap: u32,
        asker: Asker,
        lesson: &mut Lesson,
    ) -> Result<(), Full> {
        let id = match self.store.by_name.get(wanted.name).copied() {
            Some(id) => id,
            None => {
                self.room_for_name(&wanted.selectors)?;
                self.store.add_name(wanted.name.clone(), wanted.selectors.clone(), self.now)
            }
        };
        if let Some(record) = self.store.get_mut(id).filter(|_| asker == Asker::Client) {
            record.asked = self.now;
        }
        let mut result = Ok(());
        for (address, (ttl, exact_only)) in addresses {
            if self.store.kept(id, *address).is_none() {
                result = result.and(self.room_for_fact(id, *address));
                if result.is_err() {
                    break;
                }
            }
            let handed = self.handed(*ttl, cap);
            let until = whole_seconds(handed.saturating_add(seconds(self.table.dns.grace)));
            let kept = Kept::new(handed, until, *exact_only);
            match self.store.put_fact(id, *address, kept, self.now) {
                News::New => self.counters.learned += 1,
                News::Longer => self.counters.renewed += 1,
                News::Known => continue,
            }
            let kept = self.store.kept(id, *address).unwrap_or(kept);
            let fact = self.store.get(id).map(|record| record.fact(*address, &kept));
            lesson.facts.extend(fact);
        }
        // The bound of addresses may have kept it from having any.
        if self.store.get(id).is_some_and(|record| record.facts.is_empty()) {
            self.store.remove_name(id);
        }
        // An address may need up to a class for each of its steps.
        if result.is_ok() && self.data_path.room() < addresses.len().saturating_mul(fw_bpf_common::STEPS) {
            return Err(Full::Classes);
        }
        result
    }

    /// Until when a client may hold an answer. A shorter TTL counts as `ttlMin`, also 0: it is used once at least.
    fn handed(&self, ttl: u32, cap: u32) -> Nanos {
        self.now.saturating_add(seconds(ttl.min(cap).max(self.table.dns.ttl_min)))
    }

    /// Remembers when the answer is to be refreshed.
    fn note_answer(&mut self, name: &Name, kind: u16, addresses: &BTreeMap<IpAddr, (u32, bool)>, cap: u32) {
        let family = match kind {
            kind::A => Family::V4,
            kind::AAAA => Family::V6,
            _ => return,
        };
        let least = addresses.values().map(|(ttl, _)| *ttl).min().unwrap_or(0);
        let end = self.handed(least, cap);
        if let Some(id) = self.store.by_name.get(name).copied() {
            self.answered(id, family, end);
        }
    }

    fn note_shared(&mut self, answer: &Answer) {
        for address in &answer.addresses {
            let Some(record) = self.store.addresses.get(&address.address) else { continue };
            let Some(name) = record.names.first().and_then(|id| self.store.get(*id)) else { continue };
            self.counters.shared += 1;
            let shared = SharedAddress {
                address: address.address,
                allowed: name.name.clone(),
                other: answer.question().clone(),
            };
            if self.shared.contains(&shared) {
                continue;
            }
            if self.shared.len() >= SHARED {
                self.shared.pop_front();
            }
            self.shared.push_back(shared);
        }
    }

    /// Takes what a journal has kept. It may not push out anything: it is no news.
    pub(super) fn take_fact(&mut self, fact: &Fact) -> bool {
        let selectors = self.selectors_of(&fact.name);
        let Ok(ruling) = judge(fact.address, &self.table) else { return false };
        let is_exact = selectors.iter().any(|selected| selected.exact);
        if selectors.is_empty() || fact.until <= self.now || (ruling == Ruling::Exact && !is_exact) {
            return false;
        }
        let dns = &self.table.dns;
        let longest = self.now.saturating_add(seconds(dns.ttl_max.max(dns.ttl_min)));
        let handed = fact.handed.min(longest);
        let until = whole_seconds(fact.until.min(longest.saturating_add(seconds(dns.grace))));
        let known = self.store.by_name.get(&fact.name).copied();
        if known.is_none() && self.room_for_name(&selectors).is_err() {
            return false;
        }
        let asked = fact.asked.min(self.now);
        let id = known.unwrap_or_else(|| self.store.add_name(fact.name.clone(), selectors, asked));
        let has_room =
            self.store.kept(id, fact.address).is_some() || self.room_for_fact(id, fact.address).is_ok();
        if has_room {
            let kept = Kept::new(handed, until, ruling == Ruling::Exact);
            self.store.put_fact(id, fact.address, kept, self.now);
            if let Some(record) = self.store.get_mut(id) {
                record.asked = record.asked.max(asked);
            }
            let family = if fact.address.is_ipv4() { Family::V4 } else { Family::V6 };
            self.answered(id, family, handed);
        } else if self.store.get(id).is_some_and(|record| record.facts.is_empty()) {
            self.store.remove_name(id);
        }
        has_room
    }
}

/// The next full second: ends that are alike are the same, and an allow never ends early for it.
pub(super) fn whole_seconds(time: Nanos) -> Nanos {
    time.div_ceil(SECOND).saturating_mul(SECOND)
}

pub(super) fn seconds(count: u32) -> Nanos {
    Nanos::from(count).saturating_mul(SECOND)
}
