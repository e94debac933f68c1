//! Text of users in messages: quoted, on one line, shortened.

use serde_json::Value;

/// Characters of a user's text that a message shows.
const SHOWN: usize = 80;

/// The text in quotes, control characters escaped, shortened.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}... ({} bytes)", &text[..end], text.len()),
    }
}

/// A value as a message shows it: scalars as written, lists and maps by their kind.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(_) | Value::Object(_) => kind_of(value).to_owned(),
    }
}

/// What a value is, with its article.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// A user's text used as a name in a path or an identity: no control characters, no spaces, shortened.
pub(crate) fn safe(text: &str) -> String {
    let clean = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    let shortened: String = text.chars().take(SHOWN).map(clean).collect();
    if text.chars().nth(SHOWN).is_some() { shortened + "..." } else { shortened }
}

/// A library's message on one line and not too long.
pub(crate) fn one_line(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    let line: String = words.join(" ").chars().take(400).collect();
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
