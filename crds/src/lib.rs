//! The metal-stack.io/v1 objects ClusterwideNetworkPolicy and Firewall as Rust types.
//!
//! The types give the CustomResourceDefinitions ([`crds`], [`crds_yaml`]), and they are what statuses and manifests
//! are written with. Objects are NOT read with them: one entry of a wrong type would lose its whole object, so
//! `fw-intake` reads JSON trees. The schema is the strict side; it takes all that the Go product served.

mod bounds;
mod dns;
mod firewall;
#[allow(unreachable_pub, reason = "KubeSchema copies each struct into a function, where `pub` has no reach")]
mod policy;
mod schema;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

pub use bounds::{
    MAX_ADDRESSES, MAX_ADDRESSES_PER_NAME, MAX_EXCEPTS, MAX_FASTPATH_INTERFACES, MAX_LOG_RATE, MAX_NAMES,
    MAX_NETWORKS, MAX_PATH, MAX_PEERS, MAX_PORTS, MAX_PREFIXES, MAX_REGEX, MAX_REGEXES, MAX_RULES,
    MAX_SECONDS, MAX_SELECTORS, MAX_SSH_PORTS, MAX_UPSTREAMS, MAX_VRF,
};
pub use dns::{
    DnsFallbackSpec, DnsSpec, DnsTlsSpec, EncryptedSpec, FastpathInterface, FastpathModeSpec, FastpathSpec,
    InterceptSpec, OtherNamesSpec, UpstreamSpec,
};
pub use firewall::{
    AllowedNetworks, Counter, DeviceStats, DropLogSpec, DropLogStats, DropLogTargetSpec, EgressNat, Firewall,
    FirewallNetwork, FirewallSpec, FirewallStats, FirewallStatus, HostProtectionSpec, IcmpEchoSpec, IdsStats,
    InterfaceRateLimit, NetworkRateLimit, NetworkType, RateUnit, RuleStats,
};
pub use policy::{
    ClusterwideNetworkPolicy, EgressRule, FqdnAddresses, FqdnSelector, IngressRule, IpBlock, PolicyCondition,
    PolicyPort, PolicySpec, PolicyStatus, PolicyStatusOfFirewall,
};

/// API group of both kinds.
pub const GROUP: &str = "metal-stack.io";

/// API version of both kinds.
pub const VERSION: &str = "v1";

/// The only namespace in which both kinds count.
pub const NAMESPACE: &str = "firewall";

/// Why the definitions cannot be printed; a fault of this crate, never of its input.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// The derived schema is not what it should be.
    #[error("the generated schema cannot be converted")]
    Schema(#[from] serde_json::Error),
    /// The YAML writer failed.
    #[error("the definition cannot be written as YAML")]
    Yaml(#[from] serde_saphyr::SerializeError),
}

/// The CustomResourceDefinitions of both kinds, as they are to be applied.
pub fn crds() -> Result<Vec<CustomResourceDefinition>, CrdError> {
    [ClusterwideNetworkPolicy::crd(), Firewall::crd()].into_iter().map(finish).collect()
}

/// The definitions as files: name and YAML text.
pub fn crd_files() -> Result<Vec<(String, String)>, CrdError> {
    crds()?
        .into_iter()
        .map(|crd| {
            let name = format!("{GROUP}_{}.yaml", crd.spec.names.plural);
            let yaml = serde_saphyr::to_string(&without_fractions(serde_json::to_value(crd)?))?;
            Ok((
                name,
                format!("# Output of `firewall-controller crds`; its source is crds/src.\n---\n{yaml}"),
            ))
        })
        .collect()
}

/// The definitions as one text of two YAML documents, for `kubectl apply -f -`.
pub fn crds_yaml() -> Result<String, CrdError> {
    Ok(crd_files()?.into_iter().map(|(_, text)| text).collect())
}

/// What the derive cannot say.
fn finish(crd: CustomResourceDefinition) -> Result<CustomResourceDefinition, CrdError> {
    let mut tree = serde_json::to_value(crd)?;
    tree["metadata"]["labels"] = json!({ "app.kubernetes.io/part-of": "firewall-controller" });
    for version in tree["spec"]["versions"].as_array_mut().into_iter().flatten() {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        if let Some(schema) = schema.as_object_mut() {
            // With the Go product `spec` could be missing.
            schema.remove("required");
        }
        correct(schema, "");
    }
    Ok(serde_json::from_value(tree)?)
}

/// Corrects the schema of the field `key` and all below it.
fn correct(schema: &mut Value, key: &str) {
    const FORMATS: [&str; 5] = ["int32", "int64", "double", "date-time", "cidr"];
    match schema {
        Value::Object(map) => {
            // The API server warns of formats it does not know, such as uint32.
            if map.get("format").and_then(Value::as_str).is_some_and(|format| !FORMATS.contains(&format)) {
                map.remove("format");
            }
            // Where null is not allowed the API server drops it: the Go product's clients write nulls, also for
            // enumerations, which never hold null. But a rule that loses a null `toFQDNs` would mean every
            // destination, so that one is stored as it is written.
            if key != "toFQDNs" {
                map.remove("nullable");
            }
            if map.contains_key("x-kubernetes-int-or-string") {
                map.insert("anyOf".to_owned(), json!([{ "type": "integer" }, { "type": "string" }]));
            }
            for (key, value) in map {
                correct(value, key);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| correct(item, "")),
        _ => {}
    }
}

/// Bounds are floating point numbers in the Kubernetes types; people write 65535, not 65535.0.
fn without_fractions(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 9e15 => {
                format!("{float:.0}").parse::<i64>().map_or(Value::Number(number), Value::from)
            }
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(without_fractions).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, without_fractions(value))).collect(),
        other => other,
    }
}
