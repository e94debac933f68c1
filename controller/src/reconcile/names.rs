//! Names, as far as the ruleset goes: which index an entry has, and in which order two kernels' worth of state
//! change (semantics.md section 6): what comes is in nftables first, what goes is out of the data path first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fw_names::Table;
use fw_names::indexes::{Indexes, Side};
use fw_netlink::nft::{ElementData, Verdict};
use fw_nft::{ElementChange, Observed, TimedElement, recognise};
use fw_policy::{Firewall, NameEntry, PolicySet, Protocol};
use fw_ruleset::ir::{Family, Key, Set, SetKind, Value};
use fw_ruleset::{FQDN_CELLS, FQDN_PORTS, Names, Op, Plan, Ruleset, Stamp};
use ipnet::IpNet;
use tracing::{error, warn};

use super::held::Held;
use super::{Judged, Reconciler};
use crate::names::clock::monotonic;

/// Between the end of marking and the commit: a packet is judged in the softirq that marks it, within microseconds.
const DRAIN: Duration = Duration::from_millis(20);
/// How long the redirect stays armed after each sign of life of the proxy (semantics.md section 6).
pub const ARMED_MS: u64 = 2000;
/// From this weight on a transaction may hold the kernel for long enough to matter.
const LONG_PLAN: usize = 10_000;
/// From this many objects on judging them takes long enough to matter.
const MANY_OBJECTS: usize = 1000;
/// Objects judged and compiled in a millisecond; measured 20, taken a third of it.
const OBJECTS_PER_MS: u64 = 7;
/// Weight that the kernel takes in a millisecond; measured 200, taken a quarter of it.
const WEIGHT_PER_MS: u64 = 50;

/// What the reconciler tells those who learn names and stamp packets. Bounded in time; what cannot be done is said in
/// the status by whoever is behind this.
pub trait NamePath: Send {
    /// Attaches what the Firewall asks for, and says who stamps and what the box's own addresses are.
    fn prepare(&mut self, set: &PolicySet) -> Prepared;

    /// Indexes that something in the data path may still carry.
    fn in_use(&mut self) -> BTreeSet<u32>;

    /// Indexes that a process before this one left in nftables maps: in use until those maps are known.
    fn found(&mut self, indexes: BTreeSet<u32>);

    /// Takes indexes out of the data path. `Err`: that could not be confirmed.
    fn withdraw(&mut self, indexes: &BTreeSet<u32>) -> Result<(), String>;

    /// Marks nothing until the next installation, unless it marks by this mask: nftables is about to read marks by
    /// it. True when something may have been marked otherwise until now. `Err`: it may go on.
    fn stop_other_marks(&mut self, mask: u32) -> Result<bool, String>;

    /// Drops nothing early until the next installation: nftables is about to accept other things.
    fn pass_all(&mut self);

    /// nftables holds this now; `None`: it holds nothing of ours.
    fn install(&mut self, installation: Option<Arc<Installation>>);
}

/// The answer to [`NamePath::prepare`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Who writes the mark.
    pub stamp: Stamp,
    /// Addresses of the box.
    pub own_addresses: BTreeSet<IpAddr>,
}

/// What is in force, as far as names and early drops go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Installation {
    /// Entries with their indexes, clamps and bounds.
    pub table: Arc<Table>,
    /// What static rules may allow, by longest prefix.
    pub superset: BTreeMap<IpNet, Vec<(Protocol, u16, u16)>>,
    /// The Firewall.
    pub firewall: Firewall,
    /// True when DNS from inside is redirected.
    pub intercepts: bool,
    /// Who writes the mark.
    pub stamp: Stamp,
    /// Why nothing may be dropped before conntrack has seen it; empty: nothing speaks against it.
    pub obstacles: Vec<String>,
    /// How often nftables' maps lost elements otherwise than by the thread of names since the start: marks were taken
    /// out, maps were made again, or others may have been at them. What was noted of those maps, or made for
    /// them, under another number counts no more.
    pub emptied: u64,
}

/// For tests and for a firewall that learns nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNames;

impl NamePath for NoNames {
    fn prepare(&mut self, _: &PolicySet) -> Prepared {
        Prepared::default()
    }

    fn in_use(&mut self) -> BTreeSet<u32> {
        BTreeSet::new()
    }

    fn found(&mut self, _: BTreeSet<u32>) {}

    fn withdraw(&mut self, _: &BTreeSet<u32>) -> Result<(), String> {
        Ok(())
    }

    fn stop_other_marks(&mut self, _: u32) -> Result<bool, String> {
        Ok(false)
    }

    fn pass_all(&mut self) {}

    fn install(&mut self, _: Option<Arc<Installation>>) {}
}

