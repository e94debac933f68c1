//! What was learned from answers, and what the data path has of it.
//!
//! ```text
//! name ──selectors──▶ facts: name, address, until ──tops──▶ address: selector, until ──diff──▶ Allow, Class
//! ```
//! One thread calls it; time is CLOCK_MONOTONIC in nanoseconds and never goes back (an earlier one counts as the
//! latest that was seen). Every call costs what it changes, not what is there.

pub mod counters;
pub mod view;

mod classes;
mod desire;
mod expiry;
mod lesson;
mod retable;
mod room;
mod selectors;
mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use fw_bpf_common::{Allow, Cell};
use fw_policy::FqdnSelector;

pub use counters::{Counters, Full, Sizes};
pub use view::{NameView, SharedAddress, View};

use crate::answer::Answer;
use crate::change::{Change, Nanos};
use crate::journal::Fact;
use crate::judge::Refusal;
use crate::matcher::Unusable;
use crate::name::Name;
use crate::table::Table;
use classes::{DataPath, MAX_CLASSES};
use desire::Memo;
use lesson::Asker;
use selectors::Selectors;
use store::Store;

/// Addresses of all names together; no map of the data path needs to be larger.
pub const MAX_ADDRESSES: usize = 131_072;
/// Pairs of name and address of all names together.
pub const MAX_FACTS: usize = 524_288;

const SECOND: Nanos = 1_000_000_000;

/// QTYPEs of the background refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// A.
    V4,
    /// AAAA.
    V6,
}

/// What an answer has taught.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Lesson {
    /// Seconds: TTLs above are lowered to it, so that no client keeps an answer longer than its allow lasts. `None`:
    /// the answer opens nothing, its TTLs stay.
    pub ttl_max: Option<u32>,
    /// True when addresses are allowed by it: [`Learner::changes`] must be in the data path before it leaves.
    pub opens: bool,
    /// It cannot be opened as a policy wants: the answer must not leave (SERVFAIL).
    pub hold: Option<Full>,
    /// Addresses that a selector asks for and that are not learned.
    pub refused: BTreeMap<Refusal, u32>,
    /// What a journal has to know that it did not know.
    pub facts: Vec<Fact>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Learner {
    now: Nanos,
    table: Arc<Table>,
    selectors: Selectors,
    store: Store,
    data_path: DataPath,
    memo: Memo,
    in_use: Arc<BTreeSet<IpAddr>>,
    refresh_pause: Nanos,
    counters: Counters,
    shared: VecDeque<SharedAddress>,
}

impl Learner {
    /// Knows nothing, allows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the data path holds after a restart; before the first [`Learner::changes`], which then brings only what
    /// differs. [`Learner::set_table`] and [`Learner::relearn`] come between.
    pub fn install(&mut self, allows: BTreeMap<IpAddr, Allow>, classes: BTreeMap<u32, Vec<Cell>>) {
        self.store.touched.extend(self.data_path.installed().keys());
        self.data_path.install(allows, classes);
        self.store.touched.extend(self.data_path.installed().keys());
    }

    /// Takes over another table. Names that no selector matches any more are forgotten, addresses that may not be
    /// learned any more as well.
    pub fn set_table(&mut self, table: Arc<Table>, now: Nanos) {
        self.advance(now);
        self.replace_table(table);
    }

    /// The table of now.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Selectors of the table that match nothing, and why.
    pub fn unusable(&self) -> &BTreeMap<FqdnSelector, Unusable> {
        self.selectors.matcher().unusable()
    }

    /// Learns from an answer that is about to leave to a client, with its TTLs as they are now
    /// ([`Answer::aged`]).
    pub fn learn(&mut self, now: Nanos, answer: &Answer) -> Lesson {
        self.advance(now);
        self.teach(answer, Asker::Client)
    }

    /// Learns from an answer of the background refresh: no client has it, so that it does not make a name used.
    pub fn refreshed(&mut self, now: Nanos, answer: &Answer) -> Lesson {
        self.advance(now);
        self.teach(answer, Asker::Refresh)
    }

