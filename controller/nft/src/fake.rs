//! A kernel in memory that fails as nftables does.
//!
//! Clones share one state, so that a test keeps a hand on what it gave away. A property test holds it against the
//! real kernel: the same plans succeed, fail with the same errno at the same step, and leave the same ruleset.

mod learned;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fw_ruleset::{Count, Counts, Plan, Ruleset};

use crate::encode::{describe_op, op_origin};
use crate::error::{Error, Refusal};
use crate::kernel::{ElementChange, Foreign, Kernel, Receipt, Table, TimedElement};
use state::{Contents, Failure};

/// Something that goes wrong at the next commit or check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing goes wrong this time.
    None,
    /// Somebody changed the table.
    Stale,
    /// Others commit all the time.
    Busy,
    /// The answer is lost, and the transaction was applied or not.
    Uncertain {
        /// Whether it was.
        applied: bool,
    },
    /// The kernel refuses this step with this errno.
    Refuse {
        /// Index of the step; past the plan's end, the last.
        op: usize,
        /// Positive errno.
        errno: i32,
    },
    /// The kernel refuses the transaction as a whole with this errno.
    Whole(i32),
}

/// The fake. Clones share its state.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    table: Inside,
    generation: u32,
    /// Generation of the last read or commit by the controller.
    known: u32,
    /// Generation of the last change by others.
    touched: u32,
    faults: VecDeque<Fault>,
    /// What goes wrong at the next updates of elements.
    update_faults: VecDeque<Fault>,
    commits: Vec<Plan>,
    /// Milliseconds since the fake was made: it has no clock but [`FakeKernel::advance`].
    now_ms: u64,
}

#[derive(Clone, Debug, Default)]
enum Inside {
    #[default]
    Absent,
    Ours(Contents),
    Foreign(Foreign),
    Taken(u32),
}

impl FakeKernel {
    /// A kernel without our table.
    pub fn new() -> Self {
        Self::default()
    }

    /// A kernel with a table that is not ours.
    pub fn with_foreign(foreign: Foreign) -> Self {
        let fake = Self::default();
        fake.lock().table = Inside::Foreign(foreign);
        fake
    }

    /// A kernel whose table another controller owns.
    pub fn taken(port: u32) -> Self {
        let fake = Self::default();
        fake.lock().table = Inside::Taken(port);
        fake
    }