impl Installation {
    fn of(judged: &Judged, obstacles: Vec<String>) -> Self {
        let table = Table::new(&judged.set, &judged.names.indexes, judged.own_addresses.clone());
        Self {
            table: Arc::new(table),
            superset: fw_ruleset::superset(&judged.set, &judged.own_addresses),
            firewall: judged.set.firewall.clone(),
            intercepts: judged.set.intercepts_dns(),
            stamp: judged.names.stamp,
            obstacles,
            emptied: 0,
        }
    }

    fn mask(&self) -> u32 {
        self.firewall.fastpath.mark_mask
    }

    fn indexes(&self) -> BTreeSet<u32> {
        self.table.entries.values().map(|(index, _)| *index).collect()
    }
}

impl Reconciler {
    /// Gives every entry its index: the one it has, or one that neither kernel side holds.
    pub(super) fn name_entries(&mut self, set: &PolicySet, stamp: Stamp) -> Names {
        let entries: BTreeSet<NameEntry> = set.name_entries().into_keys().collect();
        let mask = set.firewall.fastpath.mark_mask;
        if self.indexes.is_none() {
            let found = self.indexes_in_maps(mask);
            self.names.found(found);
        }
        let in_use = self.names.in_use();
        let indexes = match self.indexes.take() {
            Some((known, mut indexes)) if known == mask => {
                let out = indexes.pending(Side::DataPath).difference(&in_use).copied().collect();
                indexes.dropped(Side::DataPath, &out, monotonic());
                indexes.free(monotonic());
                indexes
            }
            Some((_, indexes)) => {
                let known = indexes.assigned().clone();
                let nft = known.values().copied().collect();
                Indexes::adopt(mask, known, &nft, &in_use)
            }
            None => self.adopted_indexes(&entries, mask, &in_use),
        };
        let (_, indexes) = self.indexes.insert((mask, indexes));
        Names { indexes: indexes.assign(&entries), stamp }
    }

    /// Indexes that the maps which stand in for eBPF still lead to. A kill between the two halves of an edit leaves some
    /// that no chain belongs to any more.
    fn indexes_in_maps(&mut self, mask: u32) -> BTreeSet<u32> {
        let has_maps =
            matches!(&self.held, Some(Held::Observed(observed)) if observed.sets.contains_key(FQDN_CELLS));
        if !has_maps {
            return BTreeSet::new();
        }
        let cells = self.timed_elements(&[FQDN_CELLS.to_owned()]);
        let marks = cells.iter().flat_map(|(_, elements)| elements).filter_map(|element| element.mark);
        marks.map(|mark| index_of(mark, mask)).collect()
    }

    /// Indexes that the table found in the kernel has given out; each entry is known by the name of its chain.
    fn adopted_indexes(&self, entries: &BTreeSet<NameEntry>, mask: u32, in_use: &BTreeSet<u32>) -> Indexes {
        let found: BTreeMap<String, u32> = match &self.held {
            Some(Held::Observed(observed)) => {
                marks(observed).map(|(chain, mark)| (chain, index_of(mark, mask))).collect()
            }
            _ => BTreeMap::new(),
        };
        let known = |entry: &NameEntry| Some((entry.clone(), *found.get(&fw_ruleset::name_chain(entry))?));
        let nft = found.values().copied().collect();
        Indexes::adopt(mask, entries.iter().filter_map(known).collect(), &nft, in_use)
    }

    /// After a commit that succeeded: what it does not hold any more is retired.
    fn retire_indexes(&mut self, held: &Installation) {
        let in_use = self.names.in_use();
        let Some((_, indexes)) = &mut self.indexes else { return };
        indexes.retire(&held.table.entries.keys().cloned().collect());
        let now = monotonic();
        let gone = indexes.pending(Side::Nft);
        indexes.dropped(Side::Nft, &gone, now);
        let out = indexes.pending(Side::DataPath).difference(&in_use).copied().collect();
        indexes.dropped(Side::DataPath, &out, now);
    }

    /// Commits the ruleset with the data path in step: before it what goes, after it what comes. When it fails, the
    /// data path is told again what nftables still holds.
    pub(super) fn apply_with_names(&mut self, judged: &Judged) -> Result<(), fw_nft::Error> {
        let before = self.installed.clone();
        let next = self.before_commit(judged);
        let result = self.stop_other_marks(&next).and_then(|()| {
            crate::fault::point("after-withdraw");
            self.apply(&judged.ruleset)
        });
        match (&result, before) {
            (Ok(()), _) => {
                self.retire_indexes(&next);
                self.after_commit(Some(next));
            }
            (Err(_), Some(before)) => {
                let before = Installation { emptied: next.emptied, ..Installation::clone(&before) };
                self.after_commit(Some(Arc::new(before)));
            }
            // What a process before this one left stays, and so does what it had learned.
            (Err(_), None) => {}
        }
        result
    }

