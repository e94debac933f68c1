//! Names, their addresses, and what follows from them for each address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::room::{Place, Queue};
use super::selectors::Selected;
use crate::change::Nanos;
use crate::journal::Fact;
use crate::layout::SelectorId;
use crate::name::Name;

pub(super) type NameId = u32;

/// So long before its end an address is looked at: is it in use?
pub(super) const AHEAD: Nanos = 5_000_000_000;
/// And so long before its end once more: somebody may have connected since, or it never had [`AHEAD`] left.
const SHORTLY: Nanos = 500_000_000;

/// A name that selectors match and that has addresses.
#[derive(Clone, Debug)]
pub(super) struct NameRecord {
    pub(super) name: Name,
    /// Sorted, never empty.
    pub(super) selectors: Vec<Selected>,
    /// Sorted by address.
    pub(super) facts: Vec<(IpAddr, Kept)>,
    /// When a client last asked.
    pub(super) asked: Nanos,
    /// When the last of all TTLs that were handed out is over.
    pub(super) handed: Nanos,
    /// When the latest answers for A and AAAA are to be refreshed; `None` without any.
    pub(super) stale: [Option<Nanos>; 2],
    /// Its key in [`Store::refresh`].
    pub(super) refresh: Option<Nanos>,
    /// Where it stands in the queues of those that may have to go.
    pub(super) places: Vec<Place>,
}

/// An address of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// When the last TTL that was handed out for it is over.
    pub(super) handed: Nanos,
    /// When it is forgotten, in whole seconds.
    pub(super) until: Nanos,
    /// Only exact selectors may open it.
    pub(super) exact_only: bool,
    /// Its key in [`Store::checks`].
    check: Nanos,
}

impl Kept {
    pub(super) fn new(handed: Nanos, until: Nanos, exact_only: bool) -> Self {
        Self { handed, until, exact_only, check: 0 }
    }

    fn applies(&self, selected: &Selected) -> bool {
        selected.exact || !self.exact_only
    }
}

/// An address of names.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressRecord {
    /// Sorted.
    pub(super) names: Vec<NameId>,
    /// Sorted by selector.
    pub(super) tops: Vec<(SelectorId, Top)>,
    /// Its key in the list of addresses to be written anew.
    pub(super) rewrite: Option<Nanos>,
}

/// Until when a selector opens an address: the latest of its names, and how many of them have that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Top {
    pub(super) until: Nanos,
    count: u32,
}

/// What a fact was to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    New,
    Longer,
    Known,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    names: Vec<Option<NameRecord>>,
    vacant: BTreeSet<NameId>,
    pub(super) by_name: BTreeMap<Name, NameId>,
    pub(super) addresses: BTreeMap<IpAddr, AddressRecord>,
    /// When to look at which fact: [`AHEAD`] of its end, [`SHORTLY`] before it, then at its end; or earlier, if it was
    /// renewed since.
    pub(super) checks: BTreeSet<(Nanos, NameId, IpAddr)>,
    pub(super) refresh: BTreeSet<(Nanos, NameId)>,
    /// Addresses with more ends than an allow has steps, and when their first step is over.
    pub(super) rewrites: BTreeSet<(Nanos, IpAddr)>,
    pub(super) all: Queue,
    /// By pattern or expression; names that an exact selector wants are not counted there.
    pub(super) patterns: BTreeMap<SelectorId, Queue>,
    /// Addresses whose allow may differ from what the data path has.
    pub(super) touched: BTreeSet<IpAddr>,
    pub(super) facts: usize,
}

impl Store {
    pub(super) fn get(&self, id: NameId) -> Option<&NameRecord> {
        self.names.get(usize::try_from(id).ok()?)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: NameId) -> Option<&mut NameRecord> {
        self.names.get_mut(usize::try_from(id).ok()?)?.as_mut()
    }

