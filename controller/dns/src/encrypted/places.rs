//! How many connections there may be, in all and of one client.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::EncryptedLimits;
use crate::handle::Handle;
use crate::metrics::{Bound, Metrics};

#[derive(Debug)]
pub(super) struct Places {
    limits: EncryptedLimits,
    metrics: Arc<Metrics>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_client: BTreeMap<IpAddr, usize>,
}

impl Places {
    pub(super) fn new(limits: EncryptedLimits, handle: &Handle) -> Arc<Self> {
        let metrics = Arc::clone(&handle.metrics);
        metrics.tls_connections.set(0);
        metrics.tls_connections_max.set(limits.connections);
        Arc::new(Self { limits, metrics, taken: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing can panic while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection; `None`, counted: there is no more room.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let client = client.to_canonical();
        let mut taken = self.lock();
        let of_client = taken.by_client.get(&client).copied().unwrap_or(0);
        if taken.all >= self.limits.connections || of_client >= self.limits.connections_per_client {
            self.metrics.bound_met(Bound::TlsConnections);
            return None;
        }
        taken.by_client.insert(client, of_client + 1);
        taken.all += 1;
        self.metrics.tls_connections.set(taken.all);
        Some(Place { places: Arc::clone(self), client })
    }
}

/// A connection's place among the others; free again with this value.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all = taken.all.saturating_sub(1);
        match taken.by_client.get_mut(&self.client) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.by_client.remove(&self.client)),
        }
        self.places.metrics.tls_connections.set(taken.all);
    }
}
