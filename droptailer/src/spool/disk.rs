//! Records in files of a directory: segments that are only ever appended to, and removed when all in them has arrived.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::frame::{self, Header, SLOT};
use super::{SESSION_BYTES, Stored};

/// Most bytes of a segment; small bounds have smaller ones.
const SEGMENT: u64 = 4 << 20;
/// Longest note.
const NOTE: u64 = 4096;

/// What opening found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) session: [u8; SESSION_BYTES],
    pub(super) next: u64,
    pub(super) oldest: u64,
    pub(super) weight: u64,
    pub(super) records: u64,
    pub(super) lost_records: u64,
    pub(super) lost_weight: u64,
}

/// The segment that is written.
#[derive(Debug)]
struct Active {
    file: File,
    bytes: u64,
}

/// Where the last read ended.
#[derive(Debug)]
struct Cursor {
    segment: u64,
    at: usize,
    number: u64,
    bytes: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Disk {
    directory: PathBuf,
    limit: u64,
    session: [u8; SESSION_BYTES],
    /// Bytes of each segment, by the number of its first record.
    segments: BTreeMap<u64, u64>,
    active: Option<Active>,
    acknowledged: File,
    slots: u64,
    cursor: Option<Cursor>,
}

impl Disk {
    pub(super) fn open(
        directory: &Path,
        limit: u64,
        session: [u8; SESSION_BYTES],
    ) -> io::Result<(Self, Found)> {
        fs::create_dir_all(directory)?;
        let acknowledged = private()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("acknowledged"))?;
        let (slots, oldest) = newest_slot(&acknowledged);
        let mut disk = Self {
            directory: directory.to_owned(),
            limit,
            session,
            segments: BTreeMap::new(),
            active: None,
            acknowledged,
            slots,
            cursor: None,
        };
        let found = disk.recover(oldest)?;
        disk.session = found.session;
        disk.remove_arrived(found.oldest)?;
        Ok((disk, found))
    }

