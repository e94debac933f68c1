//! Asks the running controller.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::{Request, Response};

/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 256 * 1024 * 1024;
/// A flush may take this long.
const PATIENCE: Duration = Duration::from_secs(90);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no firewall-controller answers on {} (is it running? give --control-socket if it has another)", .0.display())]
    Nobody(PathBuf, #[source] io::Error),
    /// The conversation broke off.
    #[error("the running firewall-controller did not answer")]
    Broken(#[source] io::Error),
    /// It answered that it cannot.
    #[error("the running firewall-controller says: {0}")]
    Refused(String),
}

/// Sends a request and waits for the answer.
pub fn ask(socket: &Path, request: &Request) -> Result<Value, ClientError> {
    let nobody = |error| ClientError::Nobody(socket.to_owned(), error);
    let stream = UnixStream::connect(socket).map_err(nobody)?;
    match converse(stream, request).map_err(ClientError::Broken)? {
        Response::Result(value) => Ok(value),
        Response::Error(text) => Err(ClientError::Refused(text)),
    }
}

fn converse(mut stream: UnixStream, request: &Request) -> io::Result<Response> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
    }
    Ok(serde_json::from_slice(&answer)?)
}
