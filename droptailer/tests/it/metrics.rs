//! What the server exposes is what METRICS.md says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use fw_testkit::monitoring::promtool;

use crate::rig::Server;

/// Type, labels and help of each family, as the table writes them.
fn exposed(text: &str) -> BTreeSet<String> {
    let mut families: BTreeMap<&str, (&str, BTreeSet<String>, &str)> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            families.entry(name).or_default().2 = help;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' '))
        {
            families.entry(name).or_default().0 = kind;
        } else if let Some((name, labels)) = line.split_once('{') {
            let labels = labels.split('}').next().unwrap().split(',').map(|it| it.split('=').next().unwrap());
            families.entry(name).or_default().1.extend(labels.map(|label| format!("`{label}`")));
        }
    }
    let row = |(name, (kind, labels, help)): (&str, (&str, BTreeSet<String>, &str))| {
        let labels: Vec<String> = labels.into_iter().collect();
        format!("| `{name}` | {kind} | {} | {help} |", labels.join(", "))
    };
    families.into_iter().map(row).collect()
}

#[test]
fn the_table_of_the_servers_metrics_is_what_it_exposes_and_promtool_finds_no_fault() {
    let server = Server::start("families", &[]);
    let page = server.page("/metrics");
    let (_, text) = page.split_once("\r\n\r\n").unwrap();
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../METRICS.md")).unwrap();
    let section = document.split("\n## ").find(|section| section.starts_with("droptailer server\n")).unwrap();
    let told: BTreeSet<String> =
        section.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect();
    assert_eq!(exposed(text), told);

    assert_eq!(promtool(text).unwrap(), [""; 0]);
}
