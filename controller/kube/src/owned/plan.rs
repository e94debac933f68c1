//! What is to be written, from what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::life::{Signs, Time};

/// A program on every firewall that the cluster's Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exporter {
    /// Name of its objects, and of their label `app`.
    pub name: &'static str,
    /// Name of its port.
    pub port_name: &'static str,
    /// Its TCP port.
    pub port: u16,
}

/// All of them, as the clusters in the field know them (compat.md section 4).
pub const EXPORTERS: [Exporter; 2] = [
    Exporter { name: "nftables-exporter", port_name: "nftexporter", port: 9630 },
    Exporter { name: "node-exporter", port_name: "nodeexporter", port: 9100 },
];

/// Who keeps our EndpointSlices. Other controllers leave alone what carries another's name here.
pub(crate) const MANAGER: &str = "firewall-controller.metal-stack.io";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Without it the cluster would mirror the Endpoints into one more EndpointSlice, and every target would be there twice.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation: the firewall whose slice it is.
const FIREWALL: &str = "metal-stack.io/firewall";
/// Annotation: changes with every heartbeat of that firewall.
pub(crate) const RENEWED: &str = "metal-stack.io/renewed";
/// Annotation of the shared Endpoints: the slices they were computed from ([`generation`]).
const GENERATION: &str = "metal-stack.io/endpointslices";
/// Longest name of an object (RFC 1123, as Kubernetes reads it).
const MAX_NAME: usize = 253;

/// What this firewall wants to be found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its name, different from that of every other firewall of the cluster.
    pub firewall: String,
    /// Where its exporters answer.
    pub address: IpAddr,
}

/// Kind of an object we own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// v1 Service, shared by all firewalls.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice, one for each firewall.
    Slice,
    /// v1 Endpoints, shared. Deprecated in Kubernetes 1.33, but where Prometheus looks in the field.
    Endpoints,
}

/// What is in namespace `firewall`, by name. Endpoints have to be read BEFORE slices: a firewall writes its slice before
/// the Endpoints, takes a dead one's slice before its address, and is done only when the Endpoints name its slice in their
/// annotation. So who then writes Endpoints with slices that were not the newest writes over a newer version, which the
/// API server refuses; also where the addresses are the same, as those of a firewall that comes back the moment it is
/// taken out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Services with the names of [`EXPORTERS`].
    pub services: BTreeMap<String, Value>,
    /// Endpoints with the names of [`EXPORTERS`].
    pub endpoints: BTreeMap<String, Value>,
    /// All EndpointSlices.
    pub slices: BTreeMap<String, Value>,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A new object.
    Create(Kind, Value),
    /// The object as it was read, changed; refused by the API server if it is not that version any more.
    Replace(Kind, Value),
    /// Removal of exactly the version that was read.
    Delete(Kind, Value),
}

impl Write {
    /// Kind and object.
    #[must_use]
    pub fn object(&self) -> (Kind, &Value) {
        match self {
            Self::Create(kind, object) | Self::Replace(kind, object) | Self::Delete(kind, object) => {
                (*kind, object)
            }
        }
    }
}

/// An EndpointSlice that a firewall keeps for one exporter.
pub(crate) struct Kept {
    pub(crate) exporter: &'static str,
    /// Changes whenever its firewall was alive.
    pub(crate) sign: String,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Reads a slice; `None`: it is none of the firewalls'.
pub(crate) fn kept(slice: &Value) -> Option<Kept> {
    let labels = &slice["metadata"]["labels"];
    let exporter = EXPORTERS.iter().find(|exporter| labels[SERVICE_NAME] == exporter.name)?;
    if labels[MANAGED_BY] != MANAGER {
        return None;
    }
    let sign = format!("{} {}", slice["metadata"]["uid"], slice["metadata"]["annotations"][RENEWED]);
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let texts = endpoints.flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten());
    Some(Kept { exporter: exporter.name, sign, addresses: texts.filter_map(address).collect() })
}

/// The addresses of an Endpoints object.
pub(crate) fn addresses_of(endpoints: &Value) -> BTreeSet<IpAddr> {
    let subsets = endpoints["subsets"].as_array().into_iter().flatten();
    subsets.flat_map(|subset| list(&subset["addresses"])).filter_map(|entry| address(&entry["ip"])).collect()
}

fn address(text: &Value) -> Option<IpAddr> {
    text.as_str()?.parse().ok().filter(|address| usable(*address))
}

/// True for what the API server takes as the address of an endpoint; one that it does not take would have all others of
/// the object refused as well.
#[must_use]
pub fn usable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local)
}

