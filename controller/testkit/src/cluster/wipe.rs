//! Our CRDs and nothing else: what a test finds, whatever the tests before it did.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hyper::Method;
use serde_json::{Value, json};

use super::{Cluster, NAMESPACE, program};

/// Kinds of objects that tests make, as paths of their groups; each with the plural of the resource.
const NAMESPACED: [(&str, &str); 15] = [
    ("/apis/metal-stack.io/v1", "clusterwidenetworkpolicies"),
    ("/apis/metal-stack.io/v1", "firewalls"),
    ("/api/v1", "services"),
    ("/api/v1", "endpoints"),
    ("/apis/discovery.k8s.io/v1", "endpointslices"),
    ("/apis/apps/v1", "deployments"),
    ("/apis/networking.k8s.io/v1", "networkpolicies"),
    ("/api/v1", "pods"),
    ("/api/v1", "secrets"),
    ("/api/v1", "configmaps"),
    ("/api/v1", "serviceaccounts"),
    ("/apis/rbac.authorization.k8s.io/v1", "roles"),
    ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    ("/apis/coordination.k8s.io/v1", "leases"),
    // Last: deletions make events.
    ("/apis/events.k8s.io/v1", "events"),
];

const CLUSTER_WIDE: [(&str, &str); 6] = [
    ("/apis/rbac.authorization.k8s.io/v1", "clusterroles"),
    ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
    ("/apis/admissionregistration.k8s.io/v1", "validatingadmissionpolicies"),
    ("/apis/admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings"),
    ("/apis/admissionregistration.k8s.io/v1", "validatingwebhookconfigurations"),
    ("/api/v1", "nodes"),
];

/// The API server's own, which it would make again.
const KEPT_NAMESPACES: [&str; 5] = ["default", NAMESPACE, "kube-system", "kube-public", "kube-node-lease"];
const NOT_BOOTSTRAPPED: &str = "labelSelector=kubernetes.io/bootstrapping%21%3Drbac-defaults";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

const PATIENCE: Duration = Duration::from_secs(60);

/// Our CRDs as they were installed: a test that changed one gives it another generation.
pub(super) type Definitions = BTreeMap<String, i64>;

impl Cluster {
    /// CRDs and namespace, for a server that has just started.
    pub(super) fn install(&mut self) -> Result<()> {
        self.definitions = self.install_definitions()?;
        self.make_namespace()
    }

    /// Removes what tests left. What has finalizers loses them.
    pub fn wipe(&mut self) -> Result<()> {
        for (group, resource) in CLUSTER_WIDE {
            self.empty(&format!("{group}/{resource}?{NOT_BOOTSTRAPPED}"))?;
        }
        for (group, resource) in NAMESPACED {
            self.wipe_resource(group, resource)?;
        }
        for namespace in self.names("/api/v1/namespaces")? {
            if !KEPT_NAMESPACES.contains(&namespace.as_str()) {
                self.remove_namespace(&namespace)?;
            }
        }
        // After the objects: a definition goes when the last of its objects is gone, which finalizers hold up.
        self.restore_definitions()?;
        self.make_namespace()
    }

    fn wipe_resource(&self, group: &str, resource: &str) -> Result<()> {
        let all = self.get(&format!("{group}/{resource}?{NOT_BOOTSTRAPPED}"))?;
        let namespaces: BTreeSet<&str> =
            items(&all).filter_map(|item| text(item, "/metadata/namespace")).collect();
        for namespace in namespaces {
            let path = format!("{group}/namespaces/{namespace}/{resource}");
            match (namespace, resource) {
                // Where the API server keeps what it needs to go on.
                ("kube-system" | "kube-public" | "kube-node-lease", _) => {}
                // The API server's own Service is there, and comes back late when it is deleted.
                ("default", "services" | "endpoints" | "endpointslices") => {
                    for name in self.names(&path)?.into_iter().filter(|name| name != "kubernetes") {
                        self.call(Method::DELETE, &format!("{path}/{name}"), &now())?;
                    }
                }
                _ => self.empty(&format!("{path}?{NOT_BOOTSTRAPPED}"))?,
            }
        }
        Ok(())
    }

