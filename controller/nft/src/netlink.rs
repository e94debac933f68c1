//! The real kernel.

mod elements;
mod interferers;
mod reads;

use std::fmt;
use std::time::Duration;

use fw_netlink::batch::{Batch, Encoded, Finish};
use fw_netlink::message::{Ack, Head, subsystem};
use fw_netlink::nft::{Counter, INET, Table as KernelTable, message, steady, table_flag, udata};
use fw_netlink::socket::{Outcome, Socket, SocketError};
use fw_ruleset::ir::TABLE;
use fw_ruleset::{Count, Counts, Plan, Ruleset};

use crate::encode::{MARK, Position, Transaction, encode_plan, sequence_numbers, table_userdata};
use crate::error::Error;
use crate::error::libc_errno::{ENOENT, EPERM, ERESTART};
use crate::kernel::{ElementChange, Kernel, Receipt, Step, Table, TimedElement};
use crate::monitor::Monitor;
use crate::probe::{Features, ProbeError};

/// How often a transaction is sent again when others committed in between.
const COMMIT_ATTEMPTS: u32 = 16;
/// How often a read is begun again when the ruleset changed underneath.
const READ_ATTEMPTS: u32 = 32;
/// How long notifications of a commit that has already happened may take.
const NOTIFICATION: Duration = Duration::from_secs(1);

/// nftables over ONE netlink socket, which owns the table for as long as this value lives.
pub struct NetlinkKernel {
    socket: Socket,
    features: Features,
    /// True when our socket owns the table.
    owned: bool,
    /// Generation at which the table was last known to be as we left it.
    known: Option<u32>,
    /// Handle of the table that was read last, ours or not.
    handle: Option<u64>,
    /// True when somebody else was seen to have touched the table since it was known.
    drifted: bool,
    /// Only where others can change our table: tells whether a foreign commit touched it.
    monitor: Option<Monitor>,
    hook: Box<dyn FnMut(Step) + Send>,
}

impl fmt::Debug for NetlinkKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { features, owned, known, .. } = self;
        write!(f, "NetlinkKernel {{ {features:?}, owned: {owned}, known: {known:?} }}")
    }
}