    /// Makes the next commit or check fail; faults queue up.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push_back(fault);
    }

    /// Makes a commit or check fail after so many that succeed.
    pub fn inject_after(&self, successes: usize, fault: Fault) {
        let mut state = self.lock();
        state.faults.extend(std::iter::repeat_n(Fault::None, successes));
        state.faults.push_back(fault);
    }

    /// Faults that have not happened yet, with what [`FakeKernel::inject_after`] put before them.
    pub fn faults_left(&self) -> usize {
        self.lock().faults.len()
    }

    /// Makes the next update of elements fail; faults queue up. [`Fault::Refuse`] counts changes as steps.
    pub fn inject_update(&self, fault: Fault) {
        self.lock().update_faults.push_back(fault);
    }

    /// Lets time pass: elements expire.
    pub fn advance(&self, milliseconds: u64) {
        let mut state = self.lock();
        state.now_ms = state.now_ms.saturating_add(milliseconds);
    }

    /// What the table holds; `None` without one of ours.
    pub fn ruleset(&self) -> Option<Ruleset> {
        match &self.lock().table {
            Inside::Ours(contents) => Some(contents.ruleset.clone()),
            _ => None,
        }
    }

    /// Plans that were applied, in order.
    pub fn commits(&self) -> Vec<Plan> {
        self.lock().commits.clone()
    }

    /// Traffic: counts at the anonymous counter of a rule.
    pub fn count_rule(&self, chain: &str, position: usize, count: Count) {
        if let Inside::Ours(contents) = &mut self.lock().table {
            contents.count_rule(chain, position, count);
        }
    }

    /// Traffic: counts at a named counter.
    pub fn count_named(&self, name: &str, count: Count) {
        if let Inside::Ours(contents) = &mut self.lock().table {
            contents.count_named(name, count);
        }
    }

    /// Somebody else changes the table by a plan; fails as a commit would.
    pub fn edit(&self, plan: &Plan) -> Result<(), Error> {
        let mut state = self.lock();
        state.apply(plan, &Ruleset::default())?;
        state.generation += 1;
        state.touched = state.generation;
        Ok(())
    }

    /// Somebody else commits something in another table.
    pub fn commit_elsewhere(&self) {
        self.lock().generation += 1;
    }

    /// Somebody else deletes the table.
    pub fn vanish(&self) {
        let mut state = self.lock();
        state.table = Inside::Absent;
        state.generation += 1;
        state.touched = state.generation;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock left a whole state: every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The state after a plan, or why there is none.
    fn tried(&self, plan: &Plan, wanted: &Ruleset) -> Result<Inside, Error> {
        if let Inside::Taken(port) = &self.table {
            return Err(Error::Taken { port: *port });
        }
        match self.run(plan, false) {
            // As the kernel does: a ruleset that does not validate is tried again, and validated at each step.
            Err((_, Failure { invalid: true, .. })) => self.run(plan, true),
            result => result,
        }
        .map_err(|(op, failure)| refuse(plan, wanted, op, failure))
    }

    fn run(&self, plan: &Plan, validate_each: bool) -> Result<Inside, (usize, Failure)> {
        let mut inside = self.table.clone();
        for (index, op) in plan.ops.iter().enumerate() {
            let step = inside.step(op).and_then(|()| if validate_each { inside.validate() } else { Ok(()) });
            step.map_err(|failure| (index, failure))?;
        }
        inside.validate().map_err(|failure| (plan.ops.len().saturating_sub(1), failure))?;
        Ok(inside)
    }

    fn apply(&mut self, plan: &Plan, wanted: &Ruleset) -> Result<(), Error> {
        self.table = self.tried(plan, wanted)?;
        Ok(())
    }

    fn commit(&mut self, plan: &Plan, wanted: &Ruleset) -> Result<(), Error> {
        self.apply(plan, wanted)?;
        if !plan.is_empty() {
            self.generation += 1;
            self.commits.push(plan.clone());
        }
        self.known = self.generation;
        Ok(())
    }

    fn update(&mut self, changes: &[ElementChange]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let Inside::Ours(contents) = &mut self.table else {
            return Err(match self.table {
                Inside::Taken(port) => Error::Taken { port },
                _ => Error::Stale,
            });
        };
        let Contents { ruleset, learned, .. } = contents;
        learned.update(ruleset, changes, self.now_ms)?;
        // A commit of our own, as the real kernel's are.
        self.generation += 1;
        Ok(())
    }

    fn fault(&mut self, plan: &Plan, wanted: &Ruleset) -> Result<(), Error> {
        if self.touched > self.known {
            return Err(Error::Stale);
        }
        match self.faults.pop_front() {
            None | Some(Fault::None) => Ok(()),
            Some(Fault::Stale) => Err(Error::Stale),
            Some(Fault::Busy) => Err(Error::Busy(1)),
            Some(Fault::Whole(errno)) => Err(Error::Whole { errno }),
            Some(Fault::Refuse { op, errno }) => {
                let op = op.min(plan.ops.len().saturating_sub(1));
                Err(refuse(plan, wanted, op, Failure { errno, detail: None, invalid: false }))
            }
            Some(Fault::Uncertain { applied }) => {
                if applied {
                    self.commit(plan, wanted)?;
                }
                Err(Error::Uncertain(fw_netlink::socket::SocketError::Lost))
            }
        }
    }
}

