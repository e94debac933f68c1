//! Requests that write, and what their failures mean.

use std::time::Duration;

use fw_intake::Id;
use fw_policy::ObjectKind;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::chain;

/// How long a write may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the name of a field manager (apimachinery, `FieldManagerMaxLength`).
const MAX_MANAGER: usize = 128;

/// Of the message of such a 500 (apimachinery, `managedfields/internal/structuredmerge.go`).
const UNTYPED: &str = "failed to create typed";

/// Why something was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The object is not there.
    Gone,
    /// It is there already, or another one, or another version of it.
    Conflict,
    /// The API server will not have this.
    Refused(String),
    /// The API server takes nothing at the moment.
    Away(String),
}

/// Awaits a request, and sorts its failure.
pub(super) async fn send<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(PATIENCE, request).await {
        Ok(result) => result.map_err(|error| sort(&error)),
        Err(_) => Err(Failure::Away(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

fn sort(error: &kube::Error) -> Failure {
    let kube::Error::Api(status) = error else { return Failure::Away(chain(error)) };
    match status.code {
        404 => Failure::Gone,
        409 => Failure::Conflict,
        // structured-merge-diff cannot read an object that was stored past the schema of today: this object's
        // fault, and nothing that waiting would mend.
        500 if status.message.contains(UNTYPED) => Failure::Refused(status.message.clone()),
        401 | 403 | 429 | 500.. => Failure::Away(status.message.clone()),
        _ => Failure::Refused(status.message.clone()),
    }
}

/// The field manager of a firewall. All that speak for one Firewall have the same, so that one takes over from another.
pub(super) fn manager(voice: &str) -> String {
    let name = format!("firewall-controller/{voice}");
    if name.len() <= MAX_MANAGER {
        return name;
    }
    let hash = short_hash(&[&name]);
    let kept = name.get(..MAX_MANAGER - hash.len() - 1).unwrap_or("firewall-controller");
    format!("{kept}-{hash}")
}

/// Sixteen digits for some texts.
pub(super) fn short_hash(texts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update(text.len().to_le_bytes());
        hasher.update(text);
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// An object whose status is written.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) id: Id,
    /// Another object of the same name is another one.
    pub(super) uid: String,
    /// Only if it is of this version still.
    pub(super) version: Option<String>,
}

impl Target {
    /// Applies a status; gives the one that the API server then has.
    pub(super) async fn apply(&self, client: &Client, voice: &str, status: Value) -> Result<Value, Failure> {
        let params = PatchParams::apply(&manager(voice)).force();
        self.patch(client, &params, &Patch::Apply(self.body(status))).await
    }

    /// Puts `firewalls` in place of what is there.
    pub(super) async fn replace(
        &self,
        client: &Client,
        voice: &str,
        firewalls: Value,
    ) -> Result<Value, Failure> {
        let params = PatchParams { field_manager: Some(manager(voice)), ..PatchParams::default() };
        self.patch(client, &params, &Patch::Merge(self.body(json!({"firewalls": firewalls})))).await
    }

    async fn patch(
        &self,
        client: &Client,
        params: &PatchParams,
        patch: &Patch<Value>,
    ) -> Result<Value, Failure> {
        let (kind, plural) = self.kind();
        let kind = GroupVersionKind::gvk(fw_crds::GROUP, fw_crds::VERSION, kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &self.id.namespace, &resource);
        let mut object = send(api.patch_status(&self.id.name, params, patch)).await?;
        Ok(object.data.get_mut("status").map(Value::take).unwrap_or_default())
    }

    /// Takes the status: that of a Firewall is megabytes as a tree.
    fn body(&self, status: Value) -> Value {
        let mut body = json!({
            "apiVersion": format!("{}/{}", fw_crds::GROUP, fw_crds::VERSION),
            "kind": self.kind().0,
            "metadata": {"name": self.id.name, "namespace": self.id.namespace, "uid": self.uid},
        });
        body["status"] = status;
        if let Some(version) = &self.version {
            body["metadata"]["resourceVersion"] = json!(version);
        }
        body
    }

    fn kind(&self) -> (&'static str, &'static str) {
        match self.id.kind {
            ObjectKind::Firewall => ("Firewall", "firewalls"),
            // Services have no status of ours.
            ObjectKind::ClusterwideNetworkPolicy | ObjectKind::Service => {
                ("ClusterwideNetworkPolicy", "clusterwidenetworkpolicies")
            }
        }
    }
}
