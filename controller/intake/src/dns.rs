//! `dns`, `dnsFallback`, `dnsServerAddress` and `dnsPort`: the DNS proxy. What is wrong opens nothing more.

use std::net::{IpAddr, SocketAddr};

use fw_policy::{DNS_PORT, DOT_PORT, Dns, Encrypted, Intercept, OtherNames, Upstream};

use crate::address::read_prefixes;
use crate::allowed::Limit;
use crate::facts::HostFacts;
use crate::field::{Field, Read};
use crate::finding::Reason;
use crate::ports::read_port;
use crate::report::Report;
use crate::selectors::dns_name;
use crate::text::quoted;
use crate::values::{read_bounded, read_choice, read_choice_or};

mod tls;

const KEYS: [&str; 15] = [
    "intercept",
    "otherNames",
    "dot",
    "doh",
    "dohEndpoints",
    "privatePrefixes",
    "upstreams",
    "caFile",
    "tls",
    "ttlMin",
    "ttlMax",
    "grace",
    "maxNames",
    "maxNamesPerPattern",
    "maxAddressesPerName",
];

const UPSTREAM_REMEDY: &str = "write the address of a resolver, such as 192.0.2.53";

/// Reads all that concerns the proxy. `egress` is where policies may open anything.
pub(crate) fn read_dns(spec: &Field<'_>, egress: &Limit, facts: &HostFacts, report: &mut Report) -> Dns {
    let default = Dns::default();
    let field = spec.get("dns");
    if field.map(report) {
        for path in field.unknown_keys(&KEYS) {
            let message = "is not a field of dns; it is ignored";
            report.warning(
                &path,
                Reason::UnknownField,
                message,
                "`kubectl explain firewall.spec.dns` shows the fields",
            );
        }
    }
    let intercepts = [("withNames", Intercept::WithNames), ("always", Intercept::Always)];
    let other_names = [
        ("answer", OtherNames::Answer),
        ("refused", OtherNames::Refused),
        ("nxdomain", OtherNames::NxDomain),
    ];
    let (ttl_min, ttl_max) = read_clamps(&field, &default, report);
    let names = |key: &str, report: &mut Report| read_bounded(&field.get(key), 1, fw_crds::MAX_NAMES, report);
    let port = read_proxy_port(&spec.get("dnsPort"), default.port, facts, report);
    let upstreams = read_upstreams(spec, &field, report);
    Dns {
        intercept: read_choice(&field.get("intercept"), &intercepts, report).unwrap_or_default(),
        port,
        tls: tls::read_tls(&field.get("tls"), port, !upstreams.is_empty(), facts, report),
        upstreams,
        ca_file: tls::read_ca_file(&field.get("caFile"), report),
        other_names: read_choice(&field.get("otherNames"), &other_names, report).unwrap_or_default(),
        fallback: read_fallback(&spec.get("dnsFallback"), report),
        dot: read_encrypted(&field.get("dot"), report),
        doh: read_encrypted(&field.get("doh"), report),
        doh_endpoints: read_prefixes(&field.get("dohEndpoints"), fw_crds::MAX_PREFIXES, report).nets,
        private_prefixes: read_prefixes(&field.get("privatePrefixes"), fw_crds::MAX_PREFIXES, report).nets,
        allowed: egress.prefixes(),
        ttl_min,
        ttl_max,
        grace: read_bounded(&field.get("grace"), 0, fw_crds::MAX_SECONDS, report).unwrap_or(default.grace),
        max_names: names("maxNames", report).unwrap_or(default.max_names),
        max_names_per_pattern: names("maxNamesPerPattern", report).unwrap_or(default.max_names_per_pattern),
        max_addresses_per_name: read_bounded(
            &field.get("maxAddressesPerName"),
            1,
            fw_crds::MAX_ADDRESSES_PER_NAME,
            report,
        )
        .unwrap_or(default.max_addresses_per_name),
    }
}

/// The shortest and the longest TTL. Where only one is written, it moves the other one's default.
fn read_clamps(dns: &Field<'_>, default: &Dns, report: &mut Report) -> (u32, u32) {
    let fields = [dns.get("ttlMin"), dns.get("ttlMax")];
    let [min, max] = fields.each_ref().map(|field| read_bounded(field, 1, fw_crds::MAX_SECONDS, report));
    match (min, max) {
        (Some(min), Some(max)) if min > max => {
            let message = format_args!("ttlMin {min} is above ttlMax {max}; the defaults of both hold");
            let remedy = format_args!("write a ttlMin of at most {max}");
            report.error(&fields[0].path, Reason::InvalidValue, message, remedy);
            (default.ttl_min, default.ttl_max)
        }
        (Some(min), Some(max)) => (min, max),
        (Some(min), None) => (min, default.ttl_max.max(min)),
        (None, Some(max)) => (default.ttl_min.min(max), max),
        (None, None) => (default.ttl_min, default.ttl_max),
    }
}

/// The port of the proxy, which is closed to everybody outside: never that of sshd. The Go types wrote 0 for none.
fn read_proxy_port(field: &Field<'_>, default: u16, facts: &HostFacts, report: &mut Report) -> u16 {
    if field.raw().and_then(serde_json::Value::as_i64) == Some(0) {
        return default;
    }
    match read_port(field, "the default holds", report) {
        Read::Valid(port) if facts.sshd_ports.contains(&port) => {
            let message = format_args!("sshd listens on {port}; the default holds");
            report.error(&field.path, Reason::InvalidPort, message, "write a port that nothing else uses");
            default
        }
        Read::Valid(port) => port,
        Read::Missing | Read::Invalid => default,
    }
}

