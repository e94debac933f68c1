//! What droptailer and the controller say to each other over the controller's control socket; pure.
//!
//! Each line is a request, each answer one line, as `controller/src/control.rs` has it:
//!
//! ```text
//! {"request": "enrich", "packets": [{"action": "drop", "in": "vrf104009", "out": "vlan179", "source": "10.0.16.2",
//!     "destination": "203.0.113.7", "protocol": 6, "ports": [40000, 443]}]}
//! {"result": [{"rule": "count and log dropped packets", "fqdn": "www.example.com", "hint": "egress: …"}]}
//!
//! {"request": "nflog-group"}
//! {"result": 1}
//!
//! {"request": "follow-early-drops"}
//! {"result": null}
//! {"early": {"tsUs": 1592400207000001, "in": "vrf104009", "frame": "020000000001…", "length": 74}}
//! {"lost": 12}
//! ```
//!
//! The last request turns the connection into a stream that ends with either side. The controller waits for no
//! follower: what does not fit into the follower's queue is counted and said in the next `lost`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::record::Action;

/// Packets in one `enrich` request; more are refused.
pub const MOST_PACKETS: usize = 64;

/// A packet that a rule logged, as far as the controller needs it to say why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// What became of it.
    pub action: Action,
    /// Name of the interface it came in by.
    #[serde(rename = "in")]
    pub input: String,
    /// Name of the interface it leaves by; empty for what was dropped before it was routed.
    #[serde(rename = "out", default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, as rules saw it.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source and destination port, where the protocol has ports and they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<(u16, u16)>,
    /// Type and code of ICMP and ICMPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<(u8, u8)>,
}

/// What only the controller knows of a packet. What it does not know is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Enrichment {
    /// Comment of the rule that decided: key `RULE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The policy that decided: key `POLICY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The DNS name last answered for the destination (of a reply or an ingress packet: for the source): key `FQDN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<String>,
    /// The policy entry that would have allowed a dropped packet: key `HINT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A packet that an eBPF program dropped before the rules saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EarlyDrop {
    /// Microseconds since 1970.
    pub ts_us: u64,
    /// Name of the interface it came in by.
    #[serde(rename = "in")]
    pub input: String,
    /// Its first bytes from the Ethernet header on, in hexadecimal.
    pub frame: String,
    /// Its length in bytes.
    pub length: u32,
}

/// A line of the stream of early drops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Followed {
    /// One packet.
    Early(EarlyDrop),
    /// So many packets were sampled and not said here, since the last `lost`.
    Lost(u64),
}