    /// Deletes a whole collection and waits until it is empty.
    fn empty(&self, path: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.get(path)?;
            if items(&left).next().is_none() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{path} does not become empty: {:?}", self.names(path)?);
            }
            let collection = path.split('?').next().unwrap_or(path);
            for item in items(&left).filter(|item| item.pointer("/metadata/finalizers").is_some()) {
                let name = text(item, "/metadata/name").context("an object without name")?;
                let free = json!({ "metadata": { "finalizers": null } });
                self.patch(
                    &format!("{collection}/{name}"),
                    "application/merge-patch+json",
                    &free.to_string(),
                )?;
            }
            self.call(Method::DELETE, path, &now())?;
        }
    }

    /// Deletes a namespace. No controller finalizes it here, so that is done here too.
    fn remove_namespace(&self, name: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{name}");
        self.call(Method::DELETE, &path, &now())?;
        let mut object = self.get(&path)?;
        if object.is_null() {
            return Ok(());
        }
        if let Some(finalizers) = object.pointer_mut("/spec/finalizers") {
            *finalizers = json!([]);
        }
        self.call(Method::PUT, &format!("{path}/finalize"), &object).map(drop)
    }

    fn make_namespace(&self) -> Result<()> {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
        let reply = self.request("POST", "/api/v1/namespaces", "application/json", &object.to_string())?;
        if reply.code != 409 {
            reply.ok().context("cannot make the namespace")?;
        }
        Ok(())
    }

    fn restore_definitions(&mut self) -> Result<()> {
        let mut present = Definitions::new();
        for item in items(&self.get(DEFINITIONS)?) {
            let (name, generation) = name_and_generation(item)?;
            if self.definitions.get(&name) == Some(&generation) {
                present.insert(name, generation);
            } else {
                self.call(Method::DELETE, &format!("{DEFINITIONS}/{name}"), &now())?;
            }
        }
        if present != self.definitions {
            self.definitions = self.install_definitions()?;
        }
        Ok(())
    }

    /// Applies the checked-in CRDs and waits until their objects are served.
    fn install_definitions(&self) -> Result<Definitions> {
        let mut installed = Definitions::new();
        let folder = program::root().join("crds");
        for entry in
            std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
        {
            let file = entry?.path();
            // A definition's file says what it defines, GROUP_PLURAL.yaml; others are about something else.
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some((group, plural)) = name.strip_suffix(".yaml").and_then(|stem| stem.split_once('_'))
            else {
                continue;
            };
            let yaml = std::fs::read_to_string(&file)?;
            let path = format!("{DEFINITIONS}/{plural}.{group}");
            let query = "?fieldManager=fw-testkit&force=true";
            self.until(&format!("{name} installed"), || {
                // One that is being deleted cannot be applied.
                let reply =
                    self.request("PATCH", &format!("{path}{query}"), "application/apply-patch+yaml", &yaml)?;
                if !matches!(reply.code, 200 | 201) && reply.code != 409 {
                    reply.ok()?;
                }
                let object = self.get(&path)?;
                let terminating = object.pointer("/metadata/deletionTimestamp").is_some();
                let established = items_at(&object, "/status/conditions").any(|item| {
                    text(item, "/type") == Some("Established") && text(item, "/status") == Some("True")
                });
                Ok(established && !terminating)
            })?;
            let object = self.get(&path)?;
            for version in items_at(&object, "/spec/versions").filter_map(|version| text(version, "/name")) {
                let path = format!("/apis/{group}/{version}/{plural}?limit=1");
                self.until(&path, || Ok(self.request("GET", &path, "application/json", "")?.code == 200))?;
            }
            let (name, generation) = name_and_generation(&object)?;
            installed.insert(name, generation);
        }
        ensure!(!installed.is_empty(), "no definition in {}", folder.display());
        Ok(installed)
    }

    fn until(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !done().with_context(|| what.to_owned())? {
            if Instant::now() > deadline {
                bail!("{what}: not after {PATIENCE:?}; see {}", self.log().display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn names(&self, path: &str) -> Result<Vec<String>> {
        let list = self.get(path)?;
        Ok(items(&list).filter_map(|item| text(item, "/metadata/name")).map(str::to_owned).collect())
    }

    fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, &Value::Null)
    }

    /// What is not there has no objects and need not be deleted: null.
    fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let deadline = Instant::now() + PATIENCE;
        let mut reply = self.api.request(method.clone(), path, "application/json", body.clone())?;
        // After a change of a definition: "storage is (re)initializing".
        while reply.code == 429 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
            reply = self.api.request(method.clone(), path, "application/json", body.clone())?;
        }
        if reply.code == 404 {
            return Ok(Value::Null);
        }
        reply.ok().with_context(|| path.to_owned())
    }

    fn patch(&self, path: &str, kind: &str, body: &str) -> Result<()> {
        let reply = self.request("PATCH", path, kind, body)?;
        if reply.code != 404 {
            reply.ok().with_context(|| path.to_owned())?;
        }
        Ok(())
    }
}

/// Options of a deletion: at once, for Pods are given half a minute otherwise.
fn now() -> Value {
    json!({ "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Background" })
}

fn name_and_generation(object: &Value) -> Result<(String, i64)> {
    let name = text(object, "/metadata/name").context("an object without name")?;
    let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
    Ok((name.to_owned(), generation.context("a definition without generation")?))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    items_at(list, "/items")
}

fn items_at<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer)?.as_str()
}
