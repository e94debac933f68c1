//! The line that `stern -n firewall drop` and log pipelines know; pure.

use std::fmt::Write;

use crate::timestamp::go_utc;

/// Seconds of the last second of the year 9999: later ones have no compatible form.
const LAST_SECOND: u64 = 253_402_300_799;

/// Key of the time of a record.
const TIMESTAMP: &str = "timestamp";

/// Seconds since 1970 of a time that a line can show; `None` for times before 1970 and after 9999.
pub fn seconds(timestamp: &prost_types::Timestamp) -> Option<u64> {
    u64::try_from(timestamp.seconds).ok().filter(|seconds| *seconds <= LAST_SECOND)
}

/// The line of a record, without line feed:
/// `2020-06-17 13:23:27 +0000 UTC {"ACTION":"drop","DPT":"4000",…,"timestamp":"2020-06-17 13:23:27 +0000 UTC"}`.
///
/// `fields` come sorted; one of the name `timestamp` is replaced. Whatever bytes are in them, it is one line of JSON that
/// moves no terminal's cursor: what controls terminals or the direction of writing is escaped.
pub fn line<'a>(time: u64, fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let time = go_utc(time.min(LAST_SECOND));
    let mut line = format!("{time} {{");
    let mut timestamp = Some(time.as_str());
    for (key, value) in fields {
        if key == TIMESTAMP {
            continue;
        }
        // Sorted as all the others are.
        if key > TIMESTAMP
            && let Some(time) = timestamp.take()
        {
            member(&mut line, TIMESTAMP, time);
        }
        member(&mut line, key, value);
    }
    if let Some(time) = timestamp {
        member(&mut line, TIMESTAMP, time);
    }
    line.push('}');
    line
}

fn member(line: &mut String, key: &str, value: &str) {
    if !line.ends_with('{') {
        line.push(',');
    }
    string(line, key);
    line.push(':');
    string(line, value);
}

fn string(line: &mut String, text: &str) {
    line.push('"');
    for character in text.chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            _ if is_unsafe(character) => {
                // All of them have at most four hexadecimal digits. Writing to a string does not fail.
                let _ = write!(line, "\\u{:04x}", u32::from(character));
            }
            _ => line.push(character),
        }
    }
    line.push('"');
}

/// C0 and C1 controls, line and paragraph separators, and what turns the direction of writing (Unicode TR 36, 3.2).
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests;
