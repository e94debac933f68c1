//! inotify: which events mean that manifests may have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

use super::files::{self, Listing};

/// What a batch of events says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Something relevant happened.
    pub(super) any: bool,
    /// Files written to since they were last closed.
    pub(super) being_written: BTreeSet<PathBuf>,
    /// Files closed after writing, or put in place whole.
    pub(super) finished: BTreeSet<PathBuf>,
    /// The kernel dropped events: everything must be read again.
    pub(super) overflow: bool,
}

/// The watches on all directories of one tree and on the names that decide where it is.
pub(super) struct Watcher {
    inotify: AsyncFd<Inotify>,
    watches: BTreeMap<i32, Watch>,
    directories: BTreeSet<PathBuf>,
    points: BTreeSet<(PathBuf, OsString)>,
    /// Directories that could not be watched, with the reason.
    pub(super) unwatched: BTreeMap<PathBuf, String>,
}

struct Watch {
    descriptor: WatchDescriptor,
    /// One directory can have several paths.
    paths: BTreeSet<PathBuf>,
}

impl Watcher {
    pub(super) fn new() -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "the successor is an unsafe fn; what it asks for holds: Inotify owns its descriptor"
        )]
        let inotify = AsyncFd::new(Inotify::init()?)?;
        Ok(Self {
            inotify,
            watches: BTreeMap::new(),
            directories: BTreeSet::new(),
            points: BTreeSet::new(),
            unwatched: BTreeMap::new(),
        })
    }

    /// Watches what the listing depends on. True when a directory was not watched before: what happened in it
    /// between the listing and now went unnoticed, so it must be listed again.
    pub(super) fn follow(&mut self, listing: &Listing) -> bool {
        self.directories.clone_from(&listing.directories);
        self.points.clone_from(&listing.points);
        self.unwatched.clear();
        let point_directories = self.points.iter().map(|(directory, _)| directory);
        let wanted: BTreeSet<PathBuf> = self.directories.iter().chain(point_directories).cloned().collect();
        let mut current: BTreeMap<i32, Watch> = BTreeMap::new();
        // Adding a watch again gives the same descriptor as long as the path leads to the same directory.
        for path in wanted {
            match self.inotify.get_ref().watches().add(&path, mask()) {
                Ok(descriptor) => {
                    let id = descriptor.get_watch_descriptor_id();
                    let watch =
                        current.entry(id).or_insert_with(|| Watch { descriptor, paths: BTreeSet::new() });
                    watch.paths.insert(path);
                }
                // Gone again; its parent is watched too.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.unwatched.insert(path, error.to_string());
                }
            }
        }
        let is_new = current.keys().any(|id| !self.watches.contains_key(id));
        let previous = std::mem::replace(&mut self.watches, current);
        for (id, watch) in previous {
            if !self.watches.contains_key(&id) {
                // Fails when the directory is gone, and the watch with it.
                self.inotify.get_ref().watches().remove(watch.descriptor).ok();
            }
        }
        is_new
    }

    /// Waits for events and says what they mean. Safe to cancel.
    pub(super) async fn next(&mut self) -> io::Result<Changes> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mut ready = self.inotify.readable_mut().await?;
            let mut seen: Vec<(i32, EventMask, Option<OsString>)> = Vec::new();
            match ready.get_inner_mut().read_events(&mut buffer) {
                Ok(events) => seen.extend(events.map(|event| {
                    (event.wd.get_watch_descriptor_id(), event.mask, event.name.map(OsStr::to_owned))
                })),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    continue;
                }
                Err(error) => return Err(error),
            }
            let mut changes = Changes::default();
            for (id, mask, name) in seen {
                self.interpret(id, mask, name.as_deref(), &mut changes);
            }
            return Ok(changes);
        }
    }

    fn interpret(&self, id: i32, mask: EventMask, name: Option<&OsStr>, changes: &mut Changes) {
        if mask.contains(EventMask::Q_OVERFLOW) {
            changes.overflow = true;
            changes.any = true;
            return;
        }
        let Some(watch) = self.watches.get(&id) else { return };
        let Some(name) = name else {
            // The directory itself moved, vanished or was unmounted.
            changes.any = true;
            return;
        };
        for directory in &watch.paths {
            self.interpret_name(directory, name, mask, changes);
        }
    }

    fn interpret_name(&self, directory: &Path, name: &OsStr, mask: EventMask, changes: &mut Changes) {
        if self.points.contains(&(directory.to_owned(), name.to_owned())) {
            changes.any = true;
        }
        if !self.directories.contains(directory) || files::is_ignored(name) {
            return;
        }
        if mask.contains(EventMask::ISDIR) {
            changes.any = true;
        }
        // Links to directories are reported, whatever their name; so any new name counts.
        if mask
            .intersects(EventMask::CREATE | EventMask::MOVED_TO | EventMask::MOVED_FROM | EventMask::DELETE)
        {
            changes.any = true;
        }
        if !files::is_manifest_name(name) {
            return;
        }
        changes.any = true;
        let path = directory.join(name);
        if mask.intersects(EventMask::CREATE | EventMask::MODIFY) {
            changes.finished.remove(&path);
            changes.being_written.insert(path);
        } else if mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) {
            changes.being_written.remove(&path);
            changes.finished.insert(path);
        }
    }
}

fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MODIFY
        | WatchMask::CLOSE_WRITE
        | WatchMask::ATTRIB
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}
