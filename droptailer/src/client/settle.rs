//! What the kernel logged beside what came; pure.
//!
//! Numbers of packets show a loss only when the next packet comes, and packets for which the kernel finds no memory get
//! no number (nfulnl_log_packet() in net/netfilter/nfnetlink_log.c builds the message first). The rule's own counters
//! know better: what they said [`SETTLE`] ago has come by now, or never will. So a reading of them is a lower bound of
//! what was logged; when two readings are equal and nothing came between them, it is exact.
//!
//! Counters go down when somebody resets them or the table is made again, and may come back with any value up to the
//! last. Then the next exact moment is the new beginning, and losses in between are known by numbers alone.

use std::time::Duration;

/// Longer than the kernel and a busy machine keep a packet back (the group's flush timeout is 10 ms).
pub(crate) const SETTLE: Duration = Duration::from_millis(300);
/// Between two readings while nothing happens.
pub(crate) const IDLE: Duration = Duration::from_secs(1);

/// A reading of the counters, with what had come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    counted: u64,
    delivered: u64,
    at: Duration,
}

/// Accounts for logged packets.
#[derive(Clone, Debug)]
pub(crate) struct Settlement {
    /// What the counters said at the beginning, shifted when they were reset.
    offset: i128,
    delivered: u64,
    lost: u64,
    gaps: u64,
    open: Option<Reading>,
    last: Option<Reading>,
}

/// What became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct News {
    /// Newly known losses.
    pub(crate) lost: u64,
    /// The counters do not go on from where they were: everything before is settled.
    pub(crate) reset: bool,
}

impl Settlement {
    /// Begins. `offset`: logged by the kernel and accounted for before.
    pub(crate) fn new(offset: i128) -> Self {
        Self { offset, delivered: 0, lost: 0, gaps: 0, open: None, last: None }
    }

    /// Packets came, with numbers missing before them (both since the last call). Gives losses that were not known.
    pub(crate) fn deliver(&mut self, packets: u64, missing: u64) -> u64 {
        self.delivered += packets;
        self.gaps += missing;
        // What a reading has shown before is the same loss.
        let news = self.gaps.saturating_sub(self.lost);
        self.lost += news;
        news
    }

    /// True when the counters should be read now; [`Self::read`] takes what they say.
    pub(crate) fn wants_reading(&self, now: Duration) -> bool {
        if self.open.is_some() {
            return false;
        }
        let Some(last) = self.last else { return true };
        last.delivered != self.delivered || now.saturating_sub(last.at) >= IDLE
    }

    /// Takes a reading of the counters.
    pub(crate) fn read(&mut self, counted: u64, now: Duration) {
        self.open = Some(Reading { counted, delivered: self.delivered, at: now });
    }

    /// The socket was found empty. Gives what that says of the last reading.
    pub(crate) fn drained(&mut self, now: Duration) -> News {
        let Some(reading) = self.open.filter(|reading| now.saturating_sub(reading.at) >= SETTLE) else {
            return News::default();
        };
        self.open = None;
        let last = self.last.replace(reading);
        let unseen = i128::from(reading.counted) - self.offset - i128::from(self.delivered);
        let fresh = u64::try_from(unseen - i128::from(self.lost)).unwrap_or(0);
        if fresh > 0 {
            self.lost += fresh;
            return News { lost: fresh, reset: false };
        }
        // Exact: nothing came since the reading before this one, and nothing was counted either.
        let quiet =
            last.is_some_and(|last| last.counted == reading.counted && last.delivered == self.delivered);
        if !quiet || unseen == i128::from(self.lost) {
            return News::default();
        }
        self.offset += unseen - i128::from(self.lost);
        News { lost: 0, reset: true }
    }

    /// What the counters said at the beginning, less every reset since.
    pub(crate) fn offset(&self) -> i128 {
        self.offset
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEP: Duration = Duration::from_millis(400);

    /// Two readings with nothing between them; what they say together.
    fn rest(settlement: &mut Settlement, counted: u64, now: &mut Duration) -> News {
        let mut all = News::default();
        for _ in 0..2 {
            settlement.read(counted, *now);
            *now += STEP;
            let news = settlement.drained(*now);
            all = News { lost: all.lost + news.lost, reset: all.reset || news.reset };
        }
        all
    }

    fn lost(lost: u64) -> News {
        News { lost, reset: false }
    }

    #[test]
    fn a_loss_at_the_end_of_a_burst_is_known_when_it_is_quiet_and_only_once() {
        let (mut settlement, mut now) = (Settlement::new(0), Duration::ZERO);
        assert_eq!(settlement.deliver(100, 3), 3);
        assert_eq!(rest(&mut settlement, 110, &mut now), lost(7));
        // The next packet shows the gap that is known already.
        assert_eq!(settlement.deliver(1, 7), 0);
        assert_eq!(rest(&mut settlement, 111, &mut now), lost(0));
        assert_eq!(settlement.deliver(1, 2), 2);
    }

    #[test]
    fn a_packet_on_its_way_is_no_loss() {
        let mut settlement = Settlement::new(0);
        settlement.read(10, Duration::ZERO);
        assert_eq!(settlement.drained(Duration::from_millis(200)), News::default(), "too early to say");
        settlement.deliver(10, 0);
        assert_eq!(settlement.drained(STEP), News::default());
    }

    #[test]
    fn counters_that_restart_are_a_reset_and_later_losses_are_known() {
        for restart in [0, 60, 99] {
            let (mut settlement, mut now) = (Settlement::new(0), Duration::ZERO);
            settlement.deliver(100, 0);
            assert_eq!(rest(&mut settlement, 100, &mut now), lost(0));
            assert_eq!(rest(&mut settlement, restart, &mut now), News { lost: 0, reset: true });
            settlement.deliver(5, 0);
            assert_eq!(rest(&mut settlement, restart + 9, &mut now), lost(4), "restarted at {restart}");
        }
    }

    /// What happens to one packet, or to the observer.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Arrives,
        LostWithNumber,
        LostWithoutNumber,
        Read,
        Drain,
    }

    proptest! {
        #[test]
        fn in_any_interleaving_what_came_and_what_is_known_lost_never_exceed_what_was_logged_and_end_equal(
            events in prop::collection::vec(prop_oneof![
                4 => Just(Event::Arrives), 2 => Just(Event::LostWithNumber), 1 => Just(Event::LostWithoutNumber),
                2 => Just(Event::Read), 2 => Just(Event::Drain),
            ], 0..200),
            start in 0_u64..1000,
        ) {
            let (mut settlement, mut now) = (Settlement::new(i128::from(start)), Duration::ZERO);
            let (mut counted, mut came, mut known, mut missing) = (start, 0_u64, 0_u64, 0_u64);
            for event in events {
                match event {
                    Event::Arrives => {
                        counted += 1;
                        came += 1;
                        known += settlement.deliver(1, std::mem::take(&mut missing));
                    }
                    Event::LostWithNumber => { counted += 1; missing += 1; }
                    Event::LostWithoutNumber => counted += 1,
                    Event::Read => settlement.read(counted, now),
                    Event::Drain => {
                        now += STEP;
                        known += settlement.drained(now).lost;
                    }
                }
                prop_assert!(came + known <= counted - start);
            }
            let news = rest(&mut settlement, counted, &mut now);
            known += news.lost;
            prop_assert_eq!(came + known, counted - start);
            prop_assert!(!news.reset);
        }
    }
}
