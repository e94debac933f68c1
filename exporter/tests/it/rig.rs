//! Scrapes in a namespace, read with a parser.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use fw_exporter::config::Config;
use fw_exporter::exposition;
use fw_exporter::scrape::{self, Scraper};
use fw_testkit::Netns;

/// Labels of a series.
pub(crate) type Labels = BTreeMap<String, String>;
/// Name and labels.
pub(crate) type Series = (String, Labels);

/// A configuration that asks nobody but the kernel.
pub(crate) fn alone() -> Config {
    Config { controller_socket: String::new(), droptailer_socket: String::new(), ..Config::default() }
}

/// The text of one scrape in a namespace.
pub(crate) fn scrape(ns: &Netns, config: &Config) -> Result<String> {
    ns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(async { scrape::text(Scraper::default().scrape(config, 0).await) }))
    })?
}

/// Series and values; a series that stands there twice is an error, as it is Prometheus'.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<Series, f64>> {
    let mut all = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = exposition::sample(line).with_context(|| format!("no sample: {line}"))?;
        let value = line.rsplit(' ').next().and_then(|value| value.parse().ok());
        let value = value.with_context(|| format!("no value: {line}"))?;
        ensure!(all.insert(series, value).is_none(), "twice: {line}");
    }
    Ok(all)
}

/// The one series of a family without labels.
pub(crate) fn single(all: &BTreeMap<Series, f64>, name: &str) -> Result<f64> {
    all.get(&(name.to_owned(), Labels::new())).copied().with_context(|| format!("no {name}"))
}

/// All series of the families that nft can tell of too.
pub(crate) fn of_nft(all: BTreeMap<Series, f64>) -> BTreeMap<Series, f64> {
    const FAMILIES: [&str; 6] = [
        "nftables_counter_bytes",
        "nftables_counter_packets",
        "nftables_table_chains",
        "nftables_chain_rules",
        "nftables_rule_bytes",
        "nftables_rule_packets",
    ];
    all.into_iter().filter(|((name, _), _)| FAMILIES.contains(&name.as_str())).collect()
}

/// Fails with all differences.
pub(crate) fn same(ours: &BTreeMap<Series, f64>, theirs: &BTreeMap<Series, f64>) -> Result<()> {
    let mut complaints = Vec::new();
    for (series, value) in ours {
        match theirs.get(series) {
            Some(other) if other == value => {}
            other => complaints.push(format!("ours {series:?} = {value}, nft's {other:?}")),
        }
    }
    let missing = theirs.iter().filter(|(series, _)| !ours.contains_key(series));
    complaints.extend(missing.map(|(series, value)| format!("only nft's: {series:?} = {value}")));
    if complaints.is_empty() { Ok(()) } else { bail!("{}", complaints.join("\n")) }
}
