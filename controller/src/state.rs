//! The state directory: what must survive a restart of the controller.
//!
//! Each document is one JSON file, replaced as a whole: written beside, synced, renamed, the directory synced. So a
//! kill at any moment leaves the old or the new one. A document that cannot be read is set aside as `NAME.bad` and
//! reported; the controller then begins without it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::fault;
use crate::source::files;

/// Largest document that is read, in bytes.
const MAX_BYTES: u64 = 512 * 1024 * 1024;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process has it.
    #[error("another firewall-controller uses the state directory {}; stop it, or give --state-dir", .0.display())]
    Locked(PathBuf),
    /// It cannot be created or opened.
    #[error("the state directory {} cannot be used", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// A document cannot be written.
    #[error("{} cannot be written", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// A document cannot be read.
    #[error("{} cannot be read; it is ignored", .0.display())]
    Read(PathBuf, #[source] io::Error),
}

/// The network stack that kernel state belongs to: one boot of the machine and one network namespace. What was
/// recorded for another one says nothing about this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    boot: String,
    namespace: u64,
}

impl Identity {
    /// The one this process runs in.
    pub fn of_this_process() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { boot, namespace: fs::metadata("/proc/self/ns/net")?.ino() })
    }
}

/// An open state directory; locked for as long as it lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Opens the directory, makes it if it is not there (mode 0700), and locks it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |error| StateError::Directory(path.to_owned(), error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(path.join("lock"));
        let lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(StateError::Locked(path.to_owned())),
            Err(fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Reads a document; `None` when there is none.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let path = self.path.join(name);
        let unreadable = |error| StateError::Read(path.clone(), error);
        let bytes = match fs::metadata(&path) {
            Ok(meta) if meta.len() > MAX_BYTES => {
                return Err(unreadable(io::Error::other("it is too large")));
            }
            Ok(_) => fs::read(&path).map_err(unreadable)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            // If even that fails, the next store replaces it.
            fs::rename(&path, self.path.join(format!("{name}.bad"))).ok();
            unreadable(error.into())
        })
    }

    /// Replaces a document durably.
    pub fn store<T: Serialize>(&self, name: &str, document: &T) -> Result<(), StateError> {
        let path = self.path.join(name);
        fault::point("before-persist");
        self.replace(&path, document).map_err(|error| StateError::Write(path, error))?;
        fault::point("after-persist");
        Ok(())
    }

    fn replace<T: Serialize>(&self, path: &Path, document: &T) -> io::Result<()> {
        let beside = path.with_extension("new");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        // Thousands of objects are megabytes, which need not be in memory as a whole.
        let mut writer = BufWriter::new(file);
        serde_json::to_writer(&mut writer, document)?;
        writer.into_inner()?.sync_all()?;
        fs::rename(&beside, path)?;
        files::sync_directory(&self.path)
    }

    /// Removes a document; it need not be there.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::Write(path, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::temporary::TemporaryDirectory;

    #[test]
    fn a_document_is_read_as_it_was_stored() {
        let directory = TemporaryDirectory::new("state");
        let state = StateDir::open(&directory.path().join("a/b")).unwrap();
        assert_eq!(state.load::<Vec<u32>>("x.json").unwrap(), None);
        state.store("x.json", &[1, 2, 3]).unwrap();
        state.store("x.json", &[4, 5]).unwrap();
        assert_eq!(state.load::<Vec<u32>>("x.json").unwrap(), Some(vec![4, 5]));
        state.remove("x.json").unwrap();
        state.remove("x.json").unwrap();
        assert_eq!(state.load::<Vec<u32>>("x.json").unwrap(), None);
    }

    #[test]
    fn a_broken_document_is_set_aside_and_reported_once() {
        let directory = TemporaryDirectory::new("state");
        let state = StateDir::open(directory.path()).unwrap();
        fs::write(directory.path().join("x.json"), b"[1, 2").unwrap();
        let error = state.load::<Vec<u32>>("x.json").unwrap_err();
        assert!(crate::telemetry::chain(&error).contains("x.json"), "{error}");
        assert!(directory.path().join("x.json.bad").exists());
        assert_eq!(state.load::<Vec<u32>>("x.json").unwrap(), None);
    }

    #[test]
    fn a_second_controller_is_refused_until_the_first_is_gone() {
        let directory = TemporaryDirectory::new("state");
        let first = StateDir::open(directory.path()).unwrap();
        assert!(matches!(StateDir::open(directory.path()), Err(StateError::Locked(_))));
        drop(first);
        StateDir::open(directory.path()).unwrap();
    }
}
