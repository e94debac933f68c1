//! Firewall: the settings of one machine and what it reports.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bounds::{MAX_ADDRESSES, MAX_LOG_RATE, MAX_NETWORKS, MAX_PREFIXES, MAX_SSH_PORTS, MAX_VRF};
use crate::dns::{DnsFallbackSpec, DnsSpec, FastpathSpec};
use crate::schema;

/// Settings of a firewall. Both spellings in the field are taken: that of 2020 and the last one of v1.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "metal-stack.io",
    version = "v1",
    kind = "Firewall",
    plural = "firewalls",
    shortname = "fw",
    category = "metal-stack",
    namespaced,
    status = "FirewallStatus",
    derive = "PartialEq",
    doc = "Settings of a firewall, and what it reports. Only namespace firewall counts.",
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Dryrun","type":"boolean","jsonPath":".spec.dryrun"}"#,
    printcolumn = r#"{"name":"Last Run","type":"date","jsonPath":".status.lastRun"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message","priority":1}"#,
    printcolumn = r#"{"name":"Inside","type":"string","jsonPath":".status.inside","priority":1}"#,
    printcolumn = r#"{"name":"Controller","type":"string","jsonPath":".status.controllerVersion","priority":1}"#,
    printcolumn = r#"{"name":"Interval","type":"string","jsonPath":".spec.interval","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct FirewallSpec {
    /// How often statistics are written to the status, such as 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub interval: Option<String>,
    /// Compile and check, apply nothing; what is applied stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dryrun: Option<bool>,
    /// Rate limits by interface, in Mbit/s.
    #[serde(rename = "ratelimits", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_NETWORKS))]
    #[schemars(extend("x-kubernetes-validations" = schema::rules(&[(
        "self.all(a, self.exists_one(b, a.interface == b.interface))",
        "each interface may have one rate limit only",
    )])))]
    pub interface_rate_limits: Option<Vec<InterfaceRateLimit>>,
    /// Rate limits by network, in MiB/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_NETWORKS))]
    #[schemars(extend("x-kubernetes-validations" = schema::rules(&[(
        "self.all(a, self.exists_one(b, a.networkid == b.networkid))",
        "each network may have one rate limit only",
    )])))]
    pub rate_limits: Option<Vec<NetworkRateLimit>>,
    /// Prefixes that accounting counts as internal traffic.
    #[serde(rename = "internalprefixes", default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidrs::<MAX_PREFIXES>")]
    pub internal_prefixes: Option<Vec<String>>,
    /// Source addresses of traffic that leaves by a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_NETWORKS))]
    pub egress_rules: Option<Vec<EgressNat>>,
    /// The networks the machine is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_NETWORKS))]
    #[schemars(extend("x-kubernetes-validations" = schema::rules(&[(
        "self.all(a, !has(a.networkid) || self.exists_one(b, has(b.networkid) && a.networkid == b.networkid))",
        "each network may be there once only: networkid must be different",
    )])))]
    pub firewall_networks: Option<Vec<FirewallNetwork>>,
    /// Resolvers the DNS proxy asks, after those of dns.upstreams: an address, or several with spaces or commas between
    /// them, each with a port if it is not 53.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_server_address: Option<String>,
    /// Port of the DNS proxy. Missing or 0: 5353.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub dns_port: Option<i64>,
    /// The DNS proxy and what is learned from its answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsSpec>,
    /// While the DNS proxy is away: whether DNS to well-known and configured resolvers passes. Default allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_fallback: Option<DnsFallbackSpec>,
    /// Where packets are judged before nftables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fastpath: Option<FastpathSpec>,
    /// Log accepted connections too, within the limit of dropLog.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_accepted_connections: Option<bool>,
    /// What policies and Services may open. Empty: no limit; one list filled closes the other one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_networks: Option<AllowedNetworks>,
    /// Interfaces towards the cluster. Missing: those of the private primary network, else by the routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::interfaces::<MAX_NETWORKS>")]
    pub inside_interfaces: Option<Vec<String>>,
    /// Prefixes of the cluster's machines. Missing: those of the private primary network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidrs::<MAX_PREFIXES>")]
    pub cluster_prefixes: Option<Vec<String>>,
    /// The limited log of dropped packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_log: Option<DropLogSpec>,
    /// NFLOG group of the log. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub nflog_group: Option<i32>,
    /// Which pings pass. Default deny.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_echo: Option<IcmpEchoSpec>,
    /// Protection of the machine itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_protection: Option<HostProtectionSpec>,
    /// Ignored: rules are compiled and not read from a file.
    #[serde(rename = "ipv4rulefile", skip_serializing_if = "Option::is_none")]
    pub ipv4_rule_file: Option<String>,
    /// Ignored: updates come by packages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// Ignored: updates come by packages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller_version: Option<String>,
    /// Ignored: updates come by packages.
    #[serde(rename = "controllerURL", skip_serializing_if = "Option::is_none")]
    pub controller_url: Option<String>,
    /// Ignored: the intrusion detection configures itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::anything")]
    pub ids: Option<Value>,
    /// Ignored.
    #[serde(rename = "clusterid", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Ignored.
    #[serde(rename = "projectid", skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
}

