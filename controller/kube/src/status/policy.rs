//! The status of a policy behind one or several firewalls.
//!
//! Each firewall has an entry of its own in `firewalls`, and everybody computes the fields above from all entries by the
//! same rules: the worst state, the oldest judged version, all messages. So whoever reads them last corrects them to the
//! same text as everybody else would, and nobody writes what is there already. A lone firewall leaves its entry out.
//!
//! Written by server-side apply, the fields above are never left out once they are there: a field that another manager
//! has set as well stays when one of them stops naming it, and would be missed again and again.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::fqdn::{self, Difference};
use super::{MAX_MESSAGE, cut};
use crate::report::{PolicyReport, PolicyState};

/// Who is in front of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Names of the Firewall objects.
    pub names: BTreeSet<String>,
    /// Names that have had none for long enough to be sure.
    pub gone: BTreeSet<String>,
}

/// What one firewall writes into one policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merge {
    /// `status`, to be applied; `None`: it says that already.
    pub apply: Option<Value>,
    /// `firewalls` without the entries of firewalls that are gone, to be put in place of the list of this version of the
    /// object.
    pub prune: Option<Value>,
    /// Addresses that differ and may not be written yet.
    pub later: Option<Difference>,
    /// Entries of firewalls that are neither present nor gone.
    pub strangers: BTreeSet<String>,
}

/// What is to be written into the status of a policy so that it says what all firewalls say. `voice` is our entry's name;
/// `due` are the differences in addresses that are worth a write of their own now.
#[must_use]
pub fn merge(
    report: &PolicyReport,
    observed: &Value,
    voice: &str,
    present: &Present,
    due: Option<Difference>,
    now: Timestamp,
) -> Merge {
    let found = Found::of(observed, voice, present);
    let own = Entry {
        state: report.state,
        message: cut(&report.message, MAX_MESSAGE),
        generation: report.generation,
    };
    let several = !found.others.is_empty() || present.names.iter().any(|name| name != voice);
    let all = found.others.iter().map(|(name, entry)| (*name, entry)).chain([(voice, &own)]);
    let whole = sum(all.collect());

    let mut status = Map::new();
    status.insert("state".to_owned(), json!(whole.state.text()));
    status.insert("message".to_owned(), json!(whole.message));
    status.insert("observedGeneration".to_owned(), json!(whole.generation));
    let scalars_differ = status.iter().any(|(key, value)| observed.get(key) != Some(value));
    let (conditions, conditions_differ) = conditions(&whole, observed, now);
    status.insert("conditions".to_owned(), conditions);
    let own_differs = if several {
        let entry = own.as_json(voice);
        let differs = !found.own.is_some_and(|there| says(there, &entry));
        status.insert("firewalls".to_owned(), json!([entry]));
        differs
    } else {
        found.own.is_some()
    };
    let differs = scalars_differ || conditions_differ || own_differs;

    // One of them tells the addresses; each has learned others.
    let first = present.names.iter().map(String::as_str).chain(found.others.keys().copied());
    let tells = first.filter(|name| !present.gone.contains(*name)).all(|name| voice <= name);
    let (mut later, mut addresses_written) = (None, false);
    if tells {
        let there = observed.get("fqdn_state").unwrap_or(&Value::Null);
        let choice = fqdn::choose(&report.fqdn_state, there, due, differs);
        later = choice.later;
        addresses_written = choice.write;
        if let Some(value) = choice.value {
            status.insert("fqdn_state".to_owned(), value);
        }
    }
    Merge {
        apply: (differs || addresses_written).then_some(Value::Object(status)),
        prune: found.prune,
        later,
        strangers: found.strangers,
    }
}

/// What one firewall says, or all of them together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    state: PolicyState,
    message: String,
    generation: i64,
}

impl Entry {
    /// Whoever wrote it: what is of a wrong type says nothing.
    fn of(value: &Value) -> Self {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        Self {
            state: PolicyState::of_text(text("state")),
            message: cut(text("message"), MAX_MESSAGE),
            generation: value.get("observedGeneration").and_then(Value::as_i64).unwrap_or_default(),
        }
    }

