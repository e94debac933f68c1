//! `ports` of a rule.

use fw_policy::{PortRange, Ports, Protocol};

use crate::field::{Field, Read};
use crate::finding::Reason;
use crate::report::Report;
use crate::text::quoted;

const VOID: &str = "the entry matches nothing";

/// Reads `ports`: missing or empty as written is all of TCP and UDP, entries that are lost leave the others.
pub(crate) fn read_ports(field: &Field<'_>, report: &mut Report) -> Ports {
    let list = field.list(fw_crds::MAX_PORTS, report);
    if list.empty {
        return Ports::All;
    }
    Ports::Ranges(
        list.entries.iter().filter_map(|(index, entry)| read_entry(*index, entry, report)).collect(),
    )
}

/// One entry. As in a Kubernetes NetworkPolicy a missing protocol is TCP, and a missing port is every port of the
/// protocol.
fn read_entry(index: usize, entry: &Field<'_>, report: &mut Report) -> Option<PortRange> {
    let known = ["protocol", "port", "endPort"];
    if !entry.map(report) || entry.refuse_unknown(&known, VOID, report) {
        return None;
    }
    let protocol = read_protocol(&entry.get("protocol"), VOID, report);
    let (port, end_port) = (entry.get("port"), entry.get("endPort"));
    let (first, last) = (read_port(&port, VOID, report), read_port(&end_port, VOID, report));
    let protocol = protocol?;
    let range = |first, last| Some(PortRange { index, protocol, first, last });
    match (first, last) {
        (Read::Invalid, _) | (_, Read::Invalid) => None,
        (Read::Missing, Read::Missing) => range(1, u16::MAX),
        (Read::Valid(port), Read::Missing) => range(port, port),
        (Read::Valid(first), Read::Valid(last)) if first <= last => range(first, last),
        (Read::Valid(first), Read::Valid(last)) => {
            report.error(
                &end_port.path,
                Reason::InvalidPort,
                format_args!("endPort {last} is below port {first}; {VOID}"),
                format_args!("write an endPort of {first} or more, or leave it out"),
            );
            None
        }
        (Read::Missing, Read::Valid(last)) => {
            report.error(
                &end_port.path,
                Reason::InvalidPort,
                format_args!("endPort {last} has no port to begin with; {VOID}"),
                "write the first port of the range as port",
            );
            None
        }
    }
}

/// TCP or UDP, TCP where missing. `None`: unusable, a finding says why and what the `effect` is.
pub(crate) fn read_protocol(field: &Field<'_>, effect: &str, report: &mut Report) -> Option<Protocol> {
    match field.text(report) {
        Read::Missing => Some(Protocol::Tcp),
        Read::Valid("TCP") => Some(Protocol::Tcp),
        Read::Valid("UDP") => Some(Protocol::Udp),
        Read::Valid(other) => {
            report.error(
                &field.path,
                Reason::UnsupportedProtocol,
                format_args!("protocol {} is neither TCP nor UDP; {effect}", quoted(other)),
                "write TCP or UDP, in capitals; other protocols do not pass this firewall",
            );
            None
        }
        Read::Invalid => None,
    }
}

/// A port from 1 to 65535.
pub(crate) fn read_port(field: &Field<'_>, effect: &str, report: &mut Report) -> Read<u16> {
    match field.integer(report) {
        Read::Missing => Read::Missing,
        Read::Invalid => Read::Invalid,
        Read::Valid(number) => match u16::try_from(number) {
            Ok(port) if port > 0 => Read::Valid(port),
            _ => {
                report.error(
                    &field.path,
                    Reason::InvalidPort,
                    format_args!("{number} is not a port; {effect}"),
                    "write a number from 1 to 65535",
                );
                Read::Invalid
            }
        },
    }
}
