//! What the schema must and must not say.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::path::Path;

use fw_crds::{ClusterwideNetworkPolicy, Firewall, FirewallStatus, NetworkType, PolicyStatus, RateUnit};
use serde_json::{Value, json};

fn trees() -> Vec<Value> {
    fw_crds::crds().unwrap().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect()
}

fn schema(tree: &Value) -> &Value {
    &tree["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

fn sample<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples").join(name);
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Calls `visit` with the path of every map in the tree.
fn walk(tree: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    match tree {
        Value::Object(map) => {
            visit(path, tree);
            map.iter().for_each(|(key, value)| walk(value, &format!("{path}.{key}"), visit));
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, path, visit)),
        _ => {}
    }
}

#[test]
fn names_and_columns_are_those_that_users_know() {
    let [policy, firewall]: [Value; 2] = trees().try_into().unwrap();
    assert_eq!(policy["metadata"]["name"], "clusterwidenetworkpolicies.metal-stack.io");
    assert_eq!(policy["spec"]["names"]["shortNames"], json!(["cwnp"]));
    assert_eq!(firewall["metadata"]["name"], "firewalls.metal-stack.io");
    assert_eq!(firewall["spec"]["names"]["shortNames"], json!(["fw"]));
    for tree in [&policy, &firewall] {
        assert_eq!(tree["spec"]["scope"], "Namespaced");
        assert_eq!(tree["spec"]["versions"][0]["subresources"], json!({"status": {}}));
    }
    let columns = policy["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
    let columns: Vec<(&str, &str)> = columns
        .iter()
        .filter(|column| column["priority"].is_null())
        .map(|column| (column["name"].as_str().unwrap(), column["jsonPath"].as_str().unwrap()))
        .collect();
    assert_eq!(columns, [("Status", ".status.state"), ("Message", ".status.message")]);
}

#[test]
fn no_list_is_defaulted_because_an_empty_list_has_a_meaning() {
    for tree in trees() {
        let mut defaults = Vec::new();
        walk(&schema(&tree)["properties"]["spec"], "spec", &mut |path, map| {
            if !map["default"].is_null() {
                defaults.push(format!("{path}={}", map["default"]));
            }
        });
        assert!(defaults.iter().all(|default| default.ends_with(".protocol=\"TCP\"")), "{defaults:?}");
    }
}

#[test]
fn only_names_may_be_null_so_that_a_dropped_null_never_means_every_destination() {
    for tree in trees() {
        walk(schema(&tree), "", &mut |path, map| {
            assert_eq!(map["nullable"] == json!(true), path.ends_with("toFQDNs"), "{path}");
        });
    }
}

#[test]
fn every_list_that_the_user_fills_is_bounded() {
    for tree in trees() {
        walk(&schema(&tree)["properties"]["spec"], "spec", &mut |path, map| {
            if map["type"] == "array" {
                assert!(map["maxItems"].as_u64().is_some_and(|max| max <= 10_000), "{path} is not bounded");
            }
        });
    }
}

#[test]
fn only_these_fields_must_be_there() {
    let mut required = Vec::new();
    for tree in trees() {
        walk(&schema(&tree)["properties"]["spec"], "", &mut |path, map| {
            let here =
                path.rsplit('.').find(|part| !["items", "properties"].contains(part)).unwrap_or_default();
            let names = map["required"].as_array().into_iter().flatten();
            required.extend(names.map(|name| format!("{here}.{}", name.as_str().unwrap())));
        });
    }
    required.sort();
    required.dedup();
    let expected = [
        "egressRules.networkid",
        "from.cidr",
        "interfaces.mode",
        "interfaces.name",
        "rateLimits.networkid",
        "rateLimits.rate",
        "ratelimits.interface",
        "ratelimits.rate",
        "tls.certificateFile",
        "tls.keyFile",
        "to.cidr",
        "upstreams.address",
    ];
    assert_eq!(required, expected);
}

#[test]
fn every_field_says_what_it_is_to_kubectl_explain() {
    for tree in trees() {
        walk(schema(&tree), "", &mut |path, map| {
            let properties = map["properties"].as_object().into_iter().flatten();
            for (name, field) in properties.filter(|(_, field)| field.is_object()) {
                assert!(
                    field["description"].as_str().is_some_and(|text| !text.is_empty()),
                    "{path}: {name} has no description"
                );
            }
        });
    }
}

#[test]
fn every_rule_of_the_api_server_has_a_message_for_people() {
    let mut rules = 0;
    for tree in trees() {
        walk(schema(&tree), "", &mut |path, map| {
            for rule in map["x-kubernetes-validations"].as_array().into_iter().flatten() {
                rules += 1;
                assert!(rule["message"].as_str().is_some_and(|text| text.len() > 10), "{path}: {rule}");
            }
        });
    }
    assert!(rules >= 15, "only {rules} rules");
}

#[test]
fn prefixes_are_checked_by_the_api_server() {
    for tree in trees() {
        walk(schema(&tree), "", &mut |path, map| {
            let prefix = [
                "cidr",
                "except.items",
                "prefixes.items",
                "Prefixes.items",
                "Networks.properties.ingress.items",
            ];
            if map["type"] == "string" && prefix.iter().any(|end| path.ends_with(end)) {
                assert_eq!(map["format"], "cidr", "{path}");
            }
        });
    }
}

#[test]
fn both_spellings_of_the_firewall_are_types_here() {
    let old: Firewall = sample("firewall-2020.yaml");
    assert_eq!(old.spec.interface_rate_limits.unwrap()[0].rate, 100);
    assert_eq!(old.spec.internal_prefixes.unwrap().len(), 2);
    let last: Firewall = sample("firewall-v1.yaml");
    assert_eq!(last.spec.rate_limits.unwrap()[0].network_id, "internet");
    let networks = last.spec.firewall_networks.unwrap();
    assert_eq!(networks[0].network_type, Some(NetworkType::PrivatePrimaryUnshared));
    assert_eq!(last.spec.controller_url.as_deref(), Some("https://example.org/firewall-controller"));
    let ours: Firewall = sample("firewall-more.yaml");
    assert_eq!(ours.spec.interface_rate_limits.unwrap()[0].rate_unit, Some(RateUnit::MebibytePerSecond));
    let policy: ClusterwideNetworkPolicy = sample("policy-egress-resolvers.yaml");
    assert_eq!(policy.spec.egress.unwrap()[0].to.as_ref().unwrap()[1].cidr, "8.8.8.8/32");
}

#[test]
fn statuses_have_the_keys_that_dashboards_read() {
    let status = json!({
        "state": "enforcing", "lastRun": "2020-06-17T13:23:27Z", "message": "", "controllerVersion": "1.0.0",
        "inside": "vrf1",
        "stats": {
            "devices": {"external": {"in": 1, "out": 2, "total": 3}, "internal": {"in": 1, "out": 2, "total": 3}},
            "idsstats": {"vrf1": {"drop": 1, "invalidchecksums": 2, "packets": 3}},
            "rules": {"accept": {"accept icmp": {"counter": {"bytes": 84, "packets": 1}}}},
            "dropTotal": {"bytes": 60, "packets": 1},
            "drops": {"policy": {"kernel": {"bytes": 60, "packets": 1}}},
            "dropLog": {"shown": 1, "suppressed": 0},
        },
    });
    let typed: FirewallStatus = serde_json::from_value(status.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), status);

    let status = json!({
        "state": "deployed", "message": "",
        "fqdn_state": {"*.example.com": [{
            "fqdn": "a.example.com", "setName": "s", "version": "ip", "ips": ["192.0.2.1"],
            "ipExpirationTimes": {"192.0.2.1": "2020-06-17T13:23:27Z"}, "expirationTime": "2020-06-17T13:23:27Z",
        }]},
    });
    let typed: PolicyStatus = serde_json::from_value(status.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), status);
}

#[test]
fn both_definitions_are_printed_as_one_text() {
    let text = fw_crds::crds_yaml().unwrap();
    assert_eq!(text.lines().filter(|line| *line == "kind: CustomResourceDefinition").count(), 2);
    assert_eq!(text.lines().filter(|line| *line == "---").count(), 2);
}
