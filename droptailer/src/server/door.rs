//! Who gets in: connections are bounded, in all and of one address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Limits;
use super::metrics::Metrics;

/// Counts connections.
pub(super) struct Door {
    limits: Limits,
    metrics: Arc<Metrics>,
    inside: Arc<Inside>,
}

#[derive(Default)]
struct Inside {
    counts: Mutex<Counts>,
    left: Notify,
}

#[derive(Default)]
struct Counts {
    all: usize,
    of: BTreeMap<IpAddr, usize>,
}

/// A connection's place, free again when dropped.
pub(super) struct Place {
    address: IpAddr,
    inside: Arc<Inside>,
    metrics: Arc<Metrics>,
}

impl Door {
    pub(super) fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self { limits, metrics, inside: Arc::default() }
    }

    /// `None` when there is no place; counted.
    pub(super) fn enter(&mut self, address: IpAddr) -> Option<Place> {
        let mut counts = self.inside.counts();
        let of = counts.of.get(&address).copied().unwrap_or(0);
        let bound = if counts.all >= self.limits.connections {
            Some("bound")
        } else if of >= self.limits.connections_per_address {
            Some("address-bound")
        } else {
            None
        };
        if let Some(bound) = bound {
            self.metrics.connections.with_label_values(&[bound]).inc();
            return None;
        }
        counts.all += 1;
        counts.of.insert(address, of + 1);
        self.metrics.open.inc();
        Some(Place { address, inside: Arc::clone(&self.inside), metrics: Arc::clone(&self.metrics) })
    }

    /// Waits until nobody is inside.
    pub(super) async fn empty(&self) {
        loop {
            let left = self.inside.left.notified();
            if self.inside.counts().all == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Inside {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.inside.counts();
        counts.all = counts.all.saturating_sub(1);
        let left = counts.of.get(&self.address).copied().unwrap_or(0).saturating_sub(1);
        if left == 0 {
            counts.of.remove(&self.address);
        } else {
            counts.of.insert(self.address, left);
        }
        drop(counts);
        self.metrics.open.dec();
        // One waits at most, and notices also what happens before it waits.
        self.inside.left.notify_one();
    }
}
