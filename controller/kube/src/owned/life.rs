//! Which firewalls are alive, as seen from here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::plan::{Observed, addresses_of, kept};

/// Milliseconds.
pub type Time = u64;

/// What has been seen of each firewall, and when it last gave a sign of life.
///
/// No clock of another machine is believed: like leader election in Kubernetes this measures for how long a sign has
/// stayed the same HERE. And only time counts in which somebody could have given one: after hours without an API server
/// nobody is older than before.
#[derive(Clone, Debug, Default)]
pub struct Signs {
    /// Time for which the API server was observed.
    clock: Time,
    last: Option<Time>,
    /// By name: the sign, and since when it is the same.
    slices: BTreeMap<String, (String, Time)>,
    /// By exporter and address: the last sign of a slice that has it. Of an address in no slice (another product's, a
    /// user's, one whose slice is gone): when it was first seen.
    addresses: BTreeMap<(&'static str, IpAddr), Time>,
}

impl Signs {
    /// Takes note of what is there. `now` is of any clock that does not jump; `beat` is how often this is called when all
    /// is well, and more than that never counts.
    pub fn observe(&mut self, observed: &Observed, now: Time, beat: Time) {
        let passed = self.last.map_or(0, |last| now.saturating_sub(last));
        self.last = Some(now);
        self.clock = self.clock.saturating_add(passed.min(beat));
        self.observe_slices(observed);
        self.observe_endpoints(observed);
    }

    fn observe_slices(&mut self, observed: &Observed) {
        let before = std::mem::take(&mut self.slices);
        for (name, slice) in &observed.slices {
            let Some(kept) = kept(slice) else { continue };
            let since = match before.get(name) {
                Some((sign, since)) if *sign == kept.sign => *since,
                _ => self.clock,
            };
            self.slices.insert(name.clone(), (kept.sign, since));
            for address in kept.addresses {
                let sign = self.addresses.entry((kept.exporter, address)).or_insert(since);
                *sign = (*sign).max(since);
            }
        }
    }

    fn observe_endpoints(&mut self, observed: &Observed) {
        let mut there = BTreeSet::new();
        for exporter in super::EXPORTERS {
            let listed = observed.endpoints.get(exporter.name).map(addresses_of).unwrap_or_default();
            there.extend(listed.into_iter().map(|address| (exporter.name, address)));
        }
        for key in &there {
            self.addresses.entry(*key).or_insert(self.clock);
        }
        for kept in observed.slices.values().filter_map(kept) {
            there.extend(kept.addresses.into_iter().map(|address| (kept.exporter, address)));
        }
        // So this is never more than what is there.
        self.addresses.retain(|key, _| there.contains(key));
    }

    /// For how long a slice has not changed.
    pub(super) fn silence_of_slice(&self, name: &str) -> Time {
        self.slices.get(name).map_or(0, |(_, since)| self.clock - since)
    }

    /// The addresses that gave a sign of life less than `gone` ago.
    pub(super) fn addresses(&self, exporter: &str, gone: Time) -> impl Iterator<Item = IpAddr> {
        let alive = self
            .addresses
            .iter()
            .filter(move |((of, _), sign)| *of == exporter && self.clock - **sign < gone);
        alive.map(|((_, address), _)| *address)
    }
}
