//! Objects that another client wrote past validation, and what the others notice of them.

use anyhow::{Context as _, Result, ensure};
use fw_testkit::cluster::Cluster;
use serde_json::{Value, json};

use crate::daemon::eventually;
use crate::rig::{FIREWALL, fire};
use crate::traffic::{CLUSTER, INTERNET, into, out};

use super::edits::{POLICIES, list, open_port, put};
use super::field::Field;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const PLURALS: [&str; 2] = ["clusterwidenetworkpolicies", "firewalls"];

/// Policies that no validation would let in, each with a word of what is to be said about it.
fn malformed() -> Vec<(&'static str, Value)> {
    vec![
        ("spec-is-a-text", json!("everything")),
        ("egress-is-a-text", json!({"egress": "all"})),
        ("rule-is-a-number", json!({"egress": [7]})),
        (
            "ports-are-a-map",
            json!({"egress": [{"to": [{"cidr": "203.0.113.2/32"}], "ports": {"port": 7001}}]}),
        ),
        (
            "port-is-a-float",
            json!({"egress": [{"to": [{"cidr": "203.0.113.2/32"}], "ports": [{"port": 7001.5}]}]}),
        ),
        (
            "cidr-is-garbage",
            json!({"egress": [{"to": [{"cidr": "203.0.113.2/99"}], "ports": [{"port": 7001}]}]}),
        ),
        ("names-are-numbers", json!({"egress": [{"toFQDNs": [1, 2], "ports": [{"port": 7001}]}]})),
        (
            "both-directions",
            json!({"egress": [{"toFQDNs": "*", "to": 1}], "ingress": [{"from": {}, "ports": ["7001"]}]}),
        ),
    ]
}

/// Does something while a definition takes everything, and returns when it is strict again.
fn past_validation(cluster: &Cluster, plural: &str, write: impl FnOnce() -> Result<()>) -> Result<()> {
    let definition = format!("{DEFINITIONS}/{plural}.metal-stack.io");
    let set = |schema: &Value| -> Result<()> {
        let patch =
            json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": schema}]);
        let kind = "application/json-patch+json";
        cluster.request("PATCH", &definition, kind, &patch.to_string())?.ok().map(drop)
    };
    // Nothing of it is kept.
    let is_loose = || -> Result<bool> {
        let spec = json!({"egress": "all", "firewallNetworks": "all"});
        let object = json!({"apiVersion": "metal-stack.io/v1", "kind": kind_of(plural), "metadata": {"name": "x"}, "spec": spec});
        let path = format!("/apis/metal-stack.io/v1/namespaces/firewall/{plural}?dryRun=All");
        let reply = cluster.request("POST", &path, "application/json", &object.to_string())?;
        // 429: the storage of a changed definition is being made.
        ensure!(matches!(reply.code, 201 | 422 | 429), "{} {}", reply.code, reply.body);
        Ok(reply.code == 201)
    };
    let object = cluster.request("GET", &definition, "application/json", "")?.ok()?;
    let strict = object["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    ensure!(strict.is_object() && !is_loose()?, "{plural} has no schema");
    set(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))?;
    eventually("the loose definition is served", is_loose)?;
    write()?;
    set(&strict)?;
    eventually("the strict definition is served", || Ok(!is_loose()?))
}

fn kind_of(plural: &str) -> &'static str {
    if plural == "firewalls" { "Firewall" } else { "ClusterwideNetworkPolicy" }
}

fn malformed_policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "metal-stack.io/v1", "kind": "ClusterwideNetworkPolicy",
        "metadata": {"name": name, "namespace": "firewall"}, "spec": spec,
    })
}

/// Warnings of the firewall about an object, as `kubectl describe` shows them.
fn events_about(cluster: &Cluster, kind: &str, name: &str) -> Result<Vec<String>> {
    let events = list(cluster, "/apis/events.k8s.io/v1/events", ("events.k8s.io/v1", "Event"))?;
    let about = events.iter().filter(|event| {
        event["regarding"]["kind"] == kind && event["regarding"]["name"] == name && event["type"] == "Warning"
    });
    Ok(about.map(|event| event["note"].as_str().unwrap_or_default().to_owned()).collect())
}

fn wait_for_event(field: &Field, kind: &str, name: &str, needle: &str) -> Result<()> {
    let mut notes = Vec::new();
    let found = eventually(&format!("an event about {kind} {name} with {needle:?}"), || {
        notes = events_about(&field.cluster, kind, name)?;
        Ok(notes.iter().any(|note| note.contains(needle)))
    });
    found.with_context(|| format!("{notes:?}\n{}", field.log()))
}

