//! LoadBalancer Services: exactly their assigned addresses and ports, to their source ranges.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fw_policy::{Protocol, Service, Sources};
use ipnet::IpNet;
use serde_json::Value;

use crate::address::{CIDR_REMEDY, host, prefix};
use crate::allowed::Limit;
use crate::field::{Field, Read};
use crate::finding::{Finding, Reason};
use crate::ports::{read_port, read_protocol};
use crate::report::Report;
use crate::text::quoted;

/// Source ranges as Kubernetes took them before the field existed; an empty field still falls back to it.
pub const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

const VOID: &str = "the entry opens nothing";

/// What a Service says, whatever is allowed.
#[derive(Debug)]
pub(crate) struct ServiceRead {
    /// All assigned addresses, also those that are not opened, with their indexes in the list as written.
    assigned: Vec<(IpAddr, usize)>,
    ports: BTreeSet<(Protocol, u16)>,
    /// Who may come; `None`: nobody.
    sources: Option<Sources>,
    report: Report,
}

/// Reads one Service. Other types than LoadBalancer mean nothing here and have no findings.
pub(crate) fn read_service(body: &Value, mut report: Report) -> ServiceRead {
    let spec = Field::root(body, "spec");
    // A wrong type of `type` is not LoadBalancer either; the API server refuses it.
    if body.pointer("/spec/type").and_then(Value::as_str) != Some("LoadBalancer") {
        return ServiceRead { assigned: Vec::new(), ports: BTreeSet::new(), sources: None, report };
    }
    let assigned =
        read_assigned(&Field::root(body, "status").get("loadBalancer").get("ingress"), &mut report);
    let ports = read_ports(&spec.get("ports"), &mut report);
    let sources = read_sources(body, &mut report);
    ServiceRead { assigned, ports, sources, report }
}

impl ServiceRead {
    /// All assigned addresses, also those that are not opened.
    pub(crate) fn assigned(&self) -> impl Iterator<Item = IpAddr> {
        self.assigned.iter().map(|(address, _)| *address)
    }

    /// What is opened, if anything, and all that is to be said of the Service.
    pub(crate) fn judge(&self, limit: &Limit) -> (Option<Service>, Vec<Finding>) {
        let mut report = self.report.clone();
        let mut addresses = BTreeSet::new();
        for (address, index) in &self.assigned {
            if limit.covers(IpNet::from(*address)) {
                addresses.insert(*address);
            } else {
                let path = format!("status.loadBalancer.ingress[{index}].ip");
                limit.forbid(&path, &address.to_string(), &mut report);
            }
        }
        let service = match &self.sources {
            Some(sources) if !addresses.is_empty() && !self.ports.is_empty() => {
                Some(Service { addresses, ports: self.ports.clone(), sources: sources.clone() })
            }
            _ => None,
        };
        (service, report.into_findings())
    }
}

/// The assigned addresses with their indexes.
fn read_assigned(field: &Field<'_>, report: &mut Report) -> Vec<(IpAddr, usize)> {
    let list = field.list(fw_crds::MAX_ADDRESSES, report);
    if list.empty {
        report.info(
            &field.path,
            Reason::NoAddress,
            "no address is assigned yet, so the Service opens nothing",
            "nothing to do if an address is on its way",
        );
    }
    let mut assigned = Vec::new();
    for (index, entry) in &list.entries {
        if !entry.map(report) {
            continue;
        }
        let ip = entry.get("ip");
        match ip.text(report) {
            Read::Valid(text) => match host(text) {
                Ok(address) => assigned.push((address, *index)),
                Err(why) => report.error(
                    &ip.path,
                    Reason::InvalidAddress,
                    format_args!("{} {why}; it is not opened", quoted(text)),
                    "see what assigns the addresses of this Service",
                ),
            },
            Read::Missing => report.warning(
                &entry.path,
                Reason::InvalidAddress,
                "has no ip; only addresses are opened, a hostname is not",
                "use a load balancer that assigns addresses",
            ),
            Read::Invalid => {}
        }
    }
    assigned
}

fn read_ports(field: &Field<'_>, report: &mut Report) -> BTreeSet<(Protocol, u16)> {
    let list = field.list(fw_crds::MAX_PORTS, report);
    if list.empty {
        let message = "the Service has no ports, so it opens nothing";
        report.warning(&field.path, Reason::InvalidPort, message, "write spec.ports");
    }
    let mut ports = BTreeSet::new();
    for (_, entry) in list.entries {
        if !entry.map(report) {
            continue;
        }
        let protocol = read_protocol(&entry.get("protocol"), VOID, report);
        let port = entry.get("port");
        match (protocol, read_port(&port, VOID, report)) {
            (Some(protocol), Read::Valid(port)) => drop(ports.insert((protocol, port))),
            (_, Read::Missing) => {
                report.error(
                    &port.path,
                    Reason::InvalidPort,
                    format_args!("is missing; {VOID}"),
                    "write a port",
                );
            }
            _ => {}
        }
    }
    ports
}

/// Who may come; `None` when ranges were written and none is usable: then nobody.
fn read_sources(body: &Value, report: &mut Report) -> Option<Sources> {
    let list = Field::root(body, "spec").get("loadBalancerSourceRanges").list(fw_crds::MAX_PREFIXES, report);
    let mut blocks = BTreeSet::new();
    if !list.empty {
        for (_, entry) in list.entries {
            if let Read::Valid(text) = entry.text(report) {
                blocks.extend(read_source(text, &entry.path, report));
            }
        }
        return (!blocks.is_empty()).then_some(Sources::Blocks(blocks));
    }
    let annotation = Field::root(body, "metadata").get("annotations").get(SOURCE_RANGES);
    let ranges = match annotation.text(report) {
        Read::Missing => return Some(Sources::Any),
        Read::Valid(text) if text.trim().is_empty() => return Some(Sources::Any),
        Read::Valid(text) => text,
        Read::Invalid => return None,
    };
    for (index, text) in ranges.split(',').enumerate() {
        if index == fw_crds::MAX_PREFIXES {
            let message = format_args!("has more than {index} ranges; the rest is ignored");
            report.error(&annotation.path, Reason::TooMany, message, "use larger prefixes");
            break;
        }
        blocks.extend(read_source(text, &annotation.path, report));
    }
    (!blocks.is_empty()).then_some(Sources::Blocks(blocks))
}

/// One range; Kubernetes takes spaces around it.
fn read_source(text: &str, path: &str, report: &mut Report) -> Option<IpNet> {
    prefix(text.trim())
        .map_err(|why| {
            let message = format_args!("{} {why}; nobody may come from there", quoted(text));
            report.error(path, Reason::InvalidCIDR, message, CIDR_REMEDY);
        })
        .ok()
}
