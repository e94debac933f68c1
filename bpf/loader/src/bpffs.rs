//! The folder of the pins.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::error::{Context as _, Error};

/// How long a lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_PACE: Duration = Duration::from_millis(10);

/// Makes `folder` one on a bpffs, mounting one there unless it is on one already.
pub(crate) fn ensure(folder: &Path) -> Result<(), Error> {
    let what = |action: &str| format!("{action} {}", folder.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).context(|| what("making"))?;
    if is_bpffs(folder).context(|| what("looking at"))? {
        return Ok(());
    }
    if fs::read_dir(folder).context(|| what("reading"))?.next().is_some() {
        return Err(Error::NotBpffs(folder.to_owned()));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), folder, Some("bpf"), flags, Some("mode=0700"))
        .map_err(io::Error::from)
        .context(|| what("mounting a bpffs at"))
}

fn is_bpffs(folder: &Path) -> io::Result<bool> {
    Ok(statfs(folder)?.filesystem_type() == BPF_FS_MAGIC)
}

/// Keeps other processes out while the file is open. The lock belongs to the open file (flock(2)), so a child of who had it
/// keeps it for a moment longer, between fork and exec.
pub(crate) fn lock(folder: &Path) -> Result<File, Error> {
    let file = File::open(folder).context(|| format!("opening {}", folder.display()))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PACE),
            Err(fs::TryLockError::WouldBlock) => return Err(Error::Busy(folder.to_owned())),
            Err(fs::TryLockError::Error(error)) => return Err(Error::call("locking the pins", error)),
        }
    }
}

/// Removes a folder with the pins in it; none is fine.
pub(crate) fn remove(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::call(format!("removing {}", folder.display()), error))
        }
        _ => Ok(()),
    }
}

/// Removes the folder itself, and the mount when it is one.
pub(crate) fn release(folder: &Path) -> Result<(), Error> {
    let what = || format!("releasing {}", folder.display());
    let own = fs::metadata(folder).context(what)?.dev();
    let above = folder.parent().map(fs::metadata).transpose().context(what)?.map(|above| above.dev());
    if above != Some(own) {
        umount2(folder, MntFlags::MNT_DETACH).map_err(io::Error::from).context(what)?;
    }
    fs::remove_dir(folder).context(what)
}
