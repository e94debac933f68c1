//! `firewallNetworks` and what refers to them: source NAT, masquerading, rate limits.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use fw_policy::{IfName, Masquerade, RateLimit, Snat};
use ipnet::IpNet;

use crate::address::{host, read_prefixes};
use crate::field::{Field, Read};
use crate::finding::Reason;
use crate::names::both_names;
use crate::report::Report;
use crate::text::quoted;

/// One entry of `firewallNetworks`, as far as rules need it.
pub(crate) struct Network {
    /// Path of the entry.
    pub(crate) path: String,
    /// Its type; `None` where missing or unknown: then it is outside and nothing else.
    pub(crate) kind: Option<NetworkKind>,
    /// `vlan<vrf>`; `None` where the vrf is not usable.
    pub(crate) vlan: Option<IfName>,
    /// `nat`.
    pub(crate) nat: bool,
    /// Its prefixes.
    pub(crate) prefixes: BTreeSet<IpNet>,
}

/// `networktype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkKind {
    PrivatePrimaryUnshared,
    PrivatePrimaryShared,
    PrivateSecondaryShared,
    External,
    Underlay,
}

impl NetworkKind {
    const ALL: [(&'static str, Self); 5] = [
        ("privateprimaryunshared", Self::PrivatePrimaryUnshared),
        ("privateprimaryshared", Self::PrivatePrimaryShared),
        ("privatesecondaryshared", Self::PrivateSecondaryShared),
        ("external", Self::External),
        ("underlay", Self::Underlay),
    ];

    /// The cluster's own side.
    pub(crate) fn is_private_primary(self) -> bool {
        matches!(self, Self::PrivatePrimaryUnshared | Self::PrivatePrimaryShared)
    }
}

impl Network {
    /// Both names of the interface towards it.
    pub(crate) fn interfaces(&self) -> BTreeSet<IfName> {
        self.vlan.as_ref().map(both_names).unwrap_or_default()
    }
}

/// Reads all networks by their id.
pub(crate) fn read_networks(field: &Field<'_>, report: &mut Report) -> BTreeMap<String, Network> {
    let mut networks = BTreeMap::new();
    for (_, entry) in field.list(fw_crds::MAX_NETWORKS, report).entries {
        if !entry.map(report) {
            continue;
        }
        let network = read_network(&entry, report);
        let Some(id) = read_id(&entry.get("networkid"), report) else { continue };
        match networks.entry(id) {
            Entry::Vacant(vacant) => drop(vacant.insert(network)),
            Entry::Occupied(first) => {
                let message = format_args!("network {} is there already; the first one counts", first.key());
                report.error(&entry.path, Reason::DuplicateEntry, message, "remove one of the two");
            }
        }
    }
    networks
}

fn read_network(entry: &Field<'_>, report: &mut Report) -> Network {
    let kind_field = entry.get("networktype");
    let kind = kind_field.text(report).valid().and_then(|text| {
        let known = NetworkKind::ALL.into_iter().find(|(name, _)| *name == text).map(|(_, kind)| kind);
        if known.is_none() {
            let names = NetworkKind::ALL.map(|(name, _)| name).join(", ");
            let message = format_args!("{} is no network type; the network counts as outside", quoted(text));
            report.error(
                &kind_field.path,
                Reason::InvalidValue,
                message,
                format_args!("write one of {names}"),
            );
        }
        known
    });
    let vrf_field = entry.get("vrf");
    let vlan = match (vrf_field.integer(report), kind) {
        // The underlay is the machine's own default network and has no VRF.
        (_, Some(NetworkKind::Underlay)) | (Read::Missing | Read::Invalid, _) => None,
        (Read::Valid(vrf), _) => {
            // A VRF's id is its VXLAN network identifier, 24 bits.
            let vlan = if (1..1 << 24).contains(&vrf) { format!("vlan{vrf}").parse().ok() } else { None };
            if vlan.is_none() {
                let message = format_args!("{vrf} is no VRF; the network has no interface");
                report.error(
                    &vrf_field.path,
                    Reason::InvalidValue,
                    message,
                    "write a number from 1 to 16777215",
                );
            }
            vlan
        }
    };
    Network {
        path: entry.path.clone(),
        kind,
        vlan,
        nat: entry.get("nat").boolean(report).valid().unwrap_or(false),
        prefixes: read_prefixes(&entry.get("prefixes"), fw_crds::MAX_PREFIXES, report).nets,
    }
}

/// A network id. It becomes part of rule comments and metric labels, so it is kept to plain characters.
pub(crate) fn read_id(field: &Field<'_>, report: &mut Report) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    match field.text(report) {
        Read::Valid(text) if !text.is_empty() && text.len() <= 128 && text.chars().all(allowed) => {
            return Some(text.to_owned());
        }
        Read::Valid(text) => report.error(
            &field.path,
            Reason::InvalidName,
            format_args!("{} is no network id; the entry is ignored", quoted(text)),
            "use letters, digits, '-', '_', '.' and ':', at most 128",
        ),
        Read::Missing => {
            report.error(
                &field.path,
                Reason::InvalidName,
                "is missing; the entry is ignored",
                "write the network's id",
            );
        }
        Read::Invalid => {}
    }
    None
}