impl NetlinkKernel {
    /// Opens the socket in the network namespace of the calling thread and asks the kernel what it can do.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::open()?;
        let features = Features::probe(&mut socket).map_err(|error| match error {
            ProbeError::Privilege => Error::Privilege,
            ProbeError::Socket(error) => Error::Socket(error),
        })?;
        Self::with_features(socket, features)
    }

    /// As [`Self::open`], but as if the kernel lacked tables with owners (before 6.9): for tests of drift repair.
    pub fn open_without_owner() -> Result<Self, Error> {
        Self::open_as(|features| features.owner_persist = false)
    }

    /// As [`Self::open`], but as if the kernel were an older one: for tests of what replaces its features.
    pub fn open_as(older: impl FnOnce(&mut Features)) -> Result<Self, Error> {
        let mut kernel = Self::open()?;
        older(&mut kernel.features);
        Self::with_features(kernel.socket, kernel.features)
    }

    fn with_features(socket: Socket, features: Features) -> Result<Self, Error> {
        let monitor = if features.owner_persist { None } else { Some(Monitor::open(socket.port())?) };
        Ok(Self {
            socket,
            features,
            owned: false,
            known: None,
            handle: None,
            drifted: false,
            monitor,
            hook: Box::new(|_| {}),
        })
    }

    /// What this kernel can do.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Netlink port of our socket: what [`Monitor::open`] is to ignore.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// True when our socket owns the table, so that nobody else can change it.
    pub fn owned(&self) -> bool {
        self.owned
    }

    /// Calls `hook` between the steps of every commit; a test kills the process there.
    pub fn set_hook(&mut self, hook: impl FnMut(Step) + Send + 'static) {
        self.hook = Box::new(hook);
    }

    fn table_flags(&self) -> u32 {
        if self.features.owner_persist { table_flag::OWNER | table_flag::PERSIST } else { 0 }
    }

    /// Runs a read until nothing changed underneath it.
    fn steady<T>(&mut self, mut read: impl FnMut(&mut Self) -> Result<T, SocketError>) -> Result<T, Error> {
        for attempt in 0..READ_ATTEMPTS {
            // Others' commits come in bursts; waiting lets one pass.
            std::thread::sleep(Duration::from_millis(u64::from(attempt.saturating_sub(3))));
            match read(self) {
                Err(SocketError::Interrupted) => {}
                // Objects vanished between two requests of one read.
                Err(SocketError::Refused(ack)) if ack.errno == ENOENT => {}
                other => return other.map_err(Error::from),
            }
        }
        Err(Error::Unsteady(READ_ATTEMPTS))
    }

    fn get_generation(&mut self) -> Result<u32, SocketError> {
        steady::generation(&mut self.socket)
    }

    /// The table with our name, whosever it is. Asked by name: a list of all tables goes on by counting them.
    fn find_table(&mut self) -> Result<Option<KernelTable>, SocketError> {
        let head = Head {
            subsystem: subsystem::NFTABLES,
            message: message::GET_TABLE,
            family: INET,
            ..Head::default()
        };
        let mut found = None;
        let asked = self.socket.ask(
            head,
            |w| KernelTable::name(w, TABLE),
            |answer| {
                found = Some(KernelTable::decode(answer.attrs())?);
                Ok(())
            },
        );
        match asked {
            Err(SocketError::Refused(ack)) if ack.errno == ENOENT => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// An orphan of ours becomes our socket's.
    fn adopt(&mut self) -> Result<(), Error> {
        let flags = table_flag::OWNER | table_flag::PERSIST;
        let table = KernelTable {
            name: TABLE.to_owned(),
            flags,
            userdata: table_userdata(),
            ..KernelTable::default()
        };
        let mut batch = Batch::new(subsystem::NFTABLES, None, self.socket.reserve(3));
        batch.push(message::NEW_TABLE, 0, INET, |w| table.encode(w));
        let batch = batch.finish(Finish::Commit)?;
        self.socket.send_batch(&batch)?;
        match self.socket.finish_batch(&batch).map_err(Error::Uncertain)? {
            Outcome::Done => Ok(()),
            Outcome::Whole(ack) => Err(whole(&ack)),
            Outcome::Messages(refused) => {
                let errno = refused.first().map_or(0, |(_, ack)| ack.errno);
                Err(if errno == EPERM { self.taken() } else { Error::Whole { errno } })
            }
        }
    }

    /// The generation to guard the next attempt with; `Stale` when our table was touched since it was known.
    fn guard(&mut self) -> Result<u32, Error> {
        let generation = self.follow()?;
        if std::mem::take(&mut self.drifted) {
            self.known = None;
            return Err(Error::Stale);
        }
        Ok(generation)
    }

    /// The generation now; remembers whether others touched our table on the way to it.
    fn follow(&mut self) -> Result<u32, Error> {
        let generation = self.get_generation()?;
        let Some(known) = self.known.replace(generation) else { return Ok(generation) };
        if known == generation || self.owned {
            return Ok(generation);
        }
        let touched = match &mut self.monitor {
            Some(monitor) => monitor.touched_until(generation, NOTIFICATION)?,
            // Nothing of ours is there yet; what a foreign table holds does not matter, it is replaced.
            None => self.find_table()?.and_then(|table| table.handle) != self.handle,
        };
        self.drifted |= touched;
        Ok(generation)
    }

    fn encode(&mut self, plan: &Plan, generation: u32) -> Result<Transaction, Error> {
        let sequence = self.socket.reserve(sequence_numbers(plan));
        encode_plan(plan, self.table_flags(), Some(generation), sequence)
    }

    /// Sends and reads the answer; ERESTART is `None`.
    fn transact(&mut self, batch: &Encoded) -> Result<Option<Outcome>, Error> {
        (self.hook)(Step::Send);
        self.socket.send_batch(batch)?;
        (self.hook)(Step::Sent);
        let outcome = self.socket.finish_batch(batch).map_err(|error| {
            self.known = None;
            Error::Uncertain(error)
        })?;
        (self.hook)(Step::Acknowledged);
        Ok(match outcome {
            Outcome::Whole(ack) if ack.errno == ERESTART => None,
            outcome => Some(outcome),
        })
    }

    fn refuse(
        &mut self,
        transaction: &Transaction,
        batch: &Encoded,
        plan: &Plan,
        wanted: &Ruleset,
        refused: Vec<(usize, Ack)>,
    ) -> Error {
        let others = refused.len().saturating_sub(1);
        let Some((message, ack)) = refused.into_iter().next() else { return Error::Whole { errno: 0 } };
        // With the privilege to begin, EPERM on a message means that the table has another owner.
        if ack.errno == EPERM {
            return self.taken();
        }
        let (attributes, start) = batch.attributes(message).unwrap_or((&[], 0));
        let at = Position { message, attributes, start };
        Error::Refused(Box::new(transaction.refusal(plan, wanted, &at, ack, others)))
    }

    /// Says whose the table is.
    fn taken(&mut self) -> Error {
        match self.find_table() {
            Ok(table) => Error::Taken { port: table.and_then(|table| table.owner).unwrap_or(0) },
            Err(error) => Error::Socket(error),
        }
    }

    fn run(&mut self, plan: &Plan, wanted: &Ruleset, finish: Finish) -> Result<Receipt, Error> {
        (self.hook)(Step::Build);
        let mut generation = self.guard()?;
        let mut transaction = self.encode(plan, generation)?;
        let mut batch = transaction.take_batch().finish(finish)?;
        for retries in 0..COMMIT_ATTEMPTS {
            match self.transact(&batch)? {
                Some(Outcome::Done) => {
                    if finish == Finish::Commit {
                        generation = if batch.starts.is_empty() { generation } else { next(generation) };
                        self.known = Some(generation);
                    }
                    let (messages, bytes) = (batch.starts.len(), batch.bytes.len());
                    return Ok(Receipt { generation, messages, bytes, retries });
                }
                Some(Outcome::Whole(ack)) => return Err(whole(&ack)),
                Some(Outcome::Messages(refused)) => {
                    return Err(self.refuse(&transaction, &batch, plan, wanted, refused));
                }
                None => {
                    generation = self.guard()?;
                    batch.guard(generation);
                }
            }
        }
        Err(Error::Busy(COMMIT_ATTEMPTS))
    }
}

impl Kernel for NetlinkKernel {
    fn interferers(&mut self) -> Result<Vec<String>, Error> {
        self.steady(Self::read_interferers)
    }

    fn read(&mut self) -> Result<Table, Error> {
        if let Some(monitor) = &mut self.monitor {
            monitor.clear()?;
        }
        self.owned = false;
        self.drifted = false;
        self.known = Some(self.get_generation()?);
        let found = self.steady(Self::find_table)?;
        self.handle = found.as_ref().and_then(|table| table.handle);
        let Some(table) = found else { return Ok(Table::Absent) };
        let marked = udata::find(&table.userdata, MARK.0) == Some(MARK.1);
        let persistent = table.flags & table_flag::PERSIST != 0;
        // A table without the flags our kernel has cannot be given them (nf_tables_updtable, EOPNOTSUPP).
        if !marked || persistent != self.features.owner_persist {
            return Ok(Table::Foreign(self.steady(Self::read_foreign)?));
        }
        match table.owner {
            Some(port) if port == self.socket.port() => self.owned = true,
            Some(port) => return Ok(Table::Taken { port }),
            None if persistent => {
                self.adopt()?;
                self.owned = true;
            }
            None => {}
        }
        let observed = self.steady(Self::read_contents)?;
        self.known = Some(observed.generation);
        Ok(Table::Ours(observed))
    }

    fn check(&mut self, plan: &Plan, wanted: &Ruleset) -> Result<(), Error> {
        self.run(plan, wanted, Finish::DryRun).map(|_| ())
    }

    fn commit(&mut self, plan: &Plan, wanted: &Ruleset) -> Result<Receipt, Error> {
        let receipt = self.run(plan, wanted, Finish::Commit)?;
        for op in &plan.ops {
            match op {
                fw_ruleset::Op::CreateTable => self.owned = self.features.owner_persist,
                fw_ruleset::Op::DeleteTable => self.owned = false,
                _ => {}
            }
        }
        Ok(receipt)
    }

    fn counts(&mut self) -> Result<Counts, Error> {
        self.steady(Self::read_counts)
    }

    fn generation(&mut self) -> Result<u32, Error> {
        Ok(self.get_generation()?)
    }

    fn update_elements(&mut self, changes: &[ElementChange]) -> Result<(), Error> {
        self.change_elements(changes)
    }

    fn timed_elements(&mut self, set: &str) -> Result<Vec<TimedElement>, Error> {
        self.list_elements(set)
    }
}

fn count(counter: Counter) -> Count {
    Count { packets: counter.packets, bytes: counter.bytes }
}

/// A commit moves the generation by one; 0 is left out (nf_tables_commit).
fn next(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

fn whole(ack: &Ack) -> Error {
    if ack.errno == EPERM { Error::Privilege } else { Error::Whole { errno: ack.errno } }
}
