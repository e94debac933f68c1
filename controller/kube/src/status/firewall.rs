//! The status of the Firewall object.

use std::collections::BTreeMap;

use fw_crds::{Counter, FirewallStats, FirewallStatus, RuleStats};
use serde::Deserialize as _;
use serde_json::Value;

/// Bytes of the counters of rules. The API server takes objects of 1.5 MiB, and this one is written all the time.
pub const MAX_RULE_BYTES: usize = 512 * 1024;

/// Bytes of one counter in JSON beside its comment: `"":{"counter":{"bytes":1,"packets":1}},`.
const COUNTER: usize = 42;

/// What is to stand in the status when `writer` writes it, but for the figures, which are nearly all of it.
#[must_use]
pub fn head(status: &FirewallStatus, writer: &str) -> Value {
    let FirewallStatus { state, last_run, message, controller_version, inside, .. } = status;
    let head = FirewallStatus {
        state: state.clone(),
        last_run: last_run.clone(),
        message: message.as_ref().map(|message| super::cut(message, super::MAX_MESSAGE)),
        controller_version: controller_version.clone(),
        inside: inside.clone(),
        writer: Some(writer.to_owned()),
        stats: None,
    };
    // Our own types have text keys only, so they always have a JSON form.
    serde_json::to_value(head).unwrap_or_default()
}

/// What is to stand in the status when `writer` writes it.
#[must_use]
pub fn wanted(status: &FirewallStatus, observed: &Value, writer: &str) -> Value {
    let mut value = head(status, writer);
    if let Some(stats) = &status.stats {
        let mut stats = stats.clone();
        stats.rules = bounded(std::mem::take(&mut stats.rules), MAX_RULE_BYTES);
        value["stats"] = serde_json::to_value(stats).unwrap_or_default();
    } else if let Some(stats) = observed.get("stats").filter(|stats| is_readable(stats)) {
        // Counters are read only of rules that were compiled here; until then the last ones stay.
        value["stats"] = stats.clone();
    }
    value
}

/// How much what is wanted differs from what is there, beside figures that are merely older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Not at all.
    None,
    /// In a number of the message: how many policies are in force.
    Number,
    /// In what is in force or wrong, where, or who says so.
    State,
}

/// See [`News`].
#[must_use]
pub fn news(wanted: &Value, observed: &Value) -> News {
    let differs = |key: &str| wanted.get(key) != observed.get(key);
    if ["state", "controllerVersion", "inside", "writer"].into_iter().any(differs) {
        News::State
    } else if !differs("message") {
        News::None
    } else if words(wanted) == words(observed) {
        News::Number
    } else {
        News::State
    }
}

/// The message without its numbers.
fn words(status: &Value) -> Option<String> {
    let message = status.get("message")?.as_str()?;
    Some(message.chars().filter(|c| !c.is_ascii_digit()).collect())
}

/// What the schema would not take is not handed back to it.
fn is_readable(stats: &Value) -> bool {
    FirewallStats::deserialize(stats).is_ok()
}

/// The largest counters, as many as fit; of each action the others are summed up under a key that says how many.
#[must_use]
pub fn bounded(
    rules: BTreeMap<String, BTreeMap<String, RuleStats>>,
    limit: usize,
) -> BTreeMap<String, BTreeMap<String, RuleStats>> {
    let size = |comment: &str, rule: &RuleStats| {
        COUNTER + json_len(comment) + digits(rule.counter.bytes) + digits(rule.counter.packets)
    };
    let all = rules.iter().flat_map(|(action, rules)| rules.iter().map(move |rule| (action, rule)));
    let total: usize = all.clone().map(|(_, (comment, rule))| size(comment, rule)).sum();
    if total <= limit {
        return rules;
    }
    let mut ordered: Vec<_> = all.collect();
    // Ties by name, so that the same figures give the same text.
    ordered.sort_by(|(a, (x, one)), (b, (y, other))| {
        let figures = |rule: &RuleStats| (rule.counter.packets, rule.counter.bytes);
        figures(other).cmp(&figures(one)).then_with(|| (a, x).cmp(&(b, y)))
    });
    let mut room = limit;
    let mut kept: BTreeMap<String, BTreeMap<String, RuleStats>> =
        rules.keys().map(|action| (action.clone(), BTreeMap::new())).collect();
    let mut summed: BTreeMap<&String, (usize, Counter)> = BTreeMap::new();
    for (action, (comment, rule)) in ordered {
        let size = size(comment, rule);
        if size <= room {
            room -= size;
            kept.entry(action.clone()).or_default().insert(comment.clone(), *rule);
        } else {
            // Smaller ones might fit still, but then it would not be the largest that are shown.
            room = 0;
            let (number, sum) = summed.entry(action).or_default();
            *number += 1;
            sum.bytes = sum.bytes.saturating_add(rule.counter.bytes);
            sum.packets = sum.packets.saturating_add(rule.counter.packets);
        }
    }
    for (action, (number, counter)) in summed {
        let key = format!("({number} more rules, summed up)");
        kept.entry(action.clone()).or_default().insert(key, RuleStats { counter });
    }
    kept
}

/// Bytes of a text in JSON, at most.
fn json_len(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        0..=31 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| usize::try_from(log).unwrap_or(20) + 1)
}
