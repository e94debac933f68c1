//! The thread that reads NFLOG. It waits for the kernel and for nothing else: packets are copied into a queue that
//! counts what it has no room for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use fw_netlink::nflog::{NflogError, Options, Reader};
use tracing::{info, warn};

use super::counters::{Counters, holder};
use super::figures::{Figures, add};
use super::raw::{Prefixes, Raw};
use super::settle::Settlement;
use super::worker::Item;
use crate::loss::{Cause, Ledger};
use crate::telemetry::chain;

/// Between two attempts to become the group's listener.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the thread looks whether it should end, and at the counters.
const TICK: Duration = Duration::from_millis(50);

/// What the thread needs.
pub(crate) struct Listener {
    pub(crate) group: u16,
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
        let mut complained = None;
        while !self.is_stopped() {
            match self.open() {
                Ok((reader, counters)) => {
                    info!("listening to NFLOG group {}", self.group);
                    complained = None;
                    if let Err(error) = self.read(reader, counters) {
                        warn!("{}", chain(&error));
                    }
                }
                Err(error) => {
                    let text = match &error {
                        NflogError::Busy(group) => format!("{error}: {}", holder(*group)),
                        _ => chain(&error),
                    };
                    if complained.as_ref() != Some(&text) {
                        warn!("waiting: {text}");
                        complained = Some(text);
                    }
                }
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
    fn open(&mut self) -> Result<(Reader, Option<(Counters, Settlement)>), NflogError> {
        let counters = Counters::open().and_then(|mut counters| Ok((counters.read()?, counters)));
        // A packet that waits for others waits for 10 ms at most.
        let reader = Reader::open(Options { timeout: 1, ..Options::group(self.group) })?;
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
        Ok((reader, counters))
    }

    fn read(
        &mut self,
        mut reader: Reader,
        counters: Option<(Counters, Settlement)>,
    ) -> Result<(), NflogError> {
        let begin = Instant::now();
        let (mut counters, mut settlement) = match counters {
            Some((counters, settlement)) => (Some(counters), settlement),
            None => (None, Settlement::new(0)),
        };
        let (mut missing, mut overruns) = (0, 0);
        let mut looked = begin;
        while !self.is_stopped() {
            let mut ours = 0;
            // Also where packets keep coming the socket is found empty between two of them.
            let wait = if looked.elapsed() >= TICK { Duration::ZERO } else { TICK };
            let read = reader.read(wait, |packet| ours += u64::from(self.take(packet)))?;
            let loss = reader.loss();
            let gaps = loss.packets + loss.malformed;
            let lost = settlement.deliver(ours, gaps - missing);
            missing = gaps;
            if lost > 0 {
                self.ledger.lose(Cause::SequenceGap, lost);
            }
            add(&self.figures.logged, ours);
            add(&self.figures.overruns, loss.overruns - overruns);
            let is_empty = read == 0 && loss.overruns == overruns;
            overruns = loss.overruns;
            if is_empty {
                looked = Instant::now();
                self.settle(&mut settlement, &mut counters, looked.duration_since(begin));
            }
        }
        Ok(())
    }

    /// True: one of ours.
    fn take(&self, packet: &fw_netlink::nflog::Packet<'_>) -> bool {
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
