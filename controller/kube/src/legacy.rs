//! What the controller written in Go keeps in the cluster.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};

/// Name of the ConfigMap with what was learned of names.
pub const FQDN_STATE: &str = "fqdnstate";
/// Its one key.
const KEY: &str = "state";

/// What was learned of names, as YAML; `None`: there is no such ConfigMap, or nothing in it.
pub async fn fqdn_state(client: Client) -> Result<Option<String>, kube::Error> {
    let found = Api::<ConfigMap>::namespaced(client, crate::NAMESPACE).get_opt(FQDN_STATE).await?;
    Ok(found.and_then(|map| map.data).and_then(|mut data| data.remove(KEY)))
}
