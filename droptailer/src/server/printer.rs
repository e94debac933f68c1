//! The one thread that writes lines, and knows which of them it has written.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::warn;

use super::metrics::Metrics;
use crate::wire::SESSION_BYTES;

/// Requests whose lines are in memory at one time; others wait with their bytes unread.
const MOST_JOBS: usize = 32;
/// Bytes after which lines are written, even when more wait.
const WRITE_BYTES: usize = 256 << 10;
/// Between two attempts to write, when writing fails.
const PAUSE: Duration = Duration::from_millis(200);

/// Names a client's spool.
pub type Session = [u8; SESSION_BYTES];

/// Lines to print, in order.
#[derive(Debug, Default)]
pub struct Lines {
    text: String,
    ends: Vec<usize>,
}

impl Lines {
    /// Adds a line, without line feed.
    pub fn push(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
        self.ends.push(self.text.len());
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All but the first so many.
    fn after(&self, count: usize) -> &str {
        let start = count.min(self.ends.len()).checked_sub(1).and_then(|last| self.ends.get(last)).copied();
        self.text.get(start.unwrap_or(0)..).unwrap_or_default()
    }
}

/// A place in the printer's memory.
pub struct Turn {
    _permit: OwnedSemaphorePermit,
}

struct Job {
    /// Session and number of the first line.
    numbered: Option<(Session, u64)>,
    lines: Lines,
    done: oneshot::Sender<u64>,
    _turn: Turn,
}

/// Gives lines to the printer.
#[derive(Clone)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    turns: Arc<Semaphore>,
}

/// The printer ended: the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server ends")]
pub struct Ended;

impl Handle {
    /// Waits until lines may be made; standard output that takes nothing is felt here.
    pub async fn turn(&self) -> Result<Turn, Ended> {
        Arc::clone(&self.turns).acquire_owned().await.map(|_permit| Turn { _permit }).map_err(|_| Ended)
    }

    /// Prints lines without numbers; returns when they are written.
    pub async fn print(&self, lines: Lines, turn: Turn) -> Result<(), Ended> {
        self.send(None, lines, turn).await.map(drop)
    }

    /// Prints those of a session's lines that it has not printed yet; `first` is the number of the first. Returns the
    /// number of the line that it expects next; 0 of a session that it does not know.
    ///
    /// Lines are written also when the caller stops waiting.
    pub async fn print_numbered(
        &self,
        session: Session,
        first: u64,
        lines: Lines,
        turn: Turn,
    ) -> Result<u64, Ended> {
        self.send(Some((session, first)), lines, turn).await
    }

    async fn send(&self, numbered: Option<(Session, u64)>, lines: Lines, turn: Turn) -> Result<u64, Ended> {
        let (done, printed) = oneshot::channel();
        self.jobs.send(Job { numbered, lines, done, _turn: turn }).await.map_err(|_| Ended)?;
        printed.await.map_err(|_| Ended)
    }
}

/// The thread.
pub struct Printer {
    handle: Handle,
    ended: oneshot::Receiver<()>,
}

impl Printer {
    /// Starts it. `sessions` is how many it remembers.
    pub fn start(
        output: impl Write + Send + 'static,
        sessions: usize,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(MOST_JOBS);
        let (end, ended) = oneshot::channel();
        let mut writer = Writer { output, sessions: Sessions::new(sessions), metrics };
        thread::Builder::new().name("print".to_owned()).spawn(move || {
            writer.work(waiting);
            let _ = end.send(());
        })?;
        Ok(Self { handle: Handle { jobs, turns: Arc::new(Semaphore::new(MOST_JOBS)) }, ended })
    }

    /// For those who print.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until what was given is written; false when that takes longer than `patience`. Takes nothing any more.
    pub async fn end(self, patience: Duration) -> bool {
        self.handle.turns.close();
        drop(self.handle);
        tokio::time::timeout(patience, self.ended).await.is_ok()
    }
}

struct Writer<W> {
    output: W,
    sessions: Sessions,
    metrics: Arc<Metrics>,
}

impl<W: Write> Writer<W> {
    fn work(&mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut text = String::new();
        let mut written = Vec::new();
        while let Some(first) = jobs.blocking_recv() {
            let mut next = Some(first);
            let mut lines = 0;
            while let Some(job) = next {
                let (skipped, expected) = self.sessions.take(&job, &self.metrics);
                text.push_str(job.lines.after(skipped));
                lines += job.lines.len() - skipped;
                written.push((job, expected));
                next = if text.len() < WRITE_BYTES { jobs.try_recv().ok() } else { None };
            }
            self.write(text.as_bytes());
            self.metrics.printed.inc_by(lines as u64);
            text.clear();
            text.shrink_to(WRITE_BYTES);
            for (job, expected) in written.drain(..) {
                // Who gave it may be gone.
                let _ = job.done.send(expected);
            }
        }
    }

    /// Returns when all of it is written, however long that takes.
    fn write(&mut self, mut bytes: &[u8]) {
        let began = Instant::now();
        let mut complained = false;
        self.metrics.output.begin(began);
        while !bytes.is_empty() {
            let error = match self.output.write(bytes) {
                Ok(0) => std::io::Error::from(ErrorKind::WriteZero),
                Ok(count) => {
                    bytes = bytes.get(count..).unwrap_or_default();
                    self.metrics.output.begin(Instant::now());
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            // A pipe that somebody else made non-blocking is only full.
            if error.kind() != ErrorKind::WouldBlock {
                self.metrics.output_errors.inc();
                if !complained {
                    warn!("cannot write to standard output, trying again: {error}");
                    complained = true;
                }
            }
            thread::sleep(PAUSE);
        }
        self.metrics.output.end();
    }
}

/// Which number is expected of whom.
struct Sessions {
    most: usize,
    clock: u64,
    known: BTreeMap<Session, Known>,
}

struct Known {
    next: u64,
    used: u64,
}

impl Sessions {
    fn new(most: usize) -> Self {
        Self { most: most.max(1), clock: 0, known: BTreeMap::new() }
    }

    /// How many lines of a job are printed already, and the number that is expected after it.
    fn take(&mut self, job: &Job, metrics: &Metrics) -> (usize, u64) {
        let Some((session, first)) = job.numbered else { return (0, 0) };
        self.clock += 1;
        let expected = self.known.get(&session).map_or(0, |known| known.next);
        if job.lines.is_empty() {
            if let Some(known) = self.known.get_mut(&session) {
                known.used = self.clock;
            }
            return (0, expected);
        }
        let count = job.lines.len();
        let skipped = usize::try_from(expected.saturating_sub(first)).unwrap_or(count).min(count);
        metrics.repeated.inc_by(skipped as u64);
        let next = expected.max(first.saturating_add(count as u64));
        self.known.insert(session, Known { next, used: self.clock });
        if self.known.len() > self.most {
            self.forget(metrics);
        }
        metrics.sessions.set(i64::try_from(self.known.len()).unwrap_or(i64::MAX));
        (skipped, next)
    }

    /// Forgets who was silent longest.
    fn forget(&mut self, metrics: &Metrics) {
        let oldest = self.known.iter().min_by_key(|(_, known)| known.used).map(|(session, _)| *session);
        if let Some(session) = oldest {
            self.known.remove(&session);
            metrics.forgotten.inc();
        }
    }
}

#[cfg(test)]
mod tests;
