//! Nothing grows without bound, and what is cut off opens nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

use std::collections::BTreeSet;

use fw_intake::{
    Finding, HostFacts, Intake, Interface, MAX_OBJECTS, Manifest, Objects, PolicyState, Reason, Severity,
    inside_changed, intake,
};
use fw_policy::{Inside, InsideBasis, Peers, Policy, Ports};
use serde_json::{Value, json};

fn manifest(kind: &str, name: &str, spec: Value) -> Manifest {
    let body = json!({
        "apiVersion": "metal-stack.io/v1", "kind": kind,
        "metadata": {"namespace": "firewall", "name": name}, "spec": spec,
    });
    Manifest { source: "a.yaml".to_owned(), line: 1, body: body.into() }
}

fn policy(name: &str, spec: Value) -> Manifest {
    manifest("ClusterwideNetworkPolicy", name, spec)
}

fn judge(manifests: &[Manifest]) -> Intake {
    intake(&Objects::new(manifests), &HostFacts::default())
}

fn only(judged: &Intake) -> &Policy {
    judged.set.policies.first_key_value().unwrap().1
}

fn too_many(judged: &Intake) -> Vec<&Finding> {
    judged.findings.iter().filter(|finding| finding.reason == Reason::TooMany).collect()
}

fn repeat(value: Value, count: usize) -> Value {
    Value::Array(vec![value; count])
}

#[test]
fn rules_peers_ports_and_selectors_past_their_bound_are_cut_with_a_finding() {
    let rules = judge(&[policy("a", json!({"ingress": repeat(json!({}), fw_crds::MAX_RULES + 1)}))]);
    assert_eq!((only(&rules).ingress.len(), too_many(&rules).len()), (fw_crds::MAX_RULES, 1));

    let blocks = repeat(json!({"cidr": "10.0.0.0/8"}), fw_crds::MAX_PEERS + 1);
    let peers = judge(&[policy("a", json!({"egress": [{"to": blocks}]}))]);
    let Peers::Blocks(kept) = &only(&peers).egress[0].peers else { panic!("not blocks") };
    assert_eq!((kept.len(), too_many(&peers).len()), (fw_crds::MAX_PEERS, 1));

    let ports = judge(&[policy(
        "a",
        json!({"egress": [{"ports": repeat(json!({"port": 1}), fw_crds::MAX_PORTS + 1)}]}),
    )]);
    let Ports::Ranges(kept) = &only(&ports).egress[0].ports else { panic!("not ranges") };
    assert_eq!((kept.len(), too_many(&ports).len()), (fw_crds::MAX_PORTS, 1));

    let names: Vec<Value> = (0..=fw_crds::MAX_SELECTORS)
        .map(|index| json!({"matchName": format!("n{index}.example.com")}))
        .collect();
    let names = judge(&[policy("a", json!({"egress": [{"toFQDNs": names}]}))]);
    let Peers::Names(kept) = &only(&names).egress[0].peers else { panic!("not names") };
    assert_eq!((kept.len(), too_many(&names).len()), (fw_crds::MAX_SELECTORS, 1));
}

#[test]
fn a_policy_has_a_bounded_number_of_expressions_over_all_its_rules() {
    // Each is as large as one may be, or nearly.
    let large = |index: usize| json!({"matchRegex": format!("x{index}[ab]{{2000}}")});
    let rule = |from: usize| json!({"toFQDNs": (from..from + 100).map(large).collect::<Vec<_>>()});
    let judged = judge(&[policy("a", json!({"egress": [rule(0), rule(100), rule(200)]}))]);
    let kept = only(&judged).egress.iter().map(|rule| match &rule.peers {
        Peers::Names(names) => names.len(),
        _ => panic!("not names"),
    });
    assert_eq!(kept.collect::<Vec<_>>(), [100, 100, 56], "{:?}", judged.findings.first());
    assert_eq!(too_many(&judged).len(), 44);
}

#[test]
fn too_many_exceptions_void_their_block_instead_of_opening_the_rest() {
    let except = repeat(json!("10.1.0.0/16"), fw_crds::MAX_EXCEPTS + 1);
    let judged = judge(&[policy(
        "a",
        json!({"egress": [{"to": [{"cidr": "10.0.0.0/8", "except": except}, {"cidr": "192.0.2.0/24"}]}]}),
    )]);
    let Peers::Blocks(kept) = &only(&judged).egress[0].peers else { panic!("not blocks") };
    assert_eq!(kept.iter().map(|block| block.index).collect::<Vec<_>>(), [1]);
    assert_eq!(too_many(&judged).len(), 1);
}

