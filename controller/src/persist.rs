//! Writes the state directory on a thread of its own: a slow disk never delays a rule.
//!
//! Only the latest version of each document is written. What cannot be written is a problem in the status and is
//! tried again with the next version, or after a minute.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fw_intake::Manifest;
use tracing::warn;

use crate::addresses::{Owned, OwnedDocument, Record};
use crate::published::Published;
use crate::reconcile::{KernelRecord, Memory, Remembered, StoredSnapshot};
use crate::source::{Groups, Snapshot};
use crate::state::{Identity, StateDir, StateError};
use crate::telemetry::chain;

/// Pause between two writes, so that a burst of edits is written once.
const PAUSE: Duration = Duration::from_millis(100);
/// So many times as long as a write took is the pause after it: thousands of objects are megabytes.
const REST: u32 = 10;
const LONGEST: Duration = Duration::from_secs(1);
/// When a failed write is tried again without a newer version.
const RETRY: Duration = Duration::from_secs(60);

const ADDRESSES: &str = "addresses.json";
const SNAPSHOT: &str = "snapshot.json";
const KERNEL: &str = "kernel.json";

/// `kernel.json`: what belongs to the table of one boot and network namespace.
#[derive(serde::Serialize, serde::Deserialize)]
struct KernelDocument {
    identity: Identity,
    #[serde(flatten)]
    record: KernelRecord,
}

/// Reads what was remembered. What cannot be read is logged and ignored.
pub fn recall(state: &StateDir, identity: Option<&Identity>) -> Remembered {
    let snapshot = logged(state.load::<StoredSnapshot>(SNAPSHOT));
    let kernel = logged(state.load::<KernelDocument>(KERNEL));
    let kernel =
        kernel.filter(|document| identity == Some(&document.identity)).map(|document| document.record);
    Remembered { snapshot, kernel }
}

/// The objects of a stored snapshot, for the source to start from.
pub fn groups(snapshot: &StoredSnapshot) -> Groups {
    snapshot.groups()
}

/// Forgets the snapshot of a controller that does not run.
pub fn forget(state: &StateDir) -> Result<(), StateError> {
    state.remove(SNAPSHOT)
}

fn logged<T>(loaded: Result<Option<T>, StateError>) -> Option<T> {
    loaded.unwrap_or_else(|error| {
        warn!("{}", chain(&error));
        None
    })
}

/// Opens the state directory. A directory that another controller has is an error; one that cannot be used (a full
/// or read-only disk) is a problem and not a reason to leave the machine without rules.
pub fn open(path: &Path) -> Result<Result<Arc<StateDir>, String>, StateError> {
    match StateDir::open(path) {
        Ok(state) => Ok(Ok(Arc::new(state))),
        Err(error @ StateError::Locked(_)) => Err(error),
        Err(error) => {
            warn!("{}; a restart will begin without a snapshot", chain(&error));
            Ok(Err(chain(&error)))
        }
    }
}

/// The record of the addresses we put on interfaces. Without a usable state directory it is forgotten at the end of
/// the process; the directory's problem is in the status.
pub struct AddressRecord {
    /// The directory.
    pub state: Option<Arc<StateDir>>,
    /// The network stack the addresses belong to.
    pub identity: Option<Identity>,
}

impl Record for AddressRecord {
    fn load(&self) -> Owned {
        let Some(state) = &self.state else { return Owned::default() };
        let document = logged(state.load::<OwnedDocument>(ADDRESSES));
        let ours = document.filter(|document| Some(&document.identity) == self.identity.as_ref());
        ours.map(|document| document.owned).unwrap_or_default()
    }

    fn store(&self, owned: &Owned) -> Result<(), String> {
        let (Some(state), Some(identity)) = (&self.state, &self.identity) else { return Ok(()) };
        let document = OwnedDocument { identity: identity.clone(), owned: owned.clone() };
        state.store(ADDRESSES, &document).map_err(|error| chain(&error))
    }
}

/// The writing end, held by the reconciler.
pub struct Persister {
    shared: Arc<Shared>,
}

/// Stops the thread after what is waiting was written.
pub struct PersisterThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

#[derive(Default)]
struct Inbox {
    snapshot: Option<Change>,
    kernel: Option<(Arc<Published>, bool)>,
    problems: BTreeMap<&'static str, String>,
    stop: bool,
}

