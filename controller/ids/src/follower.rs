//! Follows a log file that others write, rotate and truncate.
//!
//! The file that is open is followed by its inode. When the path leads to another one, the old one is read until it has not
//! grown for [`GRACE`]: a writer goes on there until it is told to open its log again. Each step reads a bounded amount; who
//! writes faster for long has part of it skipped, which is counted in bytes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lines::Lines;

/// Bytes that one step reads at most.
pub const MAX_STEP: u64 = 2 * 1024 * 1024;
/// Bytes that may wait to be read; when there are more, only the last [`MAX_STEP`] of them are.
pub const MAX_BACKLOG: u64 = 16 * 1024 * 1024;
/// For a writer to open its log again after the file was replaced or removed.
pub const GRACE: Duration = Duration::from_secs(1);
/// A replaced file that grows on for ever is left after this.
const LONGEST_GRACE: Duration = Duration::from_secs(60);
/// Opening what is no file must not hang (open(2): a FIFO waits for its writer, a terminal becomes ours).
const O_NONBLOCK: i32 = 0o4000;
const O_NOCTTY: i32 = 0o400;

/// Why nothing is read.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It is not there, or may not be read.
    #[error("it cannot be opened")]
    Open(#[source] io::Error),
    /// A directory, a socket, a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// Reading fails.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It was removed, and no other one came in its place.
    #[error("it was removed")]
    Removed,
}

/// Up to where a file was read; whole lines only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Its device.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Bytes read.
    pub bytes: u64,
    /// Bytes that came too fast and were not read.
    pub skipped: u64,
    /// Lines that were incomplete where a file ended, was truncated, or was skipped from.
    pub cut: u64,
    /// Times that another file took the place of the one being read.
    pub rotations: u64,
    /// Times that the file became shorter.
    pub truncations: u64,
}

/// Follows one path.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    /// From an earlier life.
    remembered: Option<Position>,
    /// Whether the path was looked at; what comes later is new from its beginning.
    looked: bool,
    open: Option<Open>,
    lines: Lines,
    tail: Tail,
}

#[derive(Debug)]
struct Open {
    file: File,
    identity: (u64, u64),
    offset: u64,
    /// When the path was first found to lead elsewhere, and when the file was last found to have grown since.
    replaced: Option<(Duration, Duration)>,
}

impl Follower {
    /// Begins at the end of what is there, or where an earlier life was in the same file.
    #[must_use]
    pub fn new(path: PathBuf, remembered: Option<Position>) -> Self {
        Self { path, remembered, looked: false, open: None, lines: Lines::default(), tail: Tail::default() }
    }

    /// Reads what is new, at most [`MAX_STEP`] bytes of it, and gives the lines. True: there is more already. `now` is the time
    /// since any fixed moment.
    pub fn step(&mut self, now: Duration, mut take: impl FnMut(&[u8])) -> Result<bool, FollowError> {
        if self.open.is_none() {
            self.open = Some(self.open()?);
        }
        let Some(open) = &mut self.open else { return Ok(false) };
        let length = open.file.metadata().map_err(FollowError::Read)?.len();
        if length < open.offset {
            self.tail.truncations += 1;
            self.tail.cut += u64::from(self.lines.restart());
            open.offset = 0;
        }
        let waiting = length.saturating_sub(open.offset);
        if waiting > MAX_BACKLOG {
            self.tail.skipped += waiting - MAX_STEP;
            self.tail.cut += u64::from(self.lines.restart_inside());
            open.offset = length - MAX_STEP;
        }
        let before = open.offset;
        read(open, &mut self.lines, &mut take).map_err(FollowError::Read)?;
        let read = open.offset - before;
        self.tail.bytes += read;
        if open.offset < length {
            return Ok(true);
        }
        self.look_for_another(now, read > 0)
    }

    /// Whether the path leads to another file by now, and the one being read is through.
    fn look_for_another(&mut self, now: Duration, grew: bool) -> Result<bool, FollowError> {
        let Some(open) = &mut self.open else { return Ok(false) };
        let there = fs::metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        if there.as_ref().is_ok_and(|there| *there == open.identity) {
            open.replaced = None;
            return Ok(false);
        }
        let (since, last_grown) = open.replaced.get_or_insert((now, now));
        if grew {
            *last_grown = now;
        }
        let quiet = now.saturating_sub(*last_grown) >= GRACE;
        match there {
            Ok(_) if quiet || now.saturating_sub(*since) >= LONGEST_GRACE => {
                self.tail.rotations += 1;
                self.tail.cut += u64::from(self.lines.restart());
                self.open = None;
                Ok(true)
            }
            Err(_) if quiet => Err(FollowError::Removed),
            Ok(_) | Err(_) => Ok(false),
        }
    }

    fn open(&mut self) -> Result<Open, FollowError> {
        let is_first = !std::mem::replace(&mut self.looked, true);
        let mut options = OpenOptions::new();
        let opened = options.read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(&self.path);
        let mut file = opened.map_err(FollowError::Open)?;
        let meta = file.metadata().map_err(FollowError::Read)?;
        if !meta.is_file() {
            return Err(FollowError::NotAFile);
        }
        let identity = (meta.dev(), meta.ino());
        let is_known = |position: &Position| {
            (position.device, position.inode) == identity && position.offset <= meta.len()
        };
        let offset = match self.remembered.take().filter(is_known) {
            Some(position) => position.offset,
            None if is_first => {
                if !ends_a_line(&mut file, meta.len()).map_err(FollowError::Read)? {
                    self.lines.restart_inside();
                }
                meta.len()
            }
            None => 0,
        };
        Ok(Open { file, identity, offset, replaced: None })
    }

    /// Up to where whole lines were read.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        let open = self.open.as_ref()?;
        let pending = u64::try_from(self.lines.pending()).unwrap_or(u64::MAX);
        let (device, inode) = open.identity;
        Some(Position { device, inode, offset: open.offset.saturating_sub(pending) })
    }

    /// What was counted.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// Lines that were too long.
    #[must_use]
    pub fn too_long(&self) -> u64 {
        self.lines.too_long()
    }
}

/// Reads up to [`MAX_STEP`] bytes from where we are.
fn read(open: &mut Open, lines: &mut Lines, take: &mut impl FnMut(&[u8])) -> io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    let limit = open.offset.saturating_add(MAX_STEP);
    while open.offset < limit {
        let room = usize::try_from(limit - open.offset).unwrap_or(usize::MAX).min(chunk.len());
        let Some(room) = chunk.get_mut(..room) else { return Ok(()) };
        let read = match open.file.read_at(room, open.offset) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        open.offset += u64::try_from(read).unwrap_or(u64::MAX);
        lines.feed(room.get(..read).unwrap_or_default(), &mut *take);
    }
    Ok(())
}

/// Whether a file of that length ends in a newline.
fn ends_a_line(file: &mut File, length: u64) -> io::Result<bool> {
    let Some(last) = length.checked_sub(1) else { return Ok(true) };
    file.seek(SeekFrom::Start(last))?;
    let mut byte = [0];
    file.read_exact(&mut byte)?;
    Ok(byte == [b'\n'])
}
