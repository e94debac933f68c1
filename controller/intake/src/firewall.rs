//! Firewall to settings.

use std::collections::BTreeSet;

use fw_policy::{DropLog, DropLogTarget, Firewall, HostProtection, IcmpEcho};
use ipnet::IpNet;
use serde_json::Value;

use crate::address::read_prefixes;
use crate::allowed::Allowed;
use crate::dns::read_dns;
use crate::facts::HostFacts;
use crate::fastpath::read_fastpath;
use crate::field::{Field, Read};
use crate::finding::Reason;
use crate::inside;
use crate::network::{NetworkKind, read_networks, read_rate_limits, read_source_nat};
use crate::ports::read_port;
use crate::report::Report;
use crate::values::{read_bounded, read_choice};

/// Fields that are accepted because manifests in the field have them, and why they do nothing.
const IGNORED: [(&str, &str); 7] = [
    ("ipv4rulefile", "rules are compiled and not read from a file"),
    ("signature", "updates come by packages"),
    ("controllerVersion", "updates come by packages"),
    ("controllerURL", "updates come by packages"),
    ("ids", "the intrusion detection configures itself"),
    ("clusterid", "the firewall does not need it"),
    ("projectid", "the firewall does not need it"),
];

/// All other fields of `spec`.
const KNOWN: [&str; 20] = [
    "interval",
    "dryrun",
    "ratelimits",
    "rateLimits",
    "internalprefixes",
    "egressRules",
    "firewallNetworks",
    "dnsServerAddress",
    "dnsPort",
    "dns",
    "dnsFallback",
    "fastpath",
    "logAcceptedConnections",
    "allowedNetworks",
    "insideInterfaces",
    "clusterPrefixes",
    "dropLog",
    "nflogGroup",
    "icmpEcho",
    "hostProtection",
];

/// Reads the Firewall of this machine.
pub(crate) fn read_firewall(body: &Value, facts: &HostFacts, report: &mut Report) -> (Firewall, Allowed) {
    let spec = Field::root(body, "spec");
    spec.map(report);
    report_ignored(&spec, report);
    let networks = read_networks(&spec.get("firewallNetworks"), report);
    let inside = inside::choose(&spec, &networks, facts, report);
    let mut nat = read_source_nat(&spec.get("egressRules"), &networks, report);
    let host = read_host_protection(&spec.get("hostProtection"), facts, report).map(|ssh_ports| {
        let underlay = networks.values().filter(|network| network.kind == Some(NetworkKind::Underlay));
        HostProtection {
            ssh_ports,
            live_sessions: facts.tcp_sessions.clone(),
            underlay_prefixes: underlay.flat_map(|network| network.prefixes.iter().copied()).collect(),
        }
    });
    if host.is_none() {
        // Today metal-networker writes it, together with what hostProtection stands for.
        nat.masquerade.clear();
    }
    if inside.prefixes.is_empty() && !(nat.snat.is_empty() && nat.masquerade.is_empty()) {
        nat.snat.clear();
        nat.masquerade.clear();
        report.error(
            "spec.egressRules",
            Reason::NoClusterPrefixes,
            "the cluster's prefixes are not known, so there is no source NAT",
            "write clusterPrefixes, or the prefixes of the private primary network in firewallNetworks",
        );
    }
    let cluster: Vec<IpNet> = inside.prefixes.iter().copied().collect();
    let allowed = Allowed::read(&spec.get("allowedNetworks"), &cluster, report);
    let dns = read_dns(&spec, &allowed.egress, facts, report);
    let firewall = Firewall {
        inside,
        internal_prefixes: read_prefixes(&spec.get("internalprefixes"), fw_crds::MAX_PREFIXES, report).nets,
        rate_limits: read_rate_limits(&spec, &networks, report),
        snat: nat.snat,
        masquerade: nat.masquerade,
        icmp_echo: read_icmp_echo(&spec.get("icmpEcho"), report),
        drop_log: read_drop_log(&spec, report),
        log_accepted: read_switch(&spec.get("logAcceptedConnections"), report),
        dry_run: read_switch(&spec.get("dryrun"), report),
        host,
        dns,
        fastpath: read_fastpath(&spec.get("fastpath"), report),
    };
    (firewall, allowed)
}

