//! How long things take, as Prometheus wants it.

use std::time::Duration;

/// Durations in buckets, without a place for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    buckets: [u64; Self::BOUNDS_MS.len()],
    count: u64,
    sum_us: u64,
}

impl Durations {
    /// Upper ends of the buckets, in milliseconds.
    pub const BOUNDS_MS: [u64; 12] = [1, 5, 10, 25, 50, 100, 250, 500, 1000, 5000, 15_000, 60_000];

    /// Counts one.
    pub fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = Self::BOUNDS_MS.iter().position(|bound| micros <= bound * 1000);
        if let Some(bucket) = bucket.and_then(|index| self.buckets.get_mut(index)) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(micros);
    }

    /// Upper end in microseconds and how many took at most as long, in order.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut so_far = 0;
        Self::BOUNDS_MS.iter().zip(self.buckets).map(move |(bound, number)| {
            so_far += number;
            (bound * 1000, so_far)
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All of them together, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }
}

/// How long the reconciler has worked, by what came out of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// The kernel holds what the objects mean.
    pub applied: Durations,
    /// It refused, or could not be asked.
    pub refused: Durations,
    /// Nothing was to be applied.
    pub dry_run: Durations,
    /// From the moment a source gave objects until they were enforced.
    pub lag: Durations,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_buckets_that_hold_them() {
        let mut durations = Durations::default();
        for micros in [0, 1000, 1001, 60_000_000, 60_000_001] {
            durations.record(Duration::from_micros(micros));
        }
        let cumulative: Vec<(u64, u64)> = durations.cumulative().collect();
        assert_eq!(cumulative[..2], [(1000, 2), (5000, 3)]);
        assert_eq!(cumulative.last(), Some(&(60_000_000, 4)));
        assert_eq!((durations.count(), durations.sum_us()), (5, 120_002_002));
    }
}
