//! What `nft -j list ruleset` says, as series: shares no code with the exporter.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use fw_testkit::{Netns, nft};
use serde_json::Value;

use crate::rig::{Labels, Series};

/// All series that nft's listing has, equal ones summed.
pub(crate) fn series(ns: &Netns) -> Result<BTreeMap<Series, f64>> {
    let mut all = Oracle::default();
    for object in nft::json(ns)? {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else { continue };
        all.object(kind, body).with_context(|| format!("{object}"))?;
    }
    Ok(all.0)
}

#[derive(Default)]
struct Oracle(BTreeMap<Series, f64>);

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Oracle {
    fn add(&mut self, name: &str, labels: &Labels, value: f64) {
        *self.0.entry((name.to_owned(), labels.clone())).or_default() += value;
    }

    fn object(&mut self, kind: &str, body: &Value) -> Result<()> {
        let labels = |keys: &[(&str, &str)]| -> Labels {
            keys.iter().map(|(label, key)| ((*label).to_owned(), text(&body[*key]))).collect()
        };
        match kind {
            "table" => {
                self.add("nftables_table_chains", &labels(&[("family", "family"), ("name", "name")]), 0.0)
            }
            "chain" => {
                self.add("nftables_table_chains", &labels(&[("family", "family"), ("name", "table")]), 1.0);
                let chain = labels(&[("family", "family"), ("table", "table"), ("name", "name")]);
                self.add("nftables_chain_rules", &chain, 0.0);
            }
            "counter" => {
                let counter = labels(&[("family", "family"), ("table", "table"), ("name", "name")]);
                self.add("nftables_counter_bytes", &counter, number(&body["bytes"])?);
                self.add("nftables_counter_packets", &counter, number(&body["packets"])?);
            }
            "rule" => {
                let chain = labels(&[("family", "family"), ("table", "table"), ("name", "chain")]);
                self.add("nftables_chain_rules", &chain, 1.0);
                self.rule(body)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn rule(&mut self, rule: &Value) -> Result<()> {
        let statements = rule["expr"].as_array().context("a rule without statements")?;
        let counter = statements
            .iter()
            .find_map(|it| it.get("counter").filter(|counter| counter.get("packets").is_some()));
        let Some(counter) = counter else { return Ok(()) };
        let mut labels = Labels::new();
        for key in ["family", "table", "chain"] {
            labels.insert(key.to_owned(), text(&rule[key]));
        }
        labels.insert("comment".to_owned(), rule.get("comment").map_or("empty".to_owned(), text));
        labels.insert("action".to_owned(), action(statements));
        for label in LABELS {
            let found: Vec<String> = statements
                .iter()
                .filter_map(|it| it.get("match"))
                .filter_map(|it| value(it, label))
                .collect();
            let text = if found.is_empty() { "any".to_owned() } else { found.join(",") };
            labels.insert(label.to_owned(), text);
        }
        self.add("nftables_rule_bytes", &labels, number(&counter["bytes"])?);
        self.add("nftables_rule_packets", &labels, number(&counter["packets"])?);
        Ok(())
    }
}

const LABELS: [&str; 6] = [
    "input_interfaces",
    "output_interfaces",
    "source_addresses",
    "destination_addresses",
    "source_ports",
    "destination_ports",
];

fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("no number: {value}"))
}

fn action(statements: &[Value]) -> String {
    const DECIDING: [&str; 14] = [
        "accept",
        "drop",
        "reject",
        "jump",
        "goto",
        "return",
        "continue",
        "snat",
        "dnat",
        "masquerade",
        "redirect",
        "vmap",
        "fwd",
        "tproxy",
    ];
    let mut keys = statements.iter().filter_map(|it| it.as_object()?.keys().next());
    keys.rfind(|key| DECIDING.contains(&key.as_str())).map_or("policy".to_owned(), String::clone)
}

/// The label that the left side of a match belongs to.
fn label_of(left: &Value) -> Option<&'static str> {
    if let Some(key) = left["meta"]["key"].as_str() {
        return match key {
            "iif" | "iifname" => Some("input_interfaces"),
            "oif" | "oifname" => Some("output_interfaces"),
            _ => None,
        };
    }
    match left["payload"]["field"].as_str()? {
        "saddr" | "saddr ip" | "saddr ether" => Some("source_addresses"),
        "daddr" | "daddr ip" | "daddr ether" => Some("destination_addresses"),
        "sport" => Some("source_ports"),
        "dport" => Some("destination_ports"),
        _ => None,
    }
}

/// What a match says for a label.
fn value(found: &Value, label: &str) -> Option<String> {
    let (left, right) = (&found["left"], &found["right"]);
    let sign = match found["op"].as_str()? {
        "==" | "in" => String::new(),
        other => format!("{other} "),
    };
    if let Some(parts) = left["concat"].as_array() {
        let places = (0..parts.len()).filter(|place| label_of(&parts[*place]) == Some(label));
        let texts: Vec<String> =
            places.map(|place| format!("{sign}{}", concatenation(right, place, !sign.is_empty()))).collect();
        return (!texts.is_empty()).then(|| texts.join(","));
    }
    if label_of(left) == Some(label) {
        return Some(format!("{sign}{}", one(right)));
    }
    let masked = left["&"].as_array()?;
    let sign = if sign.is_empty() { "== ".to_owned() } else { sign };
    (label_of(&masked[0]) == Some(label)).then(|| format!("& {} {sign}{}", one(&masked[1]), one(right)))
}

/// A value, a prefix, a range or the elements of a set, sorted as text.
fn one(value: &Value) -> String {
    if let Some(list) = value["set"].as_array() {
        return list.iter().map(one).collect::<Vec<_>>().join(",");
    }
    if let Some(prefix) = value.get("prefix") {
        return format!("{}/{}", text(&prefix["addr"]), prefix["len"]);
    }
    match value["range"].as_array().map(Vec::as_slice) {
        Some([from, to]) => format!("{}-{}", text(from), text(to)),
        _ => text(value),
    }
}

fn concatenation(right: &Value, place: usize, whole: bool) -> String {
    let Some(list) = right["set"].as_array() else { return text(right) };
    let mut seen = BTreeSet::new();
    let mut texts = Vec::new();
    for element in list {
        let parts: Vec<String> = element["concat"].as_array().into_iter().flatten().map(one).collect();
        let text = if whole { parts.join(" . ") } else { parts.get(place).cloned().unwrap_or_default() };
        if seen.insert(text.clone()) {
            texts.push(text);
        }
    }
    texts.join(",")
}

/// Label texts with what a set holds in one order: the kernel's and nft's differ.
pub(crate) fn sorted(all: BTreeMap<Series, f64>) -> BTreeMap<Series, f64> {
    let mut out: BTreeMap<Series, f64> = BTreeMap::new();
    for ((name, mut labels), value) in all {
        for label in LABELS {
            if let Some(text) = labels.get_mut(label) {
                let (sign, list) = match text.strip_prefix("!= ") {
                    Some(list) => ("!= ", list),
                    None => ("", text.as_str()),
                };
                let mut items: Vec<&str> = list.split(',').collect();
                items.sort_unstable();
                *text = format!("{sign}{}", items.join(","));
            }
        }
        *out.entry((name, labels)).or_default() += value;
    }
    out
}
