//! Whatever comes in: the intake does not panic, does not depend on the order, and opens nothing by mistake.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]
#![allow(clippy::print_stdout, reason = "the seed of a failed run is wanted")]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use fw_intake::{Finding, HostFacts, Intake, Interface, Manifest, Objects, Severity, intake, parse};
use fw_policy::{ObjectKind, Peers, Ports, Rule};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Map, Value, json};

/// Values that mean something somewhere, valid and not.
fn scalar() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        "10.0.0.0/8",
        "10.1.2.3/16",
        "0.0.0.0/0",
        "::/0",
        "2001:db8::/32",
        "::ffff:1.2.3.4/120",
        "192.0.2.1",
        "x",
        "TCP",
        "UDP",
        "SCTP",
        "443",
        "vrf104009",
        "LoadBalancer",
        "external",
        "privateprimaryunshared",
        "underlay",
        "internet",
        "*.example.com",
        "*",
        "both",
        "MiB/s",
        "a\nb",
        "192.0.2.1 } accept; { ",
    ];
    prop_oneof![
        6 => select(texts.to_vec()).prop_map(Value::from),
        2 => select(vec![-1_i64, 0, 1, 22, 443, 65535, 65536, i64::MAX]).prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => "\\PC{0,8}".prop_map(Value::from),
    ]
}

/// Keys that are read somewhere, so that random trees reach the readers.
fn key() -> impl Strategy<Value = String> {
    let keys = [
        "spec",
        "status",
        "ingress",
        "egress",
        "from",
        "to",
        "toFQDNs",
        "ports",
        "cidr",
        "except",
        "protocol",
        "port",
        "endPort",
        "matchName",
        "matchPattern",
        "type",
        "loadBalancer",
        "ip",
        "loadBalancerSourceRanges",
        "annotations",
        "ratelimits",
        "rateLimits",
        "interface",
        "networkid",
        "rate",
        "rateUnit",
        "firewallNetworks",
        "networktype",
        "vrf",
        "prefixes",
        "nat",
        "egressRules",
        "ips",
        "allowedNetworks",
        "insideInterfaces",
        "clusterPrefixes",
        "dropLog",
        "hostProtection",
        "enabled",
        "sshPorts",
        "dryrun",
        "icmpEcho",
        "matchRegex",
        "dns",
        "dnsFallback",
        "dnsPort",
        "dnsServerAddress",
        "dot",
        "upstreams",
        "address",
        "tlsName",
        "ttlMin",
        "ttlMax",
        "fastpath",
        "interfaces",
        "name",
        "mode",
        "markMask",
        "unknown",
    ];
    prop_oneof![30 => select(keys.to_vec()).prop_map(str::to_owned), 1 => "\\PC{0,4}"]
}

fn tree() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(7, 120, 5, |inner| {
        prop_oneof![
            2 => prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            3 => prop::collection::vec((key(), inner), 0..6)
                .prop_map(|pairs| Value::from(pairs.into_iter().collect::<Map<String, Value>>())),
        ]
    })
}

/// A tree in the place of the spec or the status of an object of ours, now and then in the place of all of it.
fn object() -> impl Strategy<Value = Value> {
    let kinds = [
        ("metal-stack.io/v1", "ClusterwideNetworkPolicy"),
        ("metal-stack.io/v1", "Firewall"),
        ("v1", "Service"),
        ("v1", "Pod"),
    ];
    let shaped = (
        select(kinds.to_vec()),
        select(vec!["firewall", "shop", ""]),
        select(vec!["a", "b", "c", "firewall", "A"]),
        tree(),
        tree(),
    )
        .prop_map(|((version, kind), namespace, name, spec, status)| {
            json!({
                "apiVersion": version, "kind": kind, "metadata": {"namespace": namespace, "name": name},
                "spec": spec, "status": status,
            })
        });
    prop_oneof![8 => shaped, 1 => tree()]
}

