//! What an API server does with a policy's status: server-side apply with owners, as the CRD's schema has it merged.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// Lists of the schema that are merged by an entry's key; all else is taken whole.
const LISTS: [(&str, &str); 2] = [("conditions", "type"), ("firewalls", "name")];

/// Between list, entry and field.
const MARK: char = '\u{1}';

#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    /// By field, or by list, entry and field of the entry.
    values: BTreeMap<String, Value>,
    owners: BTreeMap<String, BTreeSet<String>>,
}

impl Server {
    /// What somebody put there by another way. The API server would refuse what is not of the schema; here entries without
    /// a key, and lists that are none, are left out.
    pub(super) fn holding(status: &Value) -> Self {
        let mut server = Self::default();
        server.apply("somebody", status);
        server
    }

    pub(super) fn status(&self) -> Value {
        let mut status = json!({});
        for (path, value) in &self.values {
            match *path.split(MARK).collect::<Vec<_>>() {
                [list, entry, field] => {
                    let key = LISTS.iter().find(|(name, _)| *name == list).unwrap().1;
                    let entries = status.as_object_mut().unwrap().entry(list).or_insert(json!([]));
                    let entries = entries.as_array_mut().unwrap();
                    let at = entries.iter().position(|it| it[key] == entry).unwrap_or_else(|| {
                        entries.push(json!({key: entry}));
                        entries.len() - 1
                    });
                    entries[at][field] = value.clone();
                }
                _ => status[path] = value.clone(),
            }
        }
        status
    }

    pub(super) fn apply(&mut self, manager: &str, body: &Value) {
        let wanted = flatten(body);
        for (path, value) in &wanted {
            let owners = self.owners.entry(path.clone()).or_default();
            if self.values.get(path) != Some(value) {
                owners.clear();
                self.values.insert(path.clone(), value.clone());
            }
            owners.insert(manager.to_owned());
        }
        let values = &mut self.values;
        self.owners.retain(|path, owners| {
            let gives_up = !wanted.contains_key(path) && owners.remove(manager) && owners.is_empty();
            if gives_up {
                values.remove(path);
            }
            !gives_up
        });
    }

    /// A merge patch of one list: nobody's ownership of what stays changes.
    pub(super) fn replace_firewalls(&mut self, list: &Value) {
        let wanted = flatten(&json!({"firewalls": list}));
        let of_list = format!("firewalls{MARK}");
        let goes = |path: &String| path.starts_with(&of_list) && !wanted.contains_key(path);
        self.values.retain(|path, _| !goes(path));
        self.owners.retain(|path, _| !goes(path));
    }
}

fn flatten(body: &Value) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for (field, value) in body.as_object().into_iter().flatten() {
        let Some((_, key)) = LISTS.iter().find(|(list, _)| list == field) else {
            flat.insert(field.clone(), value.clone());
            continue;
        };
        for entry in value.as_array().into_iter().flatten() {
            let Some(name) = entry.get(key).and_then(Value::as_str) else { continue };
            for (inner, value) in entry.as_object().into_iter().flatten() {
                flat.entry(format!("{field}{MARK}{name}{MARK}{inner}")).or_insert_with(|| value.clone());
            }
        }
    }
    flat
}
