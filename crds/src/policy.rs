//! ClusterwideNetworkPolicy: what may enter and leave the cluster.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounds::{MAX_EXCEPTS, MAX_PEERS, MAX_PORTS, MAX_REGEX, MAX_RULES, MAX_SELECTORS};
use crate::schema;

/// What may enter and leave the cluster through the firewall. Policies add up; nothing else passes.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "metal-stack.io",
    version = "v1",
    kind = "ClusterwideNetworkPolicy",
    plural = "clusterwidenetworkpolicies",
    shortname = "cwnp",
    category = "metal-stack",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "What may enter and leave the cluster through the firewall. Only namespace firewall counts.",
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message"}"#,
    printcolumn = r#"{"name":"Description","type":"string","jsonPath":".spec.description","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    /// Free text for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What may enter: each rule lets its sources reach its ports. Missing or empty: nothing.
    #[schemars(length(max = MAX_RULES))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<IngressRule>>,
    /// What may leave: each rule lets the cluster reach its destinations' ports. Missing or empty: nothing.
    #[schemars(length(max = MAX_RULES))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<EgressRule>>,
}

/// Who may reach which ports of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IngressRule {
    /// Sources. Missing or empty: every source.
    #[schemars(length(max = MAX_PEERS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<IpBlock>>,
    /// Ports. Missing or empty: every TCP and UDP port.
    #[schemars(length(max = MAX_PORTS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PolicyPort>>,
}

/// Which destinations and ports the cluster may reach.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EgressRule {
    /// Destinations. Missing or empty, and no toFQDNs: every destination.
    #[schemars(length(max = MAX_PEERS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<IpBlock>>,
    /// Destinations by DNS name. Ignored beside a filled `to`; a rule with this field never means every destination.
    #[schemars(length(max = MAX_SELECTORS))]
    #[serde(rename = "toFQDNs", skip_serializing_if = "Option::is_none")]
    pub to_fqdns: Option<Vec<FqdnSelector>>,
    /// Ports. Missing or empty: every TCP and UDP port.
    #[schemars(length(max = MAX_PORTS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PolicyPort>>,
}

/// An address block less its exceptions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IpBlock {
    /// The block, IPv4 or IPv6, such as 192.0.2.0/24. Host bits do not matter.
    #[schemars(schema_with = "schema::cidr")]
    pub cidr: String,
    /// What is taken out of this block, and of no other one.
    #[schemars(schema_with = "schema::cidrs::<MAX_EXCEPTS>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub except: Option<Vec<String>>,
}

/// A port or a range of ports of one protocol.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.port) || int(self.port) <= 65535")
        .message("port must be a number from 1 to 65535")
        .field_path(".port"),
    validation = Rule::new("!has(self.endPort) || has(self.port)")
        .message("endPort needs port, the first port of the range")
        .field_path(".endPort"),
    validation = Rule::new("!has(self.endPort) || !has(self.port) || int(self.port) <= self.endPort")
        .message("endPort must not be below port")
        .field_path(".endPort")
)]
pub struct PolicyPort {
    /// TCP or UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::protocol")]
    pub protocol: Option<String>,
    /// The port, or the first one of a range. Missing: every port of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::port")]
    pub port: Option<IntOrString>,
    /// The last port of a range.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
}

/// A destination by its DNS name; letter case and a trailing dot do not matter.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.matchName) || has(self.matchPattern) || has(self.matchRegex)")
        .message("write matchName, matchPattern or matchRegex")
)]
pub struct FqdnSelector {
    /// One name, such as www.example.com.
    #[schemars(regex(pattern = r"^(([-a-zA-Z0-9_]|[^\x00-\x7F])+[.]?)+$"), length(max = 254))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_name: Option<String>,
    /// Names by a pattern; `*` stands for any characters, dots too: *.example.com.
    #[schemars(regex(pattern = r"^(([-a-zA-Z0-9_*]|[^\x00-\x7F])+[.]?)+$"), length(max = 254))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_pattern: Option<String>,
    /// Names by a regular expression over the whole name, in lower case; no look-around, no back-references.
    #[schemars(length(min = 1, max = MAX_REGEX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_regex: Option<String>,
}

/// What became of the policy, behind all firewalls together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyStatus {
    /// `deployed`, `invalid` (some entries of it are not enforced), `pending` (not in force yet) or `ignored`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why it is ignored or not in force yet, or which entries of it are not enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Version of the spec that the status is about. Smaller than metadata.generation: an edit was not judged yet.
    #[serde(rename = "observedGeneration", skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Deployed`: all that is valid of it is in force. `Valid`: every entry of it can be enforced.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<PolicyCondition>>,
    /// What each firewall says, where there are several; above is the worst of it.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewalls: Option<Vec<PolicyStatusOfFirewall>>,
    /// Addresses learned for each DNS selector.
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fqdn_state: Option<BTreeMap<String, Vec<FqdnAddresses>>>,
}

/// One aspect of the state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyCondition {
    /// `Deployed` or `Valid`.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the status of the condition changed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: Option<String>,
    /// Version of the spec that the condition is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// What one firewall says of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatusOfFirewall {
    /// Name of the Firewall.
    pub name: String,
    /// As `state` of the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// As `message` of the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Version of the spec that this firewall has judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The addresses learned for one name and family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FqdnAddresses {
    /// The name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<String>,
    /// The nft set that holds the addresses; empty where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_name: Option<String>,
    /// Expiry of each address, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_expiration_times: Option<BTreeMap<String, String>>,
    /// `ip` or `ip6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Deprecated: the addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ips: Option<Vec<String>>,
    /// Deprecated: expiry of all addresses, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration_time: Option<String>,
}
