//! A directory of manifest files as a source.
//!
//! The directory is read with its subdirectories ([`super::files`] has the bounds). What cannot be read or parsed
//! keeps the objects it last had, also those of before the last restart; what is removed loses them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fw_intake::{Finding, Manifest, Reason, Severity, Subject};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::findings::unreadable;

use super::documents::Documents;
use super::files::{self, Listing, Stamp};
use super::watcher::{Changes, Watcher};
use super::{Groups, Running, Snapshot, Source, SourceCounters, SourceError};

/// A burst of events is over when none came for this long …
const QUIET: Duration = Duration::from_millis(20);
/// … and is not waited for any longer than this.
const MAX_DELAY: Duration = Duration::from_millis(200);
/// A file that is being written is read anyway when its last write is this long ago.
const MAX_WRITE: Duration = Duration::from_secs(2);
/// How often to look where the kernel does not tell.
const POLL: Duration = Duration::from_secs(10);
/// Listings in a row that found directories not watched before.
const MAX_ROUNDS: usize = 4;

/// The source behind `--manifests DIR`.
pub struct ManifestDirectory {
    cache: Cache,
}

impl ManifestDirectory {
    /// `kept` is what the files had before the last restart, by path.
    pub fn new(root: PathBuf, kept: &Groups) -> Self {
        Self { cache: Cache::new(root, kept) }
    }
}

impl Source for ManifestDirectory {
    fn describe(&self) -> String {
        format!("manifests in {}", self.cache.root.display())
    }

    fn run(self: Box<Self>, output: watch::Sender<Option<Arc<Snapshot>>>, rescan: Arc<Notify>) -> Running {
        Box::pin(follow(self.cache, output, rescan))
    }
}

async fn follow(
    mut cache: Cache,
    output: watch::Sender<Option<Arc<Snapshot>>>,
    rescan: Arc<Notify>,
) -> Result<(), SourceError> {
    let mut watcher = Watcher::new().map_err(SourceError::Watch)?;
    let mut writing = BeingWritten::default();
    let mut reread = true;
    loop {
        let held = writing.held(Instant::now());
        let Some(next) = scan(cache, &mut watcher, held, reread).await else { return Ok(()) };
        cache = next;
        if let Some(snapshot) = cache.take_changed() {
            output.send_replace(Some(Arc::new(snapshot)));
        }
        reread = tokio::select! {
            () = output.closed() => return Ok(()),
            () = rescan.notified() => true,
            () = sleep(writing.next_look(Instant::now(), !watcher.unwatched.is_empty())) => false,
            settled = settled(&mut watcher, &mut writing) => settled.map(|()| false).map_err(SourceError::Watch)?,
        };
        let overflow = writing.take_overflow();
        reread |= overflow;
        cache.counters.queue_overflows += u64::from(overflow);
    }
}

/// Lists and reads off this thread, until nothing new had to be watched. `None`: the runtime is going down.
async fn scan(
    mut cache: Cache,
    watcher: &mut Watcher,
    held: BTreeSet<PathBuf>,
    mut reread: bool,
) -> Option<Cache> {
    for _ in 0..MAX_ROUNDS {
        let held = held.clone();
        let scanned = tokio::task::spawn_blocking(move || {
            let listing = cache.update(&held, reread);
            (cache, listing)
        });
        let listing;
        (cache, listing) = scanned.await.ok()?;
        reread = false;
        let again = watcher.follow(&listing);
        cache.set_unwatched(&watcher.unwatched);
        if !again {
            break;
        }
    }
    Some(cache)
}

/// Waits for relevant events, then until they pause.
async fn settled(watcher: &mut Watcher, writing: &mut BeingWritten) -> std::io::Result<()> {
    while !writing.note(watcher.next().await?, Instant::now()) {}
    let deadline = Instant::now() + MAX_DELAY;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        match timeout(QUIET.min(left), watcher.next()).await {
            Ok(changes) => {
                writing.note(changes?, Instant::now());
            }
            Err(_) => break,
        }
    }
    Ok(())
}

/// Files with writes that were not followed by a close: reading one would see half of it.
#[derive(Debug, Default)]
struct BeingWritten {
    since: BTreeMap<PathBuf, Instant>,
    overflow: bool,
}

impl BeingWritten {
    /// Takes note of events; true when they are relevant.
    fn note(&mut self, changes: Changes, now: Instant) -> bool {
        for path in &changes.finished {
            self.since.remove(path);
        }
        self.since.extend(changes.being_written.into_iter().map(|path| (path, now)));
        self.overflow |= changes.overflow;
        changes.any
    }

