//! What a client knows from before its start: kept beside the spool.
//!
//! `boot id, base`: the kernel's counters said `base` when the records of the spool stood for no packet. So at any start
//! counters - base - weight is what nobody has seen, be it because nobody listened or because a client was killed with
//! packets in its hands.

use std::sync::Arc;

use tracing::info;

use super::reader::Watch;
use super::worker::Shared;

/// The note of the spool, and what it means.
pub(crate) struct Past {
    shared: Arc<Shared>,
    boot: String,
    base: Option<i128>,
    /// Packets that records of the spool stood for which cannot be read any more; they will be said to be lost.
    rotten: u64,
    begun: bool,
}

impl Past {
    pub(crate) fn new(shared: Arc<Shared>, boot: String, rotten: u64) -> Self {
        let base = read(shared.lock().remembered().as_deref(), &boot);
        Self { shared, boot, base, rotten, begun: false }
    }

    fn keep(&mut self, base: i128) {
        self.base = Some(base);
        self.shared.lock().remember(&format!("{} {base}\n", self.boot));
    }
}

/// The base, if it is of this boot.
fn read(note: Option<&str>, boot: &str) -> Option<i128> {
    let (of, base) = note?.trim().split_once(' ')?;
    (of == boot).then(|| base.parse().ok())?
}

/// True: what was not written to disk in time is gone, and with it which numbers were given.
pub(crate) fn is_another_boot(note: Option<&str>, boot: &str) -> bool {
    note.is_some() && read(note, boot).is_none()
}

impl Watch for Past {
    fn begin(&mut self, counted: u64) -> u64 {
        // A socket that failed and was opened again: what was under way then is known by numbers alone.
        let was_begun = std::mem::replace(&mut self.begun, true);
        let accounted = i128::from(self.shared.lock().weight()) + i128::from(self.rotten);
        let unseen = self.base.filter(|_| !was_begun).map(|base| i128::from(counted) - base - accounted);
        match unseen.map(u64::try_from) {
            Some(Ok(unseen)) => {
                if unseen > 0 {
                    info!("{unseen} packets were logged that no client has seen");
                }
                unseen
            }
            // The first start, another boot, or counters that began anew.
            _ => {
                self.keep(i128::from(counted) - accounted);
                0
            }
        }
    }

    fn shift(&mut self, by: i128) {
        if let Some(base) = self.base {
            self.keep(base + by);
        }
    }
}

#[cfg(test)]
mod tests {
    use fw_testkit::WorkDir;

    use super::*;
    use crate::spool::{Limits, Spool};

    fn shared(directory: &WorkDir) -> Arc<Shared> {
        let limits = Limits { memory: 1 << 20, disk: 1 << 20 };
        Arc::new(Shared::new(Spool::on_disk(limits, [1; 16], directory.path()).unwrap().0))
    }

    #[test]
    fn what_was_logged_between_two_clients_is_known_and_another_boot_begins_anew() {
        let directory = WorkDir::new("past").unwrap();
        let spool = shared(&directory);
        assert_eq!(Past::new(Arc::clone(&spool), "a".to_owned(), 0).begin(1000), 0);
        spool.lock().push(30, Vec::new()).unwrap();
        drop(spool);
        assert_eq!(Past::new(shared(&directory), "a".to_owned(), 0).begin(1042), 12);
        assert_eq!(Past::new(shared(&directory), "a".to_owned(), 2).begin(1042), 10);
        // The table was made again: less than what is accounted for.
        assert_eq!(Past::new(shared(&directory), "a".to_owned(), 0).begin(5), 0);
        assert_eq!(Past::new(shared(&directory), "a".to_owned(), 0).begin(9), 4);
        assert_eq!(Past::new(shared(&directory), "b".to_owned(), 0).begin(77), 0);
        assert!(is_another_boot(Some("a 1"), "b") && !is_another_boot(Some("a 1"), "a"));
        assert!(!is_another_boot(None, "a"));
    }

    #[test]
    fn a_reset_while_it_runs_is_remembered() {
        let directory = WorkDir::new("past-reset").unwrap();
        let mut past = Past::new(shared(&directory), "a".to_owned(), 0);
        past.begin(100);
        past.shift(-100);
        assert_eq!(Past::new(shared(&directory), "a".to_owned(), 0).begin(3), 3);
    }
}