    pub(super) fn add_name(&mut self, name: Name, selectors: Vec<Selected>, asked: Nanos) -> NameId {
        let id = self.vacant.pop_first().unwrap_or_else(|| {
            self.names.push(None);
            // Bounded by `dns.maxNames`, a u32.
            NameId::try_from(self.names.len() - 1).unwrap_or(NameId::MAX)
        });
        self.by_name.insert(name.clone(), id);
        let record = NameRecord {
            name,
            selectors,
            facts: Vec::new(),
            asked,
            handed: asked,
            stale: [None; 2],
            refresh: None,
            places: Vec::new(),
        };
        if let Some(slot) = usize::try_from(id).ok().and_then(|at| self.names.get_mut(at)) {
            *slot = Some(record);
        }
        self.enqueue(id);
        id
    }

    /// Forgets a name and all it leads to.
    pub(super) fn remove_name(&mut self, id: NameId) -> Option<NameRecord> {
        let record = self.names.get_mut(usize::try_from(id).ok()?)?.take()?;
        for (address, kept) in &record.facts {
            self.unlink(id, &record.selectors, *address, kept);
        }
        self.by_name.remove(&record.name);
        self.vacant.insert(id);
        self.dequeue(id, &record);
        if let Some(at) = record.refresh {
            self.refresh.remove(&(at, id));
        }
        Some(record)
    }

    /// Adds an address to a name, or makes it last longer; never shorter.
    pub(super) fn put_fact(&mut self, id: NameId, address: IpAddr, kept: Kept, now: Nanos) -> News {
        let slot = usize::try_from(id).ok().and_then(|at| self.names.get_mut(at));
        let Some(record) = slot.and_then(Option::as_mut) else { return News::Known };
        record.handed = record.handed.max(kept.handed);
        let at = record.facts.binary_search_by_key(&address, |(address, _)| *address);
        let (old, new) = match at {
            Ok(at) => {
                let (_, known) = &mut record.facts[at];
                known.handed = known.handed.max(kept.handed);
                if kept.until <= known.until {
                    return News::Known;
                }
                let old = *known;
                known.until = kept.until;
                (Some(old), *known)
            }
            Err(at) => {
                let kept = Kept { check: check_time(kept.until, now), ..kept };
                record.facts.insert(at, (address, kept));
                (None, kept)
            }
        };
        let of_address = self.addresses.entry(address).or_default();
        for selected in record.selectors.iter().filter(|selected| new.applies(selected)) {
            of_address.raise(selected.id, old.map(|old| old.until), new.until);
        }
        self.touched.insert(address);
        if old.is_some() {
            return News::Longer;
        }
        self.facts += 1;
        self.checks.insert((new.check, id, address));
        if let Err(at) = of_address.names.binary_search(&id) {
            of_address.names.insert(at, id);
        }
        News::New
    }

    /// Forgets an address of a name, and the name with its last address.
    pub(super) fn remove_fact(&mut self, id: NameId, address: IpAddr) {
        self.drop_fact(id, address);
        if self.get(id).is_some_and(|record| record.facts.is_empty()) {
            self.remove_name(id);
        }
    }

    /// Forgets an address of a name; a name without any is for the caller to remove.
    pub(super) fn drop_fact(&mut self, id: NameId, address: IpAddr) {
        let Some(record) = self.get_mut(id) else { return };
        let Ok(at) = record.facts.binary_search_by_key(&address, |(address, _)| *address) else { return };
        let (_, kept) = record.facts.remove(at);
        let selectors = record.selectors.clone();
        self.unlink(id, &selectors, address, &kept);
    }

    /// The fact is due to be looked at another time.
    pub(super) fn check_again(&mut self, id: NameId, address: IpAddr, now: Nanos) {
        let Some(record) = self.get_mut(id) else { return };
        let Ok(at) = record.facts.binary_search_by_key(&address, |(address, _)| *address) else { return };
        let (_, kept) = &mut record.facts[at];
        let old = std::mem::replace(&mut kept.check, check_time(kept.until, now));
        let new = kept.check;
        self.checks.remove(&(old, id, address));
        self.checks.insert((new, id, address));
    }

