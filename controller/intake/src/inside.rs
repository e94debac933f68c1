//! Which side is inside (semantics.md section 3).

use std::collections::{BTreeMap, BTreeSet};

use fw_policy::{IfName, Inside, InsideBasis, ObjectKind};
use ipnet::IpNet;

use crate::address::read_prefixes;
use crate::facts::{HostFacts, Interface};
use crate::field::Field;
use crate::finding::{Finding, Reason, Severity, Subject};
use crate::names::{NAMESPACE, both_names};
use crate::network::{Network, NetworkKind, read_interface};
use crate::report::Report;

/// Chooses inside: explicit fields first, then the private primary networks, then, with prefixes known but
/// interfaces not, the routes. Neither known: nothing is opened.
pub(crate) fn choose(
    spec: &Field<'_>,
    networks: &BTreeMap<String, Network>,
    facts: &HostFacts,
    report: &mut Report,
) -> Inside {
    let names = spec.get("insideInterfaces");
    let list = names.list(fw_crds::MAX_NETWORKS, report);
    let explicit: BTreeSet<IfName> =
        list.entries.iter().filter_map(|(_, entry)| read_interface(entry, report)).collect();
    let prefixes = match prefixes(spec, networks, report) {
        Ok(prefixes) => prefixes,
        Err(()) => return Inside::default(),
    };
    let from_networks = || primaries(networks).flat_map(|(_, network)| network.interfaces()).collect();
    let (interfaces, basis): (BTreeSet<IfName>, _) = if !list.empty {
        (with_twins(&explicit, facts), InsideBasis::Explicit)
    } else {
        let named: BTreeSet<IfName> = from_networks();
        if named.is_empty() {
            (by_routes(&prefixes, facts), InsideBasis::Routes)
        } else {
            (with_twins(&named, facts), InsideBasis::FirewallNetworks)
        }
    };
    if interfaces.is_empty() {
        no_inside(&names.path, basis, &prefixes, facts, report);
        return Inside { prefixes, ..Inside::default() };
    }
    if prefixes.is_empty() {
        report.warning(
            "spec.clusterPrefixes",
            Reason::NoClusterPrefixes,
            "the cluster's prefixes are not known, so spoofed sources are not dropped",
            "write clusterPrefixes, or the prefixes of the private primary network in firewallNetworks",
        );
    }
    Inside { interfaces, prefixes, basis }
}

/// The cluster's prefixes. `Err`: they were written and nothing of them is usable; then no source is right and
/// nothing may be opened, where an empty set would switch the check for spoofed sources off.
fn prefixes(
    spec: &Field<'_>,
    networks: &BTreeMap<String, Network>,
    report: &mut Report,
) -> Result<BTreeSet<IpNet>, ()> {
    let field = spec.get("clusterPrefixes");
    let explicit = read_prefixes(&field, fw_crds::MAX_PREFIXES, report);
    if explicit.empty {
        return Ok(primaries(networks).flat_map(|(_, network)| network.prefixes.iter().copied()).collect());
    }
    if explicit.nets.is_empty() {
        let message = "none of the cluster's prefixes is valid, so nothing is opened";
        report.error(&field.path, Reason::NoInside, message, "correct them");
        return Err(());
    }
    Ok(explicit.nets)
}

fn primaries(networks: &BTreeMap<String, Network>) -> impl Iterator<Item = (&String, &Network)> {
    networks.iter().filter(|(_, network)| network.kind.is_some_and(NetworkKind::is_private_primary))
}

fn no_inside(
    path: &str,
    basis: InsideBasis,
    prefixes: &BTreeSet<IpNet>,
    facts: &HostFacts,
    report: &mut Report,
) {
    let remedy = "write insideInterfaces, or a private primary network with its vrf in firewallNetworks";
    if basis == InsideBasis::Explicit {
        let message = "none of the inside interfaces is valid, so nothing is opened";
        report.error(path, Reason::NoInside, message, "correct them");
    } else if prefixes.is_empty() {
        let message = "neither inside interfaces nor cluster prefixes are known, so nothing is opened";
        report.error(path, Reason::NoInside, message, remedy);
    } else if facts.interfaces.is_none() {
        let message = "inside is chosen by the routes of the firewall, which are not known here";
        report.warning(path, Reason::NoInside, message, remedy);
    } else {
        let message =
            format_args!("no route leads to the cluster prefixes {}, so nothing is opened", join(prefixes));
        report.error(path, Reason::NoInside, message, remedy);
    }
}