/// What `egressRules` and `nat` ask for.
pub(crate) struct SourceNat {
    /// By network id.
    pub(crate) snat: BTreeMap<String, Snat>,
    /// Networks with `nat: true` that `egressRules` does not name; by network id.
    pub(crate) masquerade: BTreeMap<String, Masquerade>,
}

/// Reads `egressRules`. A network that is named there with addresses is never masqueraded, even when all of its
/// addresses are invalid: its author wanted those addresses and no others.
pub(crate) fn read_source_nat(
    field: &Field<'_>,
    networks: &BTreeMap<String, Network>,
    report: &mut Report,
) -> SourceNat {
    let mut snat: BTreeMap<String, Snat> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for (_, entry) in field.list(fw_crds::MAX_NETWORKS, report).entries {
        if !entry.map(report) {
            continue;
        }
        let Some(id) = read_id(&entry.get("networkid"), report) else { continue };
        let ips = entry.get("ips").list(fw_crds::MAX_ADDRESSES, report);
        if ips.empty {
            continue;
        }
        named.insert(id.clone());
        let Some((network, device)) = external(&entry.get("networkid"), &id, networks, report) else {
            continue;
        };
        for (_, ip) in ips.entries {
            let Some(address) = read_snat_address(&ip, network, report) else { continue };
            let new = || Snat {
                interfaces: network.interfaces(),
                addresses: BTreeSet::new(),
                device: device.clone(),
            };
            snat.entry(id.clone()).or_insert_with(new).addresses.insert(address);
        }
    }
    let masquerade = networks
        .iter()
        .filter(|(id, network)| network.nat && !named.contains(*id) && network.vlan.is_some())
        .filter(|(_, network)| !network.kind.is_some_and(NetworkKind::is_private_primary))
        .map(|(id, network)| (id.clone(), Masquerade { interfaces: network.interfaces() }))
        .collect();
    SourceNat { snat, masquerade }
}

/// The network of an egress rule and its device, if it is an external one.
fn external<'n>(
    field: &Field<'_>,
    id: &str,
    networks: &'n BTreeMap<String, Network>,
    report: &mut Report,
) -> Option<(&'n Network, &'n IfName)> {
    let network = find(field, id, networks, report)?;
    match (network.kind, &network.vlan) {
        (Some(NetworkKind::External), Some(vlan)) => Some((network, vlan)),
        (Some(NetworkKind::External), None) => {
            let message =
                format_args!("network {} has no usable vrf; there is no source NAT for it", quoted(id));
            report.error(
                &field.path,
                Reason::UnknownNetwork,
                message,
                format_args!("write {}.vrf", network.path),
            );
            None
        }
        _ => {
            let message =
                format_args!("network {} is not external; there is no source NAT for it", quoted(id));
            report.error(&field.path, Reason::UnknownNetwork, message, "name a network of type external");
            None
        }
    }
}

fn find<'n>(
    field: &Field<'_>,
    id: &str,
    networks: &'n BTreeMap<String, Network>,
    report: &mut Report,
) -> Option<&'n Network> {
    let network = networks.get(id);
    if network.is_none() {
        let message = format_args!("network {} is not in firewallNetworks; the entry is ignored", quoted(id));
        report.error(&field.path, Reason::UnknownNetwork, message, "name a network of spec.firewallNetworks");
    }
    network
}

fn read_snat_address(field: &Field<'_>, network: &Network, report: &mut Report) -> Option<std::net::IpAddr> {
    let text = field.text(report).valid()?;
    let address = host(text).and_then(|address| {
        let inside = network.prefixes.iter().any(|prefix| prefix.contains(&address));
        if inside { Ok(address) } else { Err("is in none of the network's prefixes") }
    });
    address
        .map_err(|why| {
            let message = format_args!("{} {why}; it is not used for source NAT", quoted(text));
            report.error(
                &field.path,
                Reason::InvalidAddress,
                message,
                "use an address of the network's prefixes",
            );
        })
        .ok()
}

