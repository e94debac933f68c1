//! JSON as `kubectl describe` prints it: `Last Run:  2026-08-17T13:23:27Z`, nested things indented.

use serde_json::Value;

/// Prints an object.
pub fn describe(value: &Value) -> String {
    let mut text = String::new();
    write_object(&mut text, value, 0);
    text
}

fn write_object(text: &mut String, value: &Value, indent: usize) {
    let Value::Object(map) = value else { return };
    let width = map
        .iter()
        .filter(|(_, value)| is_scalar(value))
        .map(|(key, _)| label(key).len())
        .max()
        .unwrap_or_default();
    for (key, value) in map {
        let label = label(key);
        let pad = " ".repeat(indent);
        match value {
            Value::Object(_) => {
                text.push_str(&format!("{pad}{label}:\n"));
                write_object(text, value, indent + 2);
            }
            Value::Array(entries) => {
                text.push_str(&format!("{pad}{label}:\n"));
                for entry in entries {
                    text.push_str(&format!("{pad}  {}\n", scalar(entry)));
                }
            }
            _ => text.push_str(&format!(
                "{pad}{label}:{}{}\n",
                " ".repeat(width - label.len() + 2),
                scalar(value)
            )),
        }
    }
}

fn is_scalar(value: &Value) -> bool {
    !matches!(value, Value::Object(_) | Value::Array(_))
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `lastRun` is shown as `Last Run`; names that people gave (they have spaces, dashes, slashes) and those of eBPF maps
/// (all capitals) are shown as they are.
fn label(key: &str) -> String {
    let is_given = !key.chars().all(|c| c.is_ascii_alphanumeric());
    if is_given || !key.contains(|c: char| c.is_ascii_lowercase()) {
        return key.to_owned();
    }
    let mut label = String::new();
    for (index, c) in key.chars().enumerate() {
        if index == 0 {
            label.push(c.to_ascii_uppercase());
        } else {
            if c.is_ascii_uppercase() {
                label.push(' ');
            }
            label.push(c);
        }
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_print_as_kubectl_describe_prints_them() {
        let value = serde_json::json!({
            "lastRun": "now",
            "stats": {"rules": {"accept": {"accept traffic for np web tcp": {"counter": {"bytes": 1, "packets": 2}}}}},
            "ALLOW4": 7,
            "x": ["one", "two"]
        });
        assert_eq!(
            describe(&value),
            "ALLOW4:    7\nLast Run:  now\nStats:\n  Rules:\n    Accept:\n      accept traffic for np web tcp:\n        \
             Counter:\n          Bytes:    1\n          Packets:  2\nX:\n  one\n  two\n"
        );
    }
}
