//! How long to wait before the next attempt; pure.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

/// Doubles from attempt to attempt, up to a limit, with a random part so that many clients do not come at once.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    pause: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { pause: FIRST }
    }

    /// The pause before the next attempt: between half and all of what it is. `random`: any number.
    pub(crate) fn next(&mut self, random: u32) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST);
        let half = pause / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.pause = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_vary_by_half() {
        let mut backoff = Backoff::new();
        let pauses: Vec<u128> = (0..9).map(|_| backoff.next(u32::MAX).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        assert_eq!(backoff.next(0).as_millis(), 5_000);
        backoff.reset();
        assert_eq!(backoff.next(0).as_millis(), 100);
    }
}