/// A choice that cannot be read was made to close something.
fn read_encrypted(field: &Field<'_>, report: &mut Report) -> Encrypted {
    let choices = [("policy", Encrypted::Policy), ("deny", Encrypted::Deny), ("allow", Encrypted::Allow)];
    match read_choice_or(field, &choices, "it is denied", report) {
        Read::Valid(choice) => choice,
        Read::Missing => Encrypted::default(),
        Read::Invalid => Encrypted::Deny,
    }
}

fn read_fallback(field: &Field<'_>, report: &mut Report) -> bool {
    match read_choice_or(field, &[("allow", true), ("deny", false)], "there is no fallback", report) {
        Read::Valid(choice) => choice,
        Read::Missing => true,
        Read::Invalid => false,
    }
}

/// `dns.upstreams`, then `dnsServerAddress`. Where some were written and none is left, the proxy must not believe
/// whatever resolver a client chooses: it asks the well-known ones.
fn read_upstreams(spec: &Field<'_>, dns: &Field<'_>, report: &mut Report) -> Vec<Upstream> {
    let field = dns.get("upstreams");
    let list = field.list(fw_crds::MAX_UPSTREAMS, report);
    let mut upstreams: Vec<Upstream> =
        list.entries.iter().filter_map(|(_, entry)| read_upstream(entry, report)).collect();
    let server = spec.get("dnsServerAddress");
    let servers = server.text(report);
    let texts = servers.valid().unwrap_or_default().split([',', ' ', '\t', '\n']);
    let texts: Vec<&str> = texts.filter(|text| !text.is_empty()).take(fw_crds::MAX_UPSTREAMS).collect();
    upstreams.extend(texts.iter().filter_map(|text| read_server(&server, text, report)));
    let written = !list.empty || !texts.is_empty() || servers == Read::Invalid;
    if written && upstreams.is_empty() {
        let path = if list.empty { &server.path } else { &field.path };
        let message = "no resolver is left; the well-known ones are asked";
        report.error(path, Reason::InvalidAddress, message, UPSTREAM_REMEDY);
        upstreams.extend(
            Dns::default()
                .fallback_resolvers()
                .into_iter()
                .map(|address| Upstream { address: SocketAddr::new(address, DNS_PORT), tls_name: None }),
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    upstreams.retain(|upstream| seen.insert(upstream.clone()));
    upstreams
}

fn read_upstream(entry: &Field<'_>, report: &mut Report) -> Option<Upstream> {
    const VOID: &str = "the entry is ignored";
    // A mistyped tlsName would be a missing one, and DNS in the clear.
    if !entry.map(report) || entry.refuse_unknown(&["address", "port", "tlsName"], VOID, report) {
        return None;
    }
    let field = entry.get("address");
    let refused = |why: &str, report: &mut Report| {
        report.error(&field.path, Reason::InvalidAddress, format_args!("{why}; {VOID}"), UPSTREAM_REMEDY);
    };
    let address = match field.text(report) {
        Read::Valid(text) => match text.parse().map_err(|_| NO_ADDRESS).and_then(resolver) {
            Ok(address) => Some(address),
            Err(why) => {
                refused(&format!("{} {why}", quoted(text)), report);
                None
            }
        },
        Read::Missing => {
            refused("is missing", report);
            None
        }
        Read::Invalid => None,
    };
    let name = entry.get("tlsName");
    let tls_name = match name.text(report) {
        Read::Missing => None,
        Read::Invalid => return None,
        Read::Valid(text) => match dns_name(text) {
            Some(name) => Some(name),
            None => {
                let message = format_args!("{} is not a DNS name; {VOID}", quoted(text));
                report.error(&name.path, Reason::InvalidName, message, "write the name in the certificate");
                return None;
            }
        },
    };
    let port = match read_port(&entry.get("port"), VOID, report) {
        Read::Valid(port) => port,
        Read::Missing if tls_name.is_some() => DOT_PORT,
        Read::Missing => DNS_PORT,
        Read::Invalid => return None,
    };
    Some(Upstream { address: SocketAddr::new(address?, port), tls_name })
}

/// `192.0.2.53`, `192.0.2.53:53`, `2001:db8::53` or `[2001:db8::53]:53`.
fn read_server(field: &Field<'_>, text: &str, report: &mut Report) -> Option<Upstream> {
    let with_port = text.parse::<SocketAddr>().ok();
    let alone = || text.parse().ok().map(|address| SocketAddr::new(address, DNS_PORT));
    let address = with_port.filter(|address| address.port() > 0).or_else(alone).ok_or(NO_ADDRESS);
    match address.and_then(|address| resolver(address.ip()).map(|_| address)) {
        Ok(address) => Some(Upstream { address, tls_name: None }),
        Err(why) => {
            let message = format_args!("{} {why}; it is ignored", quoted(text));
            report.error(&field.path, Reason::InvalidAddress, message, UPSTREAM_REMEDY);
            None
        }
    }
}

const NO_ADDRESS: &str = "is not an IP address";

/// An address that can be asked; one of this machine may be, too.
fn resolver(address: IpAddr) -> Result<IpAddr, &'static str> {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if mapped || broadcast || address.is_unspecified() || address.is_multicast() {
        return Err("is not the address of a resolver");
    }
    Ok(address)
}
