//! Figures of the client, and how Prometheus reads them.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::loss::{Cause, Ledger};
use crate::spool::Spool;

/// What the client counts beside losses.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) logged: AtomicU64,
    pub(crate) foreign: AtomicU64,
    pub(crate) overruns: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) early: AtomicU64,
    pub(crate) queue: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) aggregated: AtomicU64,
    pub(crate) enriched: AtomicU64,
    pub(crate) too_fast: AtomicU64,
    pub(crate) no_controller: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) failed_connections: AtomicU64,
    pub(crate) certificates_loaded: AtomicU64,
    pub(crate) certificates_failed: AtomicU64,
    pub(crate) connected: AtomicU64,
    pub(crate) group: AtomicU64,
    pub(crate) streaming: AtomicU64,
    pub(crate) subscribers: AtomicU64,
    pub(crate) refused_subscribers: AtomicU64,
    pub(crate) subscriber_losses: AtomicU64,
    pub(crate) journal_lines: AtomicU64,
    pub(crate) journal_errors: AtomicU64,
}

/// Adds to a figure.
pub(crate) fn add(figure: &AtomicU64, count: u64) {
    figure.fetch_add(count, Ordering::Relaxed);
}

/// Puts a figure that goes up and down.
pub(crate) fn put(figure: &AtomicU64, value: u64) {
    figure.store(value, Ordering::Relaxed);
}

/// All families, in the text format.
pub(crate) fn exposition(figures: &Figures, ledger: &Ledger, spool: &Spool) -> String {
    let mut text = Text::default();
    let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
    for (name, help, figure) in [
        ("logged_packets", "Packets that came from the kernel.", &figures.logged),
        ("foreign_packets", "Packets in the NFLOG group with a prefix of others.", &figures.foreign),
        ("overruns", "How often the kernel's receive buffer overflowed.", &figures.overruns),
        (
            "restarts_of_rules",
            "How often the rules' counters did not go on from where they were.",
            &figures.resets,
        ),
        ("early_drops", "Early drops that the controller passed on.", &figures.early),
        ("records", "Records made, losses among them.", &figures.records),
        (
            "aggregated_packets",
            "Packets that are only in the COUNT of another's record.",
            &figures.aggregated,
        ),
        ("enriched_records", "Records the controller was asked about.", &figures.enriched),
        ("sent_records", "Records that have arrived at the server.", &figures.acknowledged),
        ("connections", "Connections to the server.", &figures.connections),
        (
            "failed_connections",
            "Connections to the server that failed or ended.",
            &figures.failed_connections,
        ),
        ("refused_subscribers", "Subscribers beyond the bound.", &figures.refused_subscribers),
        (
            "subscriber_lost_records",
            "Records that subscribers were too slow for.",
            &figures.subscriber_losses,
        ),
        ("journal_lines", "Lines written to the journal.", &figures.journal_lines),
        ("journal_errors", "Lines that the journal did not take.", &figures.journal_errors),
    ] {
        text.family(&format!("{name}_total"), help, "counter", &[("", of(figure))]);
    }
    let lost: Vec<(String, u64)> = Cause::ALL
        .into_iter()
        .map(|cause| (format!("{{cause=\"{}\"}}", cause.name()), ledger.lost(cause)))
        .collect();
    let lost: Vec<(&str, u64)> = lost.iter().map(|(label, value)| (label.as_str(), *value)).collect();
    text.family(
        "lost_packets_total",
        "Logged packets and early drops that are not shown, by cause.",
        "counter",
        &lost,
    );
    let reloads = [
        ("{outcome=\"loaded\"}", of(&figures.certificates_loaded)),
        ("{outcome=\"failed\"}", of(&figures.certificates_failed)),
    ];
    text.family(
        "certificate_reloads_total",
        "Changes of the certificates' files, by whether they could be loaded.",
        "counter",
        &reloads,
    );
    let skipped = [
        ("{reason=\"rate\"}", of(&figures.too_fast)),
        ("{reason=\"controller\"}", of(&figures.no_controller)),
    ];
    text.family(
        "unenriched_records_total",
        "Records the controller was not asked about, by reason.",
        "counter",
        &skipped,
    );
    text.family(
        "spool_disk_errors_total",
        "How often the spool's disk failed.",
        "counter",
        &[("", spool.disk_errors())],
    );
    for (name, help, value) in [
        ("nflog_group", "NFLOG group that is listened to.", of(&figures.group)),
        ("queue_packets", "Packets between reader and worker.", of(&figures.queue)),
        ("spool_records", "Records that wait for the server.", spool.waiting()),
        (
            "spool_memory_bytes",
            "Bytes of them in memory.",
            u64::try_from(spool.memory_bytes()).unwrap_or(u64::MAX),
        ),
        ("spool_disk_bytes", "Bytes of the spool on disk.", spool.disk_bytes()),
        ("connected", "1 while there is a connection to the server.", of(&figures.connected)),
        ("streaming", "1 while the server acknowledges by stream.", of(&figures.streaming)),
        ("subscribers", "Subscribers of the client's socket.", of(&figures.subscribers)),
    ] {
        text.family(name, help, "gauge", &[("", value)]);
    }
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, help: &str, kind: &str, values: &[(&str, u64)]) {
        let _ = write!(self.0, "# HELP droptailer_{name} {help}\n# TYPE droptailer_{name} {kind}\n");
        for (label, value) in values {
            let _ = writeln!(self.0, "droptailer_{name}{label} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spool::Limits;

    #[test]
    fn the_table_of_metrics_names_every_family_of_the_client_with_its_type() {
        let spool = Spool::in_memory(Limits { memory: 1, disk: 0 }, [0; 16]);
        let text = exposition(&Figures::default(), &Ledger::default(), &spool);
        let families: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let table = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../METRICS.md")).unwrap();
        let section =
            table.split("\n## ").find(|section| section.starts_with("droptailer client\n")).unwrap();
        let rows: BTreeMap<&str, &str> = section
            .lines()
            .filter_map(|line| {
                let mut cells = line.trim_matches('|').split('|').map(str::trim);
                let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
                Some((name, cells.next()?))
            })
            .collect();
        assert_eq!(rows, families);
    }
}
