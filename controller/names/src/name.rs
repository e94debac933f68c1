//! DNS names in the one form in which they are compared, shown and kept.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Octets of the longest name on the wire, length octets and root included (RFC 1035 section 2.3.4).
const MAX_WIRE: usize = 255;
/// Octets of the longest label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// A DNS name: lower case, no trailing dot, labels joined by dots; `.` is the root.
///
/// Octets other than `[-a-z0-9_]` stand as `\DDD` (decimal, RFC 1035 section 5.1), also dots and backslashes inside a
/// label, so that two names are the same exactly if their texts are. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why something is no DNS name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum NameError {
    /// Nothing at all; the root is written `.`.
    #[error("it is empty")]
    Empty,
    /// Two dots in a row, or one at the start.
    #[error("it has an empty label")]
    EmptyLabel,
    /// More than 63 octets.
    #[error("a label is longer than 63 octets")]
    LongLabel,
    /// More than 255 octets on the wire, which is 253 characters.
    #[error("it is longer than 253 characters")]
    Long,
    /// Space, control character, or a backslash without three digits up to 255.
    #[error("it has a character or escape that no name has")]
    Character,
    /// Not a valid internationalised name (UTS 46).
    #[error("it is no internationalised domain name")]
    Idna,
    /// The octets end too soon, or have a compression pointer.
    #[error("its octets are not a name")]
    Wire,
}

impl Name {
    /// Reads what a human wrote: any case, trailing dot or not, Unicode (becomes A-labels, UTS 46), `\DDD`.
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        let text = if text.is_ascii() { Cow::Borrowed(text) } else { ascii(text)? };
        if text == "." {
            return Ok(Self(Arc::from(".")));
        }
        let body = text.strip_suffix('.').unwrap_or(&text);
        if body.is_empty() {
            return Err(NameError::Empty);
        }
        let mut builder = Builder::default();
        for label in body.split('.') {
            builder.label(unescaped(label))?;
        }
        Ok(builder.finish())
    }

    /// Reads a name in wire format without compression; octets after the root label are an error.
    pub fn from_wire(octets: &[u8]) -> Result<Self, NameError> {
        let mut builder = Builder::default();
        let mut rest = octets;
        loop {
            let (&length, after) = rest.split_first().ok_or(NameError::Wire)?;
            if length == 0 {
                return if after.is_empty() { Ok(builder.finish()) } else { Err(NameError::Wire) };
            }
            if usize::from(length) > MAX_LABEL || usize::from(length) > after.len() {
                return Err(NameError::Wire);
            }
            let (label, after) = after.split_at(usize::from(length));
            builder.label(label.iter().map(|octet| Ok(*octet)))?;
            rest = after;
        }
    }

    /// Joins labels of arbitrary octets; none make the root.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut builder = Builder::default();
        for label in labels {
            builder.label(label.iter().map(|octet| Ok(*octet)))?;
        }
        Ok(builder.finish())
    }

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Wire format, lower case, without compression.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut octets = Vec::with_capacity(self.0.len() + 2);
        let labels = if self.is_root() { "" } else { self.as_str() };
        for label in labels.split('.').filter(|label| !label.is_empty()) {
            let at = octets.len();
            octets.push(0);
            octets.extend(unescaped(label).flatten());
            octets[at] = u8::try_from(octets.len() - at - 1).unwrap_or(0);
        }
        octets.push(0);
        octets
    }

    /// True for `.`.
    pub fn is_root(&self) -> bool {
        self.as_str() == "."
    }

    /// True when it has octets other than letters, digits, hyphens and underscores; no pattern matches such a name.
    pub fn is_escaped(&self) -> bool {
        self.0.contains('\\')
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A-labels of a name with letters beyond ASCII. What is ASCII in it is judged by the caller: underscores are names too.
fn ascii(text: &str) -> Result<Cow<'_, str>, NameError> {
    use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
    Uts46::new()
        .to_ascii(text.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore)
        .map_err(|_| NameError::Idna)
}

/// Octets of a label as written.
fn unescaped(label: &str) -> impl Iterator<Item = Result<u8, NameError>> + '_ {
    let mut octets = label.bytes();
    std::iter::from_fn(move || {
        let octet = octets.next()?;
        if octet != b'\\' {
            return Some(if octet.is_ascii_graphic() { Ok(octet) } else { Err(NameError::Character) });
        }
        let mut value = 0_u16;
        for _ in 0..3 {
            let Some(digit) = octets.next().filter(u8::is_ascii_digit) else {
                return Some(Err(NameError::Character));
            };
            value = value * 10 + u16::from(digit - b'0');
        }
        Some(u8::try_from(value).map_err(|_| NameError::Character))
    })
}

#[derive(Default)]
struct Builder {
    text: String,
    /// Without the root's octet.
    wire: usize,
}

impl Builder {
    fn label(&mut self, octets: impl Iterator<Item = Result<u8, NameError>>) -> Result<(), NameError> {
        if !self.text.is_empty() {
            self.text.push('.');
        }
        let mut length = 0;
        for octet in octets {
            self.octet(octet?.to_ascii_lowercase());
            length += 1;
            if length > MAX_LABEL {
                return Err(NameError::LongLabel);
            }
        }
        if length == 0 {
            return Err(NameError::EmptyLabel);
        }
        self.wire += 1 + length;
        if self.wire + 1 > MAX_WIRE { Err(NameError::Long) } else { Ok(()) }
    }

    fn octet(&mut self, octet: u8) {
        if octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-' || octet == b'_' {
            self.text.push(char::from(octet));
            return;
        }
        self.text.push('\\');
        for digit in [octet / 100, octet / 10 % 10, octet % 10] {
            self.text.push(char::from(b'0' + digit));
        }
    }

    fn finish(self) -> Name {
        Name(if self.text.is_empty() { Arc::from(".") } else { Arc::from(self.text) })
    }
}
