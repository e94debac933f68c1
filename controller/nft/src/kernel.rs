//! The boundary to the kernel.

use std::collections::BTreeMap;

use fw_ruleset::ir::Key;
use fw_ruleset::{Count, Counts, Op, Plan, Ruleset};

use crate::error::Error;
use crate::observe::Observed;

/// What a firewall needs of a kernel. Blocking; one caller at a time.
pub trait Kernel: Send {
    /// Reads everything under our table's name. A table of ours without an owner is adopted on the way.
    ///
    /// [`crate::recognise`] says what an [`Observed`] table holds in terms of rules.
    fn read(&mut self) -> Result<Table, Error>;

    /// Lets the kernel validate a plan and throws the result away.
    fn check(&mut self, plan: &Plan, wanted: &Ruleset) -> Result<(), Error>;

    /// Applies a plan: all of it or nothing. `wanted` is the ruleset the plan leads to; errors take origins from it.
    ///
    /// [`Error::Stale`] when the table changed since it was read: read again, plan again.
    fn commit(&mut self, plan: &Plan, wanted: &Ruleset) -> Result<Receipt, Error>;

    /// Reads all counters of our table.
    fn counts(&mut self) -> Result<Counts, Error>;

    /// The generation of the namespace's ruleset; it moves with every commit by anybody.
    fn generation(&mut self) -> Result<u32, Error>;

    /// Puts and removes elements of [`fw_ruleset::ir::SetKind::Learned`] and `LearnedBoxes` sets: all of the changes
    /// or none, in one transaction that touches nothing else.
    ///
    /// [`Error::Stale`] when a set is not there.
    fn update_elements(&mut self, changes: &[ElementChange]) -> Result<(), Error>;

    /// The elements of one such set, sorted by key, with the time that is left.
    fn timed_elements(&mut self, set: &str) -> Result<Vec<TimedElement>, Error>;

    /// What others have in this namespace that changes where a packet goes, or what belongs to it, behind the back of
    /// whoever judges it before conntrack does: chains that translate destinations, conntrack helpers, rules that put
    /// packets into other conntrack zones. One line each.
    fn interferers(&mut self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    /// Deletes the table with our name, whosever it is. False when there was none.
    fn delete_table(&mut self) -> Result<bool, Error> {
        if matches!(self.read()?, Table::Absent) {
            return Ok(false);
        }
        self.commit(&Plan { ops: vec![Op::DeleteTable] }, &Ruleset::default())?;
        Ok(true)
    }
}

/// An element that user space puts into a set outside of plans.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimedElement {
    /// The key.
    pub key: Key,
    /// The mark, in a map.
    pub mark: Option<u32>,
    /// Milliseconds until the kernel removes it; `None`: it stays.
    pub expires_in_ms: Option<u64>,
}

/// One change of [`Kernel::update_elements`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElementChange {
    /// The set is to hold this element, whatever it holds under the key now (an earlier mark or time is replaced).
    Put(String, TimedElement),
    /// The set is not to hold this key; whether it does now does not matter.
    Remove(String, Key),
}

/// What there is under our table's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// Nothing.
    Absent,
    /// A table that a controller of this kind made, whether this process or one before it.
    Ours(Observed),
    /// Somebody else's, the Go controller's for instance. It cannot be taken over (EOPNOTSUPP), only replaced:
    /// a plan that begins with [`Op::DeleteTable`] does both in one transaction.
    Foreign(Foreign),
    /// One of ours whose owner lives: another controller runs. Nothing can be changed (EPERM).
    Taken {
        /// Netlink port of the owner; for a process's first socket its process id.
        port: u32,
    },
}

/// Figures of a table that is not ours, whatever its rules look like.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Foreign {
    /// Named counters.
    pub named: BTreeMap<String, Count>,
    /// Anonymous counters by the comment of their rule; those with equal comments are summed.
    pub comments: BTreeMap<String, Count>,
}

/// Proof of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Receipt {
    /// Generation after the commit.
    pub generation: u32,
    /// Netlink messages between begin and end.
    pub messages: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// How often it had to be sent again because others committed in between.
    pub retries: u32,
}

/// Where in a commit a fault hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Before the transaction is written.
    Build,
    /// Written, not sent. The kernel knows nothing.
    Send,
    /// Sent and decided by the kernel, the answer not read.
    Sent,
    /// The answer has been read.
    Acknowledged,
}
