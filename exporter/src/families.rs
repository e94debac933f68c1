//! The families of a scrape, and its text piece by piece: the whole text never lies in memory.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame};

use crate::ruleset::Figures;
use crate::series::Labels;

/// Bytes of a piece, about.
const PIECE: usize = 64 * 1024;

/// Prometheus' types, as far as they are used here.
///
/// What today's exporter calls counters is `untyped`: their names have no `_total`, and one holds the word "counter",
/// both of which `promtool check metrics` refuses of a counter. Prometheus itself does not treat the types differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// See above.
    Untyped,
}

impl Kind {
    /// As in a TYPE line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Untyped => "untyped",
        }
    }
}

/// Name, type, labels and help of a family; `METRICS.md` has the same table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it is.
    pub help: &'static str,
}

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family { name, kind, labels, help }
}

const RULE_LABELS: &[&str] = &[
    "action",
    "chain",
    "comment",
    "destination_addresses",
    "destination_ports",
    "family",
    "input_interfaces",
    "output_interfaces",
    "source_addresses",
    "source_ports",
    "table",
];

use Kind::{Counter, Gauge, Untyped};

/// `nftables_up`
pub const UP: Family = family("nftables_up", Gauge, &[], "1 while the kernel's ruleset can be read, else 0.");
/// `nftables_counter_bytes`
pub const COUNTER_BYTES: Family =
    family("nftables_counter_bytes", Untyped, &["family", "name", "table"], "Bytes of a named counter.");
/// `nftables_counter_packets`
pub const COUNTER_PACKETS: Family =
    family("nftables_counter_packets", Untyped, &["family", "name", "table"], "Packets of a named counter.");
/// `nftables_table_chains`
pub const TABLE_CHAINS: Family =
    family("nftables_table_chains", Gauge, &["family", "name"], "Chains of a table.");
/// `nftables_chain_rules`
pub const CHAIN_RULES: Family =
    family("nftables_chain_rules", Gauge, &["family", "name", "table"], "Rules of a chain.");
/// `nftables_rule_bytes`
pub const RULE_BYTES: Family = family(
    "nftables_rule_bytes",
    Untyped,
    RULE_LABELS,
    "Bytes counted by rules; rules with equal labels are summed.",
);
/// `nftables_rule_packets`
pub const RULE_PACKETS: Family = family(
    "nftables_rule_packets",
    Untyped,
    RULE_LABELS,
    "Packets counted by rules; rules with equal labels are summed.",
);
/// `nftables_exporter_build_info`
pub const BUILD_INFO: Family =
    family("nftables_exporter_build_info", Gauge, &["version"], "1, with the version of this program.");
/// `nftables_exporter_read_seconds`
pub const READ_SECONDS: Family =
    family("nftables_exporter_read_seconds", Gauge, &[], "How long reading the ruleset took.");
/// `nftables_exporter_reads_total`
pub const READS: Family = family(
    "nftables_exporter_reads_total",
    Counter,
    &["outcome"],
    "Reads of the ruleset by outcome: ok, torn, failed.",
);
/// `nftables_exporter_retries_total`
pub const RETRIES: Family = family(
    "nftables_exporter_retries_total",
    Counter,
    &[],
    "Reads begun again because the ruleset changed meanwhile.",
);
/// `nftables_exporter_age_seconds`
pub const AGE: Family = family(
    "nftables_exporter_age_seconds",
    Gauge,
    &[],
    "Age of the figures: over 0 only when the ruleset changed too fast to be read now.",
);
/// `nftables_exporter_shortened_labels`
pub const SHORTENED: Family = family(
    "nftables_exporter_shortened_labels",
    Gauge,
    &[],
    "Label values of this scrape that were cut or show a part of a set.",
);
/// `nftables_exporter_left_out_series`
pub const LEFT_OUT: Family = family(
    "nftables_exporter_left_out_series",
    Gauge,
    &[],
    "Counters, chains and rules of this scrape that are not shown because there are too many series.",
);
/// `nftables_exporter_unreadable_messages`
pub const UNREADABLE: Family = family(
    "nftables_exporter_unreadable_messages",
    Gauge,
    &[],
    "Messages of the kernel and expressions in them that could not be read in this scrape.",
);
/// `nftables_exporter_skipped_expressions`
pub const SKIPPED: Family = family(
    "nftables_exporter_skipped_expressions",
    Gauge,
    &["expression"],
    "Expressions of counting rules that no label tells of, by the kernel's name for them.",
);
/// `nftables_exporter_source_up`
pub const SOURCE_UP: Family = family(
    "nftables_exporter_source_up",
    Gauge,
    &["source"],
    "1 when a program beside this one gave its metrics for this scrape, else 0.",
);
/// `nftables_exporter_source_seconds`
pub const SOURCE_SECONDS: Family = family(
    "nftables_exporter_source_seconds",
    Gauge,
    &["source"],
    "How long a program beside this one took to answer, or to be given up.",
);
/// `nftables_exporter_source_failures_total`
pub const SOURCE_FAILURES: Family = family(
    "nftables_exporter_source_failures_total",
    Counter,
    &["cause", "source"],
    "Metrics of other programs that were left out, by cause: absent, slow, broken, refused, invalid.",
);
/// `nftables_exporter_scrapes_total`
pub const SCRAPES: Family = family("nftables_exporter_scrapes_total", Counter, &[], "Scrapes answered.");
/// `nftables_exporter_refused_connections_total`
pub const REFUSED: Family = family(
    "nftables_exporter_refused_connections_total",
    Counter,
    &[],
    "Connections closed because too many were open.",
);
/// `process_cpu_seconds_total`
pub const CPU: Family =
    family("process_cpu_seconds_total", Counter, &[], "User and system time of this process.");
