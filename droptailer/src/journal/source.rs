//! Lines of the kernel's log from the journal, for firewalls whose rules log there.
//!
//! `journalctl` reads it, from behind the cursor that is kept in a file: a restart repeats nothing. The journal keeps what
//! we have no room for yet, so this source waits where NFLOG would lose.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;
use tracing::warn;

use crate::client::raw::Prefixes;
use crate::client::worker::Item;
use crate::timestamp::go_utc;

/// Between two attempts to run journalctl.
const AGAIN: Duration = Duration::from_secs(2);
/// Between two looks whether to end, and two writings of the cursor.
const TICK: Duration = Duration::from_millis(200);
/// Longest entry.
const LONGEST: u64 = 64 << 10;

/// What is read of an entry.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "__CURSOR")]
    cursor: String,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    time: String,
    /// No text, for a message that is none.
    #[serde(rename = "MESSAGE", default)]
    message: serde_json::Value,
}

/// What the thread needs.
pub(crate) struct Source {
    /// Where the cursor is kept; `None`: each start begins with what is logged from then on.
    pub(crate) cursor_file: Option<PathBuf>,
    /// Another directory than the system's journal.
    pub(crate) directory: Option<PathBuf>,
    pub(crate) prefixes: Prefixes,
    pub(crate) queue: SyncSender<Item>,
    pub(crate) queued: Box<dyn Fn() + Send>,
    pub(crate) stop: Arc<AtomicBool>,
}

impl Source {
    /// Until it is stopped.
    pub(crate) fn run(self) {
        while !self.stop.load(Ordering::Acquire) {
            match self.start() {
                Ok(mut child) => {
                    if let Err(error) = self.follow(&mut child) {
                        warn!("reading the journal: {error}");
                    }
                    // It may have ended by itself.
                    child.kill().ok();
                    child.wait().ok();
                }
                Err(error) => warn!("cannot run journalctl: {error}"),
            }
            let until = Instant::now() + AGAIN;
            while !self.stop.load(Ordering::Acquire) && Instant::now() < until {
                std::thread::sleep(TICK);
            }
        }
    }

    fn start(&self) -> io::Result<Child> {
        let mut command = Command::new("journalctl");
        command.args(["--output=json", "--follow", "--no-pager", "--quiet", "SYSLOG_IDENTIFIER=kernel"]);
        match self.cursor_file.as_deref().and_then(|path| fs::read_to_string(path).ok()) {
            Some(cursor) => command.arg("--no-tail").arg(format!("--after-cursor={}", cursor.trim())),
            None => command.arg("--lines=0"),
        };
        if let Some(directory) = &self.directory {
            command.arg("--directory").arg(directory);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
    }

    fn follow(&self, child: &mut Child) -> io::Result<()> {
        let Some(output) = child.stdout.take() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let mut output = BufReader::new(output);
        let (mut cursor, mut kept) = (None, Instant::now());
        let result = loop {
            if self.stop.load(Ordering::Acquire) {
                break Ok(());
            }
            if output.buffer().is_empty() && !is_ready(output.get_ref())? {
                self.keep(&mut cursor)?;
                continue;
            }
            let mut line = Vec::new();
            output.by_ref().take(LONGEST).read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                break Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Ok(entry) = serde_json::from_slice::<Entry>(&line) {
                if !self.take(&entry) {
                    break Ok(());
                }
                cursor = Some(entry.cursor);
            }
            if kept.elapsed() > TICK {
                self.keep(&mut cursor)?;
                kept = Instant::now();
            }
        };
        self.keep(&mut cursor)?;
        result
    }

    /// False: nobody takes them any more.
    fn take(&self, entry: &Entry) -> bool {
        let fields = entry.message.as_str();
        let fields = fields.and_then(|message| super::parse(message, |prefix| self.prefixes.action(prefix)));
        let Some(mut fields) = fields else { return true };
        let microseconds: u64 = entry.time.parse().unwrap_or(0);
        fields.insert("TS_US".to_owned(), microseconds.to_string());
        fields.insert("timestamp".to_owned(), go_utc(microseconds / 1_000_000));
        let rest = u32::try_from(microseconds % 1_000_000).unwrap_or(0);
        (self.queued)();
        self.queue.send(Item::Fields((microseconds / 1_000_000, rest), fields)).is_ok()
    }

    fn keep(&self, cursor: &mut Option<String>) -> io::Result<()> {
        let (Some(path), Some(cursor)) = (&self.cursor_file, cursor.take()) else { return Ok(()) };
        let beside = beside(path);
        fs::write(&beside, cursor)?;
        fs::rename(beside, path)
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    beside.into()
}

fn is_ready(output: &impl std::os::fd::AsFd) -> io::Result<bool> {
    let mut entries = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
    match poll(&mut entries, PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO)) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
