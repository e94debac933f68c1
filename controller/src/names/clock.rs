//! The clocks of this machine, and between them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fw_names::change::Nanos;
use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds, the clock of the eBPF programs (theirs lags it by up to a tick, some milliseconds).
pub fn monotonic() -> Nanos {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds since 1970.
pub fn wall() -> Nanos {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Carries times from one clock to another. What another boot or a step of the wall clock made of them is bounded
/// by whoever uses them.
#[derive(Clone, Copy, Debug)]
pub struct Shift {
    from: Nanos,
    to: Nanos,
}

impl Shift {
    /// `from` and `to` are readings of the two clocks at one moment.
    pub fn new(from: Nanos, to: Nanos) -> Self {
        Self { from, to }
    }

    /// The same moment on the other clock.
    pub fn carry(self, time: Nanos) -> Nanos {
        if time >= self.from {
            self.to.saturating_add(time - self.from)
        } else {
            self.to.saturating_sub(self.from - time)
        }
    }
}

/// When that will be by the wall clock.
pub fn as_wall(time: Nanos, monotonic_now: Nanos, now: SystemTime) -> SystemTime {
    if time >= monotonic_now {
        now + Duration::from_nanos(time - monotonic_now)
    } else {
        now - Duration::from_nanos(monotonic_now - time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_carried_in_both_directions() {
        let shift = Shift::new(1000, 50);
        assert_eq!((shift.carry(1010), shift.carry(990), shift.carry(0)), (60, 40, 0));
    }

    #[test]
    fn the_monotonic_clock_runs() {
        let before = monotonic();
        std::thread::sleep(Duration::from_millis(2));
        assert!(monotonic() >= before + 2_000_000);
    }
}
