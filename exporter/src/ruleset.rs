//! Reads the kernel's ruleset, all tables of all families, in one pass and of one generation.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use fw_netlink::attr::{DecodeError, Writer};
use fw_netlink::message::{Head, Message, flag, subsystem};
use fw_netlink::nft::steady;
use fw_netlink::nft::{ChainView, CounterView, TableView, message};
use fw_netlink::socket::{Socket, SocketError};

use crate::rules::{self, ChainFigures};
use crate::series::Series;

/// How long changes by others may keep us from reading one state.
const PATIENCE: Duration = Duration::from_secs(3);
/// Distinct names of expressions that are not understood.
const MAX_UNREAD: usize = 64;
/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel did not answer as it should.
    #[error("cannot read nftables")]
    Socket(#[from] SocketError),
    /// Somebody changed the ruleset all the time.
    #[error("the ruleset changed {0} times while it was read")]
    Torn(u32),
}

/// How to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// Chains and rules get their label `handle`.
    pub handles: bool,
    /// Series of one family at most.
    pub max_series: usize,
}

/// The figures of one generation of the ruleset.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Bytes and packets of named counters.
    pub counters: Series<2>,
    /// Chains of tables.
    pub tables: Series<1>,
    /// Rules of chains.
    pub chains: Series<1>,
    /// Bytes and packets of rules.
    pub rules: Series<2>,
    /// Label values that were cut, or show a part of a set only.
    pub shortened: u64,
    /// Messages of the kernel that could not be read.
    pub unreadable: u64,
    /// Expressions of counting rules that no label can tell of, by the kernel's name for them.
    pub unread: BTreeMap<String, u64>,
    /// Reads that were begun again because the ruleset changed.
    pub retries: u32,
    /// How long it took.
    pub took: Duration,
}

impl Figures {
    fn new(options: ReadOptions) -> Self {
        let bound = options.max_series;
        Self {
            counters: Series::new(bound),
            tables: Series::new(bound),
            chains: Series::new(bound),
            rules: Series::new(bound),
            shortened: 0,
            unreadable: 0,
            unread: BTreeMap::new(),
            retries: 0,
            took: Duration::ZERO,
        }
    }

    /// Label sets that did not fit.
    pub fn left_out(&self) -> u64 {
        [self.counters.left_out(), self.tables.left_out(), self.chains.left_out(), self.rules.left_out()]
            .iter()
            .fold(0, |sum, part| sum.saturating_add(*part))
    }
}

