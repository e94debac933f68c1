//! What was lost, by cause; pure but for its atomics.
//!
//! A loss is counted where it happens ([`Ledger::lose`]), shows in the metrics at once, and goes in-band as a record of
//! its own ([`lost_fields`]) as soon as there is room for one. Until then it is pending, so that at any moment what was
//! shown, what was said to be lost and what is pending add up to all there was.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::timestamp::go_utc;

/// Why a packet is not shown: the key `CAUSE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Numbers are missing between two packets that came.
    SequenceGap,
    /// The kernel's counters say that more was logged than came: at the end of a burst that overran the receive buffer,
    /// or while nobody listened.
    Overrun,
    /// The queue behind the reader was full.
    Queue,
    /// The spool was full, or its disk did not take or give back a record.
    Spool,
    /// The server takes the record for malformed.
    Refused,
    /// Samples of early drops that the controller could not pass on.
    Early,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::SequenceGap, Self::Overrun, Self::Queue, Self::Spool, Self::Refused, Self::Early];

    /// Value of the key `CAUSE` and of the metrics' label.
    pub fn name(self) -> &'static str {
        match self {
            Self::SequenceGap => "sequence-gap",
            Self::Overrun => "overrun",
            Self::Queue => "queue",
            Self::Spool => "spool",
            Self::Refused => "refused",
            Self::Early => "early",
        }
    }

    /// How many of the kernel's logged packets a record about `count` losses stands for. What was refused was accounted
    /// for when it came, and early drops never were the kernel's.
    pub fn weight(self, count: u64) -> u64 {
        match self {
            Self::SequenceGap | Self::Overrun | Self::Queue | Self::Spool => count,
            Self::Refused | Self::Early => 0,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::SequenceGap => 0,
            Self::Overrun => 1,
            Self::Queue => 2,
            Self::Spool => 3,
            Self::Refused => 4,
            Self::Early => 5,
        }
    }
}

/// Losses since the start, and those not yet said in-band.
#[derive(Debug, Default)]
pub struct Ledger {
    lost: [AtomicU64; 6],
    pending: [AtomicU64; 6],
}

impl Ledger {
    /// Counts a loss.
    pub fn lose(&self, cause: Cause, count: u64) {
        self.lost[cause.index()].fetch_add(count, Ordering::Relaxed);
        self.pending[cause.index()].fetch_add(count, Ordering::AcqRel);
    }

    /// Takes what has to be said of a cause; 0: nothing.
    pub fn take(&self, cause: Cause) -> u64 {
        self.pending[cause.index()].swap(0, Ordering::AcqRel)
    }

    /// Gives back what was taken and could not be said.
    pub fn give_back(&self, cause: Cause, count: u64) {
        self.pending[cause.index()].fetch_add(count, Ordering::AcqRel);
    }

    /// All losses of a cause.
    pub fn lost(&self, cause: Cause) -> u64 {
        self.lost[cause.index()].load(Ordering::Relaxed)
    }

    /// True while something has not been said.
    pub fn is_pending(&self) -> bool {
        self.pending.iter().any(|pending| pending.load(Ordering::Relaxed) > 0)
    }
}

/// Fields of the record that says a loss. `time`: seconds and microseconds since 1970.
pub fn lost_fields(cause: Cause, count: u64, time: (u64, u32)) -> BTreeMap<String, String> {
    let (seconds, microseconds) = time;
    [
        ("ACTION", "lost".to_owned()),
        ("CAUSE", cause.name().to_owned()),
        ("COUNT", count.to_string()),
        ("TS_US", (u128::from(seconds) * 1_000_000 + u128::from(microseconds)).to_string()),
        ("timestamp", go_utc(seconds)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_counted_for_ever_and_said_once() {
        let ledger = Ledger::default();
        for (number, cause) in Cause::ALL.into_iter().enumerate() {
            let count = u64::try_from(number).unwrap() + 1;
            ledger.lose(cause, count);
            assert!(ledger.is_pending());
            assert_eq!((ledger.take(cause), ledger.take(cause)), (count, 0));
            ledger.give_back(cause, count);
            ledger.lose(cause, 10);
            assert_eq!((ledger.take(cause), ledger.lost(cause)), (count + 10, count + 10));
        }
        assert!(!ledger.is_pending());
    }

    #[test]
    fn the_record_of_a_loss_has_the_keys_of_a_line_and_its_cause() {
        let fields = lost_fields(Cause::SequenceGap, 7, (1_592_400_207, 5));
        let expected = [
            ("ACTION", "lost"),
            ("CAUSE", "sequence-gap"),
            ("COUNT", "7"),
            ("TS_US", "1592400207000005"),
            ("timestamp", "2020-06-17 13:23:27 +0000 UTC"),
        ];
        assert_eq!(fields, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }
}
