//! A kubelet as far as logs go: what `kubectl logs` and stern ask the API server for, that asks here.

mod logs;
mod serve;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Cluster, tls};
use crate::Process;
use crate::process::Output;

/// A node of a cluster, on the host's loopback. It starts nothing: a container on it is a process that runs already, and
/// what that prints, to either stream, is the container's log, stamped as it comes.
#[derive(Debug)]
pub struct Kubelet {
    node: String,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// By the path that their logs have.
    containers: Mutex<BTreeMap<String, Output>>,
    asked: Mutex<Vec<String>>,
}

impl Kubelet {
    /// Listens, and registers itself as a node.
    pub fn start(cluster: &Cluster, node: &str) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        // Any certificate will do: the API server is not told who signs those of kubelets, so it asks for no name.
        let acceptor = tls::acceptor(&cluster.directory)?;
        let shared = Arc::<Shared>::default();
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = serve::run(listener, acceptor, Arc::clone(&shared), stopped);
        let thread = std::thread::Builder::new()
            .name("testkit-kubelet".to_owned())
            .spawn(move || runtime.block_on(serving))?;
        let kubelet = Self { node: node.to_owned(), shared, stop: Some(stop), thread: Some(thread) };
        kubelet.register(cluster, port).with_context(|| format!("cannot make node {node}"))?;
        Ok(kubelet)
    }

    fn register(&self, cluster: &Cluster, port: u16) -> Result<()> {
        let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": self.node } });
        create(cluster, "/api/v1/nodes", &object)?;
        let status = json!({
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        });
        set_status(cluster, &format!("/api/v1/nodes/{}", self.node), &status)
    }

    /// Does for a Deployment that the cluster has what its controllers and its scheduler would: there is a Pod of its
    /// template on this node, ready, whose container is `process`. Gives the Pod's name.
    pub fn run(
        &self,
        cluster: &Cluster,
        namespace: &str,
        deployment: &str,
        process: &Process,
    ) -> Result<String> {
        let pod = format!("{deployment}-0");
        let mut object = cluster.get_json(&["-n", namespace, "deployment", deployment])?;
        let mut object = object.pointer_mut("/spec/template").map(Value::take).context("no template")?;
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("Pod");
        object["metadata"]["name"] = json!(pod);
        object["spec"]["nodeName"] = json!(self.node);
        let container = object["spec"]["containers"][0].clone();
        let name = container["name"].as_str().context("a container without name")?;
        lock(&self.shared.containers).insert(serve::path(namespace, &pod, name), process.output());
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        create(cluster, &pods, &object)?;
        set_status(cluster, &format!("{pods}/{pod}"), &running(name, &container["image"], process.id()))?;
        Ok(pod)
    }

    /// Every request so far, as `GET /containerLogs/firewall/droptailer-0/droptailer?follow=true`, in their order.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.shared.asked).clone()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // The end of the runtime is the end of every connection.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn create(cluster: &Cluster, path: &str, object: &Value) -> Result<()> {
    cluster.request("POST", path, "application/json", &object.to_string())?.ok().map(drop)
}

fn set_status(cluster: &Cluster, path: &str, status: &Value) -> Result<()> {
    let patch = json!({ "status": status }).to_string();
    cluster
        .request("PATCH", &format!("{path}/status"), "application/merge-patch+json", &patch)?
        .ok()
        .map(drop)
}

/// The status of a Pod with one container.
fn running(container: &str, image: &Value, pid: u32) -> Value {
    let now = format!("{:.0}", logs::timestamp(SystemTime::now()));
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"];
    let conditions =
        conditions.map(|kind| json!({ "type": kind, "status": "True", "lastTransitionTime": now }));
    json!({
        "phase": "Running",
        "startTime": now,
        "hostIP": "127.0.0.1",
        "conditions": conditions,
        "containerStatuses": [{
            "name": container,
            "image": image,
            "imageID": "",
            "containerID": format!("process://{pid}"),
            "ready": true,
            "started": true,
            "restartCount": 0,
            "state": { "running": { "startedAt": now } },
        }],
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