#[test]
fn objects_written_past_validation_get_a_finding_each_and_the_others_go_on() -> Result<()> {
    let mut field = Field::new("k-malformed")?;
    field.cluster.apply(FIREWALL)?;
    open_port(&field.cluster, "before", 7000)?;
    let policies = malformed();
    past_validation(&field.cluster, PLURALS[0], || {
        policies.iter().try_for_each(|(name, spec)| {
            let object = malformed_policy(name, spec).to_string();
            field.cluster.request("POST", POLICIES, "application/json", &object)?.ok().map(drop)
        })
    })?;
    field.start()?;
    let passes = |port| Ok::<_, anyhow::Error>(fire(&field.lab, &[out(INTERNET[0], port)])?[0]);
    ensure!(passes(7000)? && !passes(7001)?, "good policies are enforced, bad ones open nothing");
    let findings = field.daemon.findings()?;
    for (name, _) in &policies {
        ensure!(findings.iter().any(|line| line.contains(name)), "{name} is not among {findings:#?}");
        wait_for_event(&field, "ClusterwideNetworkPolicy", name, "spec")?;
    }
    // After them all: whoever writes statuses did not stop at one of them.
    field.wait_for_state("before", "deployed")?;
    open_port(&field.cluster, "after", 7002)?;
    eventually("a policy of after them is enforced", || passes(7002))?;
    field.wait_for_state("after", "deployed")?;
    ensure!(!passes(7001)?, "bad ones open nothing");
    Ok(())
}

/// The standard Firewall, with one network twice and another that is two things.
const CONTRADICTORY: &str = "
apiVersion: metal-stack.io/v1
kind: Firewall
metadata: {name: firewall, namespace: firewall}
spec:
  internalprefixes: [10.0.0.0/8]
  firewallNetworks:
  - {networkid: cluster, networktype: privateprimaryunshared, vrf: 104009, prefixes: [10.0.16.0/22, '2001:db8:10::/48']}
  - {networkid: cluster, networktype: external, vrf: 104009, prefixes: [10.0.16.0/22]}
  - {networkid: internet, networktype: external, vrf: 179, prefixes: [203.0.113.0/24, '2001:db8:179::/64']}
  - {networkid: internet, networktype: underlay, vrf: 180, prefixes: [10.0.16.0/22]}
";

#[test]
fn a_firewall_that_contradicts_itself_and_a_service_with_garbage_leave_the_rest_in_force() -> Result<()> {
    let field = Field::running("k-contradict")?;
    open_port(&field.cluster, "before", 7000)?;
    field.wait_for_state("before", "deployed")?;
    past_validation(&field.cluster, PLURALS[1], || {
        let path = "/apis/metal-stack.io/v1/namespaces/firewall/firewalls/firewall";
        put(&field.cluster, path, CONTRADICTORY).map(drop)
    })?;
    wait_for_event(&field, "Firewall", "firewall", "the first one counts")?;
    let findings = field.daemon.findings()?;
    for (number, network) in [(1, "cluster"), (3, "internet")] {
        let says =
            |line: &&String| line.contains(&format!("firewallNetworks[{number}]")) && line.contains(network);
        ensure!(findings.iter().any(|line| says(&line)), "{network} is not among {findings:#?}");
    }

    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: garbage, namespace: default}\n\
                   spec: {type: LoadBalancer, ports: [{name: http, port: 8080, protocol: TCP}]}\n";
    let services = "/api/v1/namespaces/default/services";
    let assign = |name: &str, ingress: Value| {
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
        let path = format!("{services}/{name}/status");
        field.cluster.request("PATCH", &path, "application/merge-patch+json", &patch)
    };
    put(&field.cluster, &format!("{services}/garbage"), service)?;
    // What is no address at all the API server refuses; this one is two, by who reads it.
    ensure!(assign("garbage", json!([{"ip": "not an address"}]))?.code == 422);
    let ingress = json!([{"ip": "198.51.100.010"}, {"hostname": "lb.example.org"}, {"ip": CLUSTER[0]}]);
    assign("garbage", ingress)?.ok()?;
    wait_for_event(&field, "Service", "garbage", "it is not opened")?;
    wait_for_event(&field, "Service", "garbage", "has no ip")?;
    let opens = |port| Ok::<_, anyhow::Error>(fire(&field.lab, &[into(INTERNET[0], CLUSTER[0], port)])?[0]);
    eventually("the good address beside it opens", || opens(8080))?;

    open_port(&field.cluster, "after", 7002)?;
    eventually("a policy of after them is enforced", || Ok(fire(&field.lab, &[out(INTERNET[0], 7002)])?[0]))?;
    field.wait_for_state("after", "deployed")?;
    let shots = [out(INTERNET[0], 7000), out(INTERNET[0], 7001), into(INTERNET[0], CLUSTER[0], 8081)];
    assert_eq!(fire(&field.lab, &shots)?, [true, false, false]);
    Ok(())
}
