//! Reads the rules of all chains, several chains at a time.
//!
//! Nearly all of a scrape is the kernel writing rules into messages, a socket after the other: two threads take half of
//! the time. Each has sockets of its own, and what it reads of a chain is handed over as a whole and joined in the order of
//! the chains, so that the result is the same however many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fw_netlink::message::{Head, Message, flag};
use fw_netlink::nft::reading::{Match, RuleReader, Test};
use fw_netlink::nft::steady::RuleOrder;
use fw_netlink::nft::{RuleView, SetView, message};
use fw_netlink::socket::{Socket, SocketError};

use crate::labels::{Collector, Elements, Matches};
use crate::ruleset::{ChainKey, ReadOptions, family_name, head, note, readable};
use crate::series::{Labels, Series, hash};

/// Threads at most: the rest of the machine forwards packets.
const MAX_THREADS: usize = 2;
/// Longest label value in bytes; what is longer is cut and ends in a number made of the whole.
const MAX_LABEL: usize = 1024;
/// Bytes of a kernel's name for an expression that are shown.
const MAX_EXPRESSION: usize = 32;

/// What is read of one chain.
#[derive(Debug)]
pub(crate) struct ChainFigures {
    pub(crate) rules: Series<2>,
    pub(crate) count: u64,
    /// See [`crate::ruleset::Figures`].
    pub(crate) shortened: u64,
    pub(crate) unreadable: u64,
    pub(crate) unread: BTreeMap<String, u64>,
    /// Distinct label values that were cut, by hash: bytes and packets have the same.
    pub(crate) cut: BTreeSet<u64>,
}

/// What came of a chain; `None`: what its rules name was gone or changed, or rules came twice or were skipped.
type Outcome = Result<Option<ChainFigures>, SocketError>;

/// Reads the rules of these chains, each the outcome of one, in their order.
pub(crate) fn read(chains: &[ChainKey], options: ReadOptions) -> Result<Vec<Outcome>, SocketError> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(chains.len());
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Outcome)>, SocketError> {
        let mut reader = RulesReader::open(options)?;
        let mut outcomes = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(chain) = chains.get(index) else { return Ok(outcomes) };
            let outcome = reader.chain(chain);
            let is_over = !matches!(outcome, Ok(Some(_)));
            outcomes.push((index, outcome));
            if is_over {
                // It is read again from the start, or not at all: nobody needs the rest.
                next.store(chains.len(), Ordering::Relaxed);
                return Ok(outcomes);
            }
        }
    };
    let parts = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut parts = vec![work()];
        parts.extend(others.into_iter().map(|thread| match thread.join() {
            Ok(part) => part,
            Err(panic) => std::panic::resume_unwind(panic),
        }));
        parts
    });
    let mut outcomes = Vec::with_capacity(chains.len());
    for part in parts {
        outcomes.extend(part?);
    }
    outcomes.sort_by_key(|(index, _)| *index);
    // Of chains that were left out one before is bad; it stands where theirs would.
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

/// One thread's sockets, and the chain it is reading.
struct RulesReader {
    options: ReadOptions,
    rules: Socket,
    /// For the elements of anonymous sets: a socket runs one dump at a time.
    sets: Socket,
    interfaces: Interfaces,
}

impl RulesReader {
    fn open(options: ReadOptions) -> Result<Self, SocketError> {
        let (rules, sets) = (Socket::open()?, Socket::open()?);
        Ok(Self { options, rules, sets, interfaces: Interfaces::default() })
    }

    /// Chain by chain: of one dump of them all each datagram goes on by counting rules from the very first.
    fn chain(&mut self, key: &ChainKey) -> Outcome {
        let (family, table, chain) = key;
        let head = Head { family: *family, ..head(message::GET_RULE, flag::DUMP) };
        let mut reading = ChainReading {
            options: self.options,
            sets: &mut self.sets,
            interfaces: &mut self.interfaces,
            failure: None,
            order: RuleOrder::default(),
            figures: ChainFigures {
                rules: Series::new(self.options.max_series),
                count: 0,
                shortened: 0,
                unreadable: 0,
                unread: BTreeMap::new(),
                cut: BTreeSet::new(),
            },
        };
        let each = |message: &Message<'_>| {
            reading.rule(*family, message);
            Ok(())
        };
        self.rules.request(head, |w| RuleView::select(w, table, chain), each)?;
        match reading.failure {
            // What a rule names was gone, or changed: an answer of another generation.
            Some(SocketError::Refused(_) | SocketError::Interrupted) => Ok(None),
            Some(error) => Err(error),
            None => Ok((!reading.order.is_broken()).then_some(reading.figures)),
        }
    }
}

struct ChainReading<'a> {
    options: ReadOptions,
    sets: &'a mut Socket,
    interfaces: &'a mut Interfaces,
    failure: Option<SocketError>,
    order: RuleOrder,
    figures: ChainFigures,
}

impl ChainReading<'_> {
    fn rule(&mut self, family: u8, message: &Message<'_>) {
        let Some(rule) = readable(RuleView::decode(message.attrs()), &mut self.figures.unreadable) else {
            return;
        };
        self.order.follow(rule.chain, rule.handle, rule.position);
        self.figures.count += 1;
        let Some(Some(counter)) = readable(rule.counter(), &mut self.figures.unreadable) else { return };
        let mut reader = RuleReader::new(family);
        for expr in rule.exprs() {
            match readable(expr, &mut self.figures.unreadable) {
                Some(expr) => reader.read(&expr),
                None => break,
            }
        }
        let reading = reader.finish();
        for name in reading.unread {
            let name: String = name.chars().take(MAX_EXPRESSION).collect();
            note(&mut self.figures.unread, &name, 1);
        }
        let mut matches = Matches::default();
        for found in &reading.matches {
            let elements = self.elements(family, rule.table, found);
            self.figures.shortened += u64::from(elements.as_ref().is_some_and(Elements::shortened));
            matches.add(found, elements.as_ref(), &mut |index| self.interfaces.name(index));
        }
        let action = reading.action.map_or("policy", |action| action.name());
        let comment = rule.comment().unwrap_or("empty".into());
        let handles = self.options.handles;
        let ChainFigures { rules, cut, .. } = &mut self.figures;
        rules.add([counter.bytes, counter.packets], |labels| {
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

    /// The elements of the set a match looks up, when that is an anonymous one: they stand in the rule, as it were.
    /// A set with a name is shown by it.
    fn elements(&mut self, family: u8, table: &[u8], found: &Match) -> Option<Elements> {
        let Test::Set { name, .. } = &found.test else { return None };
        // The kernel numbers anonymous sets, `__set%d`; others may have such a name too, so it is asked.
        if !name.starts_with("__set") || self.failure.is_some() {
            return None;
        }
        match read_set(self.sets, family, table, name.as_bytes()) {
            Ok(elements) => elements,
            Err(error) => {
                self.failure = Some(error);
                None
            }
        }
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