/// Reads both spellings of the rate limits: `ratelimits` by interface in Mbit/s, `rateLimits` by network in MiB/s.
pub(crate) fn read_rate_limits(
    spec: &Field<'_>,
    networks: &BTreeMap<String, Network>,
    report: &mut Report,
) -> BTreeMap<String, RateLimit> {
    let mut limits = BTreeMap::new();
    for (_, entry) in spec.get("ratelimits").list(fw_crds::MAX_NETWORKS, report).entries {
        if !entry.map(report) {
            continue;
        }
        let rate = read_rate(&entry, MBIT, report);
        let Some(name) = read_interface(&entry.get("interface"), report) else { continue };
        insert_limit(&entry, name.to_string(), both_names(&name), rate, &mut limits, report);
    }
    for (_, entry) in spec.get("rateLimits").list(fw_crds::MAX_NETWORKS, report).entries {
        if !entry.map(report) {
            continue;
        }
        let rate = read_rate(&entry, MIB, report);
        let field = entry.get("networkid");
        let Some(id) = read_id(&field, report) else { continue };
        let Some(network) = find(&field, &id, networks, report) else { continue };
        let interfaces = network.interfaces();
        if interfaces.is_empty() {
            let message = format_args!("network {} has no interface; there is no limit for it", quoted(&id));
            report.error(
                &field.path,
                Reason::UnknownNetwork,
                message,
                format_args!("write {}.vrf", network.path),
            );
            continue;
        }
        insert_limit(&entry, id, interfaces, rate, &mut limits, report);
    }
    limits
}

/// Bytes per second in one Mbit/s and one MiB/s.
const MBIT: u64 = 1_000_000 / 8;
const MIB: u64 = 1 << 20;

/// Bytes per second; `None`: no limit, a finding says why.
fn read_rate(entry: &Field<'_>, default_unit: u64, report: &mut Report) -> Option<u64> {
    let unit_field = entry.get("rateUnit");
    let unit = match unit_field.text(report) {
        Read::Missing => Some(default_unit),
        Read::Valid("Mbit/s") => Some(MBIT),
        Read::Valid("MiB/s") => Some(MIB),
        Read::Valid(other) => {
            let message = format_args!("{} is no unit; there is no limit", quoted(other));
            report.error(&unit_field.path, Reason::InvalidValue, message, "write Mbit/s or MiB/s");
            None
        }
        Read::Invalid => None,
    };
    let field = entry.get("rate");
    match field.integer(report) {
        Read::Valid(0) => {
            let message = "a rate of 0 means no limit, and no limit is set";
            report.warning(
                &field.path,
                Reason::InvalidValue,
                message,
                "remove the entry, or write a rate above 0",
            );
            None
        }
        // The Go type is uint32.
        Read::Valid(rate) => match u32::try_from(rate) {
            Ok(rate) => unit.and_then(|unit| unit.checked_mul(u64::from(rate))),
            Err(_) => {
                let message = format_args!("{rate} is no rate; there is no limit");
                report.error(
                    &field.path,
                    Reason::InvalidValue,
                    message,
                    "write a number from 1 to 4294967295",
                );
                None
            }
        },
        Read::Missing => {
            report.error(
                &field.path,
                Reason::InvalidValue,
                "is missing; there is no limit",
                "write the rate",
            );
            None
        }
        Read::Invalid => None,
    }
}

fn insert_limit(
    entry: &Field<'_>,
    name: String,
    interfaces: BTreeSet<IfName>,
    rate: Option<u64>,
    limits: &mut BTreeMap<String, RateLimit>,
    report: &mut Report,
) {
    let Some(bytes_per_second) = rate else { return };
    if limits.contains_key(&name) {
        let message = format_args!("there is a limit for {name} already; the first one counts");
        report.error(&entry.path, Reason::DuplicateEntry, message, "remove one of the two");
        return;
    }
    limits.insert(name, RateLimit { interfaces, bytes_per_second });
}

/// The name of an interface.
pub(crate) fn read_interface(field: &Field<'_>, report: &mut Report) -> Option<IfName> {
    match field.text(report) {
        Read::Valid(text) => text
            .parse()
            .map_err(|error: fw_policy::NameError| {
                let why = match error {
                    fw_policy::NameError::Length(_) => "must have 1 to 15 bytes",
                    fw_policy::NameError::Character(_) => {
                        "may hold only letters, digits, '-', '_', '.', '@', '+'"
                    }
                };
                let message =
                    format_args!("{} is no interface name, which {why}; it is ignored", quoted(text));
                report.error(&field.path, Reason::InvalidName, message, "write a name as `ip link` shows it");
            })
            .ok(),
        Read::Missing => {
            let message = "is missing; the entry is ignored";
            report.error(&field.path, Reason::InvalidName, message, "write a name as `ip link` shows it");
            None
        }
        Read::Invalid => None,
    }
}