    fn as_json(&self, name: &str) -> Value {
        json!({
            "name": name,
            "state": self.state.text(),
            "message": self.message,
            "observedGeneration": self.generation,
        })
    }
}

/// The entries of an object, by whose they are.
struct Found<'a> {
    own: Option<&'a Value>,
    others: BTreeMap<&'a str, Entry>,
    prune: Option<Value>,
    strangers: BTreeSet<String>,
}

impl<'a> Found<'a> {
    fn of(observed: &'a Value, voice: &str, present: &Present) -> Self {
        let mut found = Self { own: None, others: BTreeMap::new(), prune: None, strangers: BTreeSet::new() };
        let entries = observed.get("firewalls").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut stay = Vec::new();
        for entry in entries {
            let name = entry.get("name").and_then(Value::as_str).unwrap_or_default();
            if name == voice {
                found.own.get_or_insert(entry);
            } else if name.is_empty() || present.gone.contains(name) {
                continue;
            } else {
                found.others.entry(name).or_insert_with(|| Entry::of(entry));
                if !present.names.contains(name) {
                    found.strangers.insert(name.to_owned());
                }
            }
            stay.push(entry.clone());
        }
        if stay.len() < entries.len() {
            found.prune = Some(Value::Array(stay));
        }
        found
    }
}

/// All entries as one, the same in whatever order they are.
fn sum(mut entries: Vec<(&str, &Entry)>) -> Entry {
    entries.sort_by_key(|(name, _)| *name);
    let first = entries.first().map(|(_, entry)| *entry);
    let is_alike = entries.iter().all(|(_, entry)| first.is_some_and(|first| first.message == entry.message));
    let message = if is_alike {
        first.map(|entry| entry.message.clone()).unwrap_or_default()
    } else {
        let said = entries.iter().filter(|(_, entry)| !entry.message.is_empty());
        let said: Vec<String> = said.map(|(name, entry)| format!("{name}: {}", entry.message)).collect();
        cut(&said.join("; "), MAX_MESSAGE)
    };
    Entry {
        state: entries.iter().map(|(_, entry)| entry.state).max().unwrap_or_default(),
        message,
        generation: entries.iter().map(|(_, entry)| entry.generation).min().unwrap_or_default(),
    }
}

/// True when all fields of `wanted` are there. Fields that others put beside them are theirs.
fn says(there: &Value, wanted: &Value) -> bool {
    wanted.as_object().into_iter().flatten().all(|(key, value)| there.get(key) == Some(value))
}

/// The conditions, and whether those that are there say anything else.
fn conditions(whole: &Entry, observed: &Value, now: Timestamp) -> (Value, bool) {
    let (deployed, valid) = match whole.state {
        PolicyState::Deployed => (("True", "Enforced"), ("True", "AllEntriesValid")),
        PolicyState::Invalid => (("True", "PartlyEnforced"), ("False", "InvalidEntries")),
        PolicyState::Pending => (("False", "NotInForceYet"), ("Unknown", "NotInForceYet")),
        PolicyState::Ignored => (("False", "Ignored"), ("False", "Ignored")),
    };
    let there = observed.get("conditions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut differ = false;
    let mut condition = |kind: &str, (status, reason): (&str, &str)| {
        let before =
            there.iter().find(|condition| condition.get("type").and_then(Value::as_str) == Some(kind));
        let mut wanted = json!({
            "type": kind, "status": status, "reason": reason, "message": whole.message,
            "observedGeneration": whole.generation,
        });
        let since = before
            .filter(|before| before.get("status") == wanted.get("status"))
            .and_then(|before| before.get("lastTransitionTime")?.as_str())
            .filter(|since| since.parse::<Timestamp>().is_ok());
        let since = since.map_or_else(|| super::rfc3339(now), str::to_owned);
        wanted["lastTransitionTime"] = Value::String(since);
        differ |= !before.is_some_and(|before| says(before, &wanted));
        wanted
    };
    let conditions = json!([condition("Deployed", deployed), condition("Valid", valid)]);
    (conditions, differ)
}
