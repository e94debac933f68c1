//! Many objects at once: a cluster as full as the largest ones, in seconds.

use std::net::Ipv4Addr;
use std::ops::Range;

use anyhow::{Result, bail};
use hyper::Method;
use serde_json::{Value, json};

use super::{Cluster, NAMESPACE, api};

/// Requests at one time: more than these keep an API server on two cores no busier.
const CONNECTIONS: usize = 8;
const POLICIES: &str = "/apis/metal-stack.io/v1/namespaces/firewall/clusterwidenetworkpolicies";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// One request of many.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    path: String,
    kind: &'static str,
    body: Value,
}

impl Ask {
    /// Creates an object in a collection.
    pub fn create(collection: &str, object: Value) -> Self {
        Self { method: Method::POST, path: collection.to_owned(), kind: "application/json", body: object }
    }

    /// Applies a policy of the namespace `firewall` by server-side apply, as `kubectl apply --server-side` does.
    pub fn apply_policy(name: &str, spec: &Value) -> Self {
        Self {
            method: Method::PATCH,
            path: format!("{POLICIES}/{name}?fieldManager=kubectl&force=true"),
            kind: "application/apply-patch+yaml",
            body: policy(name, spec),
        }
    }

    /// Deletes a policy of the namespace `firewall`.
    pub fn delete_policy(name: &str) -> Self {
        Self {
            method: Method::DELETE,
            path: format!("{POLICIES}/{name}"),
            kind: "application/json",
            body: json!({}),
        }
    }
}

impl Cluster {
    /// Makes requests by several connections at once, each of which must succeed. Their order is not kept.
    pub fn ask_all(&self, asks: &[Ask]) -> Result<()> {
        let share = asks.len().div_ceil(CONNECTIONS).max(1);
        std::thread::scope(|scope| {
            let shares: Vec<_> =
                asks.chunks(share).map(|asks| scope.spawn(|| self.ask_in_turn(asks))).collect();
            let joined = shares.into_iter().map(|share| match share.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        })
    }

    fn ask_in_turn(&self, asks: &[Ask]) -> Result<()> {
        let api = api::Api::new(&self.directory, self.port)?;
        for Ask { method, path, kind, body } in asks {
            let reply = api.request(method.clone(), path, kind, body.to_string().into_bytes())?;
            if !(200..300).contains(&reply.code) {
                bail!("{method} {path}: {} {}", reply.code, reply.body);
            }
        }
        Ok(())
    }

    /// One request, which must succeed.
    pub fn ask(&self, ask: &Ask) -> Result<Value> {
        let Ask { method, path, kind, body } = ask;
        self.request(method.as_str(), path, kind, &body.to_string())?.ok()
    }

    /// Fills the cluster with policies of the namespace `firewall` (`crowd-00000` ...) and Services of type LoadBalancer in
    /// `default`, each of which has its address. None of them opens anything of the documentation's prefixes.
    pub fn crowd(&self, policies: Range<u32>, services: Range<u32>) -> Result<()> {
        let create = |number| Ask::create(POLICIES, policy(&crowded(number), &spec(number)));
        let serve = |number| Ask::create(SERVICES, service(number));
        self.ask_all(&policies.map(create).chain(services.clone().map(serve)).collect::<Vec<_>>())?;
        self.ask_all(&services.map(addressed).collect::<Vec<_>>())
    }
}

/// Name of a policy of [`Cluster::crowd`].
pub fn crowded(number: u32) -> String {
    format!("crowd-{number:05}")
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "metal-stack.io/v1",
        "kind": "ClusterwideNetworkPolicy",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": spec,
    })
}

/// What people write: a few prefixes and ports in one direction, now and then one with exceptions.
fn spec(number: u32) -> Value {
    let net = |base: u32, at: u32| format!("{}/24", Ipv4Addr::from((base << 24) + (at << 8)));
    let ports = json!([
        { "protocol": "TCP", "port": 443 },
        { "protocol": "TCP", "port": 8000 + number % 1000, "endPort": 9000 },
    ]);
    match number % 4 {
        0 => {
            let blocks = (0..4).map(|peer| json!({ "cidr": net(20, (number * 4 + peer) % 65_536) }));
            json!({ "egress": [{ "to": blocks.collect::<Vec<_>>(), "ports": ports }] })
        }
        1 => {
            let udp = json!([{ "protocol": "UDP", "port": 1000 + number }]);
            json!({ "ingress": [{ "from": [{ "cidr": net(30, number) }], "ports": udp }] })
        }
        2 => {
            let wide = format!("{}/16", Ipv4Addr::from((40 << 24) + ((number % 250) << 16)));
            let hole = format!("{}/24", Ipv4Addr::from((40 << 24) + ((number % 250) << 16) + (7 << 8)));
            json!({ "egress": [{ "to": [{ "cidr": wide, "except": [hole] }], "ports": ports }] })
        }
        _ => json!({
            "egress": [{ "to": [{ "cidr": net(50, number) }], "ports": ports }],
            "ingress": [{ "from": [{ "cidr": net(60, number) }], "ports": [{ "protocol": "TCP", "port": 22 }] }],
        }),
    }
}

fn service(number: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": crowded(number), "namespace": "default", "labels": { "app": "crowd" } },
        "spec": {
            "type": "LoadBalancer",
            "allocateLoadBalancerNodePorts": false,
            "selector": { "app": "crowd" },
            "ports": [
                { "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" },
                { "name": "own", "port": 2000 + number, "protocol": "TCP" },
            ],
        },
    })
}

/// Gives a Service of the crowd its address.
fn addressed(number: u32) -> Ask {
    let address = Ipv4Addr::from((100 << 24) + (70 << 16) + number);
    Ask {
        method: Method::PATCH,
        path: format!("{SERVICES}/{}/status", crowded(number)),
        kind: "application/merge-patch+json",
        body: json!({ "status": { "loadBalancer": { "ingress": [{ "ip": address }] } } }),
    }
}
