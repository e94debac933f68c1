//! The thread that makes records of packets: enriched, put together under pressure, spooled and shown to subscribers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prost::Message as _;
use tokio::sync::{Notify, broadcast};

use super::aggregate::{Group, aggregate, one_by_one};
use super::early;
use super::enrich::Enricher;
use super::figures::{Figures, add};
use super::raw::{Interfaces, Raw};
use crate::control::EarlyDrop;
use crate::journal::Journal;
use crate::loss::{Cause, Ledger, lost_fields};
use crate::record::DropRecord;
use crate::spool::Spool;
use crate::wire::{Drop, MOST_RECORD_BYTES};

/// Packets at one time; more of them under pressure.
const BATCH: usize = 64;
const PRESSED_BATCH: usize = 4096;
/// A queue longer than this is pressure.
const PRESSURE: u64 = 2048;
/// Between two looks at losses, and how long a quiet worker sleeps.
const TICK: Duration = Duration::from_millis(100);
/// Between two syncs of the spool's disk.
const SYNC: Duration = Duration::from_secs(1);

/// What waits for the worker.
#[derive(Debug)]
pub(crate) enum Item {
    /// From NFLOG.
    Packet(Raw),
    /// From eBPF.
    Early(EarlyDrop),
    /// From the journal, as a record already.
    Fields((u64, u32), BTreeMap<String, String>),
}

/// The spool, shared with the sender.
#[derive(Debug)]
pub(crate) struct Shared {
    spool: Mutex<Spool>,
    /// Something new is in it.
    pub(crate) filled: Notify,
}

impl Shared {
    pub(crate) fn new(spool: Spool) -> Self {
        Self { spool: Mutex::new(spool), filled: Notify::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread needs.
pub(crate) struct Worker {
    pub(crate) queue: Receiver<Item>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) subscribers: broadcast::Sender<Arc<str>>,
    pub(crate) enricher: Enricher,
    pub(crate) journal: Option<Journal>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) ledger: Arc<Ledger>,
    /// Set when nothing more will come: the worker ends when the queue is empty.
    pub(crate) stop: Arc<AtomicBool>,
}

/// A record on its way: what it says, and what it stands for.
struct Finished {
    time: (u64, u32),
    fields: BTreeMap<String, String>,
    /// Of the kernel's logged packets.
    weight: u64,
    /// Early drops.
    early: u64,
}

impl Worker {
    /// Until it is stopped and the queue is empty.
    pub(crate) fn run(mut self) {
        let mut interfaces = Interfaces::default();
        let (mut said, mut synced) = (Instant::now(), Instant::now());
        loop {
            let items = self.next_batch();
            let is_over = items.is_empty() && self.stop.load(Ordering::Acquire);
            interfaces.forget();
            if !items.is_empty() {
                let finished = self.finish(items, &mut interfaces);
                self.hand_on(finished);
            }
            let now = Instant::now();
            if is_over || now.duration_since(said) >= TICK {
                said = now;
                self.say_losses();
            }
            if is_over || now.duration_since(synced) >= SYNC {
                synced = now;
                self.shared.lock().sync();
            }
            if is_over {
                return;
            }
        }
    }

    fn is_pressed(&self) -> bool {
        self.figures.queue.load(Ordering::Relaxed) > PRESSURE || self.shared.lock().is_pressed()
    }

    fn next_batch(&self) -> Vec<Item> {
        let mut items = Vec::new();
        match self.queue.recv_timeout(TICK) {
            Ok(item) => items.push(item),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return items,
        }
        let most = if self.is_pressed() { PRESSED_BATCH } else { BATCH };
        items.extend(self.queue.try_iter().take(most - 1));
        self.figures.queue.fetch_sub(u64::try_from(items.len()).unwrap_or(0), Ordering::Relaxed);
        items
    }