/// `process_open_fds`
pub const OPEN_FDS: Family = family("process_open_fds", Gauge, &[], "Open file descriptors.");
/// `process_max_fds`
pub const MAX_FDS: Family = family("process_max_fds", Gauge, &[], "File descriptors there may be.");
/// `process_virtual_memory_bytes`
pub const VIRTUAL: Family = family("process_virtual_memory_bytes", Gauge, &[], "Virtual memory.");
/// `process_virtual_memory_max_bytes`
pub const VIRTUAL_MAX: Family = family(
    "process_virtual_memory_max_bytes",
    Gauge,
    &[],
    "Virtual memory there may be; -1 without a limit.",
);
/// `process_resident_memory_bytes`
pub const RESIDENT: Family = family("process_resident_memory_bytes", Gauge, &[], "Resident memory.");
/// `process_start_time_seconds`
pub const START: Family =
    family("process_start_time_seconds", Gauge, &[], "When this process started, in seconds since 1970.");

/// All of them.
pub const ALL: [Family; 28] = [
    UP,
    COUNTER_BYTES,
    COUNTER_PACKETS,
    TABLE_CHAINS,
    CHAIN_RULES,
    RULE_BYTES,
    RULE_PACKETS,
    BUILD_INFO,
    READ_SECONDS,
    READS,
    RETRIES,
    AGE,
    SHORTENED,
    LEFT_OUT,
    UNREADABLE,
    SKIPPED,
    SOURCE_UP,
    SOURCE_SECONDS,
    SOURCE_FAILURES,
    SCRAPES,
    REFUSED,
    CPU,
    OPEN_FDS,
    MAX_FDS,
    VIRTUAL,
    VIRTUAL_MAX,
    RESIDENT,
    START,
];

/// Writes families whose samples are few.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Begins a family.
    pub fn head(&mut self, family: &Family) {
        write_head(&mut self.0, family);
    }

    /// Adds a sample; labels in the family's order.
    pub fn sample(&mut self, family: &Family, values: &[&str], value: impl std::fmt::Display) {
        self.0.push_str(family.name);
        if !values.is_empty() {
            self.0.push('{');
            let mut labels = Labels::new(&mut self.0);
            for (name, value) in family.labels.iter().zip(values) {
                labels.add(name, value);
            }
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A family of one sample without labels.
    pub fn one(&mut self, family: &Family, value: impl std::fmt::Display) {
        self.head(family);
        self.sample(family, &[], value);
    }

    /// What was written.
    pub fn into_string(self) -> String {
        self.0
    }
}

fn write_head(text: &mut String, family: &Family) {
    let _ = writeln!(text, "# HELP {} {}", family.name, family.help);
    let _ = writeln!(text, "# TYPE {} {}", family.name, family.kind.name());
}

/// The families that are one line for each of many things.
const LARGE: [Family; 6] =
    [COUNTER_BYTES, COUNTER_PACKETS, TABLE_CHAINS, CHAIN_RULES, RULE_BYTES, RULE_PACKETS];

/// The answer to a scrape.
#[derive(Debug)]
pub struct Page {
    /// The ruleset's figures, when there are any.
    pub figures: Option<Arc<Figures>>,
    /// Families of this program that are few lines.
    pub text: String,
    /// Families of others, checked.
    pub foreign: Vec<String>,
}

impl Page {
    /// Its text, piece by piece.
    pub fn pieces(self: Arc<Self>) -> Pieces {
        Pieces { page: self, stage: 0, index: 0 }
    }
}

/// The text of a [`Page`]; also a body for hyper.
#[derive(Debug)]
pub struct Pieces {
    page: Arc<Page>,
    /// 0: the small families; then the large ones; then those of others.
    stage: usize,
    index: usize,
}

impl Iterator for Pieces {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let stage = self.stage;
            if stage == 0 {
                self.stage = 1;
                return Some(self.page.text.clone());
            }
            let Some(family) = LARGE.get(stage - 1) else {
                self.stage += 1;
                return self.page.foreign.get(stage - 1 - LARGE.len()).cloned();
            };
            let piece = self.large(family);
            if !piece.is_empty() {
                return Some(piece);
            }
            self.stage += 1;
            self.index = 0;
        }
    }
}

impl Pieces {
    /// The next piece of a large family; empty at its end.
    fn large(&mut self, family: &Family) -> String {
        let mut text = String::new();
        let Some(figures) = self.page.figures.as_deref() else { return text };
        while text.len() < PIECE {
            let Some((labels, value)) = sample(figures, self.stage, self.index) else { break };
            if self.index == 0 {
                text.reserve(PIECE + PIECE / 8);
                write_head(&mut text, family);
            }
            self.index += 1;
            let _ = writeln!(text, "{}{{{labels}}} {value}", family.name);
        }
        text
    }
}

/// Labels and value of a line of a large family, by its place in [`LARGE`] plus one.
fn sample(figures: &Figures, stage: usize, index: usize) -> Option<(&str, u64)> {
    let two = |series: Option<(_, [u64; 2])>, at: usize| series.map(|(labels, values)| (labels, values[at]));
    let one = |series: Option<(_, [u64; 1])>| series.map(|(labels, [value])| (labels, value));
    match stage {
        1 => two(figures.counters.get(index), 0),
        2 => two(figures.counters.get(index), 1),
        3 => one(figures.tables.get(index)),
        4 => one(figures.chains.get(index)),
        5 => two(figures.rules.get(index), 0),
        6 => two(figures.rules.get(index), 1),
        _ => None,
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            match self.next() {
                // An empty piece is no end.
                Some(piece) if piece.is_empty() => {}
                piece => return Poll::Ready(piece.map(|piece| Ok(Frame::data(Bytes::from(piece))))),
            }
        }
    }
}