/// A policy of the right shape with good and bad values, whose meaning is easy to bound.
fn policy() -> impl Strategy<Value = Value> {
    let good = select(vec!["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]);
    let cidr = prop_oneof![3 => good.prop_map(Value::from), 2 => scalar()];
    let block =
        (cidr.clone(), prop::option::of(prop::collection::vec(cidr, 0..3))).prop_map(|(cidr, except)| {
            match except {
                Some(except) => json!({"cidr": cidr, "except": except}),
                None => json!({"cidr": cidr}),
            }
        });
    let number = || prop_oneof![3 => (1_i64..=65535).prop_map(Value::from), 1 => scalar()];
    let port = (number(), prop::option::of(number()), prop::option::of(select(vec!["TCP", "UDP", "SCTP"])))
        .prop_map(|(port, end, protocol)| {
            let mut entry = Map::from_iter([("port".to_owned(), port)]);
            entry.extend(end.map(|end| ("endPort".to_owned(), end)));
            entry.extend(protocol.map(|protocol| ("protocol".to_owned(), protocol.into())));
            Value::from(entry)
        });
    let rule = (prop::collection::vec(block, 1..4), prop::collection::vec(port, 1..4))
        .prop_map(|(to, ports)| json!({"to": to, "ports": ports}));
    prop::collection::vec(rule, 1..4).prop_map(|egress| {
        json!({
            "apiVersion": "metal-stack.io/v1", "kind": "ClusterwideNetworkPolicy",
            "metadata": {"namespace": "firewall", "name": "a"}, "spec": {"egress": egress},
        })
    })
}

fn manifests(bodies: Vec<Value>) -> Vec<Manifest> {
    let manifest =
        |(line, body): (u64, Value)| Manifest { source: "a.yaml".to_owned(), line, body: body.into() };
    (1..).zip(bodies).map(manifest).collect()
}

fn facts() -> HostFacts {
    let interface = |name: &str, vrf: Option<&str>, prefix: &str| Interface {
        name: name.parse().unwrap(),
        vrf: vrf.map(|vrf| vrf.parse().unwrap()),
        prefixes: BTreeSet::from([prefix.parse().unwrap()]),
    };
    HostFacts {
        interfaces: Some(vec![
            interface("vlan104009", Some("vrf104009"), "10.0.0.0/22"),
            interface("eth0", None, "0.0.0.0/0"),
        ]),
        sshd_ports: BTreeSet::from([22]),
        ..HostFacts::default()
    }
}

fn assert_sound(judged: &Intake) {
    for finding in &judged.findings {
        let line = finding.to_string();
        assert!(!line.chars().any(char::is_control), "a finding is not one plain line: {line:?}");
        assert!(line.len() < 20_000, "a finding is too long: {}", line.len());
    }
    for policy in judged.set.policies.values() {
        for rule in policy.ingress.iter().chain(&policy.egress) {
            if let Peers::Blocks(blocks) = &rule.peers {
                for block in blocks {
                    assert_eq!(block.net, block.net.trunc());
                    let fits =
                        |except: &ipnet::IpNet| block.net.contains(except) || except.contains(&block.net);
                    assert!(block.except.iter().all(fits), "{block:?}");
                }
            }
            if let Ports::Ranges(ranges) = &rule.ports {
                assert!(
                    ranges.iter().all(|range| range.first > 0 && range.first <= range.last),
                    "{ranges:?}"
                );
            }
        }
    }
    for service in judged.set.services.values() {
        assert!(!service.addresses.is_empty() && !service.ports.is_empty(), "{service:?}");
        assert!(service.addresses.is_subset(&judged.set.load_balancer_addresses));
    }
    let firewall = &judged.set.firewall;
    assert!(firewall.host.as_ref().is_none_or(|host| !host.ssh_ports.is_empty()), "SSH would be locked out");
    assert!(firewall.rate_limits.values().all(|limit| limit.bytes_per_second > 0));
    assert!(firewall.host.is_some() || firewall.masquerade.is_empty());
}

/// A fresh seed for each run, printed so that a failure can be run again with `FW_SEED`.
fn config() -> ProptestConfig {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let given = std::env::var("FW_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let seed = given.unwrap_or_else(|| u64::try_from(now() % u128::from(u64::MAX)).unwrap());
    println!("FW_SEED={seed}");
    ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_tree_is_judged_without_a_panic_and_in_any_order((bodies, shuffled) in
        prop::collection::vec(object(), 0..6).prop_flat_map(|bodies| {
            let manifests = manifests(bodies);
            (Just(manifests.clone()), Just(manifests).prop_shuffle())
        })
    ) {
        let judged = intake(&Objects::new(&bodies), &facts());
        assert_sound(&judged);
        prop_assert_eq!(&judged, &intake(&Objects::new(&shuffled), &facts()));
    }

    #[test]
    fn any_text_is_parsed_or_refused_without_a_panic(text in "\\PC{0,200}") {
        let _ = parse("a.yaml", text.as_bytes());
    }

    #[test]
    fn what_is_written_as_yaml_is_read_back(body in object()) {
        prop_assume!(body.is_object());
        let text = serde_json::to_string_pretty(&body).unwrap();
        let parsed = parse("a.yaml", text.as_bytes());
        prop_assert!(parsed.is_ok(), "{:?}", parsed);
    }
}

#[test]
fn what_is_left_of_lists_is_never_more_than_was_written() {
    let (kept_blocks, kept_ports) = (Cell::new(0), Cell::new(0));
    TestRunner::new(config())
        .run(&policy(), |body| {
            let manifests = manifests(vec![body.clone()]);
            let judged = intake(&Objects::new(&manifests), &facts());
            assert_sound(&judged);
            for rule in judged.set.policies.values().flat_map(|policy| &policy.egress) {
                let (blocks, ports) =
                    assert_no_more_than_written(&body["spec"]["egress"][rule.index], rule, &judged);
                kept_blocks.set(kept_blocks.get() + blocks);
                kept_ports.set(kept_ports.get() + ports);
            }
            Ok(())
        })
        .unwrap();
    println!("kept {} blocks and {} port ranges", kept_blocks.get(), kept_ports.get());
    assert!(
        kept_blocks.get() > 1_000 && kept_ports.get() > 1_000,
        "the generator makes hardly anything valid"
    );
}

/// A Firewall that limits what may be opened.
fn limits() -> impl Strategy<Value = Value> {
    let list = || prop::collection::vec(select(vec!["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/33"]), 0..3);
    let allowed = prop::option::of((list(), list()));
    allowed.prop_map(|allowed| {
        let allowed = allowed.map(|(ingress, egress)| json!({"ingress": ingress, "egress": egress}));
        json!({
            "apiVersion": "metal-stack.io/v1", "kind": "Firewall",
            "metadata": {"namespace": "firewall", "name": "firewall"},
            "spec": {"allowedNetworks": allowed, "insideInterfaces": ["eth0"]},
        })
    })
}

fn service() -> impl Strategy<Value = Value> {
    let address = select(vec!["10.0.0.1", "192.0.2.7", "2001:db8::1", "2001:db8:8000::1", "x"]);
    prop::collection::vec(address, 0..4).prop_map(|addresses| {
        let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "n", "name": "s"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 443, "protocol": "TCP"}]},
            "status": {"loadBalancer": {"ingress": ingress}},
        })
    })
}