/// Reads the ruleset of the calling thread's network namespace. Begins again as long as others change it, which takes
/// at most some seconds.
pub fn read(options: ReadOptions) -> Result<Figures, ReadError> {
    let began = Instant::now();
    let mut retries = 0_u32;
    loop {
        match attempt(options) {
            Ok(Some(figures)) => return Ok(Figures { retries, took: began.elapsed(), ..figures }),
            Ok(None) => {}
            Err(SocketError::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
        retries = retries.saturating_add(1);
        if began.elapsed() > PATIENCE {
            return Err(ReadError::Torn(retries));
        }
        thread::sleep(Duration::from_millis(u64::from(retries.min(10))));
    }
}

/// One read; `None` when the generation changed meanwhile.
fn attempt(options: ReadOptions) -> Result<Option<Figures>, SocketError> {
    let mut socket = Socket::open()?;
    let mut reader = Reader::new(options);
    let Some(before) = steady::settled(&mut socket)? else { return Ok(None) };
    dump(&mut socket, message::GET_TABLE, |_| {}, |family, message| reader.table(family, message))?;
    dump(&mut socket, message::GET_CHAIN, |_| {}, |family, message| reader.chain(family, message))?;
    let select = |w: &mut Writer<'_>| CounterView::select_all(w);
    dump(&mut socket, message::GET_OBJECT, select, |family, message| reader.counter(family, message))?;
    let chains: Vec<ChainKey> = reader.chains.keys().cloned().collect();
    for (key, part) in chains.iter().zip(rules::read(&chains, options)?) {
        let Some(part) = part? else { return Ok(None) };
        reader.add(key, part);
    }
    let same = steady::generation(&mut socket)? == before;
    Ok(same.then(|| reader.finish()))
}

pub(crate) fn head(message: u8, flags: u16) -> Head {
    Head { subsystem: subsystem::NFTABLES, message, flags, family: 0, resource: 0, sequence: 0 }
}

fn dump(
    socket: &mut Socket,
    kind: u8,
    fill: impl FnOnce(&mut Writer<'_>),
    mut take: impl FnMut(u8, &Message<'_>),
) -> Result<(), SocketError> {
    let each = |message: &Message<'_>| {
        let (family, _) = message.nfgen()?;
        take(family, message);
        Ok(())
    };
    socket.request(head(kind, flag::DUMP), fill, each)
}

/// A table or chain by family and names, as bytes.
type TableKey = (u8, Vec<u8>);
pub(crate) type ChainKey = (u8, Vec<u8>, Vec<u8>);

/// Takes the messages of one read.
struct Reader {
    options: ReadOptions,
    figures: Figures,
    tables: BTreeMap<TableKey, u64>,
    /// Handle and number of rules.
    chains: BTreeMap<ChainKey, (u64, u64)>,
    /// Distinct label values that were cut, by hash: bytes and packets have the same.
    cut: BTreeSet<u64>,
}

impl Reader {
    fn new(options: ReadOptions) -> Self {
        Self {
            options,
            figures: Figures::new(options),
            tables: BTreeMap::new(),
            chains: BTreeMap::new(),
            cut: BTreeSet::new(),
        }
    }

    fn table(&mut self, family: u8, message: &Message<'_>) {
        let Some(table) = readable(TableView::decode(message.attrs()), &mut self.figures.unreadable) else {
            return;
        };
        self.tables.insert((family, table.name.to_vec()), 0);
    }

    fn chain(&mut self, family: u8, message: &Message<'_>) {
        let Some(chain) = readable(ChainView::decode(message.attrs()), &mut self.figures.unreadable) else {
            return;
        };
        if let Some(count) = self.tables.get_mut(&(family, chain.table.to_vec())) {
            *count += 1;
        }
        self.chains.insert((family, chain.table.to_vec(), chain.name.to_vec()), (chain.handle, 0));
    }

    fn counter(&mut self, family: u8, message: &Message<'_>) {
        let Some(Some(counter)) =
            readable(CounterView::decode(message.attrs()), &mut self.figures.unreadable)
        else {
            return;
        };
        self.figures.counters.add([counter.counter.bytes, counter.counter.packets], |labels| {
            labels.add("family", &family_name(family));
            labels.add("name", &String::from_utf8_lossy(counter.name));
            labels.add("table", &String::from_utf8_lossy(counter.table));
        });
    }

    /// Takes what was read of a chain.
    fn add(&mut self, chain: &ChainKey, part: ChainFigures) {
        if let Some((_, rules)) = self.chains.get_mut(chain) {
            *rules = part.count;
        }
        let figures = &mut self.figures;
        figures.rules.merge(&part.rules);
        figures.shortened = figures.shortened.saturating_add(part.shortened);
        figures.unreadable = figures.unreadable.saturating_add(part.unreadable);
        for (name, times) in &part.unread {
            note(&mut figures.unread, name, *times);
        }
        self.cut.extend(part.cut);
    }

    fn finish(self) -> Figures {
        let Self { mut figures, tables, chains, options, cut, .. } = self;
        for ((family, table), count) in tables {
            figures.tables.add([count], |labels| {
                labels.add("family", &family_name(family));
                labels.add("name", &String::from_utf8_lossy(&table));
            });
        }
        for ((family, table, chain), (handle, rules)) in chains {
            figures.chains.add([rules], |labels| {
                labels.add("family", &family_name(family));
                if options.handles {
                    labels.add("handle", &handle.to_string());
                }
                labels.add("name", &String::from_utf8_lossy(&chain));
                labels.add("table", &String::from_utf8_lossy(&table));
            });
        }
        figures.shortened = figures.shortened.saturating_add(u64::try_from(cut.len()).unwrap_or(u64::MAX));
        figures.counters.finish();
        figures.tables.finish();
        figures.chains.finish();
        figures.rules.finish();
        figures
    }
}

/// Counts what cannot be read.
pub(crate) fn readable<T>(read: Result<T, DecodeError>, unreadable: &mut u64) -> Option<T> {
    if read.is_err() {
        *unreadable = unreadable.saturating_add(1);
    }
    read.ok()
}

/// Counts a name; of too many distinct ones the rest is one.
pub(crate) fn note(unread: &mut BTreeMap<String, u64>, name: &str, times: u64) {
    let name = if unread.contains_key(name) || unread.len() < MAX_UNREAD { name } else { "other" };
    let count = unread.entry(name.to_owned()).or_default();
    *count = count.saturating_add(times);
}

/// nft's words for NFPROTO_*.
pub(crate) fn family_name(family: u8) -> Cow<'static, str> {
    let name = match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        other => return other.to_string().into(),
    };
    name.into()
}
