//! What was learned, as lines that survive a restart.
//!
//! ```text
//! 1 8f3a10c2 ASKED HANDED UNTIL 192.0.2.1 www.example\n
//! ```
//! Format, CRC-32 of all that follows, three times in nanoseconds, address, name. Lines are appended; a later one about
//! the same name and address replaces an earlier one. What a crash has torn, or a disk has changed, is left out and
//! counted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::name::Name;

/// First word of a line.
const FORMAT: &str = "1";
/// Octets of a line that is worth a look: a name with every octet escaped, and the rest.
const MAX_LINE: usize = 1_280;

/// A name leads to an address. Times are in the clock of the caller, nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// A name that a selector matched when it was learned.
    pub name: Name,
    /// The address.
    pub address: IpAddr,
    /// When a client last asked for it.
    pub asked: u64,
    /// When the last TTL that was handed out is over.
    pub handed: u64,
    /// When it is forgotten.
    pub until: u64,
}

/// What a journal says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Decoded {
    /// By name and address, the last line about each.
    pub facts: Vec<Fact>,
    /// Lines that could not be read.
    pub broken: u64,
    /// Lines that a later one replaces: when they are many, the journal is worth writing anew.
    pub replaced: u64,
}

/// One line with its end.
pub fn encode(fact: &Fact) -> String {
    let Fact { name, address, asked, handed, until } = fact;
    let body = format!("{asked} {handed} {until} {address} {name}");
    format!("{FORMAT} {:08x} {body}\n", crc32(body.as_bytes()))
}

/// Reads lines as far as they can be read.
pub fn decode(lines: &[u8]) -> Decoded {
    let mut result = Decoded::default();
    let mut facts: BTreeMap<(Name, IpAddr), Fact> = BTreeMap::new();
    let mut rest = lines;
    while !rest.is_empty() {
        let end = rest.iter().position(|octet| *octet == b'\n');
        let (line, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
        rest = after;
        match end.and_then(|end| line.get(..end)).and_then(decode_line) {
            Some(fact) => {
                let known = facts.insert((fact.name.clone(), fact.address), fact);
                result.replaced += u64::from(known.is_some());
            }
            None => result.broken += 1,
        }
    }
    result.facts = facts.into_values().collect();
    result
}

fn decode_line(line: &[u8]) -> Option<Fact> {
    if line.len() > MAX_LINE {
        return None;
    }
    let line = std::str::from_utf8(line).ok()?.strip_prefix(FORMAT)?.strip_prefix(' ')?;
    let (sum, body) = line.split_once(' ')?;
    if sum.len() != 8 || u32::from_str_radix(sum, 16).ok()? != crc32(body.as_bytes()) {
        return None;
    }
    let mut words = body.split(' ');
    let mut word = || words.next();
    let fact = Fact {
        asked: word()?.parse().ok()?,
        handed: word()?.parse().ok()?,
        until: word()?.parse().ok()?,
        address: word()?.parse().ok()?,
        name: Name::from_text(word()?).ok()?,
    };
    words.next().is_none().then_some(fact)
}

/// CRC-32 of IEEE 802.3, bit by bit: a line takes a microsecond.
fn crc32(octets: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for octet in octets {
        sum ^= u32::from(*octet);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    !sum
}