    /// The files not to read yet.
    fn held(&mut self, now: Instant) -> BTreeSet<PathBuf> {
        self.since.retain(|_, last| now.saturating_duration_since(*last) < MAX_WRITE);
        self.since.keys().cloned().collect()
    }

    /// When to look again without an event.
    fn next_look(&self, now: Instant, poll: bool) -> Duration {
        let first = self.since.values().min();
        let held = first.map(|last| MAX_WRITE.saturating_sub(now.saturating_duration_since(*last)));
        let idle = if poll { POLL } else { Duration::from_secs(24 * 3600) };
        held.unwrap_or(idle).min(idle)
    }

    fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.overflow)
    }
}

/// What is known of each file.
struct Cache {
    root: PathBuf,
    files: BTreeMap<PathBuf, Known>,
    /// Files and directories that cannot be used, with the reason.
    unusable: BTreeMap<PathBuf, String>,
    unwatched: BTreeMap<PathBuf, String>,
    counters: SourceCounters,
    changed: bool,
}

struct Known {
    /// State of the file when it was last read; `None`: not in this process.
    stamp: Option<Stamp>,
    objects: Arc<Vec<Arc<Manifest>>>,
    documents: Documents,
    problem: Option<Finding>,
}

impl Cache {
    fn new(root: PathBuf, kept: &Groups) -> Self {
        let known = |objects| Known { objects: Arc::clone(objects), ..Known::empty() };
        Self {
            root,
            files: kept.iter().map(|(path, objects)| (PathBuf::from(path), known(objects))).collect(),
            unusable: BTreeMap::new(),
            unwatched: BTreeMap::new(),
            counters: SourceCounters::default(),
            changed: true,
        }
    }

    /// Lists the tree and reads what changed. Files in `held` are left as they are.
    fn update(&mut self, held: &BTreeSet<PathBuf>, reread: bool) -> Listing {
        let listing = files::list(&self.root);
        self.counters.scans += 1;
        for (path, stamp) in &listing.files {
            if held.contains(path) && stamp.has_one_name() {
                continue;
            }
            let known = self.files.get(path).and_then(|known| known.stamp.as_ref());
            if reread || known != Some(stamp) {
                self.read(path, *stamp);
            }
        }
        let before = self.files.len();
        self.files.retain(|path, _| listing.files.contains_key(path) || is_below(path, &listing.unusable));
        self.changed |= self.files.len() != before;
        if self.unusable != listing.unusable {
            self.counters.read_errors += 1;
            self.changed = true;
            self.unusable.clone_from(&listing.unusable);
        }
        listing
    }

