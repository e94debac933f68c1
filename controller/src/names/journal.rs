//! The journal of what was learned, in the state directory: one write per lesson before its answer leaves, so that a
//! kill at any moment loses nothing that a client was told. It is not synced: what a machine forgets when it loses
//! power, its kernel has forgotten as well.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use fw_names::journal::{Decoded, Fact, decode, encode};

use super::clock::{Shift, monotonic, wall};

/// Name of the file in the state directory.
pub(super) const FILE: &str = "names.journal";
/// Lines that may be there beyond the facts before the file is written anew.
const SLACK: usize = 4096;
/// Largest journal that is read, in bytes.
const MAX_BYTES: u64 = 512 << 20;

/// An open journal. Without a state directory it keeps nothing, which is said in the status by whoever opened it.
#[derive(Debug, Default)]
pub(super) struct Journal {
    file: Option<(PathBuf, File)>,
    lines: usize,
    /// Writes that failed.
    pub(super) failures: u64,
}

impl Journal {
    /// Opens the journal and reads what it holds, times on the monotonic clock of this boot.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Decoded)> {
        let path = directory.join(FILE);
        let decoded = match std::fs::metadata(&path) {
            Ok(meta) if meta.len() > MAX_BYTES => return Err(io::Error::other("it is too large")),
            Ok(_) => decode(&std::fs::read(&path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Decoded::default(),
            Err(error) => return Err(error),
        };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        let lines = decoded.facts.len() + usize::try_from(decoded.replaced).unwrap_or(usize::MAX);
        let to_monotonic = Shift::new(wall(), monotonic());
        let facts = decoded.facts.into_iter().map(|fact| carried(&fact, to_monotonic)).collect();
        Ok((Self { file: Some((path, file)), lines, failures: 0 }, Decoded { facts, ..decoded }))
    }

    /// Appends facts in one write.
    pub(super) fn append(&mut self, facts: &[Fact]) {
        let Some((_, file)) = &mut self.file else { return };
        if facts.is_empty() {
            return;
        }
        let to_wall = Shift::new(monotonic(), wall());
        let text: String = facts.iter().map(|fact| encode(&carried(fact, to_wall))).collect();
        self.lines += facts.len();
        if file.write_all(text.as_bytes()).is_err() {
            self.failures += 1;
        }
    }

    /// True when most of its lines are about what is over or was said again.
    pub(super) fn is_bloated(&self, facts: usize) -> bool {
        self.lines > facts.saturating_mul(2).saturating_add(SLACK)
    }

    /// Writes it anew; a kill leaves the old or the new one.
    pub(super) fn replace(&mut self, facts: &[Fact]) -> io::Result<()> {
        let Some((path, _)) = &self.file else { return Ok(()) };
        let beside = path.with_extension("new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        let to_wall = Shift::new(monotonic(), wall());
        let text: String = facts.iter().map(|fact| encode(&carried(fact, to_wall))).collect();
        file.write_all(text.as_bytes())?;
        std::fs::rename(&beside, path)?;
        self.file = Some((path.clone(), OpenOptions::new().append(true).open(path)?));
        self.lines = facts.len();
        Ok(())
    }
}

/// Removes the journal of a controller that does not run; it need not be there.
pub fn remove(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn carried(fact: &Fact, shift: Shift) -> Fact {
    let Fact { asked, handed, until, .. } = *fact;
    Fact { asked: shift.carry(asked), handed: shift.carry(handed), until: shift.carry(until), ..fact.clone() }
}

#[cfg(test)]
mod tests {
    use fw_names::name::Name;

    use super::*;
    use crate::temporary::TemporaryDirectory;

    const SECOND: u64 = 1_000_000_000;

    fn fact(name: &str, seconds: u64) -> Fact {
        let now = monotonic();
        let name = Name::from_text(name).unwrap();
        let until = now + seconds * SECOND;
        Fact { name, address: "192.0.2.1".parse().unwrap(), asked: now, handed: now, until }
    }

    fn close(a: u64, b: u64) -> bool {
        a.abs_diff(b) < SECOND
    }

    #[test]
    fn what_was_appended_is_read_by_the_next_process_and_a_torn_line_is_left_out() {
        let directory = TemporaryDirectory::new("journal");
        let (mut journal, decoded) = Journal::open(directory.path()).unwrap();
        assert_eq!(decoded.facts, []);
        let facts = [fact("a.example", 60), fact("b.example", 90)];
        journal.append(&facts);
        let path = directory.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let (_, decoded) = Journal::open(directory.path()).unwrap();
        assert_eq!((decoded.facts.len(), decoded.broken), (1, 1));
        assert_eq!(decoded.facts[0].name, facts[0].name);
        assert!(close(decoded.facts[0].until, facts[0].until), "{decoded:?}");
    }

    #[test]
    fn a_bloated_journal_is_written_anew_and_goes_on() {
        let directory = TemporaryDirectory::new("journal");
        let (mut journal, _) = Journal::open(directory.path()).unwrap();
        for _ in 0..=SLACK + 2 {
            journal.append(&[fact("a.example", 60)]);
        }
        assert!(journal.is_bloated(1));
        journal.replace(&[fact("a.example", 60)]).unwrap();
        assert!(!journal.is_bloated(1));
        journal.append(&[fact("b.example", 60)]);
        let (_, decoded) = Journal::open(directory.path()).unwrap();
        assert_eq!((decoded.facts.len(), decoded.replaced), (2, 0));
    }
}
