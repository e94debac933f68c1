//! Prefixes and addresses, read strictly.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::field::{Field, Read};
use crate::finding::Reason;
use crate::report::Report;
use crate::text::quoted;

/// What a prefix must look like, for remedies.
pub(crate) const CIDR_REMEDY: &str = "write a prefix such as 192.0.2.0/24 or 2001:db8::/32";

/// A prefix with its host bits cleared, or why the text is none.
///
/// As strict as Go's `net.ParseCIDR`, which the old product used: an address alone is no prefix, no zone, no
/// spaces, no leading zeros.
pub(crate) fn prefix(text: &str) -> Result<IpNet, &'static str> {
    let Some((address, length)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(_) => "is an address without a prefix length",
            Err(_) => "is not a CIDR prefix",
        });
    };
    let address: IpAddr = address.parse().map_err(|_| "is not a CIDR prefix")?;
    let digits =
        length.bytes().all(|byte| byte.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    let length: u8 = if digits { length.parse().ok() } else { None }.ok_or("has no valid prefix length")?;
    if is_mapped(address) {
        return Err("is an IPv4 prefix written as IPv6, which no packet on the wire matches");
    }
    IpNet::new(address, length).map(|net| net.trunc()).map_err(|_| "has a prefix length beyond its family's")
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// An address that a host on the network can have, or why the text is none.
pub(crate) fn host(text: &str) -> Result<IpAddr, &'static str> {
    let address: IpAddr = text.parse().map_err(|_| "is not an IP address")?;
    if is_mapped(address) {
        return Err("is an IPv4 address written as IPv6");
    }
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast {
        return Err("is not an address that a host on the network can have");
    }
    Ok(address)
}

/// Reads one prefix; what is wrong is a finding that says what becomes of it.
pub(crate) fn read_prefix(field: &Field<'_>, effect: &str, report: &mut Report) -> Option<IpNet> {
    match field.text(report) {
        Read::Valid(text) => match prefix(text) {
            Ok(net) => Some(net),
            Err(why) => {
                let message = format_args!("{} {why}; {effect}", quoted(text));
                report.error(&field.path, Reason::InvalidCIDR, message, CIDR_REMEDY);
                None
            }
        },
        Read::Missing => {
            report.error(&field.path, Reason::InvalidCIDR, format_args!("is missing; {effect}"), CIDR_REMEDY);
            None
        }
        Read::Invalid => None,
    }
}

/// A list of prefixes as it was written.
pub(crate) struct Prefixes {
    /// Missing or empty as written.
    pub(crate) empty: bool,
    /// What of it is usable.
    pub(crate) nets: BTreeSet<IpNet>,
}

/// Reads a list of prefixes; bad entries are findings and are left out.
pub(crate) fn read_prefixes(field: &Field<'_>, max: usize, report: &mut Report) -> Prefixes {
    let list = field.list(max, report);
    let nets =
        list.entries.iter().filter_map(|(_, entry)| read_prefix(entry, "the entry is ignored", report));
    Prefixes { nets: nets.collect(), empty: list.empty }
}