fn report_ignored(spec: &Field<'_>, report: &mut Report) {
    let mut known = KNOWN.to_vec();
    for (key, why) in IGNORED {
        known.push(key);
        let field = spec.get(key);
        if !field.is_missing() {
            report.info(&field.path, Reason::IgnoredField, format_args!("has no effect: {why}"), "remove it");
        }
    }
    for path in spec.unknown_keys(&known) {
        let message = "is not a field of the Firewall; it is ignored";
        report.warning(
            &path,
            Reason::UnknownField,
            message,
            "`kubectl explain firewall.spec` shows the fields",
        );
    }
}

fn read_switch(field: &Field<'_>, report: &mut Report) -> bool {
    field.boolean(report).valid().unwrap_or(false)
}

fn read_icmp_echo(field: &Field<'_>, report: &mut Report) -> IcmpEcho {
    let choices = [("deny", IcmpEcho::Deny), ("egress", IcmpEcho::Egress), ("both", IcmpEcho::Both)];
    read_choice(field, &choices, report).unwrap_or_default()
}

fn read_drop_log(spec: &Field<'_>, report: &mut Report) -> DropLog {
    let default = DropLog::default();
    let field = spec.get("dropLog");
    if field.map(report) {
        for path in field.unknown_keys(&["rate", "burst", "to"]) {
            let message = "is not a field of dropLog; it is ignored";
            report.warning(&path, Reason::UnknownField, message, "write rate, burst and to");
        }
    }
    let targets =
        [("nflog", DropLogTarget::Nflog), ("kernel", DropLogTarget::Kernel), ("both", DropLogTarget::Both)];
    DropLog {
        rate: read_bounded(&field.get("rate"), 0, fw_crds::MAX_LOG_RATE, report).unwrap_or(default.rate),
        burst: read_bounded(&field.get("burst"), 1, fw_crds::MAX_LOG_RATE, report).unwrap_or(default.burst),
        to: read_choice(&field.get("to"), &targets, report).unwrap_or(default.to),
        group: read_bounded(&spec.get("nflogGroup"), 0, u16::MAX, report).unwrap_or(default.group),
    }
}

/// The SSH ports, where host protection is on. Never an empty set: it would lock the operator out.
fn read_host_protection(field: &Field<'_>, facts: &HostFacts, report: &mut Report) -> Option<BTreeSet<u16>> {
    if field.map(report) {
        for path in field.unknown_keys(&["enabled", "sshPorts"]) {
            let message = "is not a field of hostProtection; it is ignored";
            report.warning(&path, Reason::UnknownField, message, "write enabled and sshPorts");
        }
    }
    let list = field.get("sshPorts").list(fw_crds::MAX_SSH_PORTS, report);
    let read = |entry: &Field<'_>, report: &mut Report| read_port(entry, "it is ignored", report);
    let written: BTreeSet<u16> = list
        .entries
        .iter()
        .filter_map(|(_, entry)| match read(entry, report) {
            Read::Valid(port) => Some(port),
            Read::Missing | Read::Invalid => None,
        })
        .collect();
    if !field.get("enabled").boolean(report).valid().unwrap_or(false) {
        return None;
    }
    if !written.is_empty() {
        return Some(written);
    }
    if !facts.sshd_ports.is_empty() {
        return Some(facts.sshd_ports.clone());
    }
    if facts.interfaces.is_some() {
        let message = "it is not known on which port sshd listens; 22 stays open";
        report.warning(&field.path, Reason::InvalidValue, message, "write sshPorts");
    }
    Some(BTreeSet::from([22]))
}