#[test]
fn an_object_full_of_mistakes_has_a_bounded_number_of_findings_and_a_short_status() {
    let judged = judge(&[policy("a", json!({"egress": [{"to": repeat(json!({"cidr": "x"}), 5_000)}]}))]);
    assert_eq!(judged.findings.iter().filter(|finding| finding.reason == Reason::InvalidCIDR).count(), 50);
    assert!(too_many(&judged)[0].message.starts_with("4950 more findings"), "{:?}", too_many(&judged));
    let PolicyState::Ignored { message } = judged.states.first_key_value().unwrap().1 else {
        panic!("deployed")
    };
    assert!(message.len() < 1_000 && message.ends_with("and 4995 more"), "{message}");
}

#[test]
fn all_findings_together_are_bounded() {
    let spec = json!({"egress": [{"to": repeat(json!({"cidr": "x"}), 60)}]});
    let manifests: Vec<Manifest> = (0..300).map(|index| policy(&format!("p{index}"), spec.clone())).collect();
    let judged = judge(&manifests);
    assert_eq!(judged.findings.len(), 10_001);
    let last = judged.findings.last().unwrap();
    assert_eq!((last.severity, last.reason), (Severity::Error, Reason::TooMany));
}

#[test]
fn objects_past_the_bound_are_left_out_by_name_with_one_finding() {
    let manifests: Vec<Manifest> =
        (0..MAX_OBJECTS + 3).map(|index| policy(&format!("p{index:06}"), json!({}))).collect();
    let objects = Objects::new(manifests.iter().rev());
    assert_eq!((objects.len(), objects.findings().len()), (MAX_OBJECTS, 1));
    let finding = &objects.findings()[0];
    assert_eq!(finding.origin().unwrap().name, format!("p{MAX_OBJECTS:06}"));
    assert!(finding.message.contains("2 more"), "{finding}");
}

#[test]
fn a_long_list_of_allowed_networks_is_shown_in_part() {
    let allowed: Vec<String> =
        (0..500).map(|index| format!("10.{}.{}.0/25", index / 250, index % 250)).collect();
    let manifests = [
        manifest(
            "Firewall",
            "firewall",
            json!({"allowedNetworks": {"egress": allowed}, "insideInterfaces": ["eth0"]}),
        ),
        policy("a", json!({"egress": [{}]})),
    ];
    let judged = judge(&manifests);
    let forbidden: Vec<&Finding> =
        judged.findings.iter().filter(|finding| finding.reason == Reason::ForbiddenCIDR).collect();
    assert_eq!(forbidden.len(), 2);
    assert!(forbidden.iter().all(|finding| finding.message.len() < 600), "{forbidden:?}");
}

fn host(interfaces: &[(&str, &str)]) -> HostFacts {
    let interface = |(name, prefix): &(&str, &str)| Interface {
        name: name.parse().unwrap(),
        vrf: None,
        prefixes: BTreeSet::from([prefix.parse().unwrap()]),
    };
    HostFacts { interfaces: Some(interfaces.iter().map(interface).collect()), ..HostFacts::default() }
}

#[test]
fn a_route_that_moves_after_the_choice_is_a_finding_and_no_new_inside() {
    let manifests = [manifest("Firewall", "firewall", json!({"clusterPrefixes": ["10.0.16.0/22"]}))];
    let before = host(&[("eth0", "0.0.0.0/0"), ("eth1", "10.0.16.0/22")]);
    let inside = intake(&Objects::new(&manifests), &before).set.firewall.inside;
    assert_eq!(inside.interfaces, BTreeSet::from(["eth1".parse().unwrap()]));
    assert_eq!(inside_changed(&inside, &before), None);

    let moved = host(&[("eth0", "0.0.0.0/0"), ("eth2", "10.0.16.0/22")]);
    let finding = inside_changed(&inside, &moved).unwrap();
    assert_eq!((finding.severity, finding.reason), (Severity::Warning, Reason::InsideChanged));
    assert!(finding.message.contains("eth2") && finding.message.contains("inside stays eth1"), "{finding}");

    let gone = host(&[("eth0", "0.0.0.0/0")]);
    assert!(inside_changed(&inside, &gone).unwrap().message.contains("no interface"));

    let explicit = Inside { basis: InsideBasis::Explicit, ..inside };
    assert_eq!(inside_changed(&explicit, &moved), None);
}
