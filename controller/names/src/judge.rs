//! Which addresses are never learned: an answer must not lead into the cluster, to this machine or to nowhere
//! (DNS rebinding).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::table::Table;

/// Why an address is not learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// `0.0.0.0/8`, `::`.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`, and the `fec0::/10` of old.
    LinkLocal,
    /// `224.0.0.0/4`, `ff00::/8`.
    Multicast,
    /// `240.0.0.0/4` with the broadcast address.
    Reserved,
    /// An IPv6 form of an IPv4 address that no packet carries: `::ffff:0:0/96`, `::/96`, `::ffff:0:0:0/96`.
    Mapped,
    /// An address of this machine.
    Own,
    /// Inside a prefix of the cluster.
    Cluster,
    /// RFC 1918 or ULA, and only patterns or expressions outside `dns.privatePrefixes` ask for it.
    Private,
    /// Outside `allowedNetworks.egress`.
    NotAllowed,
}

impl Refusal {
    /// The word in metrics.
    pub fn text(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
            Self::Mapped => "mapped",
            Self::Own => "own",
            Self::Cluster => "cluster",
            Self::Private => "private",
            Self::NotAllowed => "not-allowed",
        }
    }
}

/// Which selectors may learn an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ruling {
    /// All of them.
    Any,
    /// Exact names: private, and outside `dns.privatePrefixes`.
    Exact,
}

/// Judges an address.
///
/// An IPv6 address that carries an IPv4 one to a translator or tunnel (NAT64 `64:ff9b::/96`, 6to4 `2002::/16`, Teredo
/// `2001::/32`) is judged as both: what it leads to counts as much as what it is.
pub(crate) fn judge(address: IpAddr, table: &Table) -> Result<Ruling, Refusal> {
    let embedded = match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => embedded(v6).map(IpAddr::V4),
    };
    let mut ruling = Ruling::Any;
    for address in std::iter::once(address).chain(embedded) {
        constant(address)?;
        if table.own_addresses.contains(&address) {
            return Err(Refusal::Own);
        }
        if table.cluster_prefixes.iter().any(|prefix| prefix.contains(&address)) {
            return Err(Refusal::Cluster);
        }
        if is_private(address) && !table.dns.private_prefixes.iter().any(|prefix| prefix.contains(&address)) {
            ruling = Ruling::Exact;
        }
    }
    match &table.dns.allowed {
        Some(allowed) if !allowed.iter().any(|prefix| prefix.contains(&address)) => Err(Refusal::NotAllowed),
        _ => Ok(ruling),
    }
}

fn constant(address: IpAddr) -> Result<(), Refusal> {
    let refusal = match address {
        IpAddr::V4(v4) => constant_v4(v4),
        IpAddr::V6(v6) => constant_v6(v6),
    };
    refusal.map_or(Ok(()), Err)
}

fn constant_v4(address: Ipv4Addr) -> Option<Refusal> {
    match address.octets() {
        [0, ..] => Some(Refusal::Unspecified),
        [127, ..] => Some(Refusal::Loopback),
        [169, 254, ..] => Some(Refusal::LinkLocal),
        [224..=239, ..] => Some(Refusal::Multicast),
        [240..=255, ..] => Some(Refusal::Reserved),
        _ => None,
    }
}

fn constant_v6(address: Ipv6Addr) -> Option<Refusal> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Refusal::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Refusal::Loopback),
        // IPv4-compatible, IPv4-mapped, IPv4-translated (RFC 4291 section 2.5.5, RFC 2765 section 2.1).
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => Some(Refusal::Mapped),
        [0xfe80..=0xfeff, ..] => Some(Refusal::LinkLocal),
        [0xff00..=0xffff, ..] => Some(Refusal::Multicast),
        _ => None,
    }
}

/// RFC 1918, RFC 4193, and the NAT64 prefix for local use (RFC 8215), behind which anything may be.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => {
            matches!(v6.segments(), [0xfc00..=0xfdff, ..] | [0x64, 0xff9b, 1, ..])
        }
    }
}

/// The IPv4 address inside an IPv6 one that a translator or tunnel sends to.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        // The client's address is stored inverted (RFC 4380 section 4).
        [0x2001, 0, .., high, low] => Some(v4(!high, !low)),
        _ => None,
    }
}
