//! The parts of a Firewall about names: the DNS proxy, and where packets are judged.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounds::{
    MAX_ADDRESSES_PER_NAME, MAX_FASTPATH_INTERFACES, MAX_NAMES, MAX_PREFIXES, MAX_SECONDS, MAX_UPSTREAMS,
};
use crate::schema;

/// The DNS proxy and what is learned from its answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(&[
    ("!has(self.ttlMin) || !has(self.ttlMax) || self.ttlMin <= self.ttlMax", "ttlMin must not be above ttlMax"),
])))]
pub struct DnsSpec {
    /// When DNS from the cluster is redirected to the proxy. Default withNames; with tls it always is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intercept: Option<InterceptSpec>,
    /// What becomes of questions for names that no policy allows. Default answer; answers to them open nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_names: Option<OtherNamesSpec>,
    /// DNS over TLS and over QUIC (port 853) past the proxy. Default policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dot: Option<EncryptedSpec>,
    /// HTTPS (port 443) to dohEndpoints. Default policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doh: Option<EncryptedSpec>,
    /// Known resolvers for DNS over HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidrs::<MAX_PREFIXES>")]
    pub doh_endpoints: Option<Vec<String>>,
    /// Private prefixes (RFC 1918, ULA) that patterns and expressions may open; exact names always may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidrs::<MAX_PREFIXES>")]
    pub private_prefixes: Option<Vec<String>>,
    /// Resolvers the proxy asks, in this order. Missing: the resolver the client asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_UPSTREAMS))]
    pub upstreams: Option<Vec<UpstreamSpec>>,
    /// PEM file on the machine with the authorities that may certify upstreams with a tlsName. Missing: those the
    /// system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::path")]
    pub ca_file: Option<String>,
    /// Lets the cluster ask the proxy at the machine's own addresses over TLS and HTTPS, as CoreDNS can forward. It
    /// names no resolver then: write upstreams too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<DnsTlsSpec>,
    /// Seconds: a shorter TTL counts as this. Default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_SECONDS))]
    pub ttl_min: Option<i32>,
    /// Seconds: a longer TTL is lowered to this, in the answer too. Default 3600.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_SECONDS))]
    pub ttl_max: Option<i32>,
    /// Seconds that an address stays allowed after its TTL. Default 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SECONDS))]
    pub grace: Option<i32>,
    /// Names that are kept in all. Default 65536.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_NAMES))]
    pub max_names: Option<i32>,
    /// Names that are kept for one pattern or expression. Default 16384.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_NAMES))]
    pub max_names_per_pattern: Option<i32>,
    /// Addresses that are kept for one name. Default 2048.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_ADDRESSES_PER_NAME))]
    pub max_addresses_per_name: Option<i32>,
}

/// When DNS from the cluster is redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum InterceptSpec {
    /// When a policy has names.
    WithNames,
    /// Always.
    Always,
}

/// DNS over TLS and HTTPS in front of the proxy, open to the cluster and to the machine itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(&[(
    "!has(self.dohPort) || self.dohPort == 0 || self.dohPort != (has(self.dotPort) ? self.dotPort : 853)",
    "dotPort (853 when missing) and dohPort must be different",
)])))]
pub struct DnsTlsSpec {
    /// PEM file on the machine with the certificate and those between it and the root. Read again when it changes.
    #[schemars(schema_with = "schema::path")]
    pub certificate_file: String,
    /// PEM file on the machine with its private key. Read again when it changes.
    #[schemars(schema_with = "schema::path")]
    pub key_file: String,
    /// TCP port of DNS over TLS; 0: not served. Default 853.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub dot_port: Option<i32>,
    /// TCP port of DNS over HTTPS (HTTP/2, path /dns-query), such as 8443; 0: not served. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub doh_port: Option<i32>,
}

/// What becomes of questions for names that no policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OtherNamesSpec {
    /// They are answered, and open nothing.
    Answer,
    /// REFUSED.
    Refused,
    /// NXDOMAIN.
    Nxdomain,
}

/// What becomes of encrypted DNS past the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncryptedSpec {
    /// The policies say.
    Policy,
    /// Dropped, whatever the policies say.
    Deny,
    /// Accepted, whatever the policies say.
    Allow,
}

/// What becomes of DNS while the proxy is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DnsFallbackSpec {
    /// It passes to well-known and configured resolvers, and its answers open nothing.
    Allow,
    /// The policies say.
    Deny,
}

/// A resolver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamSpec {
    /// Its address.
    #[schemars(schema_with = "schema::address")]
    pub address: String,
    /// Its port. Default 53, with tlsName 853.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// The name in its certificate; DNS over TLS is spoken with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tls_name: Option<String>,
}

/// Where packets are judged before nftables.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FastpathSpec {
    /// For all interfaces that are not named below. Default auto.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<FastpathModeSpec>,
    /// Modes of single interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_FASTPATH_INTERFACES))]
    #[schemars(extend("x-kubernetes-validations" = schema::rules(&[
        ("self.all(a, self.exists_one(b, a.name == b.name))", "each interface may be there once only"),
    ])))]
    pub interfaces: Option<Vec<FastpathInterface>>,
    /// Bits of the packet mark that the firewall may use: adjacent, 8 at least. Default 0x00ffffff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::mask")]
    pub mark_mask: Option<IntOrString>,
}

/// The mode of one interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FastpathInterface {
    /// The interface, such as vlan104009.
    #[schemars(schema_with = "schema::interface")]
    pub name: String,
    /// Its mode.
    pub mode: FastpathModeSpec,
}

/// Where packets are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FastpathModeSpec {
    /// XDP in the drivers of network cards, TCX on virtual interfaces, off where eBPF does not work.
    Auto,
    /// XDP in the driver.
    Native,
    /// XDP after the driver.
    Generic,
    /// TCX alone.
    Tcx,
    /// nftables alone.
    Off,
}