    /// Makes records, in order.
    fn finish(&mut self, items: Vec<Item>, interfaces: &mut Interfaces) -> Vec<Finished> {
        let pressed = items.len() > BATCH || self.is_pressed();
        let (mut packets, mut early, mut finished) = (Vec::new(), Vec::new(), Vec::new());
        for item in items {
            match item {
                Item::Packet(packet) => packets.push(packet),
                Item::Early(drop) => early.push(drop),
                Item::Fields(time, fields) => finished.push(Finished { time, fields, weight: 0, early: 0 }),
            }
        }
        let total = packets.len();
        let groups = if pressed { aggregate(packets) } else { one_by_one(packets) };
        add(&self.figures.aggregated, u64::try_from(total - groups.len()).unwrap_or(0));
        let now = wall();
        let (mut records, mut weights): (Vec<DropRecord>, Vec<(u64, u64)>) = groups
            .iter()
            .map(|Group { first, count }| {
                let mut record = first.record(now, interfaces);
                if *count > 1 {
                    record.add("COUNT", &count.to_string());
                }
                (record, (*count, 0))
            })
            .unzip();
        for drop in &early {
            match early::record(drop) {
                Some(record) => {
                    records.push(record);
                    weights.push((0, 1));
                }
                None => self.ledger.lose(Cause::Early, 1),
            }
        }
        self.enricher.enrich(&mut records, Instant::now());
        finished.extend(records.into_iter().zip(weights).map(|(record, (weight, early))| {
            let fields = record.fields().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            Finished { time: record.time, fields, weight, early }
        }));
        finished
    }

    fn hand_on(&mut self, finished: Vec<Finished>) {
        for one in finished {
            self.show(&one);
            let (weight, early) = (one.weight, one.early);
            if !self.spool(one) {
                if early > 0 {
                    self.ledger.lose(Cause::Early, early);
                } else {
                    self.ledger.lose(Cause::Spool, weight.max(1));
                }
            }
        }
        self.shared.filled.notify_one();
    }

    /// To subscribers and the journal; neither is waited for.
    fn show(&mut self, one: &Finished) {
        add(&self.figures.records, 1);
        if self.subscribers.receiver_count() > 0 {
            let line = serde_json::json!({ "record": one.fields }).to_string() + "\n";
            // Without receivers there is nobody to miss it.
            drop(self.subscribers.send(line.into()));
        }
        if let Some(journal) = &mut self.journal {
            match journal.write(&one.fields) {
                Ok(()) => add(&self.figures.journal_lines, 1),
                Err(_) => add(&self.figures.journal_errors, 1),
            }
        }
    }

    /// False: no room.
    fn spool(&self, one: Finished) -> bool {
        let bytes = wire_bytes(one.time, one.fields);
        bytes.len() <= MOST_RECORD_BYTES && self.shared.lock().push(one.weight, bytes).is_ok()
    }

    /// A record for each cause that has something to say; what finds no room is said later.
    fn say_losses(&mut self) {
        for cause in Cause::ALL {
            let count = self.ledger.take(cause);
            if count == 0 {
                continue;
            }
            let time = wall();
            let fields = lost_fields(cause, count, time);
            let one = Finished { time, fields: fields.clone(), weight: cause.weight(count), early: 0 };
            if self.spool(one) {
                self.show(&Finished { time, fields, weight: 0, early: 0 });
                self.shared.filled.notify_one();
            } else {
                self.ledger.give_back(cause, count);
            }
        }
    }
}

/// A record as it is spooled and sent.
fn wire_bytes(time: (u64, u32), fields: BTreeMap<String, String>) -> Vec<u8> {
    let timestamp = prost_types::Timestamp {
        seconds: i64::try_from(time.0).unwrap_or(i64::MAX),
        nanos: i32::try_from(u64::from(time.1) * 1000).unwrap_or(0),
    };
    Drop { timestamp: Some(timestamp), fields }.encode_to_vec()
}

/// Seconds and microseconds since 1970.
fn wall() -> (u64, u32) {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (since.as_secs(), since.subsec_micros())
}
