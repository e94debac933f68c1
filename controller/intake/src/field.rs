//! A JSON tree read field by field: every wrong type becomes a finding with its path, and costs that field only.

use serde_json::Value;

use crate::finding::Reason;
use crate::report::Report;
use crate::text::{kind_of, safe, shown};

/// A value somewhere in an object, and its path. A written `null` is missing, as for the API server, which drops it.
#[derive(Clone, Debug)]
pub(crate) struct Field<'v> {
    value: Option<&'v Value>,
    /// Path from the object's root, such as `spec.egress[0].to[1].cidr`.
    pub(crate) path: String,
}

/// A list as it was written.
pub(crate) struct List<'v> {
    /// Missing, `null` or empty as written, and not a wrong type. Only this may mean "all".
    pub(crate) empty: bool,
    /// All that was written is in `entries`: right type, not cut.
    pub(crate) whole: bool,
    /// The entries with their paths; index and entry. Cut at the bound.
    pub(crate) entries: Vec<(usize, Field<'v>)>,
}

/// What reading a scalar gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read<T> {
    /// Missing or `null`.
    Missing,
    /// There, but unusable; a finding says why.
    Invalid,
    /// Usable.
    Valid(T),
}

impl<T> Read<T> {
    /// The value, if there is a usable one.
    pub(crate) fn valid(self) -> Option<T> {
        match self {
            Self::Valid(value) => Some(value),
            Self::Missing | Self::Invalid => None,
        }
    }
}

impl<'v> Field<'v> {
    /// The top-level field `key` of an object.
    pub(crate) fn root(body: &'v Value, key: &str) -> Self {
        Self { value: body.get(key).filter(|value| !value.is_null()), path: key.to_owned() }
    }

    /// The field `key` of this one; missing where this is missing or not a map.
    pub(crate) fn get(&self, key: &str) -> Self {
        let value = self.value.and_then(|value| value.get(key)).filter(|value| !value.is_null());
        Self { value, path: format!("{}.{key}", self.path) }
    }

    /// True when the key is written, whatever its value, `null` too.
    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.value.and_then(Value::as_object).is_some_and(|map| map.contains_key(key))
    }

    pub(crate) fn is_missing(&self) -> bool {
        self.value.is_none()
    }

    /// Checks that this is a map, or missing. The bool tells a map that is usable.
    pub(crate) fn map(&self, report: &mut Report) -> bool {
        match self.value {
            None => false,
            Some(Value::Object(_)) => true,
            Some(other) => {
                wrong_type(report, &self.path, "a map", other, IGNORED);
                false
            }
        }
    }

    /// Keys that are not in `known`, as paths.
    pub(crate) fn unknown_keys(&self, known: &[&str]) -> Vec<String> {
        let keys = self.value.and_then(Value::as_object).into_iter().flat_map(|map| map.keys());
        keys.filter(|key| !known.contains(&key.as_str()))
            .map(|key| format!("{}.{}", self.path, safe(key)))
            .collect()
    }

    /// Refuses a map that has keys nobody knows: a mistyped `from` is a missing `from`, and that would be everyone.
    /// True when there is one; the finding names the `effect`.
    ///
    /// The API server drops such keys before we see them (kubectl refuses them first); files have only us.
    pub(crate) fn refuse_unknown(&self, known: &[&str], effect: &str, report: &mut Report) -> bool {
        let unknown = self.unknown_keys(known);
        for path in &unknown {
            report.error(
                path,
                Reason::UnknownField,
                format_args!("is not a field that exists here; {effect}"),
                format_args!("the fields here are {}", known.join(", ")),
            );
        }
        !unknown.is_empty()
    }

    /// The entries of a list, at most `max`. A wrong type gives no entries and is not "empty".
    pub(crate) fn list(&self, max: usize, report: &mut Report) -> List<'v> {
        let items = match self.value {
            None => return List { empty: true, whole: true, entries: Vec::new() },
            Some(Value::Array(items)) => items,
            Some(other) => {
                wrong_type(report, &self.path, "a list", other, IGNORED);
                return List { empty: false, whole: false, entries: Vec::new() };
            }
        };
        if items.len() > max {
            report.error(
                &self.path,
                Reason::TooMany,
                format_args!("the list has {} entries; those after the first {max} are ignored", items.len()),
                "split it over several objects or use larger prefixes",
            );
        }
        let entry =
            |(index, value)| (index, Field { value: Some(value), path: format!("{}[{index}]", self.path) });
        List {
            empty: items.is_empty(),
            whole: items.len() <= max,
            entries: items.iter().take(max).enumerate().map(entry).collect(),
        }
    }

    /// A text.
    pub(crate) fn text(&self, report: &mut Report) -> Read<&'v str> {
        self.scalar("a text", Value::as_str, report)
    }

    /// A text; the finding about anything else says what becomes of it.
    pub(crate) fn text_or(&self, effect: &str, report: &mut Report) -> Read<&'v str> {
        self.scalar_or("a text", Value::as_str, effect, report)
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self, report: &mut Report) -> Read<bool> {
        self.scalar("true or false", Value::as_bool, report)
    }

    /// The value as it is.
    pub(crate) fn raw(&self) -> Option<&'v Value> {
        self.value
    }

    /// A whole number. Digits in quotes count: the Go types took "443" for the number.
    pub(crate) fn integer(&self, report: &mut Report) -> Read<i64> {
        self.scalar("a whole number", integer, report)
    }

    fn scalar<T>(&self, wanted: &str, read: impl Fn(&'v Value) -> Option<T>, report: &mut Report) -> Read<T> {
        self.scalar_or(wanted, read, IGNORED, report)
    }

    fn scalar_or<T>(
        &self,
        wanted: &str,
        read: impl Fn(&'v Value) -> Option<T>,
        effect: &str,
        report: &mut Report,
    ) -> Read<T> {
        let Some(value) = self.value else { return Read::Missing };
        match read(value) {
            Some(value) => Read::Valid(value),
            None => {
                wrong_type(report, &self.path, wanted, value, effect);
                Read::Invalid
            }
        }
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) if text.len() <= 18 && text.bytes().all(|b| b.is_ascii_digit()) => {
            text.parse().ok()
        }
        other => other.as_i64(),
    }
}

const IGNORED: &str = "it counts for nothing";

fn wrong_type(report: &mut Report, path: &str, wanted: &str, value: &Value, effect: &str) {
    let is = match value {
        Value::Null => "empty".to_owned(),
        Value::Array(_) | Value::Object(_) => kind_of(value).to_owned(),
        scalar => format!("{}, {}", shown(scalar), kind_of(scalar)),
    };
    report.error(
        path,
        Reason::InvalidType,
        format_args!("must be {wanted} and is {is}; {effect}"),
        format_args!("write {wanted}"),
    );
}