    /// Before nftables reads marks by another mask nothing carries one of the old: it could be another entry's. Names
    /// are closed from here to the installation.
    fn stop_other_marks(&mut self, next: &Installation) -> Result<(), fw_nft::Error> {
        let known = self.installed.as_ref().map(|held| (held.mask(), held.emptied));
        let mut marked = false;
        if known.is_none_or(|(mask, _)| mask != next.mask()) {
            match self.names.stop_other_marks(next.mask()) {
                Ok(did_mark) => marked = did_mark,
                // The first rules of a process do not wait for what cannot be asked.
                Err(why) if known.is_none() => warn!("packets may still be marked by another mask: {why}"),
                Err(why) => return Err(fw_nft::Error::Marks(why)),
            }
        }
        if known.map_or(0, |(_, emptied)| emptied) != next.emptied {
            marked |= self.empty_cells()?;
        }
        if marked {
            std::thread::sleep(DRAIN);
        }
        Ok(())
    }

    /// Takes the marks out of the maps that stand in for eBPF. True when there were some.
    fn empty_cells(&mut self) -> Result<bool, fw_nft::Error> {
        let has_cells = match &self.held {
            Some(Held::Known(known)) => known.sets.contains_key(FQDN_CELLS),
            Some(Held::Observed(observed)) => observed.sets.contains_key(FQDN_CELLS),
            Some(Held::Absent | Held::Foreign(_)) | None => false,
        };
        if !has_cells {
            return Ok(false);
        }
        let cells = self.kernel.timed_elements(FQDN_CELLS)?;
        let remove = |cell: TimedElement| ElementChange::Remove(FQDN_CELLS.to_owned(), cell.key);
        let changes: Vec<ElementChange> = cells.into_iter().map(remove).collect();
        self.kernel.update_elements(&changes)?;
        Ok(!changes.is_empty())
    }

    /// True when the next ruleset reads marks otherwise than the one that the maps which stand in for eBPF were filled
    /// for.
    fn is_remarked(&self, next: &Installation, wanted: &Ruleset) -> bool {
        match (&self.installed, &self.held) {
            (Some(held), _) => held.mask() != next.mask(),
            (None, Some(Held::Observed(observed))) => reads_otherwise(observed, wanted),
            (None, _) => false,
        }
    }

    /// What others do to packets between the early drop and our rules (semantics.md section 6).
    fn obstacles(&mut self) -> Vec<String> {
        self.kernel.interferers().unwrap_or_else(|error| {
            vec![format!("what else is in nftables is unknown: {}", crate::telemetry::chain(&error))]
        })
    }

    /// Others' rules may have come or gone since the last commit.
    pub(super) fn check_obstacles(&mut self) {
        let Some(installed) = self.installed.clone() else { return };
        let obstacles = self.obstacles();
        if obstacles != installed.obstacles {
            self.after_commit(Some(Arc::new(Installation { obstacles, ..Installation::clone(&installed) })));
        }
    }

    /// Before the commit: what is to go is out of the data path before nftables forgets it.
    fn before_commit(&mut self, judged: &Judged) -> Arc<Installation> {
        let mut next = Installation::of(judged, self.obstacles());
        let emptied = self.installed.as_ref().map_or(0, |held| held.emptied);
        next.emptied = emptied + u64::from(self.is_remarked(&next, &judged.ruleset));
        let next = Arc::new(next);
        let Some(held) = self.installed.clone() else {
            self.names.pass_all();
            return next;
        };
        let gone: BTreeSet<u32> = held.indexes().difference(&next.indexes()).copied().collect();
        if !gone.is_empty()
            && let Err(why) = self.names.withdraw(&gone)
        {
            // They are not used again before the data path is known to be rid of them, and nftables accepts by none
            // that it does not hold.
            warn!("indexes of names that go may still be in the data path: {why}");
        }
        if held.superset != next.superset || held.firewall.inside != next.firewall.inside {
            self.names.pass_all();
        }
        next
    }

    /// After the commit, or after it failed: the data path follows what nftables holds.
    pub(super) fn after_commit(&mut self, held: Option<Arc<Installation>>) {
        crate::fault::point("before-install");
        let held = match held {
            Some(held) if std::mem::take(&mut self.remade) => Some(emptied(&held)),
            other => other,
        };
        self.installed.clone_from(&held);
        self.names.install(held);
    }

    /// A plan was committed: maps that it makes have no elements, whatever those before them had.
    pub(super) fn note_remade(&mut self, plan: &Plan) {
        let is_learned =
            |set: &Set| matches!(set.kind, SetKind::Learned { .. } | SetKind::LearnedBoxes { .. });
        self.remade |=
            plan.ops.iter().any(|op| matches!(op, Op::CreateSet(_, set) if set.map && is_learned(set)));
    }