impl Inside {
    fn step(&mut self, op: &fw_ruleset::Op) -> Result<(), Failure> {
        use crate::error::libc_errno::{EEXIST, ENOENT};
        match (op, &mut *self) {
            (fw_ruleset::Op::DeleteTable, Self::Absent) => Err(Failure::new(ENOENT)),
            (fw_ruleset::Op::DeleteTable, inside) => {
                *inside = Self::Absent;
                Ok(())
            }
            (fw_ruleset::Op::CreateTable, Self::Absent) => {
                *self = Self::Ours(Contents::default());
                Ok(())
            }
            (fw_ruleset::Op::CreateTable, _) => Err(Failure::new(EEXIST)),
            (op, Self::Ours(contents)) => contents.step(op),
            _ => Err(Failure::new(ENOENT)),
        }
    }

    fn validate(&self) -> Result<(), Failure> {
        match self {
            Self::Ours(contents) => contents.validate(),
            _ => Ok(()),
        }
    }
}

fn refuse(plan: &Plan, wanted: &Ruleset, op: usize, failure: Failure) -> Error {
    let step = plan.ops.get(op);
    Error::Refused(Box::new(Refusal {
        op,
        place: step.map_or_else(|| "the transaction".to_owned(), describe_op),
        origin: step.and_then(|step| op_origin(step, failure.target(), wanted)),
        detail: failure.detail,
        errno: failure.errno,
        text: None,
        others: 0,
    }))
}

impl Kernel for FakeKernel {
    fn read(&mut self) -> Result<Table, Error> {
        let mut state = self.lock();
        state.known = state.generation;
        Ok(match &state.table {
            Inside::Absent => Table::Absent,
            Inside::Foreign(foreign) => Table::Foreign(foreign.clone()),
            Inside::Taken(port) => Table::Taken { port: *port },
            Inside::Ours(contents) => Table::Ours(contents.observe(state.generation)?),
        })
    }

    fn check(&mut self, plan: &Plan, wanted: &Ruleset) -> Result<(), Error> {
        let mut state = self.lock();
        state.fault(plan, wanted)?;
        state.tried(plan, wanted).map(|_| ())
    }

    fn commit(&mut self, plan: &Plan, wanted: &Ruleset) -> Result<Receipt, Error> {
        let mut state = self.lock();
        state.fault(plan, wanted)?;
        state.commit(plan, wanted)?;
        Ok(Receipt { generation: state.generation, messages: plan.ops.len(), bytes: 0, retries: 0 })
    }

    fn counts(&mut self) -> Result<Counts, Error> {
        Ok(match &self.lock().table {
            Inside::Ours(contents) => contents.counts(),
            Inside::Foreign(foreign) => Counts { named: foreign.named.clone(), rules: BTreeMap::new() },
            Inside::Absent | Inside::Taken(_) => Counts::default(),
        })
    }

    fn generation(&mut self) -> Result<u32, Error> {
        Ok(self.lock().generation)
    }

    fn update_elements(&mut self, changes: &[ElementChange]) -> Result<(), Error> {
        let mut state = self.lock();
        match state.update_faults.pop_front() {
            None | Some(Fault::None) => state.update(changes),
            Some(Fault::Stale) => Err(Error::Stale),
            Some(Fault::Busy) => Err(Error::Busy(1)),
            Some(Fault::Whole(errno)) => Err(Error::Whole { errno }),
            Some(Fault::Refuse { op, errno }) => {
                let op = op.min(changes.len().saturating_sub(1));
                Err(learned::refuse(changes, op, errno))
            }
            Some(Fault::Uncertain { applied }) => {
                if applied {
                    state.update(changes)?;
                }
                Err(Error::Uncertain(fw_netlink::socket::SocketError::Lost))
            }
        }
    }

    fn timed_elements(&mut self, set: &str) -> Result<Vec<TimedElement>, Error> {
        let state = self.lock();
        match &state.table {
            Inside::Ours(contents) => contents.learned.list(&contents.ruleset, set, state.now_ms),
            _ => Err(Error::Stale),
        }
    }
}
