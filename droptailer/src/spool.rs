//! Records that wait for the server: numbered, in order, in bounded memory, and if wished on disk.
//!
//! Memory holds the newest records. With a directory every record is on disk too, so older ones can leave memory, and
//! all of them outlive the process. What does not fit is refused, never what is older: the reader of the log sees a
//! complete beginning and one record that says how much is missing.
//!
//! A record has a *weight*: how many of the kernel's logged packets it stands for. The sum of all weights outlives the
//! process too, so that a restarted client knows what it missed.

mod disk;
mod frame;

use std::collections::VecDeque;
use std::path::Path;

use disk::Disk;

/// Bytes that a record takes beside its own.
const OVERHEAD: usize = 64;

/// Bytes of a session's name.
pub const SESSION_BYTES: usize = 16;

/// A record that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its number; they begin at 1.
    pub number: u64,
    /// Logged packets it stands for.
    pub weight: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Bounds of a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in memory.
    pub memory: usize,
    /// Bytes on disk.
    pub disk: u64,
}

/// There is no room, or the disk did not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Why a spool's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The directory or a file in it.
    #[error("cannot use the spool directory")]
    Io(#[from] std::io::Error),
}

/// What was found on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Records that wait.
    pub records: u64,
    /// Records that could not be read any more.
    pub lost_records: u64,
    /// Logged packets they stood for.
    pub lost_weight: u64,
}

/// Records that wait for the server.
#[derive(Debug)]
pub struct Spool {
    limits: Limits,
    session: [u8; SESSION_BYTES],
    /// Number of the next record.
    next: u64,
    /// Number of the oldest that is not acknowledged.
    oldest: u64,
    /// The newest records, without gaps up to `next`.
    memory: VecDeque<Stored>,
    memory_bytes: usize,
    weight: u64,
    disk: Option<Disk>,
    disk_errors: u64,
}

impl Spool {
    /// In memory only. `session`: random.
    pub fn in_memory(limits: Limits, session: [u8; SESSION_BYTES]) -> Self {
        Self {
            limits,
            session,
            next: 1,
            oldest: 1,
            memory: VecDeque::new(),
            memory_bytes: 0,
            weight: 0,
            disk: None,
            disk_errors: 0,
        }
    }

    /// In a directory, which is made, with what is there. `session`: random, for a spool that is new.
    pub fn on_disk(
        limits: Limits,
        session: [u8; SESSION_BYTES],
        directory: &Path,
    ) -> Result<(Self, Recovered), SpoolError> {
        let (disk, found) = Disk::open(directory, limits.disk, session)?;
        let mut spool = Self::in_memory(limits, found.session);
        (spool.next, spool.oldest, spool.weight) = (found.next, found.oldest, found.weight);
        spool.disk = Some(disk);
        let recovered = Recovered {
            records: found.records,
            lost_records: found.lost_records,
            lost_weight: found.lost_weight,
        };
        Ok((spool, recovered))
    }

    /// Adds a record; gives its number.
    pub fn push(&mut self, weight: u64, bytes: Vec<u8>) -> Result<u64, Full> {
        let cost = bytes.len() + OVERHEAD;
        let stored = Stored { number: self.next, weight, bytes };
        match &mut self.disk {
            None if self.memory_bytes + cost > self.limits.memory => return Err(Full),
            None => {}
            Some(disk) => match disk.append(&stored, self.weight) {
                Ok(true) => {}
                Ok(false) => return Err(Full),
                Err(_) => {
                    self.disk_errors += 1;
                    return Err(Full);
                }
            },
        }
        self.memory.push_back(stored);
        self.memory_bytes += cost;
        while self.memory_bytes > self.limits.memory {
            self.forget_front();
        }
        self.next += 1;
        self.weight = self.weight.saturating_add(weight);
        Ok(self.next - 1)
    }

    fn forget_front(&mut self) {
        if let Some(gone) = self.memory.pop_front() {
            self.memory_bytes -= gone.bytes.len() + OVERHEAD;
        }
    }

    /// The oldest waiting records from a number on: at most so many, and so many bytes (but one at least). Numbers of
    /// records that the disk did not give back are left out.
    pub fn read(&mut self, from: u64, most: usize, most_bytes: usize) -> Vec<Stored> {
        let from = from.max(self.oldest);
        let in_memory = self.next - u64::try_from(self.memory.len()).unwrap_or(0);
        let mut bytes = 0;
        let mut fits = |stored: &Stored| {
            let first = bytes == 0;
            bytes += stored.bytes.len() + OVERHEAD;
            first || bytes <= most_bytes
        };
        if from >= in_memory {
            let skip = usize::try_from(from - in_memory).unwrap_or(usize::MAX);
            return self
                .memory
                .iter()
                .skip(skip)
                .take(most)
                .take_while(|stored| fits(stored))
                .cloned()
                .collect();
        }
        let Some(disk) = &mut self.disk else { return Vec::new() };
        match disk.read(from, in_memory, most, &mut fits) {
            Ok(read) if !read.is_empty() => read,
            // Nothing there is readable: go on with what memory has.
            result => {
                self.disk_errors += u64::from(result.is_err());
                let mut bytes = 0;
                let taken = self.memory.iter().take(most).take_while(|stored| {
                    bytes += stored.bytes.len() + OVERHEAD;
                    bytes <= most_bytes
                });
                taken.cloned().collect()
            }
        }
    }

    /// Everything before `next` has arrived.
    pub fn acknowledge(&mut self, next: u64) {
        let next = next.min(self.next);
        if next <= self.oldest {
            return;
        }
        self.oldest = next;
        while self.memory.front().is_some_and(|stored| stored.number < next) {
            self.forget_front();
        }
        if let Some(disk) = &mut self.disk
            && disk.acknowledge(next).is_err()
        {
            self.disk_errors += 1;
        }
    }

    /// Makes what is on disk outlive the machine, not only the process.
    pub fn sync(&mut self) {
        if let Some(disk) = &mut self.disk
            && disk.sync().is_err()
        {
            self.disk_errors += 1;
        }
    }

    /// Gives it another name for the server, which then knows none of its numbers: for a spool that may give numbers again
    /// that were given before, because the machine forgot what was last written.
    pub fn rename(&mut self, session: [u8; SESSION_BYTES]) {
        self.session = session;
        if let Some(disk) = &mut self.disk {
            disk.rename(session);
        }
    }

    /// Remembers beside the records a note of the caller's; without a directory it is forgotten.
    pub fn remember(&mut self, note: &str) {
        if let Some(disk) = &mut self.disk
            && disk.remember(note).is_err()
        {
            self.disk_errors += 1;
        }
    }

    /// The note.
    pub fn remembered(&self) -> Option<String> {
        self.disk.as_ref().and_then(Disk::remembered)
    }

    /// Its name for the server.
    pub fn session(&self) -> [u8; SESSION_BYTES] {
        self.session
    }

    /// Number of the oldest record that waits.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Number of the next record.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Records that wait.
    pub fn waiting(&self) -> u64 {
        self.next - self.oldest
    }

    /// Logged packets that all records ever stood for.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.disk.as_ref().map_or(0, Disk::bytes)
    }

    /// How often the disk failed.
    pub fn disk_errors(&self) -> u64 {
        self.disk_errors
    }

    /// True when less than half of its room is left.
    pub fn is_pressed(&self) -> bool {
        match &self.disk {
            Some(disk) => disk.bytes() > self.limits.disk / 2,
            None => self.memory_bytes > self.limits.memory / 2,
        }
    }
}

#[cfg(test)]
mod tests;
