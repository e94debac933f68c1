//! Edits of a cluster in milliseconds, where kubectl takes half a second.

use anyhow::{Context as _, Result, ensure};
use fw_testkit::cluster::Cluster;
use serde_json::Value;

use crate::rig::policy;

/// The policies that count.
pub(crate) const POLICIES: &str = "/apis/metal-stack.io/v1/namespaces/firewall/clusterwidenetworkpolicies";

/// Makes an object, or changes it; the path is the object's.
pub(crate) fn put(cluster: &Cluster, path: &str, yaml: &str) -> Result<Value> {
    let path = format!("{path}?fieldManager=test&force=true");
    cluster.request("PATCH", &path, "application/apply-patch+yaml", yaml)?.ok().context(path)
}

/// Deletes an object, which need not be there.
pub(crate) fn remove(cluster: &Cluster, path: &str) -> Result<()> {
    let reply = cluster.request("DELETE", path, "application/json", "")?;
    ensure!(matches!(reply.code, 200 | 202 | 404), "DELETE {path}: {} {}", reply.code, reply.body);
    Ok(())
}

/// A policy that lets the cluster reach the first internet machine at a TCP port.
pub(crate) fn open_port(cluster: &Cluster, name: &str, port: u16) -> Result<()> {
    let spec =
        format!("{{egress: [{{to: [{{cidr: 203.0.113.2/32}}], ports: [{{protocol: TCP, port: {port}}}]}}]}}");
    put(cluster, &format!("{POLICIES}/{name}"), &policy(name, &spec)).map(drop)
}

/// Deletes a policy.
pub(crate) fn remove_policy(cluster: &Cluster, name: &str) -> Result<()> {
    remove(cluster, &format!("{POLICIES}/{name}"))
}

/// The items of a list, each with the kind that a list leaves out.
pub(crate) fn list(cluster: &Cluster, path: &str, (version, kind): (&str, &str)) -> Result<Vec<Value>> {
    let mut answer =
        cluster.request("GET", path, "application/json", "")?.ok().with_context(|| path.to_owned())?;
    let Some(Value::Array(mut items)) = answer.get_mut("items").map(Value::take) else {
        return Ok(Vec::new());
    };
    for item in &mut items {
        item["apiVersion"] = version.into();
        item["kind"] = kind.into();
    }
    Ok(items)
}