/// The interfaces over which the cluster's prefixes are routed: those with a route to a part of a prefix or,
/// where there is none, those with the longest route that covers it. A default route leads outside.
pub(crate) fn by_routes(prefixes: &BTreeSet<IpNet>, facts: &HostFacts) -> BTreeSet<IfName> {
    let interfaces = facts.interfaces.as_deref().unwrap_or_default();
    let routes = |wanted: &dyn Fn(&IpNet) -> bool| -> Vec<(u8, &Interface)> {
        let of = |interface| move |net: &IpNet| (net.prefix_len(), interface);
        interfaces
            .iter()
            .flat_map(|interface| interface.prefixes.iter().filter(|net| wanted(net)).map(of(interface)))
            .collect()
    };
    let mut chosen = BTreeSet::new();
    for prefix in prefixes {
        let mut found = routes(&|net| prefix.contains(net));
        if found.is_empty() {
            let wider = routes(&|net| net.prefix_len() > 0 && net.contains(prefix));
            let longest = wider.iter().map(|(length, _)| *length).max();
            found = wider.into_iter().filter(|(length, _)| Some(*length) == longest).collect();
        }
        chosen.extend(found.into_iter().map(|(_, interface)| interface.name.clone()));
    }
    with_twins(&chosen, facts)
}

/// The names and those under which the kernel may show the same interface: the VRF it is in, the ports of a VRF,
/// and metal-stack's pairs `vlan<id>` and `vrf<id>`.
fn with_twins(names: &BTreeSet<IfName>, facts: &HostFacts) -> BTreeSet<IfName> {
    let mut all: BTreeSet<IfName> = names.iter().flat_map(both_names).collect();
    for interface in facts.interfaces.iter().flatten() {
        let Some(vrf) = &interface.vrf else { continue };
        if names.contains(vrf) {
            all.insert(interface.name.clone());
        } else if names.contains(&interface.name) {
            all.insert(vrf.clone());
        }
    }
    all
}

/// What was chosen and why, for the status.
pub(crate) fn describe(inside: &Inside) -> String {
    let why = match inside.basis {
        InsideBasis::Unknown => return "inside is not known: nothing is opened".to_owned(),
        InsideBasis::Explicit => "insideInterfaces",
        InsideBasis::FirewallNetworks => "the private primary network of firewallNetworks",
        InsideBasis::Routes => "the routes to the cluster's prefixes",
    };
    let prefixes = if inside.prefixes.is_empty() { "not known".to_owned() } else { join(&inside.prefixes) };
    format!("inside is {} (by {why}); cluster prefixes: {prefixes}", join(&inside.interfaces))
}

fn join<T: ToString>(items: &BTreeSet<T>) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = items.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// Compares an inside that was chosen by routes with what the routes say now. The caller keeps the facts of the
/// moment of choice for [`crate::intake`] and asks here after each route change.
pub fn inside_changed(chosen: &Inside, now: &HostFacts) -> Option<Finding> {
    if chosen.basis != InsideBasis::Routes {
        return None;
    }
    let current = by_routes(&chosen.prefixes, now);
    if current == chosen.interfaces {
        return None;
    }
    let current = if current.is_empty() { "no interface".to_owned() } else { join(&current) };
    Some(Finding {
        subject: Subject::Object(fw_policy::Origin {
            kind: ObjectKind::Firewall,
            namespace: NAMESPACE.to_owned(),
            name: now.firewall_name.clone().unwrap_or_else(|| "firewall".to_owned()),
            field: "spec.insideInterfaces".to_owned(),
        }),
        severity: Severity::Warning,
        reason: Reason::InsideChanged,
        message: format!(
            "the routes to the cluster's prefixes now lead to {current}; inside stays {}",
            join(&chosen.interfaces)
        ),
        remedy: "restart the controller or edit the Firewall to choose anew, or write insideInterfaces"
            .to_owned(),
    })
}
