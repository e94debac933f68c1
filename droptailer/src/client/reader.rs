//! The thread that reads NFLOG. It waits for the kernel and for nothing else: packets are copied into a queue that
//! counts what it has no room for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use fw_edge::chain;
use fw_netlink::nflog::{NflogError, Options, Packet, Reader};
use tracing::{info, warn};

use super::counters::{Counters, holder};
use super::figures::{Figures, add, put};
use super::group::Group;
use super::raw::{Prefixes, Raw};
use super::settle::Settlement;
use super::worker::Item;
use crate::loss::{Cause, Ledger};

/// Between two attempts to become the group's listener.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the thread looks whether it should end, and at the counters.
const TICK: Duration = Duration::from_millis(50);

/// What the thread needs.
pub(crate) struct Listener {
    pub(crate) group: Group,
    pub(crate) prefixes: Prefixes,
    pub(crate) queue: SyncSender<Item>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) stop: Arc<AtomicBool>,
    /// Told what the counters said at the start, and whenever they begin anew.
    pub(crate) beginning: Beginning,
}

/// What a client knows of counters and packets from before.
pub(crate) trait Watch {
    /// What the counters say before the first packet comes; gives how many packets nobody has seen since the last time.
    fn begin(&mut self, counted: u64) -> u64;
    /// The counters do not go on from where they were: they are `by` from it.
    fn shift(&mut self, by: i128);
}

/// A [`Watch`] of any kind.
pub(crate) type Beginning = Box<dyn Watch + Send>;

impl Listener {
    /// Until it is stopped.
    pub(crate) fn run(mut self) {
        let mut complaint = Complaint::default();
        while !self.is_stopped() {
            match self.open() {
                Ok((open, counters)) => {
                    complaint = Complaint::default();
                    if let Err(error) = self.read(open, counters) {
                        warn!("{}", chain(&error));
                    }
                }
                Err(error) => complaint.say(&error),
            }
            self.rest();
        }
    }

    fn rest(&self) {
        let until = Instant::now() + AGAIN;
        while !self.is_stopped() && Instant::now() < until {
            std::thread::sleep(TICK);
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The counters first: what is logged before we listen is missed, and known to be.
    fn open(&mut self) -> Result<(Open, Option<(Counters, Settlement)>), NflogError> {
        let counters = Counters::open().and_then(|mut counters| Ok((counters.read()?, counters)));
        let open = self.open_group()?;
        let counters = match counters {
            Ok((counted, counters)) => {
                let missed = self.beginning.begin(counted);
                self.ledger.lose(Cause::Overrun, missed);
                Some((counters, Settlement::new(i128::from(counted))))
            }
            Err(error) => {
                warn!("losses are known by numbers alone: {}", chain(&error));
                None
            }
        };
        Ok((open, counters))
    }

    fn open_group(&self) -> Result<Open, NflogError> {
        let group = self.group.get();
        // A packet that waits for others waits for 10 ms at most.
        let reader = Reader::open(Options { timeout: 1, ..Options::group(group) })?;
        put(&self.figures.group, group.into());
        info!("listening to NFLOG group {group}");
        Ok(Open { reader, group, missing: 0, overruns: 0 })
    }

    fn read(&mut self, mut open: Open, counters: Option<(Counters, Settlement)>) -> Result<(), NflogError> {
        let begin = Instant::now();
        let (mut counters, mut settlement) = match counters {
            Some((counters, settlement)) => (Some(counters), settlement),
            None => (None, Settlement::new(0)),
        };
        let mut looked = begin;
        let mut other = OtherGroup::default();
        while !self.is_stopped() {
            if self.group.get() != open.group
                && let Some(next) = other.open(self)
            {
                self.drain(&mut open, &mut settlement)?;
                open = next;
            }
            // Also where packets keep coming the socket is found empty between two of them.
            let wait = if looked.elapsed() >= TICK { Duration::ZERO } else { TICK };
            if !self.take_all(&mut open, wait, &mut settlement)? {
                looked = Instant::now();
                self.settle(&mut settlement, &mut counters, looked.duration_since(begin));
            }
        }
        Ok(())
    }

    /// What rules logged to a group before they went over to another one. The counters go on: what is missed meanwhile
    /// is known.
    fn drain(&self, open: &mut Open, settlement: &mut Settlement) -> Result<(), NflogError> {
        let until = Instant::now() + AGAIN;
        while Instant::now() < until && self.take_all(open, TICK, settlement)? {}
        Ok(())
    }

    /// False: there was nothing.
    fn take_all(
        &self,
        open: &mut Open,
        wait: Duration,
        settlement: &mut Settlement,
    ) -> Result<bool, NflogError> {
        let mut ours = 0;
        let read = open.reader.read(wait, |packet| ours += u64::from(self.take(packet)))?;
        let loss = open.reader.loss();
        let gaps = loss.packets + loss.malformed;
        let lost = settlement.deliver(ours, gaps - open.missing);
        if lost > 0 {
            self.ledger.lose(Cause::SequenceGap, lost);
        }
        add(&self.figures.logged, ours);
        let overruns = loss.overruns - open.overruns;
        add(&self.figures.overruns, overruns);
        (open.missing, open.overruns) = (gaps, loss.overruns);
        Ok(read > 0 || overruns > 0)
    }

    /// True: one of ours.
    fn take(&self, packet: &Packet<'_>) -> bool {
        let Some(action) = self.prefixes.action(packet.prefix) else {
            add(&self.figures.foreign, 1);
            return false;
        };
        match self.queue.try_send(Item::Packet(Raw::copy(packet, action))) {
            Ok(()) => add(&self.figures.queue, 1),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.ledger.lose(Cause::Queue, 1),
        }
        true
    }

    /// Where the socket is empty.
    fn settle(&mut self, settlement: &mut Settlement, counters: &mut Option<Counters>, now: Duration) {
        let Some(reader) = counters else { return };
        let before = settlement.offset();
        let news = settlement.drained(now);
        if news.lost > 0 {
            self.ledger.lose(Cause::Overrun, news.lost);
        }
        if news.reset {
            add(&self.figures.resets, 1);
            self.beginning.shift(settlement.offset() - before);
        }
        if settlement.wants_reading(now) {
            match reader.read() {
                Ok(counted) => settlement.read(counted, now),
                Err(error) => {
                    warn!("losses are known by numbers alone: {}", chain(&error));
                    *counters = None;
                }
            }
        }
    }
}

/// A group that is listened to, and what it has lost so far.
struct Open {
    reader: Reader,
    group: u16,
    missing: u64,
    overruns: u64,
}

/// The group that rules log to now, which somebody else may still listen to.
#[derive(Default)]
struct OtherGroup {
    tried: Option<Instant>,
    complaint: Complaint,
}

impl OtherGroup {
    fn open(&mut self, listener: &Listener) -> Option<Open> {
        if self.tried.is_some_and(|tried| tried.elapsed() < AGAIN) {
            return None;
        }
        match listener.open_group() {
            Ok(open) => {
                *self = Self::default();
                Some(open)
            }
            Err(error) => {
                self.tried = Some(Instant::now());
                self.complaint.say(&error);
                None
            }
        }
    }
}

/// Why there is no listening, said once.
#[derive(Default)]
struct Complaint(Option<String>);

impl Complaint {
    fn say(&mut self, error: &NflogError) {
        let text = match error {
            NflogError::Busy(group) => format!("{error}: {}", holder(*group)),
            _ => chain(error),
        };
        if self.0.as_ref() != Some(&text) {
            warn!("waiting: {text}");
            self.0 = Some(text);
        }
    }
}
