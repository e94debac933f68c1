//! Packets that eBPF programs dropped before the rules saw them: the controller passes them on.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tracing::debug;

use super::figures::{Figures, add};
use super::worker::Item;
use crate::control::{EarlyDrop, Followed};
use crate::loss::{Cause, Ledger};
use crate::record::DropRecord;

/// Between two attempts; also how long the end of the client can take.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest line.
const LONGEST: u64 = 16 << 10;

/// What the thread needs.
pub(crate) struct Follower {
    pub(crate) path: PathBuf,
    pub(crate) queue: SyncSender<Item>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) stop: Arc<AtomicBool>,
}

impl Follower {
    /// Until it is stopped.
    pub(crate) fn run(self) {
        while !self.stop.load(Ordering::Acquire) {
            if let Err(error) = self.follow() {
                debug!("no early drops: {error}");
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn follow(&self) -> io::Result<()> {
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(AGAIN))?;
        stream.set_write_timeout(Some(AGAIN))?;
        stream.write_all(b"{\"request\":\"follow-early-drops\"}\n")?;
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        let mut is_answered = false;
        while !self.stop.load(Ordering::Acquire) {
            let room = LONGEST.saturating_sub(u64::try_from(line.len()).unwrap_or(LONGEST));
            match stream.by_ref().take(room).read_until(b'\n', &mut line) {
                Ok(_) if !line.ends_with(b"\n") => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if is_answered => self.take(serde_json::from_slice(&line)?),
                Ok(_) => {
                    if serde_json::from_slice::<serde_json::Value>(&line)?.get("error").is_some() {
                        return Err(io::Error::other("the controller does not pass them on"));
                    }
                    is_answered = true;
                }
                // What was read so far stays in `line`.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) => return Err(error),
            }
            line.clear();
        }
        Ok(())
    }

    fn take(&self, followed: Followed) {
        match followed {
            Followed::Early(early) => {
                add(&self.figures.early, 1);
                match self.queue.try_send(Item::Early(early)) {
                    Ok(()) => add(&self.figures.queue, 1),
                    Err(_) => self.ledger.lose(Cause::Early, 1),
                }
            }
            Followed::Lost(count) => self.ledger.lose(Cause::Early, count),
        }
    }
}

/// The record. `None`: not an Ethernet frame.
pub(crate) fn record(early: &EarlyDrop) -> Option<DropRecord> {
    let time = (early.ts_us / 1_000_000, u32::try_from(early.ts_us % 1_000_000).unwrap_or(0));
    DropRecord::early(&bytes(&early.frame)?, time, &early.input)
}

fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    let digits = hexadecimal.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_drop_is_a_record_that_says_where_also_behind_vlan_tags() {
        let ip = "4500001c000100004011000000000000".to_owned();
        for tags in ["", "81000005", "88a8000681000005"] {
            let frame = format!("020000000001020000000002{tags}0800{ip}c00002010007000900080000");
            let early =
                EarlyDrop { ts_us: 1_592_400_207_000_001, input: "vrf1".to_owned(), frame, length: 42 };
            let record = record(&early).unwrap();
            let fields = record.fields();
            assert_eq!((fields["WHERE"].as_str(), fields["IN"].as_str()), ("early", "vrf1"));
            assert_eq!((fields["DPT"].as_str(), fields["TS_US"].as_str()), ("9", "1592400207000001"));
        }
    }

    #[test]
    fn no_frame_is_no_record() {
        for frame in ["", "0", "zz", "0200", "02000000000102000000000281000001810000018100000181000001"] {
            let early = EarlyDrop { ts_us: 0, input: String::new(), frame: frame.to_owned(), length: 0 };
            assert_eq!(record(&early), None, "{frame:?}");
        }
    }
}
