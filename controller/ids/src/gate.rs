//! Which alerts are shown. A scan makes thousands a second, and nobody reads them one by one.
//!
//! An alert is logged unless one of the same rule between the same addresses was in the last minute, or more than a few a
//! second come. A rule that alerts is told as an event once in ten minutes. All others are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::alert::Alert;

/// What repeats an alert within this time is not logged.
pub const LOG_WINDOW: Duration = Duration::from_secs(60);
/// Alerts that are logged at once, and a second on end.
pub const LOG_BURST: u32 = 20;
/// See [`LOG_BURST`].
pub const LOG_PER_SECOND: u32 = 2;
/// How long a rule that has alerted is told.
pub const EVENT_WINDOW: Duration = Duration::from_secs(600);
/// Rules that are told at one time. The API server is sent one event of a reason and object in ten seconds, so that all of
/// them are through before they are over.
pub const MAX_EVENTS: usize = 32;

/// What became of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// It is to be logged.
    pub log: bool,
    /// It made an event.
    pub event: bool,
}

/// Rule and addresses.
type Flow = (u32, u32, Option<IpAddr>, Option<IpAddr>);

/// Decides, and remembers what was shown. Times are those since any fixed moment.
#[derive(Debug, Default)]
pub struct Gate {
    /// At most as many as are logged within a window.
    logged: BTreeMap<Flow, Logged>,
    /// By rule.
    told: BTreeMap<(u32, u32), (Duration, String)>,
    bucket: Option<Bucket>,
    /// Not logged because too many came, since that was last said.
    crowded_out: u64,
    crowded_since: Duration,
}

#[derive(Debug)]
struct Logged {
    since: Duration,
    again: u64,
}

/// Thousandths of alerts that may be logged, and when that was so.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    millis: u64,
    at: Duration,
}

impl Gate {
    /// Takes an alert.
    pub fn pass(&mut self, alert: &Alert, now: Duration) -> Passed {
        Passed { log: self.log(alert, now), event: self.tell(alert, now) }
    }

    fn log(&mut self, alert: &Alert, now: Duration) -> bool {
        let (gid, sid, _) = alert.id;
        let flow = (gid, sid, alert.source, alert.destination);
        if let Some(logged) = self.logged.get_mut(&flow) {
            logged.again = logged.again.saturating_add(1);
            return false;
        }
        if !self.take(now) {
            if self.crowded_out == 0 {
                self.crowded_since = now;
            }
            self.crowded_out = self.crowded_out.saturating_add(1);
            return false;
        }
        self.logged.insert(flow, Logged { since: now, again: 0 });
        true
    }

    fn tell(&mut self, alert: &Alert, now: Duration) -> bool {
        let (gid, sid, _) = alert.id;
        if self.told.contains_key(&(gid, sid)) || self.told.len() >= MAX_EVENTS {
            return false;
        }
        self.told.insert((gid, sid), (now, alert.text()));
        true
    }

    fn take(&mut self, now: Duration) -> bool {
        let full = u64::from(LOG_BURST) * 1000;
        let Bucket { millis, at } = self.bucket.unwrap_or(Bucket { millis: full, at: now });
        let passed = u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u64::MAX);
        let millis = millis.saturating_add(passed.saturating_mul(u64::from(LOG_PER_SECOND))).min(full);
        let left = millis.checked_sub(1000);
        self.bucket = Some(Bucket { millis: left.unwrap_or(millis), at: now });
        left.is_some()
    }

    /// Forgets what is over; gives lines for the log about what was not shown meanwhile.
    pub fn expire(&mut self, now: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        self.logged.retain(|(gid, sid, source, destination), logged| {
            let is_over = now.saturating_sub(logged.since) >= LOG_WINDOW;
            if is_over && logged.again > 0 {
                let name =
                    |address: &Option<IpAddr>| address.map_or("unknown".to_owned(), |it| it.to_string());
                let (source, destination) = (name(source), name(destination));
                lines.push(format!("{gid}:{sid}: {} more, {source} -> {destination}", logged.again));
            }
            !is_over
        });
        if self.crowded_out > 0 && now.saturating_sub(self.crowded_since) >= LOG_WINDOW {
            lines.push(format!(
                "{} alerts were only counted: more than {LOG_PER_SECOND} a second were new",
                std::mem::take(&mut self.crowded_out)
            ));
        }
        self.told.retain(|_, (since, _)| now.saturating_sub(*since) < EVENT_WINDOW);
        lines
    }

    /// What events are to be there for: of each rule the first alert.
    #[must_use]
    pub fn events(&self) -> BTreeSet<String> {
        self.told.values().map(|(_, text)| text.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alert(sid: u32, source: u8) -> Alert {
        Alert { id: (1, sid, 1), source: Some(IpAddr::from([10, 0, 0, source])), ..Alert::default() }
    }

    const LOGGED: Passed = Passed { log: true, event: false };
    const BOTH: Passed = Passed { log: true, event: true };
    const NEITHER: Passed = Passed { log: false, event: false };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn repetitions_are_counted_and_said_once() {
        let mut gate = Gate::default();
        assert_eq!(gate.pass(&alert(1, 1), at(0)), BOTH);
        assert_eq!(gate.pass(&alert(1, 1), at(1)), NEITHER);
        assert_eq!(gate.pass(&alert(1, 2), at(2)), LOGGED, "another source is shown");
        assert_eq!(gate.pass(&alert(1, 1), at(59)), NEITHER);
        assert_eq!(gate.expire(at(60)), ["1:1: 2 more, 10.0.0.1 -> unknown"]);
        assert_eq!(gate.pass(&alert(1, 1), at(61)), LOGGED, "a minute later it is news again");
        assert_eq!(gate.expire(at(62)), Vec::<String>::new());
    }

    #[test]
    fn a_rule_is_an_event_once_in_ten_minutes() {
        let mut gate = Gate::default();
        assert!(gate.pass(&alert(1, 1), at(0)).event);
        assert_eq!(gate.events(), [alert(1, 1).text()].into());
        assert!(!gate.pass(&alert(1, 2), at(599)).event);
        gate.expire(at(600));
        assert!(gate.events().is_empty());
        assert!(gate.pass(&alert(1, 2), at(601)).event);
    }

    proptest! {
        /// Whatever comes: what is logged keeps to the rate, and what is remembered is bounded.
        #[test]
        fn nothing_is_shown_faster_than_the_bounds(
            alerts in proptest::collection::vec((0_u32..100, any::<u8>(), 0_u64..500), 1..600),
        ) {
            let mut gate = Gate::default();
            let (mut now, mut logged, mut shown_events) = (Duration::ZERO, 0_u128, 0);
            for (sid, source, pause) in alerts {
                now += Duration::from_millis(pause);
                let passed = gate.pass(&alert(sid, source), now);
                logged += u128::from(passed.log);
                shown_events += usize::from(passed.event);
                prop_assert!(logged * 1000 <= u128::from(LOG_BURST) * 1000 + now.as_millis() * u128::from(LOG_PER_SECOND));
                prop_assert!(gate.events().len() <= MAX_EVENTS);
                gate.expire(now);
            }
            let windows = now.as_secs() / EVENT_WINDOW.as_secs() + 1;
            prop_assert!(shown_events <= MAX_EVENTS * usize::try_from(windows).unwrap());
            let most = LOG_BURST + LOG_PER_SECOND * 60;
            prop_assert!(gate.logged.len() <= usize::try_from(most).unwrap() + 1);
            gate.expire(now + EVENT_WINDOW);
            prop_assert!(gate.logged.is_empty() && gate.told.is_empty());
        }
    }
}
