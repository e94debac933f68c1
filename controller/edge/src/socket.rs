//! A unix socket in the file system, for one program.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A bound socket; the file goes when this does.
#[derive(Debug)]
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Listening {
    /// Binds the socket (mode 0660) in place of one that nobody answers on; where somebody does, that is
    /// [`io::ErrorKind::AddrInUse`]. It is bound beside and renamed, so that it never has wider permissions than it
    /// should. Missing directories are made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(directory)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers on it"));
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        fs::remove_file(&beside).ok();
        let listener = UnixListener::bind(&beside)?;
        let placed = fs::set_permissions(&beside, Permissions::from_mode(0o660))
            .and_then(|()| fs::rename(&beside, path));
        if let Err(error) = placed {
            fs::remove_file(&beside).ok();
            return Err(error);
        }
        Ok(Self { listener, path: path.to_owned(), inode: fs::symlink_metadata(path)?.ino() })
    }

    /// The next connection. An error says nothing of the listener, so whoever waits for the next one pauses first: out
    /// of descriptors, say, it would fail as fast.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Another process may have put its own there meanwhile.
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            fs::remove_file(&self.path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use fw_testkit::WorkDir;

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_a_live_one_is_not_and_the_mode_is_0660() {
        let directory = WorkDir::new("edge-socket").unwrap();
        let path = directory.path().join("run/control.sock");
        let first = Listening::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = Listening::bind(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        // As a kill leaves it: the file is there, nobody listens.
        let inode = first.inode;
        std::mem::forget(first);
        fs::remove_file(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let second = Listening::bind(&path).unwrap();
        assert_ne!(second.inode, inode);
        drop(second);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "nothing is left beside it");
    }

    #[tokio::test]
    async fn the_socket_of_another_process_stays_when_ours_goes() {
        let directory = WorkDir::new("edge-other").unwrap();
        let path = directory.path().join("control.sock");
        let ours = Listening::bind(&path).unwrap();
        fs::rename(&path, directory.path().join("away")).unwrap();
        let theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
    }
}
