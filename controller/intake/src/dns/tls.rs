//! `dns.tls` and `dns.caFile`. The files are not looked at here: who opens them says what is wrong with them.

use std::path::PathBuf;

use fw_policy::{DOT_PORT, DnsTls};

use crate::facts::HostFacts;
use crate::field::{Field, Read};
use crate::finding::Reason;
use crate::ports::read_port;
use crate::report::Report;
use crate::text::quoted;

const VOID: &str = "DNS over TLS and HTTPS is not served";

/// The listeners of `dns.tls`; none is opened that is not wholly understood. `proxy` is the proxy's port.
pub(super) fn read_tls(
    field: &Field<'_>,
    proxy: u16,
    upstreams: bool,
    facts: &HostFacts,
    report: &mut Report,
) -> Option<DnsTls> {
    const KEYS: [&str; 4] = ["certificateFile", "keyFile", "dotPort", "dohPort"];
    if !field.map(report) || field.refuse_unknown(&KEYS, VOID, report) {
        return None;
    }
    let certificate = read_file(&field.get("certificateFile"), report);
    let key = read_file(&field.get("keyFile"), report);
    let mut taken = facts.sshd_ports.clone();
    taken.insert(proxy);
    let dot_port = read_listener(&field.get("dotPort"), Some(DOT_PORT), |port| taken.contains(&port), report);
    let doh_taken = |port| taken.contains(&port) || dot_port == Some(port);
    let doh_port = read_listener(&field.get("dohPort"), None, doh_taken, report);
    if dot_port.is_none() && doh_port.is_none() {
        let message = format_args!("neither dotPort nor dohPort is left; {VOID}");
        report.warning(&field.path, Reason::InvalidValue, message, "write one of them, or leave tls out");
        return None;
    }
    if !upstreams {
        report.warning(
            &field.path,
            Reason::InvalidValue,
            "questions over TLS and HTTPS name no resolver, and there is no upstream: they are answered only after \
             somebody asked in the clear, by the resolver that was asked then",
            "name the resolvers to ask in spec.dns.upstreams, or one in spec.dnsServerAddress",
        );
    }
    Some(DnsTls { certificate: certificate?, key: key?, dot_port, doh_port })
}

/// The file of authorities; a path that cannot be one leaves those of the system.
pub(super) fn read_ca_file(field: &Field<'_>, report: &mut Report) -> Option<PathBuf> {
    match field.text(report) {
        Read::Valid(text) => path(field, text, "the authorities of the system hold", report),
        Read::Missing | Read::Invalid => None,
    }
}

fn read_file(field: &Field<'_>, report: &mut Report) -> Option<PathBuf> {
    match field.text_or(VOID, report) {
        Read::Valid(text) => path(field, text, VOID, report),
        Read::Missing => {
            let message = format_args!("is missing; {VOID}");
            report.error(&field.path, Reason::InvalidValue, message, "write the path of a PEM file");
            None
        }
        Read::Invalid => None,
    }
}

fn path(field: &Field<'_>, text: &str, effect: &str, report: &mut Report) -> Option<PathBuf> {
    let is_path = text.starts_with('/') && text.len() <= fw_crds::MAX_PATH && !text.contains('\0');
    if !is_path {
        let message = format_args!("{} is not the absolute path of a file; {effect}", quoted(text));
        report.error(&field.path, Reason::InvalidValue, message, "write a path that begins with /");
    }
    is_path.then(|| PathBuf::from(text))
}

/// A port of ours; it is closed to everybody outside, and so never one that something else uses. 0 is none.
fn read_listener(
    field: &Field<'_>,
    default: Option<u16>,
    taken: impl Fn(u16) -> bool,
    report: &mut Report,
) -> Option<u16> {
    const VOID: &str = "it is not served";
    if field.raw().and_then(serde_json::Value::as_i64) == Some(0) {
        return None;
    }
    let port = match read_port(field, VOID, report) {
        Read::Valid(port) => Some(port),
        Read::Missing => default,
        Read::Invalid => None,
    };
    let free = port.filter(|port| !taken(*port));
    if let (Some(port), None) = (port, free) {
        let message = format_args!("{port} is the port of sshd or of another listener of the proxy; {VOID}");
        report.error(&field.path, Reason::InvalidPort, message, "write a port that nothing else uses");
    }
    free
}
