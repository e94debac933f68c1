//! What the thread of names shares between its tasks: the learner, the data path and the order between them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use fw_names::answer::{self, Answer};
use fw_names::journal::Fact;
use fw_names::judge::Refusal;
use fw_names::learner::Lesson;
use fw_names::{Change, Learner, Name, Reverse, Table};
use fw_policy::OtherNames;
use fw_ruleset::Stamp;
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tracing::{info, warn};

use super::Inherited;
use super::clock::{Shift, monotonic, wall};
use super::journal::Journal;
use super::programs::Programs;
use super::sets::{self, Sets};
use crate::problems::Problems;
use crate::reconcile::Installation;
use crate::reconcile::worker::Job;
use crate::telemetry::chain;

/// Names that a line of the status lists.
const SHOWN_NAMES: usize = 10;
/// Lists of changes in a row before something must be wrong.
const MAX_ROUNDS: usize = 1000;
const SECOND: u64 = 1_000_000_000;
/// Part of the status under which problems of the data path stand.
const PART: &str = "names";

/// Who carries out changes.
pub(super) enum DataPath {
    /// Nobody yet.
    None,
    /// eBPF maps.
    Programs,
    /// nftables maps, by way of the thread that owns the table.
    Sets {
        /// What they hold.
        sets: Sets,
        /// See [`Installation::emptied`].
        emptied: u64,
    },
}

/// See the module.
pub(super) struct Site {
    pub(super) learner: RefCell<Learner>,
    /// For logs only.
    pub(super) reverse: RefCell<Reverse>,
    pub(super) path: RefCell<DataPath>,
    pub(super) programs: RefCell<Programs>,
    pub(super) journal: RefCell<Journal>,
    /// What the journal had when this process began, until it is learned again.
    facts: RefCell<Vec<Fact>>,
    pub(super) installed: RefCell<Option<Arc<Installation>>>,
    /// Destinations of live connections, as of the last look.
    pub(super) in_use: RefCell<Arc<BTreeSet<IpAddr>>>,
    pub(super) other_names: Cell<OtherNames>,
    /// Changes of nftables maps go one list at a time.
    turn: AsyncMutex<()>,
    jobs: RefCell<Option<Sender<Job>>>,
    /// Indexes the data path may carry, for the reconciler.
    indexes: Arc<Mutex<BTreeSet<u32>>>,
    pub(super) problems: Problems,
    pub(super) figures: Figures,
}

/// What the thread counts beside the learner and the proxy.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) pushes: Cell<u64>,
    pub(super) failed_pushes: Cell<u64>,
    pub(super) unreadable_answers: Cell<u64>,
    pub(super) collections: Cell<u64>,
    pub(super) collection_micros: Cell<u64>,
}

pub(super) fn count(cell: &Cell<u64>) {
    cell.set(cell.get().saturating_add(1));
}

/// The data path has not taken a list of changes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct PushError(String);

impl Site {
    pub(super) fn new(
        programs: Programs,
        (journal, facts): (Journal, Vec<Fact>),
        indexes: Arc<Mutex<BTreeSet<u32>>>,
        problems: Problems,
    ) -> Rc<Self> {
        Rc::new(Self {
            learner: RefCell::new(Learner::new()),
            reverse: RefCell::default(),
            path: RefCell::new(DataPath::None),
            programs: RefCell::new(programs),
            journal: RefCell::new(journal),
            facts: RefCell::new(facts),
            installed: RefCell::default(),
            in_use: RefCell::default(),
            other_names: Cell::default(),
            turn: AsyncMutex::default(),
            jobs: RefCell::default(),
            indexes,
            problems,
            figures: Figures::default(),
        })
    }

    pub(super) fn set_jobs(&self, jobs: Sender<Job>) {
        *self.jobs.borrow_mut() = Some(jobs);
    }

