//! Reads the kernel's ruleset, all tables of all families, in one pass and of one generation.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use fw_netlink::attr::{DecodeError, Writer};
use fw_netlink::message::{Head, Message, flag, subsystem};
use fw_netlink::nft::reading::{Match, RuleReader, Test};
use fw_netlink::nft::steady::{self, RuleOrder};
use fw_netlink::nft::{ChainView, CounterView, RuleView, SetView, TableView, message};
use fw_netlink::socket::{Socket, SocketError};

use crate::labels::{Collector, Elements, Matches};
use crate::series::{Labels, Series, hash};

/// How long changes by others may keep us from reading one state.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest label value in bytes; what is longer is cut and ends in a number made of the whole.
pub const MAX_LABEL: usize = 1024;
/// Distinct names of expressions that are not understood.
const MAX_UNREAD: usize = 64;
/// Bytes of a kernel's name for an expression that are shown.
const MAX_EXPRESSION: usize = 32;

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
    // A second socket for the elements of anonymous sets: a socket runs one dump at a time.
    let mut reader = Reader::new(options, Socket::open()?);
    let Some(before) = steady::settled(&mut socket)? else { return Ok(None) };
    dump(&mut socket, message::GET_TABLE, |_| {}, |family, message| reader.table(family, message))?;
    dump(&mut socket, message::GET_CHAIN, |_| {}, |family, message| reader.chain(family, message))?;
    let select = |w: &mut Writer<'_>| CounterView::select_all(w);
    dump(&mut socket, message::GET_OBJECT, select, |family, message| reader.counter(family, message))?;
    // Chain by chain: of one dump of them all each datagram goes on by counting rules from the very first.
    let chains: Vec<ChainKey> = reader.chains.keys().cloned().collect();
    for key in &chains {
        let (family, table, chain) = key;
        let head = Head { family: *family, ..head(message::GET_RULE, flag::DUMP) };
        reader.begin_chain();
        let each = |message: &Message<'_>| {
            reader.rule(*family, message);
            Ok(())
        };
        socket.request(head, |w| RuleView::select(w, table, chain), each)?;
        reader.end_chain(key);
    }
    let same = steady::generation(&mut socket)? == before;
    match reader.failure.take() {
        // What a rule names was gone, or changed: an answer of another generation.
        Some(SocketError::Refused(_) | SocketError::Interrupted) => Ok(None),
        Some(error) => Err(error),
        None => Ok((same && !reader.out_of_order).then(|| reader.finish())),
    }
}

