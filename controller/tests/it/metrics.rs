//! What `/metrics` of a running controller shows: what METRICS.md says, in the form that Prometheus wants.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::monitoring::promtool;
use serde_json::json;

use crate::kube::field::Field;
use crate::names::field::{Mode, Names, to_names};
use crate::rig::policy;
use crate::tree;

/// Type and labels of a family.
type Family = (String, BTreeSet<String>);

/// Families of an exposition; `le` is every histogram's.
fn families(text: &str) -> Result<BTreeMap<String, Family>> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("a TYPE line has a name and a type")?;
            let before = families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
            ensure!(before.is_none(), "{name} is there twice");
        }
        let Some((sample, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| sample.strip_suffix(end).filter(|name| families.contains_key(*name)))
            .unwrap_or(sample);
        let (labels, _) = labels.rsplit_once('}').context("labels end")?;
        let family = families.get_mut(name).with_context(|| format!("{name} has no type"))?;
        let keys = labels.split("=\"").filter_map(|part| part.rsplit([',', '"', ' ']).next());
        family.1.extend(keys.filter(|key| !key.is_empty() && *key != "le").map(str::to_owned));
    }
    Ok(families)
}

/// The rows of a section of METRICS.md, and what they are there with only.
fn documented() -> Result<BTreeMap<String, (Family, Option<&'static str>)>> {
    let text = std::fs::read_to_string(tree::root().join("METRICS.md"))?;
    let section = text.split("\n## ").find(|section| section.starts_with("firewall-controller"));
    let mut rows = BTreeMap::new();
    for line in section.context("a section of the controller")?.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { continue };
        let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else { continue };
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        ensure!(!meaning.is_empty(), "{name} has no meaning");
        let only = [("with an API server only", "API server"), ("with intrusion detection only", "IDS")];
        let only = only.iter().find(|(words, _)| meaning.contains(words)).map(|(_, what)| *what);
        let before = rows.insert(name.to_owned(), ((kind.to_owned(), labels), only));
        ensure!(before.is_none(), "{name} has two rows");
    }
    ensure!(rows.len() > 20, "the table was not found: {rows:?}");
    Ok(rows)
}

/// Both ways: every family has its row, every row its family. Labels of families without series are not known.
fn compare(text: &str, with_api: bool) -> Result<()> {
    let exposed = families(text)?;
    let rows = documented()?;
    let mut wrong = Vec::new();
    for (name, (kind, labels)) in &exposed {
        match rows.get(name) {
            None => wrong.push(format!("{name} ({kind}, {labels:?}) is not in METRICS.md")),
            Some((row, _)) if row.0 != *kind || !(labels.is_empty() || row.1 == *labels) => {
                wrong.push(format!("{name} is {kind} {labels:?}, METRICS.md says {row:?}"));
            }
            Some(_) => {}
        }
    }
    let expected = rows.iter().filter(|(_, (_, only))| match only {
        Some("API server") => with_api,
        Some(_) => false,
        None => true,
    });
    let missing = expected.filter(|(name, _)| !exposed.contains_key(*name));
    wrong.extend(missing.map(|(name, _)| format!("{name} is in METRICS.md and not in /metrics")));
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// `promtool check metrics` has nothing to say.
fn check(text: &str) -> Result<()> {
    let said = promtool(text)?;
    ensure!(said.is_empty(), "promtool says {said:?}");
    Ok(())
}

#[test]
fn every_family_of_the_controller_is_documented_and_every_documented_one_is_there() -> Result<()> {
    let odd = to_names("odd", "{matchPattern: '*.odd.test'}");
    let web = policy("web", "{ingress: [{from: [{cidr: 203.0.113.0/24}], ports: [{port: 80}]}]}");
    let bad = policy("bad", "{egress: [{to: [{cidr: nonsense}]}]}");
    let names = Names::new("families", Mode::Tcx, "", &[odd, web, bad])?;
    let text = names.daemon.request(&json!({"request": "metrics"}))?;
    let text = text.as_str().context("the exposition is text")?;
    compare(text, false)?;
    check(text)?;
    for line in [
        "firewall_enforcing 1",
        "firewall_ruleset_info{basis=\"objects\"} 1",
        "firewall_findings{reason=\"InvalidCIDR\",severity=\"error\"} 1",
        "firewall_policy_accepted_packets_total{direction=\"ingress\",policy=\"firewall/web\"} 0",
        "firewall_policy_series_left_out 0",
        "firewall_reverse_names_bound 65536",
        "firewall_control_connections 1",
    ] {
        ensure!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
    }
    Ok(())
}

#[test]
fn with_an_api_server_its_families_are_there_as_well() -> Result<()> {
    let field = Field::running("k-families")?;
    let text = field.daemon.request(&json!({"request": "metrics"}))?;
    let text = text.as_str().context("the exposition is text")?;
    compare(text, true)?;
    check(text)?;
    let followed =
        text.lines().filter(|line| line.starts_with("firewall_api_followed{") && line.ends_with(" 1"));
    ensure!(followed.count() >= 3, "{text}");
    Ok(())
}