/// A rate limit of one interface, for each direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceRateLimit {
    /// The interface, such as vrf104009.
    #[schemars(schema_with = "schema::interface")]
    pub interface: String,
    /// The rate, in Mbit/s unless rateUnit says otherwise. 0: no limit.
    #[schemars(schema_with = "schema::rate")]
    pub rate: u32,
    /// The unit of rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_unit: Option<RateUnit>,
}

/// A rate limit of one network, for each direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkRateLimit {
    /// Id of a network in firewallNetworks.
    #[serde(rename = "networkid")]
    #[schemars(schema_with = "schema::network_id")]
    pub network_id: String,
    /// The rate, in MiB/s unless rateUnit says otherwise. 0: no limit.
    #[schemars(schema_with = "schema::rate")]
    pub rate: u32,
    /// The unit of rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_unit: Option<RateUnit>,
}

/// Unit of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateUnit {
    /// 1,000,000 bits a second.
    #[serde(rename = "Mbit/s")]
    MegabitPerSecond,
    /// 1,048,576 bytes a second.
    #[serde(rename = "MiB/s")]
    MebibytePerSecond,
}

/// Source addresses of traffic that leaves by one network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EgressNat {
    /// Id of a network of type external in firewallNetworks.
    #[serde(rename = "networkid")]
    #[schemars(schema_with = "schema::network_id")]
    pub network_id: String,
    /// Addresses inside the network's prefixes. With several, a flow keeps one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::addresses::<MAX_ADDRESSES>")]
    pub ips: Option<Vec<String>>,
}

/// One network the machine is in. Its interface is `vlan<vrf>` in the VRF `vrf<vrf>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub struct FirewallNetwork {
    /// Number of the autonomous system.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = u32::MAX))]
    pub asn: Option<i64>,
    /// Prefixes reached by this network.
    #[serde(rename = "destinationprefixes", default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidrs::<MAX_PREFIXES>")]
    pub destination_prefixes: Option<Vec<String>>,
    /// Addresses of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::addresses::<MAX_ADDRESSES>")]
    pub ips: Option<Vec<String>>,
    /// Masquerade what leaves by this network, where egressRules names no addresses; part of hostProtection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat: Option<bool>,
    /// Id of the network.
    #[serde(rename = "networkid", default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::network_id")]
    pub network_id: Option<String>,
    /// Kind of network.
    #[serde(rename = "networktype", skip_serializing_if = "Option::is_none")]
    pub network_type: Option<NetworkType>,
    /// Prefixes of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidrs::<MAX_PREFIXES>")]
    pub prefixes: Option<Vec<String>>,
    /// Id of its VRF; 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_VRF))]
    pub vrf: Option<i64>,
}

/// Kind of network, as metal-stack names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkType {
    /// The cluster's own network.
    PrivatePrimaryUnshared,
    /// The cluster's own network, seen by others.
    PrivatePrimaryShared,
    /// A shared network of others.
    PrivateSecondaryShared,
    /// Outside.
    External,
    /// The fabric that carries the others.
    Underlay,
}