/// Name of a firewall's slice. What cannot be part of a name is replaced, and a hash keeps different firewalls apart.
pub(crate) fn slice_name(exporter: &str, firewall: &str) -> String {
    let plain = format!("{exporter}-{firewall}");
    let is_label = |label: &str| {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        label.bytes().all(inner) && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    if plain.len() <= MAX_NAME && plain.split('.').all(is_label) {
        return plain;
    }
    let hash = hex(&Sha256::digest(firewall.as_bytes()));
    let clean = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let readable: String = firewall.chars().map(clean).take(100).collect();
    format!("{exporter}-{readable}-{hash}")
}

/// What differs from what is wanted, in the order in which it is to be written. `stamp` is another text at every
/// heartbeat. With the same stamp and all of it written, nothing differs any more.
#[must_use]
pub fn plan(own: &Own, stamp: &str, signs: &Signs, gone: Time, observed: &Observed) -> Vec<Write> {
    let each = EXPORTERS.iter().flat_map(|exporter| {
        let mut writes = Vec::new();
        writes.extend(service(exporter, observed.services.get(exporter.name)));
        writes.extend(slice(exporter, own, stamp, observed));
        writes.extend(dead_slices(exporter, own, signs, gone, observed));
        writes.extend(endpoints(exporter, own, signs, gone, observed));
        writes
    });
    each.collect()
}

fn service(exporter: &Exporter, there: Option<&Value>) -> Option<Write> {
    let port = json!({
        "name": exporter.port_name, "port": exporter.port, "targetPort": exporter.port, "protocol": "TCP",
    });
    let Some(there) = there else {
        let mut object = new("v1", "Service", exporter.name);
        put(&mut object, "labels", "app", exporter.name);
        object["spec"] = json!({ "clusterIP": "None", "ports": [port] });
        return Some(Write::Create(Kind::Service, object));
    };
    let mut object = there.clone();
    put(&mut object, "labels", "app", exporter.name);
    let spec = object["spec"].as_object_mut()?;
    // With a selector the cluster would write the Endpoints too.
    spec.remove("selector");
    let ports: Vec<Value> = list(spec.get("ports").unwrap_or(&Value::Null)).cloned().collect();
    let is_ours = |port: &Value| port["port"] == exporter.port && port["protocol"] == "TCP";
    if !ports.iter().any(|port| is_ours(port) && port["name"] == exporter.port_name) {
        let others = ports.into_iter().filter(|port| !is_ours(port) && port["name"] != exporter.port_name);
        // Several ports need names; only one may be without.
        let others = others.filter(|port| port["name"].as_str().is_some_and(|name| !name.is_empty()));
        spec.insert("ports".to_owned(), others.chain([port]).collect());
    }
    (object != *there).then_some(Write::Replace(Kind::Service, object))
}

/// Our own slice.
fn slice(exporter: &Exporter, own: &Own, stamp: &str, observed: &Observed) -> Option<Write> {
    let name = slice_name(exporter.name, &own.firewall);
    let family = if own.address.is_ipv4() { "IPv4" } else { "IPv6" };
    let there = observed.slices.get(&name);
    if let Some(there) = there.filter(|there| there["addressType"] != family) {
        // It can never change; the new one is made at the next look, which follows at once.
        return Some(Write::Delete(Kind::Slice, there.clone()));
    }
    let mut object = there.cloned().unwrap_or_else(|| new("discovery.k8s.io/v1", "EndpointSlice", &name));
    put(&mut object, "labels", "app", exporter.name);
    put(&mut object, "labels", SERVICE_NAME, exporter.name);
    put(&mut object, "labels", MANAGED_BY, MANAGER);
    put(&mut object, "annotations", FIREWALL, &own.firewall);
    put(&mut object, "annotations", RENEWED, stamp);
    object["addressType"] = json!(family);
    let texts: Vec<&Value> =
        list(&object["endpoints"]).flat_map(|endpoint| list(&endpoint["addresses"])).collect();
    let address = own.address.to_string();
    if texts != [&json!(address)] || object["endpoints"][0]["conditions"]["ready"] != true {
        object["endpoints"] = json!([{ "addresses": [address], "conditions": { "ready": true } }]);
    }
    let port = json!([{ "name": exporter.port_name, "port": exporter.port, "protocol": "TCP" }]);
    if object["ports"] != port {
        object["ports"] = port;
    }
    match there {
        None => Some(Write::Create(Kind::Slice, object)),
        Some(there) => (object != *there).then_some(Write::Replace(Kind::Slice, object)),
    }
}

/// Slices of firewalls that are gone.
fn dead_slices(exporter: &Exporter, own: &Own, signs: &Signs, gone: Time, observed: &Observed) -> Vec<Write> {
    let own = slice_name(exporter.name, &own.firewall);
    let theirs = observed.slices.iter().filter(|(name, _)| **name != own);
    let dead = theirs.filter(|(name, slice)| {
        kept(slice).is_some_and(|kept| kept.exporter == exporter.name) && signs.silence_of_slice(name) >= gone
    });
    dead.map(|(_, slice)| Write::Delete(Kind::Slice, slice.clone())).collect()
}

/// The shared Endpoints: the addresses of all slices, and of firewalls that are alive and have none (yet).
fn endpoints(
    exporter: &Exporter,
    own: &Own,
    signs: &Signs,
    gone: Time,
    observed: &Observed,
) -> Option<Write> {
    let there = observed.endpoints.get(exporter.name);
    let own_slice = slice_name(exporter.name, &own.firewall);
    let theirs = observed.slices.iter().filter(|(name, _)| **name != own_slice);
    let kept = theirs.filter_map(|(_, slice)| kept(slice)).filter(|kept| kept.exporter == exporter.name);
    // An address goes only after its slice went: that it is exactly the silent version which is deleted is what tells the
    // dead from one that came back this moment.
    let theirs: BTreeSet<IpAddr> = kept.flat_map(|kept| kept.addresses).collect();
    let mut wanted: BTreeSet<IpAddr> = signs.addresses(exporter.name, gone).collect();
    if let Some(before) = observed.slices.get(&own_slice).and_then(self::kept) {
        // What was ours is not ours any more.
        wanted.retain(|address| !before.addresses.contains(address));
    }
    wanted.extend(theirs);
    wanted.insert(own.address);
    let mut object = there.cloned().unwrap_or_else(|| new("v1", "Endpoints", exporter.name));
    put(&mut object, "labels", "app", exporter.name);
    put(&mut object, "labels", SKIP_MIRROR, "true");
    put(&mut object, "annotations", GENERATION, &generation(exporter, observed));
    set_addresses(&mut object, exporter, &wanted);
    match there {
        None => Some(Write::Create(Kind::Endpoints, object)),
        Some(there) => (object != *there).then_some(Write::Replace(Kind::Endpoints, object)),
    }
}

/// Tells any two sets of an exporter's slices apart; heartbeats do not change it.
fn generation(exporter: &Exporter, observed: &Observed) -> String {
    let mut hash = Sha256::new();
    for (name, slice) in &observed.slices {
        if let Some(kept) = kept(slice).filter(|kept| kept.exporter == exporter.name) {
            hash.update(format!("{name} {} {:?}\n", slice["metadata"]["uid"], kept.addresses));
        }
    }
    hex(&hash.finalize())
}

/// The first eight octets.
fn hex(hash: &[u8]) -> String {
    hash.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// Subsets of other ports stay as they are, and so does what is written at an address.
fn set_addresses(object: &mut Value, exporter: &Exporter, wanted: &BTreeSet<IpAddr>) {
    let port = json!([{ "name": exporter.port_name, "port": exporter.port, "protocol": "TCP" }]);
    let all: Vec<Value> = list(&object["subsets"]).cloned().collect();
    let (ours, others): (Vec<Value>, Vec<Value>) = all
        .into_iter()
        .partition(|subset| subset["ports"] == port || list(&subset["ports"]).next().is_none());
    let entries = || ours.iter().flat_map(|subset| list(&subset["addresses"]));
    let there: Vec<&str> = entries().filter_map(|entry| entry["ip"].as_str()).collect();
    let texts: BTreeSet<String> = wanted.iter().map(IpAddr::to_string).collect();
    let as_wanted = ours.len() == 1
        && ours.iter().all(|subset| subset["ports"] == port && subset.get("notReadyAddresses").is_none())
        && there.len() == texts.len()
        && there.iter().all(|text| texts.contains(*text));
    if as_wanted {
        return;
    }
    let entry = |text: &String| {
        entries().find(|entry| entry["ip"] == **text).cloned().unwrap_or_else(|| json!({ "ip": text }))
    };
    let subset = json!({ "addresses": texts.iter().map(entry).collect::<Vec<_>>(), "ports": port });
    object["subsets"] = others.into_iter().chain([subset]).collect();
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn new(version: &str, kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": version, "kind": kind,
        "metadata": { "name": name, "namespace": crate::NAMESPACE },
    })
}

/// Sets a label or annotation; all others stay.
fn put(object: &mut Value, part: &str, key: &str, value: &str) {
    let part = &mut object["metadata"][part];
    if !part.is_object() {
        *part = Value::Object(Map::new());
    }
    part[key] = json!(value);
}
