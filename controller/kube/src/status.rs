//! What statuses are to say, from the report and from the objects as they are. Pure: time comes as an argument.
//!
//! Everything is level-triggered. [`policy::merge`] and [`firewall::wanted`] give what is to be written, or nothing where
//! the object says it already; so a lost write, another writer or a restored backup heals by itself, and our own write
//! coming back through the watch is no reason for another one.

pub mod firewall;
pub mod fqdn;
pub mod policy;
pub mod voice;

use k8s_openapi::jiff::Timestamp;

/// Bytes of a message. One object must not fill the API server's store, nor a terminal.
pub const MAX_MESSAGE: usize = 2048;

/// A text of at most `limit` bytes.
#[must_use]
pub(crate) fn cut(text: &str, limit: usize) -> String {
    const MORE: &str = " ...";
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit.saturating_sub(MORE.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MORE}", text.get(..end).unwrap_or_default())
}

/// This moment as `metav1.Time` prints it: `2026-08-17T13:23:27Z`.
#[must_use]
pub(crate) fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
