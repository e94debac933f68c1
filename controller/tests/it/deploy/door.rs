//! What the API server refuses, takes and warns of, with our definitions and the real kubectl.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::cluster::{Cluster, Said};
use serde_json::{Value, json};

use crate::daemon::PATIENCE;
use crate::tree;

fn object(kind: &str, namespace: &str, spec: &str) -> String {
    let version = "apiVersion: metal-stack.io/v1";
    format!("{version}\nkind: {kind}\nmetadata: {{namespace: {namespace}, name: tried}}\nspec: {spec}\n")
}

fn try_out(cluster: &Cluster, object: &str) -> Result<Said> {
    cluster.kubectl_with_input(&["apply", "--dry-run=server", "-f", "-"], object)
}

const POLICY: &str = "ClusterwideNetworkPolicy";
const FIREWALL: &str = "Firewall";

/// Kind, spec, field and what kubectl says about it.
const REFUSED: [(&str, &str, &str, &str); 29] = [
    (
        POLICY,
        "{egress: [{ports: [{port: 90, endPort: 80}]}]}",
        "egress[0].ports[0].endPort",
        "endPort must not be below port",
    ),
    (POLICY, "{ingress: [{ports: [{endPort: 80}]}]}", "ingress[0].ports[0].endPort", "endPort needs port"),
    (POLICY, "{egress: [{ports: [{port: 0}]}]}", "egress[0].ports[0].port", "greater than or equal to 1"),
    (POLICY, "{egress: [{ports: [{port: '70000'}]}]}", "egress[0].ports[0].port", "a number from 1 to 65535"),
    (POLICY, "{egress: [{ports: [{port: https}]}]}", "egress[0].ports[0].port", "should match"),
    (POLICY, "{egress: [{to: [{cidr: 10.0.0.0/33}]}]}", "egress[0].to[0].cidr", "must be of type cidr"),
    (POLICY, "{egress: [{to: [{cidr: 2001:db8::/129}]}]}", "egress[0].to[0].cidr", "must be of type cidr"),
    (
        POLICY,
        "{ingress: [{from: [{cidr: 10.0.0.0/8, except: [10.0.0.1]}]}]}",
        "ingress[0].from[0].except[0]",
        "must be of type cidr",
    ),
    (POLICY, "{egress: [{to: [{except: []}]}]}", "egress[0].to[0].cidr", "Required value"),
    (
        POLICY,
        "{egress: [{toFQDNs: [{}]}]}",
        "egress[0].toFQDNs[0]",
        "write matchName, matchPattern or matchRegex",
    ),
    (
        POLICY,
        "{egress: [{toFQDNs: [{matchRegex: ''}]}]}",
        "egress[0].toFQDNs[0].matchRegex",
        "at least 1 chars long",
    ),
    (POLICY, "{egress: [{toFQDNs: [{matchName: a b}]}]}", "egress[0].toFQDNs[0].matchName", "should match"),
    (
        POLICY,
        "{ingress: [{ports: [{port: 1, protocol: SCTP}]}]}",
        "ingress[0].ports[0].protocol",
        "supported values: \"TCP\", \"UDP\"",
    ),
    (POLICY, "{egress: [{toFqdns: []}]}", "egress[0].toFqdns", "unknown field"),
    (FIREWALL, "{interval: soon}", "interval", "must be a duration, such as 10s"),
    (FIREWALL, "{dns: {ttlMin: 10, ttlMax: 5}}", "dns", "ttlMin must not be above ttlMax"),
    (FIREWALL, "{dns: {ttlMin: 0}}", "dns.ttlMin", "greater than or equal to 1"),
    (
        FIREWALL,
        "{dns: {upstreams: [{address: dns.example}]}}",
        "dns.upstreams[0].address",
        "must be an IP address",
    ),
    (
        FIREWALL,
        "{dns: {tls: {certificateFile: /a, keyFile: /b, dohPort: 853}}}",
        "dns.tls",
        "must be different",
    ),
    (FIREWALL, "{insideInterfaces: [eth0, eth1, eth0]}", "insideInterfaces", "once only"),
    (FIREWALL, "{insideInterfaces: [a b]}", "insideInterfaces[0]", "must be the name of an interface"),
    (
        FIREWALL,
        "{ratelimits: [{interface: a, rate: -1}]}",
        "ratelimits[0].rate",
        "greater than or equal to 0",
    ),
    (
        FIREWALL,
        "{ratelimits: [{interface: a, rate: 1}, {interface: a, rate: 2}]}",
        "ratelimits",
        "one rate limit only",
    ),
    (
        FIREWALL,
        "{rateLimits: [{networkid: a, rate: 1}, {networkid: a, rate: 2}]}",
        "rateLimits",
        "one rate limit only",
    ),
    (
        FIREWALL,
        "{firewallNetworks: [{networkid: a, vrf: 1}, {networkid: a, vrf: 2}]}",
        "firewallNetworks",
        "networkid must be different",
    ),
    (
        FIREWALL,
        "{firewallNetworks: [{networkid: a, networktype: intern}]}",
        "firewallNetworks[0].networktype",
        "supported values",
    ),
    (
        FIREWALL,
        "{egressRules: [{networkid: a, ips: [10.0.0.256]}]}",
        "egressRules[0].ips[0]",
        "must be an IP address",
    ),
    (FIREWALL, "{icmpEcho: some}", "icmpEcho", "supported values: \"deny\", \"egress\", \"both\""),
    (
        FIREWALL,
        "{fastpath: {interfaces: [{name: a, mode: auto}, {name: a, mode: tcx}]}}",
        "fastpath.interfaces",
        "once only",
    ),
];

