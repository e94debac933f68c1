//! Requests as lines of bounded length.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader, Take};

/// Longest request, in bytes.
pub(super) const MAX_REQUEST: usize = 4096;
/// Longest request that carries packets, in bytes: 64 of them at 512 bytes each.
pub(super) const MAX_PACKETS: usize = 32 * 1024;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Without its end.
    pub(super) bytes: Vec<u8>,
    /// False: the other side has ended, or the line is too long.
    pub(super) is_complete: bool,
}

impl Line {
    /// True for a line that only a request with packets may have.
    pub(super) fn is_long(&self) -> bool {
        let length = self.bytes.len() + usize::from(self.is_complete);
        length > MAX_REQUEST || (!self.is_complete && length == MAX_REQUEST)
    }

    /// True for a line that no request may have.
    pub(super) fn is_too_long(&self) -> bool {
        !self.is_complete && self.bytes.len() >= MAX_PACKETS
    }
}

/// Reads lines; at most [`MAX_PACKETS`] bytes of each.
pub(super) struct Lines<R>(BufReader<Take<R>>);

impl<R: tokio::io::AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self(BufReader::new(reader.take(LIMIT)))
    }

    /// `None` at the end.
    pub(super) async fn next(&mut self) -> io::Result<Option<Line>> {
        self.0.get_mut().set_limit(LIMIT);
        let mut bytes = Vec::new();
        if self.0.read_until(b'\n', &mut bytes).await? == 0 {
            return Ok(None);
        }
        let is_complete = bytes.ends_with(b"\n");
        if is_complete {
            bytes.pop();
        }
        Ok(Some(Line { bytes, is_complete }))
    }

    /// Done when the other side has ended; what it says until then is passed over.
    pub(super) async fn ended(&mut self) {
        loop {
            self.0.get_mut().set_limit(LIMIT);
            let length = match self.0.fill_buf().await {
                Ok([]) | Err(_) => return,
                Ok(bytes) => bytes.len(),
            };
            std::pin::Pin::new(&mut self.0).consume(length);
        }
    }
}

const LIMIT: u64 = MAX_PACKETS as u64;
