//! Who writes for a Firewall object: the machine it is called after, else the one that does so already.
//!
//! A machine without a Firewall of its name takes the only one there is, so two of them may take the same. They see each
//! other in `status.writer`; the one that is not there waits until the other one has not written for long. Clocks of
//! machines differ, so not the time in the status counts but how long it has stood still here.

use std::time::Duration;

use serde_json::Value;

/// A writer that has been silent for as many intervals is gone.
const SILENT_INTERVALS: u32 = 3;
/// But no sooner than this: an API server may be away for a moment.
const LEAST_PATIENCE: Duration = Duration::from_secs(15);
/// For how long a status without a writer may stay so before policies are written nevertheless.
const UNCLAIMED: Duration = Duration::from_secs(10);

/// Whether we write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The Firewall's status, and those of policies too if `speaks`.
    Ours {
        /// False while another machine may still do so.
        speaks: bool,
        /// True: the silent writer is to be replaced, but not if it wrote meanwhile.
        replaces: bool,
    },
    /// Another machine does.
    Theirs(String),
}

/// What was seen of the writer.
#[derive(Clone, Debug, Default)]
pub struct Watcher {
    /// uid, writer and last time of the status, and since when they are so, in time since any fixed moment.
    seen: Option<((String, String, Value), Duration)>,
}

impl Watcher {
    /// `me`: this machine. `interval`: how often a status is written. `now`: since any fixed moment.
    pub fn look(
        &mut self,
        me: &str,
        (firewall, uid): (&str, &str),
        observed: &Value,
        interval: Duration,
        now: Duration,
    ) -> Claim {
        let writer = observed.get("writer").and_then(Value::as_str).unwrap_or_default();
        // A definition of before this field drops it; then it is missing for good, whatever is written.
        let last_run =
            if writer.is_empty() { None } else { observed.get("lastRun").cloned() }.unwrap_or_default();
        let state = (uid.to_owned(), writer.to_owned(), last_run);
        let since = match &self.seen {
            Some((before, since)) if *before == state => *since,
            _ => {
                self.seen = Some((state, now));
                now
            }
        };
        let silent = now.saturating_sub(since);
        if me == firewall || writer == me {
            return Claim::Ours { speaks: true, replaces: false };
        }
        if writer.is_empty() {
            return Claim::Ours { speaks: silent >= UNCLAIMED, replaces: false };
        }
        if silent >= (interval * SILENT_INTERVALS).max(LEAST_PATIENCE) {
            return Claim::Ours { speaks: false, replaces: true };
        }
        Claim::Theirs(writer.to_owned())
    }
}