/// What the Go product took, and what is served with a finding.
const TAKEN: [(&str, &str); 8] = [
    (POLICY, "{}"),
    (POLICY, "{egress: [{to: [{cidr: 10.0.0.0/8}], toFQDNs: [{matchName: a.example}]}]}"),
    (
        POLICY,
        "{egress: [{to: [{cidr: 1.1.0.0/24, except: [1.1.1.0/16]}], ports: [{port: '443'}, {protocol: UDP}]}]}",
    ),
    (POLICY, "{egress: [{to: [], toFQDNs: null, ports: []}]}"),
    (FIREWALL, "{dns: {ttlMin: 10}, fastpath: {mode: auto}}"),
    (FIREWALL, "{interval: 1m30s, allowedNetworks: {}, ratelimits: [{interface: vlan7, rate: 0}]}"),
    (FIREWALL, "{firewallNetworks: [{vrf: 0}, {vrf: 0}, {networkid: a, ips: ['2001:db8::1', 10.0.0.1]}]}"),
    (FIREWALL, "{dns: {tls: {certificateFile: /a, keyFile: /b, dotPort: 0, dohPort: 853}}}"),
];

#[test]
fn what_can_never_be_right_is_refused_by_kubectl_with_a_reason() -> Result<()> {
    let cluster = Cluster::shared()?;
    // What kubectl asks, at once: it prints the answer as it comes. The first one is for kubectl itself.
    for (kind, spec, field, message) in REFUSED {
        let plural = if kind == POLICY { "clusterwidenetworkpolicies" } else { "firewalls" };
        let path =
            format!("/apis/metal-stack.io/v1/namespaces/firewall/{plural}?dryRun=All&fieldValidation=Strict");
        let reply = cluster.request("POST", &path, "application/yaml", &object(kind, "firewall", spec))?;
        let said = reply.body["message"].as_str().unwrap_or_default();
        ensure!(reply.code >= 400, "{spec} was taken");
        ensure!(said.contains(&format!("spec.{field}")) && said.contains(message), "{spec}: {said}");
    }
    let (kind, spec, field, message) = REFUSED[0];
    let said = try_out(&cluster, &object(kind, "firewall", spec))?;
    ensure!(!said.success && said.stderr.contains(field) && said.stderr.contains(message), "{}", said.stderr);
    for (kind, spec) in TAKEN {
        try_out(&cluster, &object(kind, "firewall", spec))?.ok().context(spec)?;
    }
    Ok(())
}

#[test]
fn objects_stored_under_a_lax_definition_stay_readable_and_their_status_can_be_written() -> Result<()> {
    let cluster = Cluster::shared()?;
    let lax = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    for plural in ["clusterwidenetworkpolicies", "firewalls"] {
        let name = format!("{plural}.metal-stack.io");
        let path = "/spec/versions/0/schema/openAPIV3Schema";
        let patch = json!([{ "op": "replace", "path": path, "value": lax }]).to_string();
        cluster.kubectl(&["patch", "crd", &name, "--type=json", "-p", &patch])?.ok()?;
    }
    let policy = "{egress: [{ports: [{port: 90, endPort: 80}], to: [{cidr: 10.0.0.0/99}], toFQDNs: [{}]}]}";
    let firewall = "{interval: soon, insideInterfaces: [a, a], icmpEcho: some, dns: {ttlMin: 9, ttlMax: 3}}";
    // The new definition is used a moment after it is there.
    until(|| {
        cluster.apply(&object(POLICY, "firewall", policy))?;
        cluster.apply(&object(FIREWALL, "firewall", firewall)).map(drop)
    })?;
    cluster.kubectl(&["apply", "-k", &tree::root().join("crds").display().to_string()])?.ok()?;
    until(|| {
        let refused = !try_out(&cluster, &object(FIREWALL, "firewall", "{interval: never}"))?.success;
        ensure!(refused, "the strict definition is not in use");
        Ok(())
    })?;
    for kind in ["cwnp", "fw"] {
        let read = cluster.get_json(&["-n", "firewall", kind, "tried"])?;
        ensure!(read["spec"] != Value::Null, "{read}");
        let status = json!({ "status": { "state": "invalid", "message": "told" } }).to_string();
        let patch =
            ["-n", "firewall", "patch", kind, "tried", "--subresource=status", "--type=merge", "-p", &status];
        cluster.kubectl(&patch)?.ok().context("the status")?;
        let spec = json!({ "metadata": { "labels": { "touched": "yes" } } }).to_string();
        let patch = ["-n", "firewall", "patch", kind, "tried", "--type=merge", "-p", &spec];
        cluster.kubectl(&patch)?.ok().context("what does not touch the old fault")?;
    }
    Ok(())
}

