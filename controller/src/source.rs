//! Where objects come from.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use fw_intake::{Finding, Manifest};
use tokio::sync::{Notify, watch};

pub mod cluster;
mod documents;
pub mod files;
pub mod manifests;
mod watcher;

/// Objects in the groups in which a source gets and loses them: a file's, or one object of an API server.
pub type Groups = BTreeMap<String, Arc<Vec<Arc<Manifest>>>>;

/// All objects of a source at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The objects.
    pub groups: Groups,
    /// What the source could not read or parse; what it last had of it is among the objects.
    pub findings: Vec<Finding>,
    /// True: the source has listed everything since this process started. False: what is here is what was known
    /// before, and [`Snapshot::note`] says what is missing.
    pub fresh: bool,
    /// Why it is not fresh, e.g. `waiting for directory /etc/firewall-controller/manifests`.
    pub note: String,
    /// Figures for the status.
    pub counters: SourceCounters,
}

impl Snapshot {
    /// The objects, in the order of their groups.
    pub fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.groups.values().flat_map(|group| group.iter().map(Arc::as_ref))
    }
}

/// What a source counts; every bound has its counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceCounters {
    /// Listings made.
    pub scans: u64,
    /// Objects that an API server said have changed, one by one.
    #[serde(default)]
    pub events: u64,
    /// Files read and parsed.
    pub files_parsed: u64,
    /// Files that could not be parsed.
    pub parse_errors: u64,
    /// Files or directories that could not be read, or passed a bound; requests to an API server that failed.
    pub read_errors: u64,
    /// Times the kernel's event queue overflowed; each one led to reading everything again.
    pub queue_overflows: u64,
}

/// A future that ends only with the source.
pub type Running = Pin<Box<dyn Future<Output = Result<(), SourceError>> + Send>>;

/// Why a source stopped.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No inotify instance.
    #[error("cannot watch files (is fs.inotify.max_user_instances used up?)")]
    Watch(#[source] std::io::Error),
}

/// Something that yields objects. Level-triggered: each snapshot is whole, only the latest one counts.
pub trait Source: Send {
    /// What it is, for the status: `manifests in /etc/firewall-controller/manifests`.
    fn describe(&self) -> String;

    /// Runs for as long as `output` has a reader. Sends a snapshot after the first listing and after each change;
    /// lists everything again whenever `rescan` is notified.
    fn run(self: Box<Self>, output: watch::Sender<Option<Arc<Snapshot>>>, rescan: Arc<Notify>) -> Running;
}