fn head(message: u8, flags: u16) -> Head {
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
type ChainKey = (u8, Vec<u8>, Vec<u8>);

/// Takes the messages of one read.
struct Reader {
    options: ReadOptions,
    figures: Figures,
    tables: BTreeMap<TableKey, u64>,
    /// Handle and number of rules.
    chains: BTreeMap<ChainKey, (u64, u64)>,
    sets: Socket,
    interfaces: Interfaces,
    failure: Option<SocketError>,
    /// Of the rules of the chain that is read.
    order: RuleOrder,
    count: u64,
    /// Rules came twice or were skipped.
    out_of_order: bool,
    /// Distinct label values that were cut, by hash: bytes and packets have the same.
    cut: BTreeSet<u64>,
}

impl Reader {
    fn new(options: ReadOptions, sets: Socket) -> Self {
        Self {
            options,
            figures: Figures::new(options),
            tables: BTreeMap::new(),
            chains: BTreeMap::new(),
            sets,
            interfaces: Interfaces::default(),
            failure: None,
            order: RuleOrder::default(),
            count: 0,
            out_of_order: false,
            cut: BTreeSet::new(),
        }
    }

    /// Counts what cannot be read.
    fn readable<T>(&mut self, read: Result<T, DecodeError>) -> Option<T> {
        if read.is_err() {
            self.figures.unreadable = self.figures.unreadable.saturating_add(1);
        }
        read.ok()
    }

    fn table(&mut self, family: u8, message: &Message<'_>) {
        let Some(table) = self.readable(TableView::decode(message.attrs())) else { return };
        self.tables.insert((family, table.name.to_vec()), 0);
    }

    fn chain(&mut self, family: u8, message: &Message<'_>) {
        let Some(chain) = self.readable(ChainView::decode(message.attrs())) else { return };
        if let Some(count) = self.tables.get_mut(&(family, chain.table.to_vec())) {
            *count += 1;
        }
        self.chains.insert((family, chain.table.to_vec(), chain.name.to_vec()), (chain.handle, 0));
    }

    fn counter(&mut self, family: u8, message: &Message<'_>) {
        let Some(Some(counter)) = self.readable(CounterView::decode(message.attrs())) else { return };
        self.figures.counters.add([counter.counter.bytes, counter.counter.packets], |labels| {
            labels.add("family", &family_name(family));
            labels.add("name", &String::from_utf8_lossy(counter.name));
            labels.add("table", &String::from_utf8_lossy(counter.table));
        });
    }

    fn rule(&mut self, family: u8, message: &Message<'_>) {
        let Some(rule) = self.readable(RuleView::decode(message.attrs())) else { return };
        self.order.follow(rule.chain, rule.handle, rule.position);
        self.count += 1;
        let Some(Some(counter)) = self.readable(rule.counter()) else { return };
        let mut reader = RuleReader::new(family);
        for expr in rule.exprs() {
            match self.readable(expr) {
                Some(expr) => reader.read(&expr),
                None => break,
            }
        }
        let reading = reader.finish();
        for name in reading.unread {
            self.unread(&name);
        }
        let mut matches = Matches::default();
        for found in &reading.matches {
            let elements = self.elements(family, rule.table, found);
            self.figures.shortened += u64::from(elements.as_ref().is_some_and(Elements::shortened));
            matches.add(found, elements.as_ref(), &mut |index| self.interfaces.name(index));
        }
        let action = reading.action.map_or("policy", |action| action.name());
        let comment = rule.comment().unwrap_or("empty".into());
        let (handles, cut) = (self.options.handles, &mut self.cut);
        self.figures.rules.add([counter.bytes, counter.packets], |labels| {
            let mut list = |labels: &mut Labels<'_>, name: &str, values: &[String]| {
                let text = if values.is_empty() { "any".to_owned() } else { values.join(",") };
                labels.add(name, &bounded(&text, cut));
            };
            labels.add("action", action);
            labels.add("chain", &String::from_utf8_lossy(rule.chain));
            labels.add("comment", &comment);
            list(labels, "destination_addresses", &matches.destination);
            list(labels, "destination_ports", &matches.destination_ports);
            labels.add("family", &family_name(family));
            if handles {
                labels.add("handle", &rule.handle.to_string());
            }
            list(labels, "input_interfaces", &matches.input);
            list(labels, "output_interfaces", &matches.output);
            list(labels, "source_addresses", &matches.source);
            list(labels, "source_ports", &matches.source_ports);
            labels.add("table", &String::from_utf8_lossy(rule.table));
        });
    }

    fn begin_chain(&mut self) {
        self.order = RuleOrder::default();
        self.count = 0;
    }

    fn end_chain(&mut self, chain: &ChainKey) {
        self.out_of_order |= self.order.is_broken();
        if let Some((_, rules)) = self.chains.get_mut(chain) {
            *rules = self.count;
        }
    }

    fn unread(&mut self, name: &str) {
        let unread = &mut self.figures.unread;
        let name: String = name.chars().take(MAX_EXPRESSION).collect();
        let name =
            if unread.contains_key(&name) || unread.len() < MAX_UNREAD { name } else { "other".to_owned() };
        *unread.entry(name).or_default() += 1;
    }

    /// The elements of the set a match looks up, when that is an anonymous one: they stand in the rule, as it were.
    /// A set with a name is shown by it.
    fn elements(&mut self, family: u8, table: &[u8], found: &Match) -> Option<Elements> {
        let Test::Set { name, .. } = &found.test else { return None };
        // The kernel numbers anonymous sets, `__set%d`; others may have such a name too, so it is asked.
        if !name.starts_with("__set") || self.failure.is_some() {
            return None;
        }
        match read_set(&mut self.sets, family, table, name.as_bytes()) {
            Ok(elements) => elements,
            Err(error) => {
                self.failure = Some(error);
                None
            }
        }
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

/// The elements of a set; `None` when it has a name of its own.
fn read_set(
    socket: &mut Socket,
    family: u8,
    table: &[u8],
    set: &[u8],
) -> Result<Option<Elements>, SocketError> {
    let with_family = |kind, flags| Head { family, ..head(kind, flags) };
    let mut collector = None;
    socket.ask(
        with_family(message::GET_SET, 0),
        |w| SetView::select(w, table, set),
        |message| {
            let set = SetView::decode(message.attrs())?;
            collector = set.anonymous.then(|| Collector::new(set.interval));
            Ok(())
        },
    )?;
    let Some(mut collector) = collector else { return Ok(None) };
    socket.request(
        with_family(message::GET_ELEMENTS, flag::DUMP),
        |w| SetView::select(w, table, set),
        |message| SetView::elements(message.attrs(), |element| collector.add(element)),
    )?;
    Ok(Some(collector.finish()))
}

/// A label value within bounds.
fn bounded(text: &str, cut: &mut BTreeSet<u64>) -> String {
    if text.len() <= MAX_LABEL {
        return text.to_owned();
    }
    let hash = hash(text.as_bytes());
    cut.insert(hash);
    let end = (0..=MAX_LABEL - 20).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…{hash:016x}", text.get(..end).unwrap_or_default())
}

/// nft's words for NFPROTO_*.
fn family_name(family: u8) -> Cow<'static, str> {
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

/// Names of interfaces by number, asked once a read.
#[derive(Debug, Default)]
struct Interfaces {
    names: BTreeMap<u32, String>,
}

impl Interfaces {
    /// The name now; the number where there is none, as nft does.
    fn name(&mut self, index: u32) -> String {
        let ask = || match nix::net::if_::if_indextoname(index) {
            Ok(name) => name.to_string_lossy().into_owned(),
            Err(_) => index.to_string(),
        };
        self.names.entry(index).or_insert_with(ask).clone()
    }
}
