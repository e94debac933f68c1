//! What writing counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Figures of everything that is written. Cheap to read at any time.
#[derive(Debug, Default)]
pub struct WriteFigures {
    /// Statuses of policies.
    pub policies: Tally,
    /// The status of the Firewall.
    pub firewall: Tally,
    /// Events.
    pub events: Tally,
    standby: Mutex<Option<String>>,
}

/// Figures of one kind of writes.
#[derive(Debug, Default)]
pub struct Tally {
    written: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
    waiting: AtomicU64,
}

impl WriteFigures {
    /// The machine that writes the status of our Firewall instead of us, if one does; then we write none.
    #[must_use]
    pub fn standby(&self) -> Option<String> {
        self.standby.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes who writes instead of us. True when that is news.
    pub(crate) fn set_standby(&self, writer: Option<&str>) -> bool {
        // A panic while it was held cannot leave it half changed.
        let mut standby = self.standby.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = standby.as_deref() != writer;
        *standby = writer.map(str::to_owned);
        is_new
    }
}

impl Tally {
    /// Writes that the API server took.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Writes that failed; each is tried again as long as it is wanted.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// What was given up: events beyond the bound, what the API server took and did not keep.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Objects, or events, that wait to be written now.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn add_written(&self) {
        self.written.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_lost(&self, number: usize) {
        self.lost.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn set_waiting(&self, number: usize) {
        self.waiting.store(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