    /// Learns again what a journal has kept, under the present table and its bounds. True when it was taken.
    pub fn relearn(&mut self, now: Nanos, fact: &Fact) -> bool {
        self.advance(now);
        self.take_fact(fact)
    }

    /// True when a selector matches the name: what `otherNames` refuses is the rest.
    pub fn allows(&self, name: &Name) -> bool {
        self.store.by_name.contains_key(name) || !self.selectors.select(name).is_empty()
    }

    /// What the data path has to change so that it holds what was learned, for the addresses that differ from what it
    /// has confirmed. Each list is applied as a whole, in order, and then given to [`Learner::confirm`] or
    /// [`Learner::reject`]; lists that are under way at the same time repeat each other, and must be applied and
    /// answered for in the order they were made. An answer may leave when the list made after its lesson is confirmed.
    pub fn changes(&mut self, now: Nanos) -> Vec<Change> {
        self.advance(now);
        self.list_changes(self.now)
    }

    /// The data path has taken the changes.
    pub fn confirm(&mut self, changes: &[Change]) {
        self.data_path.confirm(changes);
    }

    /// The data path has not taken the changes, or nobody knows which of them: the next list has them again.
    pub fn reject(&mut self, changes: &[Change]) {
        self.data_path.reject(changes);
        for change in changes {
            if let Change::Put { address, .. } | Change::Remove(address) = change {
                self.store.touched.insert(*address);
            }
        }
    }

    /// Rids the data path of indexes before nftables forgets them. They appear in no change any more until a table
    /// gives them to another entry. Everything else that is due comes along, as with [`Learner::changes`]. When the
    /// list is confirmed no address leads to them, and [`Learner::installed_indexes`] has them no more; if it has, a
    /// class was in use by a list under way, and [`Learner::changes`] drops it.
    pub fn withdraw(&mut self, indexes: &BTreeSet<u32>, now: Nanos) -> Vec<Change> {
        self.advance(now);
        self.withdraw_indexes(indexes)
    }

    /// Indexes in classes that the data path has, may have, or is about to get.
    pub fn installed_indexes(&self) -> BTreeSet<u32> {
        self.data_path.indexes()
    }

    /// Forgets what is over. An address of `in_use` (destinations of live connections) stays, a step at a time.
    /// Facts that last longer for it are returned for the journal. Bounded work: [`Learner::due`] says when again.
    pub fn expire(&mut self, now: Nanos, in_use: Arc<BTreeSet<IpAddr>>) -> Vec<Fact> {
        self.advance(now);
        self.in_use = in_use;
        self.check_rewrites();
        self.check_facts(expiry::BATCH)
    }

    /// When [`Learner::expire`] (then [`Learner::changes`]) has something to do. A few seconds before an address is
    /// over, so that one in use is extended in time.
    pub fn due(&self) -> Option<Nanos> {
        let check = self.store.checks.first().map(|(at, ..)| *at);
        let rewrite = self.store.rewrites.first().map(|(at, _)| *at);
        check.into_iter().chain(rewrite).min()
    }

    /// Questions to ask now, so that names that policies spell out and names lately used are known before their
    /// answers are over; a bounded number at a time. What they bring goes to [`Learner::refreshed`].
    pub fn refresh_due(&mut self, now: Nanos) -> Vec<(Name, Family)> {
        self.advance(now);
        self.questions()
    }

    /// When [`Learner::refresh_due`] has something.
    pub fn refresh_at(&self) -> Option<Nanos> {
        self.store.refresh.first().map(|(at, _)| (*at).max(self.refresh_pause))
    }

    /// Everything known, for a new journal.
    pub fn facts(&self) -> Vec<Fact> {
        let names = self.store.names().map(|(_, record)| record);
        names
            .flat_map(|record| record.facts.iter().map(|(address, kept)| record.fact(*address, kept)))
            .collect()
    }

    /// What happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Time never goes back.
    fn advance(&mut self, now: Nanos) {
        self.now = self.now.max(now);
    }
}
