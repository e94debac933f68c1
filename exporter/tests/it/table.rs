//! METRICS.md tells what is exposed, all of it and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use fw_exporter::families::ALL;
use fw_testkit::{Netns, nft};

use crate::rig::{parse, scrape};

type Row = (String, BTreeSet<String>);

/// Type and labels by name, from the table of our section.
fn documented() -> Result<BTreeMap<String, Row>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../METRICS.md");
    let text = std::fs::read_to_string(path).context("METRICS.md")?;
    let section = text.split("\n## ").find(|section| section.starts_with("nftables-exporter\n"));
    let mut rows = BTreeMap::new();
    for line in
        section.context("no section nftables-exporter")?.lines().filter(|line| line.starts_with("| `"))
    {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, _] = cells.as_slice() else { anyhow::bail!("not four cells: {line}") };
        let words = |text: &str| -> BTreeSet<String> {
            text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let name = words(name).pop_first().context("no name")?;
        ensure!(rows.insert(name, ((*kind).to_owned(), words(labels))).is_none(), "twice: {line}");
    }
    Ok(rows)
}

#[test]
fn the_table_in_metrics_md_is_what_is_exposed() -> Result<()> {
    let documented = documented()?;
    let coded: BTreeMap<String, Row> = ALL
        .iter()
        .map(|family| {
            let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
            (family.name.to_owned(), (family.kind.name().to_owned(), labels))
        })
        .collect();
    assert_eq!(documented, coded);

    let ns = Netns::new("exptable")?;
    nft::load(&ns, include_str!("../fixtures/statements.nft"))?;
    let text = scrape(&ns, &fw_exporter::config::Config::default())?;
    let mut exposed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, labels) in parse(&text)?.into_keys() {
        exposed.entry(name).or_default().extend(labels.into_keys());
    }
    let documented: BTreeMap<String, BTreeSet<String>> =
        documented.into_iter().map(|(name, (_, labels))| (name, labels)).collect();
    assert_eq!(exposed, documented);
    Ok(())
}
