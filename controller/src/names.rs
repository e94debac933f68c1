//! Names: a thread on which DNS answers become what the kernel lets pass.
//!
//! ```text
//! question ─proxy─▶ resolver ─answer─▶ Decider::release ─▶ Learner ─changes─▶ eBPF maps, or nftables maps
//!                                            └──────── the answer leaves when they hold it ────────┘
//! reconciler ─NamePath─▶ Prepare, Withdraw, StopOtherMarks, Install
//! ```
//! One thread, so that an answer costs no lock. The reconciler tells it what is in force, in the order that two kernels'
//! worth of state need ([`crate::reconcile::NamePath`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fw_names::Name;
use fw_policy::{Fastpath, IfName, Inside, Learned, Packet, PolicySet, Protocol};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use crate::problems::Problems;
use crate::reconcile::worker::Job;
use crate::reconcile::{Installation, NamePath, Prepared};

pub mod clock;
pub mod fastpath;
pub mod sets;

mod decider;
mod early;
mod encrypted;
pub mod followers;
mod journal;
mod keeper;
mod links;
mod programs;
mod samples;
mod show;
mod site;
mod thread;

pub use followers::Followers;
pub use journal::remove as remove_journal;
pub use programs::remove as remove_programs;

/// How long the reconciler waits for the thread of names. It is busy for longer only when something is wrong, and the
/// rules do not wait for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a packet in a log waits for its name.
const SOON: Duration = Duration::from_secs(1);

/// Where things are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where eBPF programs and maps are pinned.
    pub bpf_dir: PathBuf,
    /// Where the journal is; `None`: nothing is kept.
    pub state_dir: Option<PathBuf>,
}

/// What the thread can be asked.
pub(crate) enum Command {
    /// See [`NamePath::prepare`].
    Prepare(Wish, Sender<Prepared>),
    /// See [`NamePath::withdraw`].
    Withdraw(BTreeSet<u32>, Sender<Result<(), String>>),
    /// See [`NamePath::stop_other_marks`].
    StopOtherMarks(u32, Sender<Result<bool, String>>),
    /// See [`NamePath::pass_all`].
    PassAll(Sender<()>),
    /// See [`NamePath::install`].
    Install(Option<Arc<Installation>>, Sender<()>),
    /// The reconciler takes jobs from now on.
    Jobs(Sender<Job>),
    /// What was learned.
    Show(Question, oneshot::Sender<Value>),
    /// What is known of a packet.
    Known(Packet, oneshot::Sender<Known>),
    /// What is known of the addresses of packets, in their order.
    Tell(Vec<Asked>, oneshot::Sender<Vec<Told>>),
    /// See [`Handle::inherit`].
    Inherit(Vec<Inherited>),
}

/// What is wanted of the machine's interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    fastpath: Fastpath,
    inside: Inside,
    /// False: nothing needs programs, and nobody asked for them.
    programs: bool,
}

/// What can be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Figures and states, for the status.
    Summary,
    /// Names that contain this, or all of them.
    Names(Option<String>),
}

/// What is known of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Known {
    /// The selectors its destination is allowed by now.
    pub learned: Learned,
    /// The names its destination was learned from; bounded.
    pub names: Vec<String>,
    /// Where the programs drop it, if they do.
    pub early: Option<EarlyDrop>,
}

/// A packet of which only the names are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Protocol and destination port, where there are.
    pub service: Option<(Protocol, u16)>,
}

/// What is known of the addresses of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Told {
    /// The name last answered for the source.
    pub source: Option<String>,
    /// The name last answered for the destination.
    pub destination: Option<String>,
    /// The mark index by which a name allows the destination now.
    pub index: Option<u32>,
}

/// An address of a name that another controller has learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The name.
    pub name: Name,
    /// The address.
    pub address: IpAddr,
    /// When its answer is over: seconds since 1970.
    pub until: u64,
}

/// A packet that nftables does not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyDrop {
    /// The interfaces it may enter by (the ports of a VRF), and what drops it there: `xdp` or `tcx`.
    pub places: BTreeMap<IfName, &'static str>,
    /// As the status calls it.
    pub reason: &'static str,
}

/// Asks the thread.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
}