    pub(super) fn kept(&self, id: NameId, address: IpAddr) -> Option<Kept> {
        let record = self.get(id)?;
        let at = record.facts.binary_search_by_key(&address, |(address, _)| *address).ok()?;
        record.facts.get(at).map(|(_, kept)| *kept)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (NameId, &NameRecord)> {
        self.by_name.values().filter_map(|id| Some((*id, self.get(*id)?)))
    }

    /// Takes a fact out of everything but its name's record.
    fn unlink(&mut self, id: NameId, selectors: &[Selected], address: IpAddr, kept: &Kept) {
        self.facts -= 1;
        self.checks.remove(&(kept.check, id, address));
        self.touched.insert(address);
        let Some(mut record) = self.addresses.remove(&address) else { return };
        if let Ok(at) = record.names.binary_search(&id) {
            record.names.remove(at);
        }
        for selected in selectors.iter().filter(|selected| kept.applies(selected)) {
            if record.lower(selected.id, kept.until) {
                let top = self.top(&record, address, *selected);
                record.set(selected.id, top);
            }
        }
        if !record.names.is_empty() {
            self.addresses.insert(address, record);
        } else if let Some(at) = record.rewrite {
            self.rewrites.remove(&(at, address));
        }
    }

    /// Looks through all names of an address, which happens when the last one of the latest time goes.
    fn top(&self, record: &AddressRecord, address: IpAddr, selected: Selected) -> Option<Top> {
        let mut top: Option<Top> = None;
        for id in &record.names {
            let Some(name) = self.get(*id) else { continue };
            if name.selectors.binary_search(&selected).is_err() {
                continue;
            }
            let Some(kept) = self.kept(*id, address).filter(|kept| kept.applies(&selected)) else { continue };
            top = Some(match top {
                Some(top) if top.until > kept.until => top,
                Some(top) if top.until == kept.until => Top { count: top.count + 1, ..top },
                _ => Top { until: kept.until, count: 1 },
            });
        }
        top
    }
}

impl AddressRecord {
    /// One of the selector's times goes from `old` (`None`: it is new) up to `new`.
    fn raise(&mut self, selector: SelectorId, old: Option<Nanos>, new: Nanos) {
        match self.tops.binary_search_by_key(&selector, |(id, _)| *id) {
            Err(at) => self.tops.insert(at, (selector, Top { until: new, count: 1 })),
            Ok(at) => {
                let (_, top) = &mut self.tops[at];
                if new > top.until {
                    *top = Top { until: new, count: 1 };
                } else if new == top.until && old != Some(new) {
                    top.count += 1;
                }
            }
        }
    }

    /// One of the selector's times goes. True when it was the last of the latest: the rest must be looked through.
    fn lower(&mut self, selector: SelectorId, until: Nanos) -> bool {
        let Ok(at) = self.tops.binary_search_by_key(&selector, |(id, _)| *id) else { return false };
        let (_, top) = &mut self.tops[at];
        if top.until != until {
            return false;
        }
        top.count -= 1;
        top.count == 0
    }

    fn set(&mut self, selector: SelectorId, top: Option<Top>) {
        let Ok(at) = self.tops.binary_search_by_key(&selector, |(id, _)| *id) else { return };
        match top {
            Some(top) => self.tops[at].1 = top,
            None => drop(self.tops.remove(at)),
        }
    }
}

impl NameRecord {
    pub(super) fn fact(&self, address: IpAddr, kept: &Kept) -> Fact {
        let (name, asked) = (self.name.clone(), self.asked);
        Fact { name, address, asked, handed: kept.handed, until: kept.until }
    }

    pub(super) fn is_exact(&self) -> bool {
        self.selectors.iter().any(|selected| selected.exact)
    }
}

fn check_time(until: Nanos, now: Nanos) -> Nanos {
    let before = [AHEAD, SHORTLY].map(|ahead| until.saturating_sub(ahead));
    before.into_iter().find(|at| *at > now).unwrap_or(until)
}