#[test]
fn kubectl_warns_of_what_a_definition_cannot_say() -> Result<()> {
    let cluster = Cluster::shared()?;
    let folder = tree::root().join("deploy/admission").display().to_string();
    cluster.kubectl(&["apply", "-k", &folder])?.ok()?;
    let wanted = [
        (object(POLICY, "default", "{}"), "only namespace firewall counts"),
        (object(FIREWALL, "default", "{}"), "only namespace firewall counts"),
        (object(POLICY, "firewall", "{egress: [{toFQDNs: [{matchPattern: '*'}]}]}"), "allows every name"),
        (
            object(
                POLICY,
                "firewall",
                "{egress: [{toFQDNs: null}, {toFQDNs: [{matchPattern: '*example.com'}]}]}",
            ),
            "allows badexample.com too",
        ),
    ];
    for (object, warning) in &wanted {
        until(|| {
            let said = try_out(&cluster, object)?;
            ensure!(said.success && said.stderr.contains(warning), "{object}: {}", said.stderr);
            Ok(())
        })?;
    }
    let well = object(POLICY, "firewall", "{egress: [{toFQDNs: [{matchPattern: '*.example.com'}]}, {}]}");
    let said = try_out(&cluster, &well)?;
    ensure!(said.success && said.stderr.trim().is_empty(), "{}", said.stderr);
    cluster.kubectl(&["delete", "-k", &folder])?.ok().map(drop)
}

#[test]
fn a_cluster_takes_what_is_deployed_and_every_sample() -> Result<()> {
    let cluster = Cluster::shared()?;
    let base = tree::root().join("deploy/base").display().to_string();
    cluster.kubectl(&["apply", "-k", &base])?.ok()?;
    for sample in tree::files_below("deploy/samples".as_ref(), &["yaml"])? {
        let text = tree::read(&sample)?.replace("namespace: shop", "namespace: default");
        try_out(&cluster, &text)?.ok().with_context(|| sample.display().to_string())?;
    }
    let samples = tree::root().join("deploy/samples").display().to_string();
    cluster.kubectl(&["apply", "--dry-run=server", "-k", &samples])?.ok()?;
    let may = |arguments: &[&str]| -> Result<bool> {
        let who = "--as=system:serviceaccount:firewall:firewall-controller";
        let all: Vec<&str> = ["auth", "can-i", who].iter().chain(arguments).copied().collect();
        Ok(cluster.kubectl(&all)?.success)
    };
    for yes in [
        &["watch", "services", "--all-namespaces"][..],
        &["patch", "clusterwidenetworkpolicies.metal-stack.io", "--subresource=status", "-n", "shop"],
        &["watch", "secrets/droptailer-client", "-n", "firewall"],
    ] {
        ensure!(may(yes)?, "not allowed: {yes:?}");
    }
    for no in [
        &["list", "secrets", "-n", "firewall"][..],
        &["get", "secrets/droptailer-client", "-n", "default"],
        &["update", "clusterwidenetworkpolicies.metal-stack.io", "-n", "firewall"],
        &["patch", "services", "-n", "default"],
        &["update", "endpoints/others", "-n", "firewall"],
        &["delete", "services/node-exporter", "-n", "firewall"],
    ] {
        ensure!(!may(no)?, "allowed: {no:?}");
    }
    Ok(())
}

#[test]
fn kubectl_explain_reads_well() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut said = String::new();
    // The API server describes a definition a moment after it serves it.
    until(|| {
        said = cluster.kubectl(&["explain", "cwnp.spec.egress"])?.ok()?;
        ensure!(said.contains("FIELDS"), "{said}");
        Ok(())
    })?;
    for text in
        ["What may leave", "Missing or empty: nothing.", "toFQDNs\t<[]Object>", "Destinations by DNS name."]
    {
        ensure!(said.contains(text), "no {text:?} in:\n{said}");
    }
    let said = cluster.kubectl(&["get", "metal-stack", "-n", "firewall", "-o", "wide"])?.ok()?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

/// Tries again until it works; some things of the API server come into use a moment later.
fn until(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(100)),
            other => return other,
        }
    }
}
