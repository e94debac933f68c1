//! Directories that go with their guard: for files of servers, and mount points of bpffs.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cleanup::{PREFIX, RUN_DIR, prepare_process, registry};

/// A fresh directory, for root only; removed with everything in it on drop.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// Makes a directory under `/run`, `fwt-PID-NUMBER-LABEL` as namespaces are named; what dead processes left goes.
    pub fn new(label: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        ensure!(
            label.len() <= 64 && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)),
            "label {label:?} of a directory may have at most 64 letters, digits, '-' and '_'"
        );
        prepare_process()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(RUN_DIR).join(format!("{PREFIX}-{}-{number}-{label}", std::process::id()));
        registry().directories.insert(path.clone());
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}; this needs root", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file and gives its path.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        remove(&self.path);
        registry().directories.remove(&self.path);
    }
}

/// A bpffs of its own, unmounted and removed on drop. What is pinned in it and used nowhere else goes with it.
#[derive(Debug)]
pub struct BpfMount {
    directory: WorkDir,
}

impl BpfMount {
    /// Mounts a bpffs on a fresh directory under `/run`, for root only.
    pub fn new(label: &str) -> Result<Self> {
        let directory = WorkDir::new(label)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), directory.path(), Some("bpf"), flags, Some("mode=0700"))
            .with_context(|| format!("cannot mount a bpffs on {}", directory.path().display()))?;
        Ok(Self { directory })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Unmounts what is mounted there and removes the directory. Of a mount, nothing is deleted one by one: detaching
/// it is enough, and a pin that another process holds open stays whole.
pub(crate) fn remove(path: &Path) {
    // EINVAL: not a mount point. Several processes may clear up one path at the same time.
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
    let _ = fs::remove_dir_all(path);
}
