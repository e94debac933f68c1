//! The fields that users can write or read, from the CustomResourceDefinitions.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Fields of the core Service that we read; its schema is not ours.
const SERVICE: [&str; 8] = [
    "spec.type",
    "spec.ports.protocol",
    "spec.ports.port",
    "spec.loadBalancerSourceRanges",
    "spec.loadBalancerIP",
    "status.loadBalancer.ingress.ip",
    "metadata.namespace",
    "metadata.name",
];

/// Paths without indexes (`spec.egress.to.cidr`), and single names.
pub(super) struct Schema {
    paths: BTreeSet<String>,
    names: BTreeSet<String>,
}

impl Schema {
    /// Of the output of `firewall-controller crds`.
    pub(super) fn of(crds: &str) -> Result<Self> {
        let definitions: Vec<Value> = serde_saphyr::from_multiple(crds)?;
        ensure!(definitions.len() == 2, "`crds` prints {} definitions", definitions.len());
        let mut schema = Self { paths: BTreeSet::new(), names: BTreeSet::new() };
        for definition in &definitions {
            let versions =
                definition["spec"]["versions"].as_array().context("a definition without versions")?;
            for version in versions {
                schema.add("", &version["schema"]["openAPIV3Schema"]);
            }
        }
        SERVICE.iter().for_each(|path| schema.add_path(path));
        ensure!(schema.paths.len() > 40, "the schemas have only {} fields", schema.paths.len());
        Ok(schema)
    }

    fn add(&mut self, path: &str, schema: &Value) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            self.add_path(&below);
            self.add(&below, property);
        }
        for inner in [&schema["items"], &schema["additionalProperties"]] {
            if !inner.is_null() {
                self.add(path, inner);
            }
        }
    }

    fn add_path(&mut self, path: &str) {
        for (dot, _) in path.match_indices('.') {
            self.paths.insert(path[..dot].to_owned());
        }
        self.paths.insert(path.to_owned());
        self.names.extend(path.split('.').map(str::to_owned));
    }

    pub(super) fn has(&self, field: &str) -> bool {
        if field.starts_with("spec.") || field.starts_with("status.") {
            return self.paths.contains(field);
        }
        let mut inner = self.paths.iter().filter(|path| path.ends_with(field));
        self.names.contains(field) || field.contains('.') && inner.any(|p| p.ends_with(&format!(".{field}")))
    }
}

/// The span as a field without indexes, where it looks like one: it begins with `spec.` or `status.`, or its first
/// name is in camel case, as our names of chains, flags and counters never are.
pub(super) fn as_field(span: &str) -> Option<String> {
    let field: String = {
        let mut depth = 0;
        let outside = |c: &char| {
            depth += i32::from(*c == '[');
            let keep = depth == 0;
            depth -= i32::from(*c == ']');
            keep
        };
        span.trim_start_matches('.').chars().filter(outside).collect()
    };
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if !field.split('.').all(is_name) {
        return None;
    }
    let is_path = field.starts_with("spec.") || field.starts_with("status.");
    let first = field.split('.').next()?;
    let is_camel = first.chars().any(|c| c.is_ascii_uppercase()) && !first.contains('_');
    (is_path || is_camel).then_some(field)
}

#[test]
fn fields_are_told_from_other_code() {
    assert_eq!(as_field("spec.egress[0].to[1].cidr").as_deref(), Some("spec.egress.to.cidr"));
    assert_eq!(as_field("dropLog.rate").as_deref(), Some("dropLog.rate"));
    assert_eq!(as_field("allowedNetworks").as_deref(), Some("allowedNetworks"));
    assert_eq!(as_field("drop_total"), None);
    assert_eq!(as_field("PolicySet"), None);
    assert_eq!(as_field("inet firewall"), None);
}