    fn read(&mut self, path: &Path, stamp: Stamp) {
        let name = path.display().to_string();
        let bytes = match files::read(path) {
            Ok(bytes) => bytes,
            // Removed since it was listed; the event of that is on its way.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                self.counters.read_errors += 1;
                return self.keep(path, None, unreadable(&name, &error.to_string()));
            }
        };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            // Truncated and not written yet, or lost in a crash; nobody empties a file to revoke a policy.
            return self.keep(path, Some(stamp), empty(&name));
        }
        self.counters.files_parsed += 1;
        let known = self.files.entry(path.to_owned()).or_insert_with(Known::empty);
        match known.documents.parse(&name, &bytes) {
            Ok(objects) if is_cut(&objects) && self.has_objects(path) => {
                self.counters.parse_errors += 1;
                self.keep(path, Some(stamp), cut(&name, objects.last().map_or(0, |last| last.line)));
            }
            Ok(objects) => self.replace(path, stamp, objects),
            Err(error) => {
                self.counters.parse_errors += 1;
                self.keep(path, Some(stamp), error.finding());
            }
        }
    }

    fn has_objects(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|known| !known.objects.is_empty())
    }

    fn replace(&mut self, path: &Path, stamp: Stamp, objects: Vec<Arc<Manifest>>) {
        let known = self.files.entry(path.to_owned()).or_insert_with(Known::empty);
        self.changed |= known.problem.take().is_some() || *known.objects != objects;
        if *known.objects != objects {
            debug!(file = %path.display(), objects = objects.len(), "read");
            known.objects = Arc::new(objects);
        }
        known.stamp = Some(stamp);
    }

    fn keep(&mut self, path: &Path, stamp: Option<Stamp>, mut finding: Finding) {
        let known = self.files.entry(path.to_owned()).or_insert_with(Known::empty);
        known.stamp = stamp;
        if known.objects.is_empty()
            && finding.reason == Reason::InvalidManifest
            && finding.remedy == EMPTY_REMEDY
        {
            return;
        }
        finding.message.push_str(&match known.objects.len() {
            0 => "; nothing is known of it from before".to_owned(),
            1 => "; the object it had before stays in force".to_owned(),
            count => format!("; the {count} objects it had before stay in force"),
        });
        if known.problem.as_ref() != Some(&finding) {
            warn!("{finding}");
            known.problem = Some(finding);
            self.changed = true;
        }
    }

    fn set_unwatched(&mut self, unwatched: &BTreeMap<PathBuf, String>) {
        if self.unwatched != *unwatched {
            self.unwatched.clone_from(unwatched);
            self.changed = true;
        }
    }

    fn take_changed(&mut self) -> Option<Snapshot> {
        std::mem::take(&mut self.changed).then(|| self.snapshot())
    }

    fn snapshot(&self) -> Snapshot {
        let with_objects = self.files.iter().filter(|(_, known)| !known.objects.is_empty());
        let problems = self.files.values().filter_map(|known| known.problem.clone());
        let unusable = self.unusable.iter().map(|(path, reason)| self.unusable_finding(path, reason));
        let unwatched = self.unwatched.iter().map(|(path, reason)| unwatched_finding(path, reason));
        let missing = self.unusable.get(&self.root);
        Snapshot {
            groups: with_objects
                .map(|(path, known)| (path.display().to_string(), Arc::clone(&known.objects)))
                .collect(),
            findings: problems.chain(unusable).chain(unwatched).collect(),
            fresh: missing.is_none(),
            note: missing
                .map(|reason| format!("waiting for directory {}: {reason}", self.root.display()))
                .unwrap_or_default(),
            counters: self.counters,
        }
    }

    fn unusable_finding(&self, path: &Path, reason: &str) -> Finding {
        let mut finding = unreadable(&path.display().to_string(), reason);
        let kept: usize = self
            .files
            .iter()
            .filter(|(file, _)| file.starts_with(path))
            .map(|(_, known)| known.objects.len())
            .sum();
        if kept > 0 {
            finding.message.push_str(&format!("; {kept} objects known from before stay in force"));
        }
        finding
    }
}

impl Known {
    fn empty() -> Self {
        Self { stamp: None, objects: Arc::default(), documents: Documents::default(), problem: None }
    }
}

fn is_below(path: &Path, unusable: &BTreeMap<PathBuf, String>) -> bool {
    path.ancestors().any(|ancestor| unusable.contains_key(ancestor))
}

/// True when the last document has no kind or no name: YAML that was cut off is often still YAML.
fn is_cut(objects: &[Arc<Manifest>]) -> bool {
    objects.last().is_some_and(|last| {
        let body = last.body.tree();
        let has = |pointer| body.pointer(pointer).and_then(|value| value.as_str()).is_some();
        !has("/kind") || !has("/metadata/name")
    })
}

fn cut(path: &str, line: u64) -> Finding {
    Finding {
        subject: Subject::File { path: path.to_owned(), line, column: 0 },
        severity: Severity::Error,
        reason: Reason::InvalidManifest,
        message: "the last document has no kind or no name, as if the file was written half".to_owned(),
        remedy: "complete the file, or remove it to remove its objects".to_owned(),
    }
}

const EMPTY_REMEDY: &str = "write it again, or remove the file to remove its objects";

fn empty(path: &str) -> Finding {
    Finding {
        subject: Subject::File { path: path.to_owned(), line: 0, column: 0 },
        severity: Severity::Error,
        reason: Reason::InvalidManifest,
        message: "the file is empty".to_owned(),
        remedy: EMPTY_REMEDY.to_owned(),
    }
}

fn unwatched_finding(path: &Path, reason: &str) -> Finding {
    Finding {
        subject: Subject::File { path: path.display().to_string(), line: 0, column: 0 },
        severity: Severity::Warning,
        reason: Reason::Unreadable,
        message: format!("cannot be watched: {reason}; it is looked at every {} s instead", POLL.as_secs()),
        remedy: "raise fs.inotify.max_user_watches".to_owned(),
    }
}

#[cfg(test)]
mod tests;
