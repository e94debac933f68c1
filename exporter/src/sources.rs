//! Metrics of the programs beside this one, so that one scrape shows a whole firewall.
//!
//! Each is asked by its unix socket: one line `{"request":"metrics"}`, one line `{"result":"…"}` with Prometheus' text. An
//! answer that is late, too long or not in order is left out as a whole, and counted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::exposition::{self, Invalid, MAX_TEXT};

/// For an answer to be there.
pub const PATIENCE: Duration = Duration::from_millis(1000);
/// Bytes of an answer: text in JSON takes up to six bytes for one.
const MAX_ANSWER: usize = 2 * MAX_TEXT;

/// A program that has metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Value of the label `source`.
    pub name: &'static str,
    /// What the names of its families begin with.
    pub prefix: &'static str,
    /// Its socket.
    pub socket: PathBuf,
}

/// Why metrics of a program are left out.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nobody listens.
    #[error("nobody answers on {}", .0.display())]
    Absent(PathBuf, #[source] io::Error),
    /// No answer in time.
    #[error("no answer within {} ms", PATIENCE.as_millis())]
    Slow,
    /// The conversation broke off, or the answer is too long or no JSON.
    #[error("the conversation broke off")]
    Broken(#[source] io::Error),
    /// It says that it cannot.
    #[error("it says: {0}")]
    Refused(String),
    /// Its text would break the scrape.
    #[error("its metrics are left out")]
    Invalid(#[from] Invalid),
}

/// Values of the label `cause`.
pub const CAUSES: [&str; 5] = ["absent", "broken", "invalid", "refused", "slow"];

impl SourceError {
    /// Value of the label `cause`.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Absent(..) => "absent",
            Self::Slow => "slow",
            Self::Broken(_) => "broken",
            Self::Refused(_) => "refused",
            Self::Invalid(_) => "invalid",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Result(String),
    Error(String),
}

/// Asks a program for its metrics and checks them.
pub async fn ask(source: &Source) -> Result<String, SourceError> {
    let text = timeout(PATIENCE, converse(&source.socket)).await.map_err(|_| SourceError::Slow)??;
    Ok(exposition::check(&text, source.prefix)?)
}

async fn converse(socket: &Path) -> Result<String, SourceError> {
    let absent = |error| SourceError::Absent(socket.to_owned(), error);
    let mut stream = UnixStream::connect(socket).await.map_err(absent)?;
    stream.write_all(b"{\"request\":\"metrics\"}\n").await.map_err(SourceError::Broken)?;
    let mut line = Vec::new();
    let bound = u64::try_from(MAX_ANSWER).unwrap_or(u64::MAX);
    let mut reader = BufReader::new(stream).take(bound);
    reader.read_until(b'\n', &mut line).await.map_err(SourceError::Broken)?;
    let broken = |error: serde_json::Error| SourceError::Broken(io::Error::from(error));
    match serde_json::from_slice(&line).map_err(broken)? {
        Answer::Result(text) => Ok(text),
        // A hostile message is no reason for a long log line.
        Answer::Error(text) => Err(SourceError::Refused(text.chars().take(200).collect())),
    }
}