impl Handle {
    /// One that nobody answers.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self { commands: mpsc::unbounded_channel().0 }
    }

    /// Tells it whom to send jobs.
    pub fn set_jobs(&self, jobs: Sender<Job>) {
        self.commands.send(Command::Jobs(jobs)).ok();
    }

    /// What is known of a packet; nothing when the thread does not answer.
    pub async fn known(&self, packet: &Packet) -> Known {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Known(packet.clone(), reply)).ok();
        tokio::time::timeout(PATIENCE, answer).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// What is known of the addresses of packets, in their order; nothing when the thread does not answer soon.
    pub async fn tell(&self, asked: Vec<Asked>) -> Vec<Told> {
        let nothing = vec![Told::default(); asked.len()];
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Tell(asked, reply)).ok();
        tokio::time::timeout(SOON, answer).await.ok().and_then(Result::ok).unwrap_or(nothing)
    }

    /// Learns what another controller has learned, as if from a journal; not about names that are known already.
    pub fn inherit(&self, inherited: Vec<Inherited>) {
        self.commands.send(Command::Inherit(inherited)).ok();
    }

    /// `None` when it does not answer.
    pub async fn show(&self, question: Question) -> Option<Value> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Show(question, reply)).ok()?;
        tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
    }
}

/// True when no controller has kept names in the state directory; to be asked before [`start`]. Without such a directory
/// nobody knows.
pub fn is_first_start(options: &Options) -> bool {
    let journal = options.state_dir.as_ref().map(|directory| directory.join(journal::FILE));
    journal.is_some_and(|path| matches!(path.try_exists(), Ok(false)))
}

/// Starts the thread.
pub fn start(options: Options, problems: Problems, followers: Followers) -> (Handle, Box<dyn NamePath>) {
    let (commands, orders) = mpsc::unbounded_channel();
    let indexes = Arc::new(Mutex::new(BTreeSet::new()));
    let path = Path {
        commands: commands.clone(),
        indexes: Arc::clone(&indexes),
        problems: problems.clone(),
        prepared: Prepared::default(),
    };
    std::thread::Builder::new()
        .name("names".to_owned())
        .spawn(move || thread::run(options, orders, indexes, problems, followers))
        .inspect_err(|error| error!("no thread for names: {error}; names open nothing"))
        .ok();
    (Handle { commands }, Box::new(path))
}

/// The reconciler's end.
struct Path {
    commands: mpsc::UnboundedSender<Command>,
    indexes: Arc<Mutex<BTreeSet<u32>>>,
    problems: Problems,
    /// The last answer to `prepare`: what is in force does not change because the thread is slow.
    prepared: Prepared,
}

impl Path {
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, String> {
        let (reply, answer): (Sender<T>, Receiver<T>) = channel();
        let gone = "the thread of names has ended".to_owned();
        if self.commands.send(command(reply)).is_err() {
            return Err(gone);
        }
        answer.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Disconnected => gone,
            RecvTimeoutError::Timeout => {
                format!("the thread of names did not answer within {} s", PATIENCE.as_secs())
            }
        })
    }

    fn note(&self, result: Result<(), String>) {
        if let Err(why) = &result {
            warn!("{why}");
        }
        self.problems.set("names thread", result.err().into_iter().collect());
    }
}

impl NamePath for Path {
    fn prepare(&mut self, set: &PolicySet) -> Prepared {
        let fastpath = set.firewall.fastpath.clone();
        let programs = set.intercepts_dns()
            || fastpath != Fastpath { mark_mask: fastpath.mark_mask, ..Fastpath::default() };
        let wish = Wish { fastpath, inside: set.firewall.inside.clone(), programs };
        let prepared = self.ask(|reply| Command::Prepare(wish, reply));
        let result = prepared.map(|prepared| self.prepared = prepared);
        self.note(result);
        self.prepared.clone()
    }

    fn in_use(&mut self) -> BTreeSet<u32> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn found(&mut self, indexes: BTreeSet<u32>) {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).extend(indexes);
    }

    fn withdraw(&mut self, indexes: &BTreeSet<u32>) -> Result<(), String> {
        self.ask(|reply| Command::Withdraw(indexes.clone(), reply))?
    }

    fn stop_other_marks(&mut self, mask: u32) -> Result<bool, String> {
        self.ask(|reply| Command::StopOtherMarks(mask, reply))?
    }

    fn pass_all(&mut self) {
        let result = self.ask(Command::PassAll);
        self.note(result);
    }

    fn install(&mut self, installation: Option<Arc<Installation>>) {
        let result = self.ask(|reply| Command::Install(installation, reply));
        self.note(result);
    }
}

/// What the programs have dropped: packets by place (`xdp`, `tcx`) and reason.
pub type EarlyDrops = BTreeMap<&'static str, BTreeMap<String, u64>>;
