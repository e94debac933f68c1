//! A logged packet as a record and as a line; pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::header::Header;
use crate::line::line;
use crate::timestamp::go_utc;

/// What became of a logged packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// `ACTION` is `drop`.
    Drop,
    /// `ACTION` is `accept`.
    Accept,
}

impl Action {
    /// What a rule's log prefix says: `nftables-firewall-dropped: `, `nftables-metal-dropped: ` or
    /// `nftables-firewall-accepted: `. `None` for the prefixes of others.
    pub fn of_prefix(prefix: &str) -> Option<Self> {
        let word = prefix.trim_end().strip_suffix(':')?;
        match word.rsplit('-').next()? {
            "dropped" => Some(Self::Drop),
            "accepted" => Some(Self::Accept),
            _ => None,
        }
    }

    /// Value of the key `ACTION`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Accept => "accept",
        }
    }
}

/// A packet as a rule logged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged<'a> {
    /// What became of it.
    pub action: Action,
    /// Seconds and microseconds since 1970.
    pub time: (u64, u32),
    /// Name of the interface it came in by; empty where there is none.
    pub input: &'a str,
    /// Name of the interface it leaves by; empty where there is none.
    pub output: &'a str,
    /// Link-layer header; empty where there is none.
    pub link_header: &'a [u8],
    /// Packet mark.
    pub mark: u32,
    /// From the IP header on, cut to any length.
    pub packet: &'a [u8],
}

/// A logged packet, ready to be printed or sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropRecord {
    /// What became of it.
    pub action: Action,
    /// Seconds and microseconds since 1970.
    pub time: (u64, u32),
    /// Typed values of the headers, and their keys.
    pub header: Header,
    link: BTreeMap<String, String>,
    extra: BTreeMap<String, String>,
}

/// Keys that [`DropRecord`] itself sets beside those of the header.
const OWN_KEYS: [&str; 6] = ["ACTION", "IN", "MAC", "OUT", "TS_US", "timestamp"];

/// Length of an Ethernet header without tags.
const ETHERNET: usize = 14;
const TAG: usize = 4;
/// 802.1Q, 802.1ad (QinQ).
const TAGS: [u16; 2] = [0x8100, 0x88a8];

impl DropRecord {
    /// Reads a logged packet. Never fails: whatever the packet is, what can be read is there.
    pub fn new(logged: &Logged<'_>) -> Self {
        let mac: Vec<String> = logged.link_header.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut link = BTreeMap::from([
            ("IN".to_owned(), logged.input.to_owned()),
            ("OUT".to_owned(), logged.output.to_owned()),
        ]);
        if logged.mark != 0 {
            link.insert("MARK".to_owned(), format!("{:#x}", logged.mark));
        }
        // The kernel prints MAC for what came in by an interface only.
        if !logged.input.is_empty() {
            link.insert("MAC".to_owned(), mac.join(":"));
        }
        Self {
            action: logged.action,
            time: logged.time,
            header: Header::read(logged.packet),
            link,
            extra: BTreeMap::new(),
        }
    }

    /// A packet that was dropped before the rules saw it: `frame` is its first bytes, `time` seconds and microseconds
    /// since 1970, `input` the interface. Says so by the key `WHERE`, which the kernel's lines do not have. `None`: no
    /// Ethernet frame, or one with more than two tags.
    pub fn early(frame: &[u8], time: (u64, u32), input: &str) -> Option<Self> {
        let mut record = Self::new(&Logged {
            action: Action::Drop,
            time,
            input,
            output: "",
            link_header: frame.get(..ETHERNET)?,
            mark: 0,
            packet: frame.get(network_header(frame)?..)?,
        });
        record.add("WHERE", "early");
        Some(record)
    }

    /// Adds a key such as POLICY or HINT; false, and nothing happens, when it is one of the kernel's or ours.
    pub fn add(&mut self, key: &str, value: &str) -> bool {
        let free = !OWN_KEYS.contains(&key) && !is_kernel_key(key) && !self.header.fields.contains_key(key);
        if free {
            self.extra.insert(key.to_owned(), value.to_owned());
        }
        free
    }

    /// Names of the interfaces it came in by and leaves by; empty where there is none.
    pub fn interfaces(&self) -> (&str, &str) {
        let name = |key: &str| self.link.get(key).map_or("", String::as_str);
        (name("IN"), name("OUT"))
    }

    /// All keys and values, sorted. `timestamp` has seconds, `TS_US` microseconds since 1970.
    pub fn fields(&self) -> BTreeMap<&str, String> {
        let (seconds, microseconds) = self.time;
        let stored = [&self.extra, &self.header.fields, &self.link];
        let mut fields: BTreeMap<&str, String> =
            stored.into_iter().flatten().map(|(key, value)| (key.as_str(), value.clone())).collect();
        fields.insert("ACTION", self.action.name().to_owned());
        fields.insert("TS_US", (u128::from(seconds) * 1_000_000 + u128::from(microseconds)).to_string());
        fields.insert("timestamp", go_utc(seconds));
        fields
    }

    /// The line that `stern -n firewall drop` and log pipelines know, without line feed:
    /// `2020-06-17 13:23:27 +0000 UTC {"ACTION":"drop","DPT":"4000",…,"timestamp":"2020-06-17 13:23:27 +0000 UTC"}`.
    pub fn line(&self) -> String {
        let fields = self.fields();
        line(self.time.0, fields.iter().map(|(key, value)| (*key, value.as_str())))
    }
}

/// Where what an Ethernet frame carries begins, behind up to two tags.
fn network_header(frame: &[u8]) -> Option<usize> {
    let mut at = ETHERNET - 2;
    for _ in 0..3 {
        let kind = u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?);
        if !TAGS.contains(&kind) {
            return Some(at + 2);
        }
        at += TAG;
    }
    None
}

/// Keys of the kernel's LOG line, also those that this packet happens not to have.
fn is_kernel_key(key: &str) -> bool {
    const KEYS: [&str; 46] = [
        "ACK",
        "CE",
        "CODE",
        "CWR",
        "DF",
        "DPT",
        "DST",
        "ECE",
        "FIN",
        "FLOWLBL",
        "GATEWAY",
        "GID",
        "HOPLIMIT",
        "ID",
        "INCOMPLETE",
        "LEN",
        "MARK",
        "MF",
        "MTU",
        "OPT",
        "PARAMETER",
        "POINTER",
        "PREC",
        "PROTO",
        "PSH",
        "RES",
        "RST",
        "SEQ",
        "SPI",
        "SPT",
        "SRC",
        "SYN",
        "TC",
        "TOS",
        "TRUNCATED",
        "TTL",
        "TYPE",
        "UID",
        "URG",
        "URGP",
        "WINDOW",
        "PHYSIN",
        "PHYSOUT",
        "MACSRC",
        "MACDST",
        "MACPROTO",
    ];
    KEYS.contains(&key) || key.starts_with("FRAG:") || key.starts_with("ID:")
}

#[cfg(test)]
mod tests;
