//! `status.fqdn_state`: addresses that change by the minute, in an object that everybody watches.

use std::collections::{BTreeMap, BTreeSet};

use fw_crds::FqdnAddresses;
use serde_json::Value;

/// Bytes of the addresses of one policy.
pub const MAX_BYTES: usize = 256 * 1024;

/// How what is there differs from what is learned, from the lesser to the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// Only times differ.
    Times,
    /// Selectors, names or addresses differ.
    Addresses,
}

/// What becomes of the field.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Choice {
    /// Its value in what is applied; `None`: it is not named.
    pub(super) value: Option<Value>,
    /// It is a reason to write.
    pub(super) write: bool,
    /// It differs and may not be written yet.
    pub(super) later: Option<Difference>,
}

/// `due`: the smallest difference that is worth a write now. `anyway`: something else is written, so this comes along.
pub(super) fn choose(
    learned: &BTreeMap<String, Vec<FqdnAddresses>>,
    there: &Value,
    due: Option<Difference>,
    anyway: bool,
) -> Choice {
    if learned.is_empty() && (there.is_null() || there.as_object().is_some_and(serde_json::Map::is_empty)) {
        // Not named: a manager that stops naming it, and no other has it, takes it away.
        return Choice { value: there.is_object().then(|| there.clone()), ..Choice::default() };
    }
    let wanted = bounded(learned);
    // Our own types have text keys only, so they always have a JSON form.
    let value = serde_json::to_value(&wanted).unwrap_or_default();
    let Some(difference) = difference(&wanted, &value, there) else {
        return Choice { value: Some(value), ..Choice::default() };
    };
    let is_due = due.is_some_and(|due| difference >= due);
    if anyway || is_due {
        return Choice { value: Some(value), write: is_due, later: None };
    }
    Choice { value: None, write: false, later: Some(difference) }
}

fn difference(
    wanted: &BTreeMap<String, Vec<FqdnAddresses>>,
    value: &Value,
    there: &Value,
) -> Option<Difference> {
    if value == there {
        return None;
    }
    let known: Result<BTreeMap<String, Vec<FqdnAddresses>>, _> = serde_json::from_value(there.clone());
    let same = known.is_ok_and(|known| shape(&known) == shape(wanted));
    Some(if same { Difference::Times } else { Difference::Addresses })
}

/// Everything but the times.
fn shape(state: &BTreeMap<String, Vec<FqdnAddresses>>) -> BTreeSet<(&str, &str, &str, &str)> {
    let entries =
        state.iter().flat_map(|(selector, entries)| entries.iter().map(move |entry| (selector, entry)));
    entries
        .flat_map(|(selector, entry)| {
            let name = entry.fqdn.as_deref().unwrap_or_default();
            let version = entry.version.as_deref().unwrap_or_default();
            let addresses = entry.ip_expiration_times.iter().flat_map(BTreeMap::keys);
            let addresses = addresses.map(String::as_str).chain([""]);
            addresses.map(move |address| (selector.as_str(), name, version, address))
        })
        .collect()
}

/// As many names as fit; a key without names says how many do not.
#[must_use]
pub fn bounded(learned: &BTreeMap<String, Vec<FqdnAddresses>>) -> BTreeMap<String, Vec<FqdnAddresses>> {
    let mut kept: BTreeMap<String, Vec<FqdnAddresses>> = BTreeMap::new();
    let mut room = MAX_BYTES;
    let mut left_out = 0_usize;
    for (selector, entries) in learned {
        for entry in entries {
            let size = size(selector, entry);
            if size > room {
                left_out += 1;
                continue;
            }
            room -= size;
            kept.entry(selector.clone()).or_default().push(entry.clone());
        }
    }
    if left_out > 0 {
        kept.insert(format!("({left_out} more entries do not fit)"), Vec::new());
    }
    kept
}

/// Bytes of an entry in JSON, with all that is around it.
fn size(selector: &str, entry: &FqdnAddresses) -> usize {
    let list = entry.ips.iter().flatten().map(|ip| ip.len() + 3);
    let times = entry.ip_expiration_times.iter().flatten().map(|(ip, until)| ip.len() + until.len() + 6);
    let texts = [&entry.fqdn, &entry.set_name, &entry.version, &entry.expiration_time];
    let texts = texts.into_iter().flatten().map(String::len);
    selector.len() + 120 + list.chain(times).chain(texts).sum::<usize>()
}