/// What policies and Services may open; the cluster's own prefixes always may be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AllowedNetworks {
    /// Sources of ingress rules, and addresses of Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidrs::<MAX_PREFIXES>")]
    pub ingress: Option<Vec<String>>,
    /// Destinations of egress rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidrs::<MAX_PREFIXES>")]
    pub egress: Option<Vec<String>>,
}

/// The limited log of dropped packets. What the limit keeps back is counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DropLogSpec {
    /// Packets a second; 0: no limit. Default 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_LOG_RATE))]
    pub rate: Option<i32>,
    /// Packets above the rate that may come at once. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_LOG_RATE))]
    pub burst: Option<i32>,
    /// Where packets are logged. Default nflog.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<DropLogTargetSpec>,
}

/// Where packets are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DropLogTargetSpec {
    /// NFLOG, which droptailer reads.
    Nflog,
    /// The kernel's log.
    Kernel,
    /// Both.
    Both,
}

/// Which pings pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IcmpEchoSpec {
    /// None.
    Deny,
    /// Those of the cluster.
    Egress,
    /// Those of the cluster and those to the cluster.
    Both,
}

/// Protection of the machine itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostProtectionSpec {
    /// On or off. Default off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Ports of SSH. Missing: those sshd listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_SSH_PORTS), inner(range(min = 1, max = 65535)))]
    pub ssh_ports: Option<Vec<i32>>,
}

/// What the firewall reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FirewallStatus {
    /// What is in force, in a few words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// When the kernel was last read or changed for this status, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_run: Option<String>,
    /// What is wrong, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Version of the controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller_version: Option<String>,
    /// Which side is inside, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inside: Option<String>,
    /// Name of the machine that writes this status. Of several that take their settings from one Firewall only one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer: Option<String>,
    /// Statistics. They never go down.
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<FirewallStats>,
}

/// Statistics of a firewall.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FirewallStats {
    /// Bytes by side: external and internal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Option<BTreeMap<String, DeviceStats>>")]
    pub devices: BTreeMap<String, DeviceStats>,
    /// Intrusion detection by interface.
    #[serde(rename = "idsstats", default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Option<BTreeMap<String, IdsStats>>")]
    pub ids_stats: BTreeMap<String, IdsStats>,
    /// Counters by action (accept, drop, other) and rule comment; rules with equal comments are summed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Option<BTreeMap<String, BTreeMap<String, RuleStats>>>")]
    pub rules: BTreeMap<String, BTreeMap<String, RuleStats>>,
    /// Packets that no policy allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_total: Option<Counter>,
    /// All dropped packets, by reason and by where they were dropped.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Option<BTreeMap<String, BTreeMap<String, Counter>>>")]
    pub drops: BTreeMap<String, BTreeMap<String, Counter>>,
    /// What the drop log showed and what its limit kept back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_log: Option<DropLogStats>,
}

/// Bytes of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DeviceStats {
    /// Towards the private network.
    #[schemars(schema_with = "schema::count")]
    pub r#in: u64,
    /// From the private network.
    #[schemars(schema_with = "schema::count")]
    pub out: u64,
    /// Both.
    #[schemars(schema_with = "schema::count")]
    pub total: u64,
}

/// Intrusion detection of one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct IdsStats {
    /// Packets the detection missed.
    #[schemars(schema_with = "schema::count")]
    pub drop: u64,
    /// Packets with a wrong checksum.
    #[serde(rename = "invalidchecksums")]
    #[schemars(schema_with = "schema::count")]
    pub invalid_checksums: u64,
    /// Packets seen.
    #[schemars(schema_with = "schema::count")]
    pub packets: u64,
}

/// Counter of the rules of one comment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RuleStats {
    /// The counter.
    pub counter: Counter,
}

/// Bytes and packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Counter {
    /// Bytes.
    #[schemars(schema_with = "schema::count")]
    pub bytes: u64,
    /// Packets.
    #[schemars(schema_with = "schema::count")]
    pub packets: u64,
}

/// What became of the packets that were to be logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DropLogStats {
    /// Shown.
    #[schemars(schema_with = "schema::count")]
    pub shown: u64,
    /// Kept back by the limit, or lost.
    #[schemars(schema_with = "schema::count")]
    pub suppressed: u64,
}
