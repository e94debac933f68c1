//! What the `nft` program says of a namespace: a reader that shares no code with ours.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::Netns;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the network header on.
    pub bytes: u64,
}

/// All counters of a namespace's ruleset.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Anonymous counters of rules by comment; equal comments are summed.
    pub by_comment: BTreeMap<String, Count>,
    /// Named counter objects.
    pub named: BTreeMap<String, Count>,
}

impl Counters {
    /// Packets of the rules with this comment; 0 where there is none.
    pub fn comment(&self, comment: &str) -> u64 {
        self.by_comment.get(comment).map_or(0, |count| count.packets)
    }

    /// Packets of a named counter; 0 where there is none.
    pub fn named(&self, name: &str) -> u64 {
        self.named.get(name).map_or(0, |count| count.packets)
    }
}

/// `nft list ruleset`.
pub fn list_ruleset(ns: &Netns) -> Result<String> {
    ns.output("nft", &["list", "ruleset"])
}

/// `nft -j list ruleset`: the objects in the order printed.
pub fn json(ns: &Netns) -> Result<Vec<Value>> {
    let text = ns.output("nft", &["-j", "list", "ruleset"])?;
    let mut document: Value = serde_json::from_str(&text).context("nft -j did not print JSON")?;
    match document.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => bail!("nft -j printed no list `nftables`"),
    }
}

/// Loads text with `nft -f -`.
pub fn load(ns: &Netns, ruleset: &str) -> Result<()> {
    ns.output_with_input("nft", &["-f", "-"], ruleset).map(drop)
}

/// Checks text with `nft -c -f -`. In a namespace where a table of the same name has an owner, nft is refused;
/// take an empty one ([`check_alone`]).
pub fn check(ns: &Netns, ruleset: &str) -> Result<()> {
    ns.output_with_input("nft", &["-c", "-f", "-"], ruleset).map(drop)
}

/// Checks text with `nft -c -f -` in an empty namespace made for it.
pub fn check_alone(ruleset: &str) -> Result<()> {
    check(&Netns::new("check")?, ruleset)
}

/// All counters, from `nft -j list ruleset`.
pub fn counters(ns: &Netns) -> Result<Counters> {
    let mut counters = Counters::default();
    for object in json(ns)? {
        if let Some(counter) = object.get("counter") {
            let name = counter["name"].as_str().context("a counter without a name")?;
            add(&mut counters.named, name, counter)?;
        }
        let Some(rule) = object.get("rule") else { continue };
        let Some(comment) = rule["comment"].as_str() else { continue };
        for expression in rule["expr"].as_array().into_iter().flatten() {
            // A named counter in a rule shows as `{"counter": "NAME"}`; its figures are with the object.
            if let Some(counter) = expression.get("counter").filter(|counter| counter.is_object()) {
                add(&mut counters.by_comment, comment, counter)?;
            }
        }
    }
    Ok(counters)
}

fn add(counts: &mut BTreeMap<String, Count>, key: &str, counter: &Value) -> Result<()> {
    let figure =
        |name: &str| counter[name].as_u64().with_context(|| format!("counter {key:?} has no {name}"));
    let count = counts.entry(key.to_owned()).or_default();
    count.packets += figure("packets")?;
    count.bytes += figure("bytes")?;
    Ok(())
}
