//! All watched objects at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use fw_intake::{Compact, Id, Manifest};
use fw_policy::ObjectKind;
use serde_json::{Map, Value};

/// One list-and-watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watched {
    /// ClusterwideNetworkPolicies in namespace `firewall`.
    Policies,
    /// Those of all other namespaces, which only get told that they do not count.
    PoliciesElsewhere,
    /// Firewalls in namespace `firewall`.
    Firewalls,
    /// Services of all namespaces.
    Services,
    /// Pods of the droptailer in namespace `firewall`.
    DroptailerPods,
    /// The Secret with the droptailer client's certificate.
    DroptailerSecret,
}

impl Watched {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Policies,
        Self::PoliciesElsewhere,
        Self::Firewalls,
        Self::Services,
        Self::DroptailerPods,
        Self::DroptailerSecret,
    ];

    /// Those without which the firewall would not know what is allowed (semantics.md section 2); every other one may
    /// fail alone.
    pub const ESSENTIAL: [Self; 3] = [Self::Policies, Self::Firewalls, Self::Services];

    /// Its name in findings and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Policies => "clusterwidenetworkpolicies in firewall",
            Self::PoliciesElsewhere => "clusterwidenetworkpolicies elsewhere",
            Self::Firewalls => "firewalls",
            Self::Services => "services",
            Self::DroptailerPods => "droptailer pods",
            Self::DroptailerSecret => "droptailer secret",
        }
    }

    /// `apiVersion` and `kind` of its objects.
    #[must_use]
    pub fn api(self) -> (&'static str, &'static str) {
        match self {
            Self::Policies | Self::PoliciesElsewhere => ("metal-stack.io/v1", "ClusterwideNetworkPolicy"),
            Self::Firewalls => ("metal-stack.io/v1", "Firewall"),
            Self::Services => ("v1", "Service"),
            Self::DroptailerPods => ("v1", "Pod"),
            Self::DroptailerSecret => ("v1", "Secret"),
        }
    }

    /// The kind of its objects, where it is one that policy is made from.
    #[must_use]
    pub fn kind(self) -> Option<ObjectKind> {
        match self {
            Self::Policies | Self::PoliciesElsewhere => Some(ObjectKind::ClusterwideNetworkPolicy),
            Self::Firewalls => Some(ObjectKind::Firewall),
            Self::Services => Some(ObjectKind::Service),
            Self::DroptailerPods | Self::DroptailerSecret => None,
        }
    }
}

/// Where the manifests come from, in findings.
const SOURCE: &str = "API-server";

/// All watched objects at one moment. Cheap to copy: kinds are shared until they change.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// By watch.
    pub listed: BTreeMap<Watched, Arc<Listed>>,
    /// Moves with everything but statuses: with what policy is made from, and with problems.
    pub version: u64,
}

/// What one watch knows.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// By namespace and name.
    pub objects: BTreeMap<(String, String), Arc<Object>>,
    /// True once a whole list has arrived since this process started.
    pub complete: bool,
    /// Why it is not being followed at the moment; what is here stays as it was.
    pub problem: Option<String>,
    /// What it counted.
    pub figures: Figures,
}

/// What a watch counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Objects that were added, changed or removed, one by one.
    pub events: u64,
    /// Whole lists.
    pub lists: u64,
    /// Errors; the watch is tried again after each.
    pub errors: u64,
}

/// An object as it is in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Identity over its life; a new object of the same name has another one.
    pub uid: String,
    /// Version of everything in it, for writes that must not overwrite another's.
    pub resource_version: String,
    /// Version of its spec.
    pub generation: i64,
    /// Annotations, of Firewalls only.
    pub annotations: BTreeMap<String, String>,
    /// What policy is made from: apiVersion, kind, name, namespace, uid, generation, spec, and the status of Services. In the
    /// form in which sources hand objects on; the same `Arc` as long as it is the same.
    pub group: Arc<Vec<Arc<Manifest>>>,
    /// Its status; of ClusterwideNetworkPolicies and Firewalls only.
    pub status: Compact,
}

impl Object {
    /// The object as a tree.
    #[must_use]
    pub fn body(&self) -> Value {
        self.group.first().map(|manifest| manifest.body.tree()).unwrap_or_default()
    }
}