    pub(super) fn send(&self, job: Job) -> bool {
        self.jobs.borrow().as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    pub(super) fn has_jobs(&self) -> bool {
        self.jobs.borrow().is_some()
    }

    /// Brings the data path to what was learned. Done when it has acknowledged that.
    pub(super) async fn push(self: &Rc<Self>) -> Result<(), PushError> {
        let is_sets = matches!(*self.path.borrow(), DataPath::Sets { .. });
        let result = if is_sets {
            // On a task of its own: an answer that is given up at its deadline must not leave a list half noted.
            let site = Rc::clone(self);
            let pushed = tokio::task::spawn_local(async move { site.push_sets().await });
            pushed.await.unwrap_or_else(|error| Err(PushError(error.to_string())))
        } else {
            self.push_programs()
        };
        self.note(&result);
        result
    }

    /// As [`Self::push`], for eBPF maps: at once.
    pub(super) fn push_programs(&self) -> Result<(), PushError> {
        if !matches!(*self.path.borrow(), DataPath::Programs) {
            return Err(PushError("there is no data path yet".to_owned()));
        }
        let changes = self.learner.borrow_mut().changes(monotonic());
        self.apply_to_programs(&changes)
    }

    /// As [`Self::push_programs`], until nothing is left to write: what one list frees lets the next one end more.
    pub(super) fn settle_programs(&self) -> Result<(), PushError> {
        for _ in 0..MAX_ROUNDS {
            let changes = self.learner.borrow_mut().changes(monotonic());
            if changes.is_empty() {
                return Ok(());
            }
            self.apply_to_programs(&changes)?;
        }
        Err(PushError(format!("after {MAX_ROUNDS} lists the eBPF maps still are not as they should be")))
    }

    pub(super) fn apply_to_programs(&self, changes: &[Change]) -> Result<(), PushError> {
        if changes.is_empty() {
            return Ok(());
        }
        let result = self.programs.borrow_mut().apply(changes);
        match &result {
            Ok(()) => self.learner.borrow_mut().confirm(changes),
            Err(_) => self.learner.borrow_mut().reject(changes),
        }
        self.publish_indexes();
        result.map_err(PushError)
    }

    async fn push_sets(&self) -> Result<(), PushError> {
        let _turn = self.turn.lock().await;
        let changes = self.learner.borrow_mut().changes(monotonic());
        if changes.is_empty() {
            return Ok(());
        }
        let (elements, emptied) = match &*self.path.borrow() {
            DataPath::Sets { sets, emptied } => (sets.elements(&changes, monotonic()), *emptied),
            DataPath::None | DataPath::Programs => (Vec::new(), 0),
        };
        let (done, answer) = oneshot::channel();
        let result = if self.send(Job::Elements { changes: elements, emptied, done }) {
            answer.await.unwrap_or_else(|_| Err("the reconciler has stopped".to_owned()))
        } else {
            Err("the reconciler has not started".to_owned())
        };
        match &result {
            Ok(()) => {
                if let DataPath::Sets { sets, .. } = &mut *self.path.borrow_mut() {
                    sets.confirm(&changes);
                }
                self.learner.borrow_mut().confirm(&changes);
            }
            Err(_) => self.learner.borrow_mut().reject(&changes),
        }
        self.publish_indexes();
        result.map_err(PushError)
    }

    fn note(&self, result: &Result<(), PushError>) {
        count(&self.figures.pushes);
        match result {
            Ok(()) => self.problems.clear(PART),
            Err(error) => {
                count(&self.figures.failed_pushes);
                self.problems
                    .set(PART, vec![format!("answers that open something are kept back: {}", chain(error))]);
            }
        }
    }

    pub(super) fn publish_indexes(&self) {
        let installed = self.learner.borrow().installed_indexes();
        *self.indexes.lock().unwrap_or_else(PoisonError::into_inner) = installed;
    }

    /// Indexes that a process before this one left in eBPF maps are in use until the learner has taken those over.
    pub(super) fn note_indexes(&self, found: BTreeSet<u32>) {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
    }

    /// Takes nftables maps over as they are: a process before this one left them, or the reconciler has emptied them.
    pub(super) async fn take_sets_over(&self, mask: u32, emptied: u64) {
        // A list under way is noted, or given up, in what it was made from.
        let _turn = self.turn.lock().await;
        let sets = self.adopt_sets(mask).await;
        let (allows, classes) = sets.contents();
        self.learner.borrow_mut().install(allows.clone(), classes.clone());
        *self.path.borrow_mut() = DataPath::Sets { sets, emptied };
    }

    async fn adopt_sets(&self, mask: u32) -> Sets {
        let maps = sets::address_maps().chain([sets::CELLS.to_owned()]).collect();
        let (done, answer) = oneshot::channel();
        if !self.send(Job::ReadElements(maps, done)) {
            return Sets::new(mask);
        }
        match answer.await {
            Ok(found) => Sets::adopt(mask, &found, monotonic()),
            Err(_) => Sets::new(mask),
        }
    }

    /// Reads an answer whose TTLs have run for `age` seconds. `None`: it cannot be read, and opens nothing.
    pub(super) fn read(&self, message: &[u8], age: u32) -> Option<Answer> {
        let answer = answer::read(message)
            .inspect_err(|error| {
                count(&self.figures.unreadable_answers);
                tracing::debug!("an answer was not read: {error}");
            })
            .ok()?;
        Some(if age > 0 { answer.aged(age) } else { answer })
    }

    /// Learns from an answer that is about to leave. The lesson's facts are in the journal when this returns.
    pub(super) fn learn(&self, answer: &Answer, by_client: bool) -> Lesson {
        self.reverse.borrow_mut().note(answer);
        let mut learner = self.learner.borrow_mut();
        let now = monotonic();
        let lesson = if by_client { learner.learn(now, answer) } else { learner.refreshed(now, answer) };
        self.journal.borrow_mut().append(&lesson.facts);
        lesson
    }

    /// Learns again what was known before the restart, under the first table that has names: one without (the base
    /// ruleset of a cold start) would forget all of it.
    pub(super) fn relearn(&self, table: &Table) {
        if table.entries.is_empty() {
            return;
        }
        let facts = self.facts.take();
        let mut learner = self.learner.borrow_mut();
        let taken = facts.iter().filter(|fact| learner.relearn(monotonic(), fact)).count();
        if !facts.is_empty() {
            info!(known = facts.len(), taken, "learned again what was known before the restart");
        }
    }

    /// See [`super::Handle::inherit`]. All of it is in the journal when this returns: it is not read again.
    pub(super) fn inherit(self: &Rc<Self>, inherited: &[Inherited]) {
        let now = monotonic();
        let to_monotonic = Shift::new(wall(), now);
        let table = Arc::clone(self.learner.borrow().table());
        let known: BTreeSet<Name> = self.learner.borrow().facts().into_iter().map(|fact| fact.name).collect();
        let news = inherited.iter().filter(|inherited| !known.contains(&inherited.name));
        let facts: Vec<Fact> = news
            .map(|Inherited { name, address, until }| {
                // Who was told the answer may use it to its end.
                let until = to_monotonic.carry(until.saturating_mul(SECOND));
                Fact { name: name.clone(), address: *address, asked: now, handed: until, until }
            })
            .collect();
        self.journal.borrow_mut().append(&facts);
        self.facts.borrow_mut().extend(facts);
        self.relearn(&table);
        // On a task of its own: the reconciler, which changes nftables maps for us, may be waiting for this thread.
        let site = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if site.stamp().is_some()
                && let Err(error) = site.push().await
            {
                warn!("the data path does not hold all that was inherited: {}", chain(&error));
            }
        });
    }

    /// Nothing of what was known before the restart counts any more.
    pub(super) fn forget_facts(&self) {
        self.facts.take();
    }

    /// Forgets what is over, and keeps what is used.
    pub(super) async fn collect(self: &Rc<Self>) {
        let began = monotonic();
        let in_use = Arc::clone(&self.in_use.borrow());
        let facts = self.learner.borrow_mut().expire(began, in_use);
        self.journal.borrow_mut().append(&facts);
        if let Err(error) = self.push().await {
            warn!("what is over was not taken out of the data path yet: {}", chain(&error));
        }
        self.tidy_journal();
        self.note_refusals();
        count(&self.figures.collections);
        let micros = monotonic().saturating_sub(began) / 1000;
        self.figures.collection_micros.set(self.figures.collection_micros.get().saturating_add(micros));
    }

    /// Learned addresses outside `allowedNetworks` are not opened, and that is to be seen (semantics.md section 4).
    pub(super) fn note_refusals(&self) {
        let learner = self.learner.borrow();
        let counters = learner.counters();
        let number = counters.refused.get(&Refusal::NotAllowed).copied().unwrap_or_default();
        let lines = if number == 0 {
            Vec::new()
        } else {
            let names = counters.refused_names.keys().take(SHOWN_NAMES).map(|name| name.as_str());
            vec![format!(
                "addresses of names lie outside allowedNetworks.egress and are not opened; among the names with refused \
                 addresses: {}",
                names.collect::<Vec<_>>().join(", ")
            )]
        };
        self.problems.set("refused addresses", lines);
    }

    fn tidy_journal(&self) {
        let facts = self.learner.borrow().sizes().facts;
        if self.journal.borrow().is_bloated(facts) {
            let facts = self.learner.borrow().facts();
            if let Err(error) = self.journal.borrow_mut().replace(&facts) {
                warn!("the journal of names cannot be written anew: {error}");
            }
        }
    }

    pub(super) fn stamp(&self) -> Option<Stamp> {
        match *self.path.borrow() {
            DataPath::None => None,
            DataPath::Programs => Some(Stamp::Program),
            DataPath::Sets { .. } => Some(Stamp::Sets),
        }
    }
}
