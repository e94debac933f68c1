//! Asks the controller what only it knows of packets.
//!
//! The worker waits for answers, so that is bounded: nothing is asked of a batch after [`ANSWER`], and no answer is waited
//! for longer than that, so a record is held back for 0.1 s at most; after an answer that did not come nobody is asked for
//! [`REST`]. Beyond a rate nobody is asked either. Without the controller records go on as they are.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fw_policy::Transport;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::Deserialize;
use std::os::fd::AsRawFd as _;

use super::figures::{Figures, add};
use crate::control::{Enrichment, MOST_PACKETS, Question};
use crate::record::DropRecord;

/// For a batch of questions to be answered: how long enrichment can hold records back.
pub(crate) const ANSWER: Duration = Duration::from_millis(50);
/// For how long nobody is asked after a failure.
pub(crate) const REST: Duration = Duration::from_secs(1);
/// Longest answer.
const LONGEST: u64 = 1 << 20;
/// Longest value that is added to a record, in bytes.
const VALUE: usize = 512;

/// One line of answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Result(Vec<Enrichment>),
    Error(String),
}

/// The controller's control socket, while it answers.
#[derive(Debug)]
pub(crate) struct Enricher {
    path: PathBuf,
    connection: Option<BufReader<UnixStream>>,
    resting_until: Option<Instant>,
    allowance: Allowance,
    figures: Arc<Figures>,
    /// Said once until it works again.
    complained: bool,
}

impl Enricher {
    /// Asks about `rate` records a second at most.
    pub(crate) fn new(path: PathBuf, rate: u32, figures: Arc<Figures>, now: Instant) -> Self {
        let allowance = Allowance::new(rate, now);
        Self { path, connection: None, resting_until: None, allowance, figures, complained: false }
    }

    /// Adds to records what the controller knows.
    pub(crate) fn enrich(&mut self, records: &mut [DropRecord], now: Instant) {
        let begin = Instant::now();
        for part in records.chunks_mut(MOST_PACKETS) {
            if begin.elapsed() < ANSWER {
                self.enrich_part(part, now);
            } else {
                add(&self.figures.too_fast, u64::try_from(part.len()).unwrap_or(0));
            }
        }
    }

    fn enrich_part(&mut self, records: &mut [DropRecord], now: Instant) {
        let (places, questions): (Vec<usize>, Vec<Question>) =
            records.iter().enumerate().filter_map(|(place, record)| Some((place, question(record)?))).unzip();
        let count = u64::try_from(questions.len()).unwrap_or(u64::MAX);
        if questions.is_empty() {
            return;
        }
        if self.resting_until.is_some_and(|until| now < until) {
            add(&self.figures.no_controller, count);
            return;
        }
        if !self.allowance.take(count, now) {
            add(&self.figures.too_fast, count);
            return;
        }
        match self.ask(&questions) {
            Ok(answers) => {
                self.complained = false;
                add(&self.figures.enriched, count);
                for (place, answer) in places.into_iter().zip(answers) {
                    if let Some(record) = records.get_mut(place) {
                        apply(record, &answer);
                    }
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::info!("records go on without what the controller knows: {error}");
                }
                add(&self.figures.no_controller, count);
                // An answer that comes late would be taken for the next one.
                self.connection = None;
                self.resting_until = Some(Instant::now() + REST);
            }
        }
    }

    fn ask(&mut self, questions: &[Question]) -> io::Result<Vec<Enrichment>> {
        let deadline = Instant::now() + ANSWER;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => BufReader::new(connect_at_once(&self.path)?),
        };
        let request = serde_json::json!({"request": "enrich", "packets": questions}).to_string() + "\n";
        connection.get_ref().set_write_timeout(Some(ANSWER))?;
        connection.get_mut().write_all(request.as_bytes())?;
        let line = read_line(&mut connection, deadline)?;
        let answers = match serde_json::from_slice(&line)? {
            Answer::Result(answers) if answers.len() == questions.len() => answers,
            Answer::Result(_) => return Err(io::Error::other("the answer has another number of packets")),
            Answer::Error(error) => return Err(io::Error::other(error)),
        };
        self.connection = Some(connection);
        Ok(answers)
    }
}

pub(super) fn read_line(connection: &mut BufReader<UnixStream>, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        connection.get_ref().set_read_timeout(Some(left))?;
        let room = LONGEST.saturating_sub(u64::try_from(line.len()).unwrap_or(LONGEST));
        match connection.by_ref().take(room).read_until(b'\n', &mut line) {
            Ok(_) if line.ends_with(b"\n") => return Ok(line),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// connect() waits while the listener's backlog is full (unix_stream_connect()); this one does not.
pub(super) fn connect_at_once(path: &std::path::Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => {}
        Err(Errno::EAGAIN) => return Err(io::Error::other("the controller takes no connection")),
        Err(errno) => return Err(errno.into()),
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// `None`: too little is known of the packet.
fn question(record: &DropRecord) -> Option<Question> {
    let (source, destination) = record.header.addresses?;
    let transport = record.header.transport?;
    let (protocol, ports, icmp) = match transport {
        Transport::Tcp { source, destination } => (6, Some((source, destination)), None),
        Transport::Udp { source, destination } => (17, Some((source, destination)), None),
        Transport::Icmp { kind, code } => {
            (if matches!(source, IpAddr::V4(_)) { 1 } else { 58 }, None, Some((kind, code)))
        }
        Transport::Other(protocol) => (protocol, None, None),
    };
    let (input, output) = record.interfaces();
    Some(Question {
        action: record.action,
        input: input.to_owned(),
        output: output.to_owned(),
        source,
        destination,
        protocol,
        ports,
        icmp,
    })
}

fn apply(record: &mut DropRecord, answer: &Enrichment) {
    let keys =
        [("RULE", &answer.rule), ("POLICY", &answer.policy), ("FQDN", &answer.fqdn), ("HINT", &answer.hint)];
    for (key, value) in keys {
        if let Some(value) = value {
            record.add(key, cut(value));
        }
    }
}

fn cut(value: &str) -> &str {
    value.get(..value.floor_char_boundary(VALUE)).unwrap_or(value)
}

/// So many a second, and as many at once.
#[derive(Debug)]
struct Allowance {
    rate: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    fn new(rate: u32, now: Instant) -> Self {
        let rate = f64::from(rate);
        Self { rate, left: rate, at: now }
    }

    fn take(&mut self, count: u64, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * self.rate).min(self.rate);
        self.at = now;
        let wanted = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let fits = wanted <= self.left;
        if fits {
            self.left -= wanted;
        }
        fits
    }
}

#[cfg(test)]
mod tests;
