//! Who is told of early drops: droptailer, by the control socket. While nobody is, they are logged.
//!
//! The thread that reads the samples waits for no follower: what does not fit into a follower's queue is counted, and
//! the follower says how many those were.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fw_droptailer::control::{EarlyDrop, Followed};
use tokio::sync::mpsc;

/// Followers at one time.
pub const MAX_FOLLOWERS: usize = 8;
/// Samples that wait for one of them.
pub const QUEUE: usize = 1024;

/// All followers, and what was counted. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Followers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    list: Mutex<Vec<Entry>>,
    /// Samples that the ring gave.
    samples: AtomicU64,
    /// Samples that did not fit into a follower's queue.
    lost: AtomicU64,
    /// Of the kernel's count of samples that did not fit into the ring, what followers were told.
    ring: Mutex<Option<u64>>,
}

#[derive(Debug)]
struct Entry {
    queue: mpsc::Sender<EarlyDrop>,
    lost: Arc<AtomicU64>,
}

/// What the followers counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Followers there are.
    pub followers: usize,
    /// Samples the ring gave since the start.
    pub samples: u64,
    /// Samples that did not fit into the queue of a follower.
    pub lost: u64,
}

/// One follower's end; it is no follower any more when this goes.
#[derive(Debug)]
pub struct Follower {
    queue: mpsc::Receiver<EarlyDrop>,
    lost: Arc<AtomicU64>,
    /// A sample that comes after the `lost` that was said last.
    next: Option<EarlyDrop>,
}

impl Followers {
    /// One more; `None` when there are too many.
    pub fn join(&self) -> Option<Follower> {
        let mut list = self.list();
        list.retain(|entry| !entry.queue.is_closed());
        if list.len() >= MAX_FOLLOWERS {
            return None;
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        list.push(Entry { queue: sender, lost: Arc::clone(&lost) });
        Some(Follower { queue, lost, next: None })
    }

    /// Gives a sample to all of them. False: there is none.
    pub fn give(&self, drop: &EarlyDrop) -> bool {
        let mut list = self.list();
        list.retain(|entry| !entry.queue.is_closed());
        for entry in list.iter() {
            if entry.queue.try_send(drop.clone()).is_err() {
                entry.lost.fetch_add(1, Ordering::Relaxed);
                self.0.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        !list.is_empty()
    }

    /// Counts a sample that the ring gave.
    pub fn count_sample(&self) {
        self.0.samples.fetch_add(1, Ordering::Relaxed);
    }

    /// The kernel's count of samples that did not fit into the ring: what it grew by since the last time is lost for
    /// all followers. The first time it says what was lost before anybody looked.
    pub fn ring_full(&self, count: u64) {
        let before = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner).replace(count);
        let more = before.map_or(0, |before| count.saturating_sub(before));
        if more > 0 {
            for entry in self.list().iter() {
                entry.lost.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// True when there is one.
    pub fn is_any(&self) -> bool {
        self.list().iter().any(|entry| !entry.queue.is_closed())
    }

    /// What was counted.
    pub fn figures(&self) -> Figures {
        let followers = self.list().iter().filter(|entry| !entry.queue.is_closed()).count();
        Figures {
            followers,
            samples: self.0.samples.load(Ordering::Relaxed),
            lost: self.0.lost.load(Ordering::Relaxed),
        }
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// What comes next; what was lost is said before what came after it, as far as that is known. `None`: the firewall
    /// ends. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Followed> {
        if self.next.is_none() {
            self.next = Some(self.queue.recv().await?);
        }
        match self.take_lost() {
            Some(lost) => Some(lost),
            None => self.next.take().map(Followed::Early),
        }
    }

    /// What was lost and not said yet.
    pub fn take_lost(&self) -> Option<Followed> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        (lost > 0).then_some(Followed::Lost(lost))
    }
}