/// Texts are read once: nothing of one judgement may be left in the next.
#[test]
fn what_was_read_under_one_limit_means_under_another_what_it_means_there() {
    let differ = Cell::new(0);
    TestRunner::new(config())
        .run(&(limits(), limits(), policy(), service()), |(first, second, policy, service)| {
            let objects = manifests(vec![policy.clone(), service.clone()]);
            let judge = |objects: &[Manifest], firewall: &Value| {
                let firewall = manifests(vec![firewall.clone()]);
                intake(&Objects::new(objects.iter().chain(&firewall)), &facts())
            };
            let before = judge(&objects, &first);
            let after = judge(&objects, &second);
            prop_assert_eq!(&after, &judge(&manifests(vec![policy, service]), &second));
            let opens = |judged: Intake| (judged.set.policies, judged.set.services);
            differ.set(differ.get() + usize::from(opens(before) != opens(after)));
            Ok(())
        })
        .unwrap();
    println!("{} limits changed what is open", differ.get());
    assert!(differ.get() > 300, "the limits hardly change anything");
}

/// Compares what is left of a rule with what was written; gives the number of blocks and port ranges left.
fn assert_no_more_than_written(written: &Value, rule: &Rule, judged: &Intake) -> (usize, usize) {
    let (Peers::Blocks(blocks), Ports::Ranges(ranges)) = (&rule.peers, &rule.ports) else {
        panic!("a written list became everything: {rule:?}");
    };
    // An exception may be left out only where it lies outside its block, and then with a warning.
    let outside = |finding: &Finding| {
        finding.severity == Severity::Warning
            && finding.origin().is_some_and(|origin| origin.field.contains(".except["))
    };
    for block in blocks {
        let entry = &written["to"][block.index];
        let cidr: ipnet::IpNet = entry["cidr"].as_str().unwrap().parse().unwrap();
        assert_eq!(block.net, cidr.trunc());
        let excepts = entry["except"].as_array().map(Vec::len).unwrap_or_default();
        assert!(
            excepts == block.except.len() || judged.findings.iter().any(outside),
            "exception gone: {entry}"
        );
    }
    for range in ranges {
        let entry = &written["ports"][range.index];
        let number = |key: &str| entry[key].as_u64().or_else(|| entry[key].as_str()?.parse().ok());
        let first = number("port").unwrap_or(1);
        let last = number("endPort").unwrap_or(if entry["port"].is_null() { 65535 } else { first });
        assert_eq!((u64::from(range.first), u64::from(range.last)), (first, last), "{entry}");
    }
    (blocks.len(), ranges.len())
}

#[test]
fn one_of_each_kind_is_kept_from_a_mixed_set() {
    let bodies = vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {}}),
        json!({"apiVersion": "metal-stack.io/v1", "kind": "Firewall", "metadata": {"namespace": "firewall", "name": "firewall"}}),
    ];
    let manifests = manifests(bodies);
    let objects = Objects::new(&manifests);
    assert_eq!((objects.len(), objects.of_kind(ObjectKind::Firewall).count()), (2, 1));
}