#[derive(Clone)]
enum Change {
    Store(Arc<Snapshot>, Option<Manifest>),
    Forget,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // A panic while it was held cannot leave it half changed: every change is one assignment.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread. `state`: the directory, or why there is none.
pub fn start(
    state: Result<Arc<StateDir>, String>,
    identity: Option<Identity>,
) -> (Persister, PersisterThread) {
    let shared = Arc::new(Shared::default());
    let thread = match state {
        Ok(state) => {
            let shared = Arc::clone(&shared);
            Some(std::thread::spawn(move || write_all(&state, identity.as_ref(), &shared)))
        }
        Err(problem) => {
            shared.inbox().problems.insert("directory", problem);
            None
        }
    };
    (Persister { shared: Arc::clone(&shared) }, PersisterThread { shared, thread })
}

fn write_all(state: &StateDir, identity: Option<&Identity>, shared: &Shared) {
    let mut written = Instant::now();
    loop {
        let mut inbox = shared.inbox();
        while inbox.snapshot.is_none() && inbox.kernel.is_none() && !inbox.stop {
            inbox = shared.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
        let stop = inbox.stop;
        let (snapshot, kernel) = (inbox.snapshot.take(), inbox.kernel.take());
        drop(inbox);
        let began = Instant::now();
        let failed = write(state, identity, snapshot.as_ref(), kernel.as_ref(), shared);
        if stop {
            return;
        }
        if failed {
            let mut inbox = shared.inbox();
            // Newer versions that came meanwhile count.
            inbox.snapshot = inbox.snapshot.take().or(snapshot);
            inbox.kernel = inbox.kernel.take().or(kernel);
            if !inbox.stop {
                drop(shared.changed.wait_timeout(inbox, RETRY));
            }
        } else {
            let rest = began.elapsed().saturating_mul(REST);
            let pause = PAUSE.saturating_sub(written.elapsed()).max(rest).min(LONGEST);
            let inbox = shared.inbox();
            if !inbox.stop && !pause.is_zero() {
                drop(shared.changed.wait_timeout_while(inbox, pause, |inbox| !inbox.stop));
            }
        }
        written = Instant::now();
    }
}

/// Writes what there is; true when something could not be written.
fn write(
    state: &StateDir,
    identity: Option<&Identity>,
    snapshot: Option<&Change>,
    kernel: Option<&(Arc<Published>, bool)>,
    shared: &Shared,
) -> bool {
    let mut failed = false;
    let mut note = |name, result: Result<(), StateError>| {
        let mut inbox = shared.inbox();
        match result {
            Ok(()) => {
                inbox.problems.remove(name);
            }
            Err(error) => {
                failed = true;
                let text = chain(&error);
                if inbox.problems.get(name) != Some(&text) {
                    warn!("{text}");
                }
                inbox.problems.insert(name, text);
            }
        }
    };
    match snapshot {
        Some(Change::Store(snapshot, firewall)) => {
            note("snapshot", state.store(SNAPSHOT, &StoredSnapshot::new(snapshot, firewall.clone())));
        }
        Some(Change::Forget) => note("snapshot", state.remove(SNAPSHOT)),
        None => {}
    }
    if let (Some((published, from_firewall)), Some(identity)) = (kernel, identity) {
        let record = KernelRecord { published: Published::clone(published), from_firewall: *from_firewall };
        let document = KernelDocument { identity: identity.clone(), record };
        note("kernel", state.store(KERNEL, &document));
    }
    failed
}

impl Memory for Persister {
    fn snapshot(&mut self, snapshot: Arc<Snapshot>, firewall: Option<Manifest>) {
        self.shared.inbox().snapshot = Some(Change::Store(snapshot, firewall));
        self.shared.changed.notify_all();
    }

    fn forget_snapshot(&mut self) {
        self.shared.inbox().snapshot = Some(Change::Forget);
        self.shared.changed.notify_all();
    }

    fn kernel(&mut self, published: Arc<Published>, from_firewall: bool) {
        self.shared.inbox().kernel = Some((published, from_firewall));
        self.shared.changed.notify_all();
    }

    fn problems(&self) -> Vec<String> {
        self.shared.inbox().problems.values().cloned().collect()
    }
}

impl PersisterThread {
    /// Writes what is waiting and ends the thread.
    pub fn stop(mut self) {
        self.shared.inbox().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the thread that writes the state directory had failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::temporary::TemporaryDirectory;

    fn identity() -> Identity {
        Identity::of_this_process().unwrap()
    }

    fn snapshot(name: &str) -> Arc<Snapshot> {
        let manifest = Manifest {
            source: "a.yaml".to_owned(),
            line: 1,
            body: serde_json::json!({"metadata": {"name": name}}).into(),
        };
        let groups = [("a.yaml".to_owned(), Arc::new(vec![Arc::new(manifest)]))].into();
        Arc::new(Snapshot { groups, fresh: true, ..Snapshot::default() })
    }

    #[test]
    fn what_was_handed_over_is_there_after_a_stop() {
        let directory = TemporaryDirectory::new("persist");
        let (mut memory, thread) = start(open(directory.path()).unwrap(), Some(identity()));
        memory.snapshot(snapshot("first"), None);
        memory.snapshot(snapshot("last"), None);
        memory.kernel(Arc::default(), true);
        assert_eq!(memory.problems(), Vec::<String>::new());
        thread.stop();
        let recalled = recall(&StateDir::open(directory.path()).unwrap(), Some(&identity()));
        assert_eq!(recalled.snapshot.unwrap().groups(), snapshot("last").groups);
        assert!(recalled.kernel.unwrap().from_firewall);
    }

    #[test]
    fn the_record_of_another_boot_is_not_used() {
        let directory = TemporaryDirectory::new("persist");
        let state = StateDir::open(directory.path()).unwrap();
        let record = serde_json::json!({
            "identity": {"boot": "another", "namespace": 1},
            "published": {"series": [], "resets": 0},
            "fromFirewall": true
        });
        state.store(KERNEL, &record).unwrap();
        assert!(recall(&state, Some(&identity())).kernel.is_none());
    }

    #[test]
    fn a_write_that_fails_is_a_problem_until_it_succeeds() {
        let directory = TemporaryDirectory::new("persist");
        let state = StateDir::open(directory.path()).unwrap();
        let shared = Shared::default();
        let change = Change::Store(snapshot("a"), None);
        std::fs::create_dir(directory.path().join("snapshot.new")).unwrap();
        assert!(write(&state, None, Some(&change), None, &shared));
        assert!(shared.inbox().problems["snapshot"].contains("snapshot.json"));
        std::fs::remove_dir(directory.path().join("snapshot.new")).unwrap();
        assert!(!write(&state, None, Some(&change), None, &shared));
        assert!(shared.inbox().problems.is_empty());
    }
}