impl Cluster {
    /// What a watch knows.
    #[must_use]
    pub fn of(&self, watched: Watched) -> Option<&Listed> {
        self.listed.get(&watched).map(Arc::as_ref)
    }

    /// One object of a watch.
    #[must_use]
    pub fn object(&self, watched: Watched, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        // A key of borrowed parts cannot be looked up in a map of owned pairs.
        self.of(watched)?.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The object that an identity of the intake names.
    #[must_use]
    pub fn by_id(&self, id: &Id) -> Option<&Arc<Object>> {
        let watched = match id.kind {
            ObjectKind::Firewall => Watched::Firewalls,
            ObjectKind::Service => Watched::Services,
            ObjectKind::ClusterwideNetworkPolicy if id.namespace == crate::NAMESPACE => Watched::Policies,
            ObjectKind::ClusterwideNetworkPolicy => Watched::PoliciesElsewhere,
        };
        self.object(watched, &id.namespace, &id.name)
    }

    /// True when everything that policy is made from has been listed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        Watched::ESSENTIAL.iter().all(|watched| self.of(*watched).is_some_and(|listed| listed.complete))
    }

    /// Why it is not, or not any more, followed: one line for each watch with a problem.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let with =
            self.listed.iter().filter_map(|(watched, listed)| Some((watched, listed.problem.as_ref()?)));
        with.map(|(watched, problem)| format!("{}: {problem}", watched.name())).collect()
    }
}

/// What is kept of an object that the API server sent, in the form policy is read from. Where nothing of that has
/// changed the parts of `before` are used again, so that a change of its status alone is no change for the rules.
#[must_use]
pub(crate) fn keep(watched: Watched, raw: &Value, before: Option<&Arc<Object>>) -> Object {
    let metadata = raw.get("metadata").unwrap_or(&Value::Null);
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let body = Compact::from(trimmed(watched, raw, metadata));
    let group = match before {
        Some(before) if before.group.first().is_some_and(|manifest| manifest.body == body) => {
            Arc::clone(&before.group)
        }
        _ => Arc::new(vec![Arc::new(Manifest { source: SOURCE.to_owned(), line: 0, body })]),
    };
    let has_status = matches!(watched, Watched::Policies | Watched::PoliciesElsewhere | Watched::Firewalls);
    let annotations =
        metadata.get("annotations").and_then(Value::as_object).filter(|_| watched == Watched::Firewalls);
    Object {
        uid: text("uid"),
        resource_version: text("resourceVersion"),
        generation: metadata.get("generation").and_then(Value::as_i64).unwrap_or_default(),
        annotations: annotations
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
        group,
        status: raw.get("status").filter(|_| has_status).map(Compact::from).unwrap_or_default(),
    }
}