    /// Reads every segment once, in order.
    fn recover(&mut self, oldest: u64) -> io::Result<Found> {
        let mut found = Found {
            session: self.session,
            next: 1,
            oldest: oldest.max(1),
            weight: 0,
            records: 0,
            lost_records: 0,
            lost_weight: 0,
        };
        let mut is_first = true;
        for (first, path) in list(&self.directory)? {
            let bytes = read_bounded(&path)?;
            let Some(header) = Header::decode(&bytes).filter(|header| header.first == first) else {
                // Torn while it was made: it never held a record.
                fs::remove_file(path)?;
                continue;
            };
            if is_first {
                (found.next, found.weight) = (header.first, header.weight);
                is_first = false;
            } else if header.first > found.next {
                // Records that had arrived already are not missed.
                found.lost_records += header.first.saturating_sub(found.next.max(found.oldest));
                if header.first > found.oldest {
                    found.lost_weight += header.weight.saturating_sub(found.weight);
                }
            }
            (found.session, found.next, found.weight) = (header.session, header.first, header.weight);
            let mut at = frame::HEADER;
            while let Some((stored, length)) = bytes.get(at..).and_then(frame::decode) {
                if stored.number != found.next {
                    break;
                }
                at += length;
                found.next += 1;
                found.weight = found.weight.saturating_add(stored.weight);
                found.records += u64::from(stored.number >= found.oldest);
            }
            self.segments.insert(first, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        }
        // Numbers that were acknowledged are never given again, even if their records are gone.
        found.next = found.next.max(found.oldest);
        Ok(found)
    }

    /// False: no room.
    pub(super) fn append(&mut self, stored: &Stored, weight_before: u64) -> io::Result<bool> {
        let Some(bytes) = frame::encode(stored) else { return Ok(false) };
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let header = u64::try_from(frame::HEADER).unwrap_or(0);
        if self.bytes().saturating_add(length).saturating_add(header) > self.limit {
            return Ok(false);
        }
        let segment = SEGMENT.min(self.limit / 8);
        if self.active.as_ref().is_some_and(|active| active.bytes.saturating_add(length) > segment) {
            self.sync()?;
            self.active = None;
        }
        let mut active = match self.active.take() {
            Some(active) => active,
            None => self.begin(stored.number, weight_before)?,
        };
        // A write that failed may have left a part: then the segment is not gone on with.
        active.file.write_all(&bytes)?;
        active.bytes += length;
        if let Some(mut last) = self.segments.last_entry() {
            *last.get_mut() = active.bytes;
        }
        self.active = Some(active);
        Ok(true)
    }

    fn begin(&mut self, first: u64, weight: u64) -> io::Result<Active> {
        let header = Header { first, weight, session: self.session }.encode();
        // One of this name can only hold a torn first record.
        let mut file = private().write(true).create(true).truncate(true).open(self.path(first))?;
        file.write_all(&header)?;
        let bytes = u64::try_from(header.len()).unwrap_or(0);
        self.segments.insert(first, bytes);
        Ok(Active { file, bytes })
    }

    /// Records from a number on and before another, while `fits` says so.
    pub(super) fn read(
        &mut self,
        from: u64,
        before: u64,
        most: usize,
        fits: &mut dyn FnMut(&Stored) -> bool,
    ) -> io::Result<Vec<Stored>> {
        let mut read = Vec::new();
        let mut cursor = match self.cursor.take() {
            Some(cursor) if cursor.number == from => cursor,
            _ => match self.cursor_at(from)? {
                Some(cursor) => cursor,
                None => return Ok(read),
            },
        };
        while read.len() < most {
            match cursor.bytes.get(cursor.at..).and_then(frame::decode) {
                Some((stored, length)) if stored.number >= cursor.number => {
                    if stored.number >= before || (stored.number >= from && !fits(&stored)) {
                        break;
                    }
                    cursor.at += length;
                    cursor.number = stored.number + 1;
                    if stored.number >= from {
                        read.push(stored);
                    }
                }
                _ => match self.after(&cursor)? {
                    Some(next) => cursor = next,
                    None => break,
                },
            }
        }
        self.cursor = Some(cursor);
        Ok(read)
    }

    fn cursor_at(&self, from: u64) -> io::Result<Option<Cursor>> {
        let before = self.segments.range(..=from).next_back();
        let Some((segment, _)) = before.or_else(|| self.segments.iter().next()) else { return Ok(None) };
        self.load(*segment).map(Some)
    }

    /// The next segment, or more of this one.
    fn after(&self, cursor: &Cursor) -> io::Result<Option<Cursor>> {
        let known = self.segments.get(&cursor.segment).copied().unwrap_or(0);
        if u64::try_from(cursor.bytes.len()).unwrap_or(u64::MAX) < known {
            let mut again = self.load(cursor.segment)?;
            (again.at, again.number) = (cursor.at, cursor.number);
            // Without more than before it is torn here.
            if again.bytes.len() > cursor.bytes.len() {
                return Ok(Some(again));
            }
        }
        let Some((next, _)) = self.segments.range(cursor.segment + 1..).next() else { return Ok(None) };
        self.load(*next).map(Some)
    }

    fn load(&self, segment: u64) -> io::Result<Cursor> {
        let bytes = read_bounded(&self.path(segment))?;
        Ok(Cursor { segment, at: frame::HEADER, number: segment, bytes })
    }

    pub(super) fn acknowledge(&mut self, oldest: u64) -> io::Result<()> {
        self.slots += 1;
        let place = u64::try_from(SLOT).unwrap_or(0) * (self.slots % 2);
        self.acknowledged.write_all_at(&frame::encode_slot(self.slots, oldest), place)?;
        self.remove_arrived(oldest)
    }

    /// Removes segments that hold nothing from `oldest` on. The last one stays: it holds session, number and weight.
    fn remove_arrived(&mut self, oldest: u64) -> io::Result<()> {
        loop {
            let mut firsts = self.segments.keys();
            let (Some(first), Some(second)) = (firsts.next().copied(), firsts.next().copied()) else {
                return Ok(());
            };
            if second > oldest {
                return Ok(());
            }
            self.segments.remove(&first);
            fs::remove_file(self.path(first))?;
        }
    }

    /// The next segment has it.
    pub(super) fn rename(&mut self, session: [u8; SESSION_BYTES]) {
        self.session = session;
        self.active = None;
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        match &self.active {
            Some(active) => active.file.sync_data(),
            None => Ok(()),
        }
    }

    pub(super) fn remember(&self, note: &str) -> io::Result<()> {
        let beside = self.directory.join("note.new");
        let mut file = private().write(true).create(true).truncate(true).open(&beside)?;
        file.write_all(note.as_bytes())?;
        file.sync_data()?;
        fs::rename(beside, self.directory.join("note"))
    }

    pub(super) fn remembered(&self) -> Option<String> {
        let mut text = String::new();
        File::open(self.directory.join("note")).ok()?.take(NOTE).read_to_string(&mut text).ok()?;
        Some(text)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().sum()
    }

    fn path(&self, first: u64) -> PathBuf {
        self.directory.join(format!("{first:020}.segment"))
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn list(directory: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut segments = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let first = name.and_then(|name| name.strip_suffix(".segment")).and_then(|first| first.parse().ok());
        if let Some(first) = first {
            segments.insert(first, path);
        }
    }
    Ok(segments)
}

/// A segment, or as much of a file as a segment can have: somebody else may have put it there.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let longest = SEGMENT + u64::try_from(frame::LONGEST + frame::RECORD + frame::HEADER).unwrap_or(0);
    let mut bytes = Vec::new();
    File::open(path)?.take(longest).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Count and oldest number of the newest valid slot.
fn newest_slot(file: &File) -> (u64, u64) {
    let mut bytes = [0; 2 * SLOT];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, u64::try_from(filled).unwrap_or(0)) {
            Ok(0) | Err(_) => break,
            Ok(read) => filled += read,
        }
    }
    bytes.chunks(SLOT).filter_map(frame::decode_slot).max().unwrap_or((0, 1))
}
