//! A typed, ordered subset of nft: what our one table `inet firewall` can hold.
//!
//! The terms are nft's. Each statement's documentation shows the nft text it stands for. Rules never hold text
//! that a user wrote, except comments, which are data in the kernel and quoted in text.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_policy::{ConntrackState, IfName, Origin, Protocol};

/// Name of our table (family inet).
pub const TABLE: &str = "firewall";

/// The contents of `table inet firewall`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// Named counters.
    pub counters: BTreeMap<String, NamedCounter>,
    /// Conntrack timeout policies.
    pub timeouts: BTreeMap<String, CtTimeout>,
    /// Sets and verdict maps.
    pub sets: BTreeMap<String, Set>,
    /// Chains.
    pub chains: BTreeMap<String, Chain>,
}

/// A named counter object; its figures live in the kernel only.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NamedCounter {}

/// `ct timeout NAME { protocol udp; policy = { unreplied : 3, replied : 3 } }`: how long a UDP entry of conntrack lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtTimeout {
    /// Seconds without a packet, before and after the first reply.
    pub seconds: u32,
}

/// A named set or verdict map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Type of the key: one field, or several concatenated.
    pub key: Vec<Field>,
    /// How elements are matched.
    pub kind: SetKind,
    /// The elements. In a verdict map every element has a verdict, in a set none has. Always empty for
    /// [`SetKind::Dynamic`] and [`SetKind::Learned`], whose elements come and go by themselves.
    pub elements: BTreeMap<Key, Option<Verdict>>,
    /// True for a map: of marks where the kind is [`SetKind::Learned`], else of verdicts.
    pub map: bool,
    /// Whom it belongs to, when it is one object's.
    pub origin: Option<Origin>,
}

/// How a set matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// Exact keys, any number of fields (kernel: hash).
    Exact,
    /// Disjoint ranges of ONE field (kernel: rbtree); keys are [`Key::Range`].
    Interval,
    /// Filled by rules with `update`; `flags dynamic,timeout`.
    Dynamic {
        /// Elements at most; past it an update does nothing.
        size: u32,
        /// Lifetime of an element in milliseconds.
        timeout_ms: u64,
    },
    /// Exact keys with timeouts of their own, put there by user space outside of plans: `flags timeout`.
    Learned {
        /// Elements at most; the kernel refuses more (ENFILE).
        size: u32,
    },
    /// Disjoint boxes of several fields, put there by user space outside of plans: `flags interval` on a
    /// concatenation (kernel: pipapo). Keys are [`Key::Box`].
    LearnedBoxes {
        /// Elements at most.
        size: u32,
    },
}

/// Type of one field of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// `ipv4_addr`
    Ipv4,
    /// `ipv6_addr`
    Ipv6,
    /// `inet_proto`
    Protocol,
    /// `inet_service`
    Port,
    /// `ifname`
    IfName,
    /// `mark`
    Mark,
}

/// Value of one field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// IPv4 address.
    Ipv4(Ipv4Addr),
    /// IPv6 address.
    Ipv6(Ipv6Addr),
    /// IP protocol number.
    Protocol(u8),
    /// TCP or UDP port.
    Port(u16),
    /// Interface name.
    IfName(IfName),
    /// ICMP or ICMPv6 type.
    IcmpType(u8),
    /// Packet mark.
    Mark(u32),
}

/// Key of an element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// One value per field.
    Exact(Vec<Value>),
    /// First and last value, both included, of the one field of an interval set.
    Range(Value, Value),
    /// First and last values of each field, both included, of a [`SetKind::LearnedBoxes`].
    Box(Vec<Value>, Vec<Value>),
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// `accept`
    Accept,
    /// `drop`
    Drop,
    /// `return`
    Return,
    /// `jump CHAIN`: comes back when the chain ends or returns.
    Jump(String),
    /// `goto CHAIN`: comes back to where the chain that said it was jumped from.
    Goto(String),
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Chain {
    /// Set for base chains. Never changes for a name; a changed one makes [`crate::plan`] replace the table.
    pub hook: Option<Hook>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
    /// Whom it belongs to, for errors and the legend.
    pub origin: Option<Origin>,
}

/// Where a base chain hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `type filter` or `type nat`.
    pub kind: ChainKind,
    /// The netfilter hook.
    pub point: HookPoint,
    /// Priority; lower runs first.
    pub priority: i32,
    /// True: `policy drop`, false: `policy accept`.
    pub policy_drop: bool,
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// `type filter`
    Filter,
    /// `type nat`
    Nat,
}

/// Netfilter hooks in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    /// NF_INET_PRE_ROUTING
    Prerouting,
    /// NF_INET_LOCAL_IN
    Input,
    /// NF_INET_FORWARD
    Forward,
    /// NF_INET_POST_ROUTING
    Postrouting,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// Matches and effects, left to right; a match that fails ends the rule.
    pub body: Vec<Statement>,
    /// `comment "…"`, at most 128 bytes (NFTNL_UDATA_COMMENT_MAXLEN); the key in status, metrics and dashboards.
    pub comment: Option<String>,
}

