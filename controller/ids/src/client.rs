//! Asks suricata's command socket, once: a connection, the handshake, the interfaces, the figures of each.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::command::{AnswerError, Figures, MAX_ANSWER, Request, figures, interfaces, version};

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody listens there.
    #[error("nobody listens on it")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// No answer, or not all of them, in time.
    #[error("suricata did not answer in time")]
    Silent,
    /// The connection was closed before an answer was complete.
    #[error("the connection was closed before the answer")]
    Closed,
    /// An answer beyond [`MAX_ANSWER`].
    #[error("an answer had more than {MAX_ANSWER} bytes")]
    TooLong,
    /// An answer that is none.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// What suricata counts now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// By interface, as suricata names them.
    pub interfaces: BTreeMap<String, Figures>,
    /// Interfaces that were too many, have impossible names, or went meanwhile.
    pub left_out: usize,
}

/// Reads all figures. Everything together takes `patience` at most.
pub async fn read(path: &Path, patience: Duration) -> Result<Reading, SocketError> {
    timeout(patience, converse(path)).await.unwrap_or(Err(SocketError::Silent))
}

async fn converse(path: &Path) -> Result<Reading, SocketError> {
    let stream = UnixStream::connect(path).await.map_err(SocketError::Connect)?;
    let mut talk = Talk { stream, buffer: Vec::new() };
    version(&talk.ask(Request::Version).await?)?;
    let listed = interfaces(&talk.ask(Request::Interfaces).await?)?;
    let mut reading = Reading { interfaces: BTreeMap::new(), left_out: listed.left_out };
    for name in listed.names {
        match figures(&talk.ask(Request::Figures(&name)).await?) {
            Ok(figures) => {
                reading.interfaces.insert(name, figures);
            }
            Err(AnswerError::Refused(_)) => reading.left_out += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(reading)
}

struct Talk {
    stream: UnixStream,
    /// What came after the last answer.
    buffer: Vec<u8>,
}

impl Talk {
    async fn ask(&mut self, request: Request<'_>) -> Result<Vec<u8>, SocketError> {
        self.stream.write_all(&request.encode()).await.map_err(SocketError::Broken)?;
        let mut searched = 0;
        loop {
            let fresh = self.buffer.get(searched..).unwrap_or_default();
            if let Some(end) = memchr::memchr(b'\n', fresh) {
                let rest = self.buffer.split_off(searched + end + 1);
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            searched = self.buffer.len();
            if searched >= MAX_ANSWER {
                return Err(SocketError::TooLong);
            }
            let room = u64::try_from(MAX_ANSWER - searched).unwrap_or(u64::MAX);
            let read = (&mut self.stream).take(room).read_buf(&mut self.buffer).await;
            if read.map_err(SocketError::Broken)? == 0 {
                return Err(SocketError::Closed);
            }
        }
    }
}
