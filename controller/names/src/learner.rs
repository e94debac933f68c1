//! What was learned from answers, and what the data path has of it.
//!
//! ```text
//! name ──selectors──▶ facts: name, address, until ──tops──▶ address: selector, until ──diff──▶ Allow, Class
//! ```
//! One thread calls it; time is CLOCK_MONOTONIC in nanoseconds and never goes back (an earlier one counts as the
//! latest that was seen). Every call costs what it changes, not what is there.

pub mod counters;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fw_bpf_common::{Allow, Cell};
use fw_policy::Learned;

pub use counters::{Counters, Full, Sizes};
pub use view::{NameView, SharedAddress, View};

use crate::answer::Answer;
use crate::change::{Change, Nanos};
use crate::journal::Fact;
use crate::judge::Refusal;
use crate::name::Name;
use crate::table::Table;

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
pub struct Learner {}

impl Learner {
    /// Knows nothing, allows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the data path holds after a restart; before the first [`Learner::set_table`], [`Learner::relearn`] and
    /// [`Learner::changes`], which then bring only what differs.
    pub fn install(&mut self, allows: BTreeMap<IpAddr, Allow>, classes: BTreeMap<u32, Vec<Cell>>) {
        let _ = (allows, classes);
    }

    /// Takes over another table. Names that no selector matches any more are forgotten, addresses that may not be
    /// learned any more as well.
    pub fn set_table(&mut self, table: Arc<Table>, now: Nanos) {
        let _ = (table, now);
    }

    /// Learns from an answer that is about to leave to a client.
    pub fn learn(&mut self, now: Nanos, answer: &Answer) -> Lesson {
        let _ = (now, answer);
        Lesson::default()
    }

    /// Learns from an answer of the background refresh: no client has it, so that it does not make a name used.
    pub fn refreshed(&mut self, now: Nanos, answer: &Answer) -> Lesson {
        let _ = (now, answer);
        Lesson::default()
    }

    /// Learns again what a journal has kept, under the present table and its bounds. True when it was taken.
    pub fn relearn(&mut self, now: Nanos, fact: &Fact) -> bool {
        let _ = (now, fact);
        false
    }

    /// True when a selector matches the name: what `otherNames` refuses is the rest.
    pub fn allows(&self, name: &Name) -> bool {
        let _ = name;
        false
    }

    /// What the data path has to change so that it holds what was learned, for the addresses that differ from what it
    /// has confirmed. Each list is applied as a whole, in order, and then given to [`Learner::confirm`] or
    /// [`Learner::reject`]; lists that are under way at the same time repeat each other, and must be applied in the
    /// order they were made. An answer may leave when the list made after its lesson is confirmed.
    pub fn changes(&mut self, now: Nanos) -> Vec<Change> {
        let _ = now;
        Vec::new()
    }

    /// The data path has taken the changes.
    pub fn confirm(&mut self, changes: &[Change]) {
        let _ = changes;
    }

    /// The data path has not taken the changes, or nobody knows which of them: all are written again.
    pub fn reject(&mut self, changes: &[Change]) {
        let _ = changes;
    }

    /// Indexes that must leave the data path before nftables forgets them; until a table gives an index to another
    /// entry it appears in no change any more. When the changes are confirmed, [`Learner::installed_indexes`] says
    /// whether more rounds are needed.
    pub fn withdraw(&mut self, indexes: &BTreeSet<u32>, now: Nanos) -> Vec<Change> {
        let _ = (indexes, now);
        Vec::new()
    }

    /// Indexes in classes of the data path, as far as it has confirmed them or changes are under way.
    pub fn installed_indexes(&self) -> BTreeSet<u32> {
        BTreeSet::new()
    }

    /// Forgets what is over. An address of `in_use` (destinations of live connections) stays, a step at a time.
    /// Facts that last longer for it are returned for the journal. Bounded work: [`Learner::due`] says when again.
    pub fn expire(&mut self, now: Nanos, in_use: Arc<BTreeSet<IpAddr>>) -> Vec<Fact> {
        let _ = (now, in_use);
        Vec::new()
    }

    /// When [`Learner::expire`] (then [`Learner::changes`]) has something to do. A few seconds before an address is
    /// over, so that one in use is extended in time.
    pub fn due(&self) -> Option<Nanos> {
        None
    }

    /// Questions to ask now, so that names that policies spell out and names lately used are known before their
    /// answers are over; a bounded number at a time.
    pub fn refresh_due(&mut self, now: Nanos) -> Vec<(Name, Family)> {
        let _ = now;
        Vec::new()
    }

    /// When [`Learner::refresh_due`] has something.
    pub fn refresh_at(&self) -> Option<Nanos> {
        None
    }

    /// Everything known, for a new journal.
    pub fn facts(&self) -> Vec<Fact> {
        Vec::new()
    }

    /// Which selectors each address is allowed by: what the data path lets pass once all changes are confirmed.
    pub fn learned(&self, now: Nanos) -> Learned {
        let _ = now;
        Learned::default()
    }

    /// Names in order, at most `limit` of them, those that contain `filter` only.
    pub fn view(&self, filter: Option<&str>, limit: usize) -> View {
        let _ = (filter, limit);
        View::default()
    }

    /// The names an address was learned from, at most `limit`.
    pub fn names_of(&self, address: IpAddr, limit: usize) -> Vec<Name> {
        let _ = (address, limit);
        Vec::new()
    }

    /// What happened since the start.
    pub fn counters(&self) -> &Counters {
        const NONE: &Counters = &Counters::NONE;
        NONE
    }

    /// How much there is, and how much there may be.
    pub fn sizes(&self) -> Sizes {
        Sizes::default()
    }

    /// Allowed addresses that names beyond all policies have as well; the latest, bounded.
    pub fn shared(&self) -> Vec<SharedAddress> {
        Vec::new()
    }
}