/// Memory is bounded by what is read: no managedFields, and of a Service only what opens ports.
fn trimmed(watched: Watched, raw: &Value, metadata: &Value) -> Value {
    let pick = |from: &Value, keys: &[&str]| -> Value {
        let found = keys.iter().filter_map(|key| Some(((*key).to_owned(), from.get(*key)?.clone())));
        Value::Object(found.collect::<Map<_, _>>())
    };
    // Items of a list have no kind of their own; it is the one that was asked for.
    let (version, kind) = watched.api();
    let mut body = serde_json::json!({ "apiVersion": version, "kind": kind });
    body["metadata"] = pick(metadata, &["name", "namespace", "uid", "generation"]);
    match watched {
        Watched::Policies | Watched::PoliciesElsewhere | Watched::Firewalls => {
            if let Some(spec) = raw.get("spec") {
                body["spec"] = spec.clone();
            }
        }
        Watched::Services => {
            let spec = raw.get("spec").unwrap_or(&Value::Null);
            // What is no object is kept as it is, to be found fault with.
            body["spec"] = match spec {
                Value::Object(_) => pick(spec, &["type", "ports", "loadBalancerSourceRanges"]),
                other => other.clone(),
            };
            body["status"] = pick(raw.get("status").unwrap_or(&Value::Null), &["loadBalancer"]);
            // Who may come can be written here too: without it everybody might.
            let annotations = metadata.get("annotations").unwrap_or(&Value::Null);
            body["metadata"]["annotations"] = match annotations {
                Value::Object(_) => pick(annotations, &[fw_intake::SOURCE_RANGES]),
                other => other.clone(),
            };
        }
        Watched::DroptailerPods => {
            body["status"] = pick(raw.get("status").unwrap_or(&Value::Null), &["phase", "podIP", "podIPs"]);
        }
        Watched::DroptailerSecret => body["data"] = raw.get("data").cloned().unwrap_or_default(),
    }
    body
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(version: &str, spec: Value, status: Value) -> Value {
        json!({
            "metadata": {
                "name": "web", "namespace": "firewall", "uid": "u", "generation": 1, "resourceVersion": version,
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": spec,
            "status": status,
        })
    }

    #[test]
    fn a_change_of_the_status_alone_leaves_the_manifest_the_same() {
        let before =
            Arc::new(keep(Watched::Policies, &policy("1", json!({"egress": []}), Value::Null), None));
        let status = policy("2", json!({"egress": []}), json!({"state": "deployed"}));
        let after = keep(Watched::Policies, &status, Some(&before));
        assert!(Arc::ptr_eq(&before.group, &after.group));
        assert_eq!(after.status.tree(), json!({"state": "deployed"}));
        let edited =
            keep(Watched::Policies, &policy("3", json!({"egress": [{}]}), Value::Null), Some(&before));
        assert!(!Arc::ptr_eq(&before.group, &edited.group));
    }

    /// What is kept of an object must mean what the object means; what is forgotten could be what limits it.
    #[test]
    fn what_is_kept_of_objects_means_what_the_whole_objects_mean() {
        let goldens = concat!(env!("CARGO_MANIFEST_DIR"), "/../ruleset/tests/golden");
        let facts = fw_intake::HostFacts::default();
        let mut services = 0;
        for case in std::fs::read_dir(goldens).unwrap() {
            let path = case.unwrap().path().join("in.yaml");
            let Ok(text) = std::fs::read(&path) else { continue };
            let Ok(whole) = fw_intake::parse("in.yaml", &text) else { continue };
            let kept = whole.iter().map(|manifest| {
                let body = manifest.body.tree();
                let watched = match body["kind"].as_str() {
                    Some("Service") => Watched::Services,
                    Some("Firewall") => Watched::Firewalls,
                    Some("ClusterwideNetworkPolicy") => Watched::Policies,
                    _ => return manifest.clone(),
                };
                services += usize::from(watched == Watched::Services);
                let mut kept = manifest.clone();
                let mut trimmed = keep(watched, &body, None).body();
                // The API server asks for one version only; files may have another one.
                trimmed["apiVersion"] = body["apiVersion"].clone();
                kept.body = trimmed.into();
                kept
            });
            let kept: Vec<Manifest> = kept.collect();
            let judge = |all: &[Manifest]| fw_intake::intake(&fw_intake::Objects::new(all), &facts);
            assert_eq!(judge(&kept), judge(&whole), "{}", path.display());
        }
        assert!(services > 5, "only {services} Services in the goldens");
    }

    #[test]
    fn source_ranges_in_an_annotation_are_kept() {
        let service =
            json!({"metadata": {"annotations": {fw_intake::SOURCE_RANGES: "10.0.0.0/8", "other": "x"}}});
        let kept = keep(Watched::Services, &service, None);
        assert_eq!(kept.body()["metadata"]["annotations"], json!({fw_intake::SOURCE_RANGES: "10.0.0.0/8"}));
    }

    #[test]
    fn items_of_lists_have_the_kind_that_was_asked_for() {
        let service = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"type": "LoadBalancer"}});
        let kept = keep(Watched::Services, &service, None);
        assert_eq!(kept.body()["kind"], "Service");
        assert_eq!(kept.body()["apiVersion"], "v1");
    }

    #[test]
    fn whatever_an_object_holds_is_kept_without_a_panic() {
        for watched in Watched::ALL {
            for raw in [json!(null), json!([]), json!({"metadata": 7, "spec": "x", "status": [1]})] {
                assert_eq!(keep(watched, &raw, None).body()["kind"], watched.api().1);
            }
        }
    }
}