/// Source or destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// `saddr`, `sport`
    Source,
    /// `daddr`, `dport`
    Destination,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Bits of an address: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// What is read from a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// `iifname`
    InputInterface,
    /// `oifname`
    OutputInterface,
    /// `meta l4proto`
    L4Protocol,
    /// `ip saddr`, `ip6 daddr & MASK`, …; implies a match on the family.
    Address {
        /// Which address.
        side: Side,
        /// Which family; packets of the other do not match.
        family: Family,
        /// Leading bits kept, the others are cleared; all bits = no mask is applied.
        prefix: u8,
    },
    /// `tcp dport` (with a protocol: implies a match on it) or `th dport` (without).
    Port {
        /// Which port.
        side: Side,
        /// The protocol; `None` only in concatenations that hold [`Selector::L4Protocol`] too, or after a match on it.
        protocol: Option<Protocol>,
    },
    /// `icmp type` / `icmpv6 type`; implies matches on family and protocol.
    IcmpType(Family),
    /// `meta mark & MASK`; with all bits set no mask is applied.
    Mark(u32),
}

/// What a selector is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// `== value`
    Equal(Value),
    /// `!= value`
    NotEqual(Value),
    /// `first-last`, both included.
    Range(Value, Value),
    /// `@set`
    InSet(String),
    /// `!= @set`
    NotInSet(String),
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Unit of rate and burst.
    pub unit: LimitUnit,
    /// Per second.
    pub rate: u64,
    /// On top of the rate at once.
    pub burst: u32,
    /// True: matches what is OVER the rate (`limit rate over`).
    pub over: bool,
}

/// Unit of a [`Limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitUnit {
    /// `N/second burst M packets`
    Packets,
    /// `N bytes/second burst M bytes`
    Bytes,
}

/// Target of a log statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// `log prefix "…" group N snaplen M`
    Nflog {
        /// NFLOG group.
        group: u16,
        /// Bytes of the packet that are copied.
        snaplen: u32,
    },
    /// `log prefix "…"`: the kernel's message log, level warn.
    Kernel,
}

/// One match or effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `ct state new,related`: any of these.
    State(BTreeSet<ConntrackState>),
    /// `meta nfproto ipv4`
    Family(Family),
    /// `iifname @inside`, `tcp dport 80-90`, …
    Match(Selector, Test),
    /// `ip saddr . th sport @set`: the concatenated key is an element of the set.
    ConcatInSet {
        /// The key, in the order of the set's fields.
        key: Vec<Selector>,
        /// Name of the set.
        set: String,
    },
    /// `ip daddr . meta l4proto . th dport vmap @map`: ends the rule when the key is not there.
    VerdictMap {
        /// The key, in the order of the map's fields.
        key: Vec<Selector>,
        /// Name of the map.
        map: String,
    },
    /// `limit rate [over] …`: one bucket for the rule.
    Limit(Limit),
    /// `update @set { ip saddr limit rate over … }`: one bucket per key in a [`SetKind::Dynamic`] set. Does
    /// not match when the set is full.
    LimitPerKey {
        /// The dynamic set.
        set: String,
        /// Its key.
        key: Vec<Selector>,
        /// Bucket of each element.
        limit: Limit,
    },
    /// `jhash ip saddr . ip daddr mod 3 seed 0x0 == 1`: spreads flows stably.
    HashEquals {
        /// What is hashed.
        key: Vec<Selector>,
        /// Number of buckets, at least 2.
        modulus: u32,
        /// The bucket that matches.
        equals: u32,
    },
    /// `counter`: anonymous, its figures shown beside the comment.
    Counter,
    /// `counter name NAME`
    NamedCounter(String),
    /// `log prefix "…"`
    Log {
        /// Prefix, at most 127 bytes (NF_LOG_PREFIXLEN is 128 with the NUL).
        prefix: String,
        /// Where to.
        target: LogTarget,
    },
    /// `snat ip to ADDRESS`
    Snat(IpAddr),
    /// `masquerade`
    Masquerade,
    /// `redirect to :PORT`: to an address of the interface the packet came in by.
    Redirect(u16),
    /// `meta mark set ip daddr map @map`: ends the rule when the key is not there.
    SetMarkByMap {
        /// The key, in the order of the map's fields.
        key: Vec<Selector>,
        /// Name of the map, of [`SetKind::Learned`] or [`SetKind::LearnedBoxes`].
        map: String,
    },
    /// `ct timeout set "NAME"`; before the connection is confirmed.
    CtTimeout(String),
    /// `accept`, `jump CHAIN`, …; always last.
    Verdict(Verdict),
}