    /// Others may have taken elements out of the maps that stand in for eBPF, which are no part of the ruleset: they are
    /// read, and filled again.
    pub(super) fn refill(&mut self) {
        let installed = self.installed.as_ref().filter(|installed| installed.stamp == Stamp::Sets);
        if let Some(installed) = installed.map(|installed| emptied(installed)) {
            self.after_commit(Some(installed));
        }
    }

    /// The proxy has answered by these ways: the redirect of each stays armed.
    pub fn arm(&mut self, ways: &BTreeSet<(Family, Protocol)>) {
        self.armed.clone_from(ways);
        self.renew_armed(ARMED_MS);
    }

    /// Before many objects are judged: nobody can renew while this thread is busy with them.
    pub(super) fn arm_through_objects(&mut self, objects: usize) {
        if objects > MANY_OBJECTS && !self.armed.is_empty() {
            let objects = u64::try_from(objects).unwrap_or(u64::MAX);
            self.renew_armed(ARMED_MS.saturating_add(objects / OBJECTS_PER_MS));
        }
    }

    /// Before a long transaction: nobody can renew while the kernel is busy with it.
    pub(super) fn arm_through(&mut self, weight: usize) {
        if weight > LONG_PLAN && !self.armed.is_empty() {
            let weight = u64::try_from(weight).unwrap_or(u64::MAX);
            self.renew_armed(ARMED_MS.saturating_add(weight / WEIGHT_PER_MS));
        }
    }

    fn renew_armed(&mut self, expires_in_ms: u64) {
        let intercepts = self.installed.as_ref().is_some_and(|installed| installed.intercepts);
        if self.armed.is_empty() || !intercepts {
            return;
        }
        let put = |(family, protocol): &(Family, Protocol)| {
            let set = if *family == Family::V4 { "dns_armed" } else { "dns_armed6" };
            let key = Key::Exact(vec![Value::Protocol(protocol.number())]);
            let element = TimedElement { key, mark: None, expires_in_ms: Some(expires_in_ms) };
            ElementChange::Put(set.to_owned(), element)
        };
        let changes: Vec<ElementChange> = self.armed.iter().map(put).collect();
        if let Err(error) = self.kernel.update_elements(&changes) {
            error!("DNS is not redirected to the proxy: {}", crate::telemetry::chain(&error));
        }
    }

    /// Elements of the maps that stand in for eBPF, made under [`Installation::emptied`].
    pub fn update_elements(&mut self, changes: &[ElementChange], emptied: u64) -> Result<(), String> {
        if self.installed.as_ref().is_none_or(|installed| installed.emptied != emptied) {
            return Err("nftables' maps were emptied since".to_owned());
        }
        self.kernel.update_elements(changes).map_err(|error| crate::telemetry::chain(&error))
    }

    /// The elements of such maps, by map; those that are not there have none.
    pub fn timed_elements(&mut self, maps: &[String]) -> Vec<(String, Vec<TimedElement>)> {
        let read = |map: &String| Some((map.clone(), self.kernel.timed_elements(map).ok()?));
        maps.iter().filter_map(read).collect()
    }
}

/// The same, with maps that hold something else than was noted.
fn emptied(installation: &Installation) -> Arc<Installation> {
    Arc::new(Installation { emptied: installation.emptied + 1, ..installation.clone() })
}

/// True when the rule that turns a class into a mark, and looks the mark up, is not there as it is wanted.
fn reads_otherwise(observed: &Observed, wanted: &Ruleset) -> bool {
    let Some(chain) = observed.chains.get(FQDN_PORTS) else { return false };
    let chains = BTreeMap::from([(FQDN_PORTS.to_owned(), chain.clone())]);
    let held = recognise(&Observed { chains, ..Observed::default() }, wanted);
    held.chains.get(FQDN_PORTS) != wanted.chains.get(FQDN_PORTS)
}

/// The index that stands in a mark.
fn index_of(mark: u32, mask: u32) -> u32 {
    (mark & mask) >> mask.trailing_zeros().min(31)
}

/// Chains that the map `fqdn` leads to, and the marks that do.
fn marks(observed: &Observed) -> impl Iterator<Item = (String, u32)> + '_ {
    let elements = observed.sets.get("fqdn").map(|set| set.elements.as_slice()).unwrap_or_default();
    elements.iter().filter_map(|element| {
        let mark = u32::from_ne_bytes(element.key.as_deref()?.try_into().ok()?);
        match &element.data {
            Some(ElementData::Verdict(Verdict::Goto(chain))) => Some((chain.clone(), mark)),
            _ => None,
        }
    })
}
