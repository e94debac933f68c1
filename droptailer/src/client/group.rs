//! The NFLOG group: the controller knows it from the Firewall object, and it can change at any time.

use std::io::{self, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tracing::{debug, info, warn};

use super::enrich::{connect_at_once, read_line};

/// Where nobody says anything else, as `nflogGroup` of the Firewall has it.
const DEFAULT: u16 = 1;
/// For an answer.
const ANSWER: Duration = Duration::from_millis(500);
/// Between two questions.
const AGAIN: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// The group that is to be listened to. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Group(Arc<AtomicU16>);

impl Group {
    /// This one for ever.
    pub(crate) fn fixed(group: u16) -> Self {
        Self(Arc::new(AtomicU16::new(group)))
    }

    pub(crate) fn get(&self) -> u16 {
        self.0.load(Ordering::Acquire)
    }
}

/// Asks the controller. While it is away the group stays what it was, over a restart too where there is a file.
pub(crate) struct Asker {
    pub(crate) group: Group,
    path: PathBuf,
    file: Option<PathBuf>,
    stop: Arc<AtomicBool>,
}

impl Asker {
    /// Begins with what was known last, and with what the controller says if it answers at once.
    pub(crate) fn new(path: PathBuf, directory: Option<&Path>, stop: Arc<AtomicBool>) -> Self {
        let file = directory.map(|directory| directory.join("nflog-group"));
        let known = file.as_deref().and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
        let asker = Self { group: Group::fixed(known.unwrap_or(DEFAULT)), path, file, stop };
        asker.look();
        asker
    }

    /// Until it is stopped.
    pub(crate) fn run(self) {
        while !self.stop.load(Ordering::Acquire) {
            self.look();
            let until = Instant::now() + AGAIN;
            while !self.stop.load(Ordering::Acquire) && Instant::now() < until {
                std::thread::sleep(TICK);
            }
        }
    }

    fn look(&self) {
        match self.ask() {
            Ok(group) if group == self.group.get() => {}
            Ok(group) => {
                info!("the controller says that rules log to NFLOG group {group}");
                self.group.0.store(group, Ordering::Release);
                if let Some(file) = &self.file
                    && let Err(error) = keep(file, group)
                {
                    warn!("{} cannot be written: {error}", file.display());
                }
            }
            Err(error) => debug!("the NFLOG group is as it was: {error}"),
        }
    }

    fn ask(&self) -> io::Result<u16> {
        #[derive(Deserialize)]
        struct Answer {
            result: u16,
        }
        let mut connection = BufReader::new(connect_at_once(&self.path)?);
        connection.get_ref().set_write_timeout(Some(ANSWER))?;
        connection.get_mut().write_all(b"{\"request\":\"nflog-group\"}\n")?;
        let line = read_line(&mut connection, Instant::now() + ANSWER)?;
        Ok(serde_json::from_slice::<Answer>(&line)?.result)
    }
}

fn keep(file: &Path, group: u16) -> io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, format!("{group}\n"))?;
    std::fs::rename(beside, file)
}
