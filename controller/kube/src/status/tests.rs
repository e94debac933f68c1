#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops where it fails")]

mod convergence;
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fw_crds::{Counter, FirewallStats, FirewallStatus, FqdnAddresses, RuleStats};
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::firewall::News;
use super::fqdn::{self, Difference};
use super::policy::{Present, merge};
use super::voice::{Claim, Watcher};
use super::{firewall, rfc3339};
use crate::report::{PolicyReport, PolicyState};

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn report(state: PolicyState, message: &str, generation: i64) -> PolicyReport {
    PolicyReport {
        generation,
        uid: "u".to_owned(),
        state,
        message: message.to_owned(),
        ..PolicyReport::default()
    }
}

fn alone(name: &str) -> Present {
    Present { names: [name.to_owned()].into(), ..Present::default() }
}

fn addresses(times: &[(&str, &str)]) -> Arc<BTreeMap<String, Vec<FqdnAddresses>>> {
    let entry = FqdnAddresses {
        fqdn: Some("www.example.com".to_owned()),
        set_name: Some(String::new()),
        ip_expiration_times: Some(
            times.iter().map(|(ip, at)| ((*ip).to_owned(), (*at).to_owned())).collect(),
        ),
        version: Some("ip".to_owned()),
        ..FqdnAddresses::default()
    };
    Arc::new([("*.example.com".to_owned(), vec![entry])].into())
}

/// Anything at all as JSON.
pub(super) fn garbage() -> impl Strategy<Value = Value> {
    let keys = prop_oneof![
        Just("state"),
        Just("message"),
        Just("conditions"),
        Just("firewalls"),
        Just("fqdn_state"),
        Just("name"),
        Just("type"),
        Just("status"),
        Just("lastTransitionTime"),
        Just("observedGeneration"),
        Just("stats"),
        Just("rules"),
        Just("writer"),
        Just("lastRun"),
        Just("accept"),
        Just("counter"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-c\u{0}é\"]{0,5}".prop_map(Value::from),
        Just(json!("fw-a")),
        Just(json!("Deployed")),
        Just(json!("True")),
    ];
    leaf.prop_recursive(6, 60, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(keys.clone(), inner, 0..6).prop_map(|map| {
                Value::Object(map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

#[test]
fn a_lone_firewall_writes_the_compatible_fields_and_no_entry_of_its_own() {
    let report = report(PolicyState::Invalid, "spec.egress[0]: wrong", 3);
    let merged = merge(&report, &Value::Null, "firewall", &alone("firewall"), None, time(0));
    let expected = json!({
        "state": "invalid", "message": "spec.egress[0]: wrong", "observedGeneration": 3,
        "conditions": [
            {"type": "Deployed", "status": "True", "reason": "PartlyEnforced", "message": "spec.egress[0]: wrong",
             "observedGeneration": 3, "lastTransitionTime": "2023-11-14T22:13:20Z"},
            {"type": "Valid", "status": "False", "reason": "InvalidEntries", "message": "spec.egress[0]: wrong",
             "observedGeneration": 3, "lastTransitionTime": "2023-11-14T22:13:20Z"},
        ],
    });
    assert_eq!(merged.apply, Some(expected.clone()));
    let again = merge(&report, &expected, "firewall", &alone("firewall"), Some(Difference::Times), time(99));
    assert_eq!(again.apply, None, "what is there already is not written again");
}

#[test]
fn of_two_firewalls_the_worst_state_and_the_oldest_generation_count() {
    let both = Present { names: ["fw-a".to_owned(), "fw-b".to_owned()].into(), ..Present::default() };
    let there = json!({"firewalls": [
        {"name": "fw-b", "state": "pending", "message": "refused", "observedGeneration": 6}]});
    let own = report(PolicyState::Deployed, "", 7);
    let status = merge(&own, &there, "fw-a", &both, None, time(0)).apply.unwrap();
    assert_eq!(status["state"], "pending");
    assert_eq!(status["message"], "fw-b: refused");
    assert_eq!(status["observedGeneration"], 6);
    assert_eq!(
        status["firewalls"],
        json!([{"name": "fw-a", "state": "deployed", "message": "", "observedGeneration": 7}])
    );
    assert_eq!(status["conditions"][0]["status"], "False");
}

#[test]
fn the_entry_of_a_firewall_that_is_gone_does_not_count_and_is_pruned() {
    let there = json!({"firewalls": [
        {"name": "fw-a", "state": "deployed", "message": "", "observedGeneration": 1},
        {"name": "old", "state": "ignored", "message": "x", "observedGeneration": 1}]});
    let present = Present { gone: ["old".to_owned()].into(), ..alone("fw-a") };
    let merged = merge(&report(PolicyState::Deployed, "", 1), &there, "fw-a", &present, None, time(0));
    assert_eq!(merged.prune, Some(json!([there["firewalls"][0]])));
    let status = merged.apply.unwrap();
    assert_eq!((&status["state"], status.get("firewalls")), (&json!("deployed"), None));
}

#[test]
fn addresses_wait_until_they_are_due_and_come_along_with_anything_else() {
    let (first, second) = (addresses(&[("192.0.2.1", "t1")]), addresses(&[("192.0.2.1", "t2")]));
    let other = addresses(&[("192.0.2.1", "t2"), ("192.0.2.2", "t2")]);
    let with = |state: &Arc<_>| PolicyReport {
        fqdn_state: Arc::clone(state),
        ..report(PolicyState::Deployed, "", 1)
    };
    let at =
        |report: &PolicyReport, there: &Value, due| merge(report, there, "fw", &alone("fw"), due, time(0));
    let there = at(&with(&first), &Value::Null, None).apply.unwrap();
    assert_eq!(there["fqdn_state"], serde_json::to_value(&*first).unwrap());

    for (wanted, difference) in [(&second, Difference::Times), (&other, Difference::Addresses)] {
        let waits = at(&with(wanted), &there, None);
        assert_eq!((waits.apply, waits.later), (None, Some(difference)));
        assert!(at(&with(wanted), &there, Some(difference)).apply.is_some());
    }
    assert_eq!(
        at(&with(&second), &there, Some(Difference::Addresses)).apply,
        None,
        "times alone are not due"
    );
    let pending = PolicyReport { state: PolicyState::Pending, ..with(&second) };
    let status = at(&pending, &there, None).apply.unwrap();
    assert_eq!(status["fqdn_state"], serde_json::to_value(&*second).unwrap());
    let none = at(&report(PolicyState::Deployed, "", 1), &there, Some(Difference::Addresses)).apply.unwrap();
    assert_eq!(none["fqdn_state"], json!({}));
    assert_eq!(at(&report(PolicyState::Deployed, "", 1), &none, Some(Difference::Times)).apply, None);
}

#[test]
fn addresses_that_do_not_fit_are_counted() {
    let entry = addresses(&[("192.0.2.1", "2026-01-01T00:00:00Z")])["*.example.com"][0].clone();
    let many: BTreeMap<_, _> =
        (0..5000).map(|number| (format!("name-{number}.example.com"), vec![entry.clone()])).collect();
    let kept = fqdn::bounded(&many);
    assert!(serde_json::to_vec(&kept).unwrap().len() <= fqdn::MAX_BYTES);
    let names = kept.values().flatten().count();
    assert!(names > 500, "{names}");
    assert!(kept.contains_key(&format!("({} more entries do not fit)", 5000 - names)), "{names}");
}

#[test]
fn ten_thousand_rules_fit_and_nothing_of_their_counters_is_lost() {
    let rule = |number: u64| {
        let comment =
            format!("accept traffic for k8s network policy some-policy-with-a-long-name-{number:05} tcp");
        (comment, RuleStats { counter: Counter { bytes: number * 1000, packets: number } })
    };
    let rules: BTreeMap<String, BTreeMap<String, RuleStats>> =
        [("accept".to_owned(), (0..10_000).map(rule).collect()), ("drop".to_owned(), BTreeMap::new())].into();
    let kept = firewall::bounded(rules.clone(), firewall::MAX_RULE_BYTES);
    let size = serde_json::to_vec(&kept).unwrap().len();
    assert!(size < firewall::MAX_RULE_BYTES + 1024, "{size}");
    let accept = &kept["accept"];
    let summed = format!("({} more rules, summed up)", 10_001 - accept.len());
    let total: u64 = accept.values().map(|rule| rule.counter.packets).sum();
    assert_eq!(total, (0..10_000).sum::<u64>());
    let least =
        accept.iter().filter(|(name, _)| **name != summed).map(|(_, rule)| rule.counter.packets).min();
    assert_eq!(least, Some(10_001 - accept.len() as u64), "the largest are shown");
    assert!(accept.contains_key(&summed), "{summed}");
    assert!(kept["drop"].is_empty(), "actions stay, as dashboards expect");
    assert_eq!(firewall::bounded(kept.clone(), 1 << 20), kept);
}

#[test]
fn how_many_policies_there_are_is_less_urgent_than_whether_they_are_in_force() {
    let status = |state: &str, message: &str| FirewallStatus {
        state: Some(state.to_owned()),
        message: Some(message.to_owned()),
        ..FirewallStatus::default()
    };
    let wanted = |state, message| firewall::wanted(&status(state, message), &Value::Null, "fw");
    let there = wanted("enforcing", "2000 policies");
    assert_eq!(firewall::news(&wanted("enforcing", "2001 policies"), &there), News::Number);
    let refused = "2001 policies; the last change was not applied: no memory";
    assert_eq!(firewall::news(&wanted("enforcing", refused), &there), News::State, "what is wrong is urgent");
    assert_eq!(firewall::news(&wanted("not enforcing", "2001 policies"), &there), News::State);
}

#[test]
fn counters_stay_until_they_are_read_again() {
    let with = FirewallStatus { stats: Some(FirewallStats::default()), ..FirewallStatus::default() };
    let there = firewall::wanted(&with, &Value::Null, "fw-1");
    let without = firewall::wanted(&FirewallStatus::default(), &there, "fw-1");
    assert_eq!(without["stats"], there["stats"]);
    assert_eq!(firewall::news(&without, &there), News::None);
    assert_eq!(firewall::news(&firewall::wanted(&with, &there, "fw-2"), &there), News::State);
    let garbage = json!({"stats": {"rules": {"accept": 7}}});
    assert_eq!(firewall::wanted(&FirewallStatus::default(), &garbage, "fw-1").get("stats"), None);
}

#[test]
fn two_machines_with_one_firewall_take_turns_only_when_the_writer_falls_silent() {
    let interval = Duration::from_secs(10);
    let at = Duration::from_secs;
    let mut second = Watcher::default();
    let mut look = |status: Value, now| second.look("box-b", ("firewall", "u"), &status, interval, at(now));
    let wrote = |run: &str| json!({"writer": "box-a", "lastRun": run});
    assert_eq!(look(wrote("1"), 0), Claim::Theirs("box-a".to_owned()));
    assert_eq!(look(wrote("2"), 25), Claim::Theirs("box-a".to_owned()));
    assert_eq!(look(wrote("2"), 54), Claim::Theirs("box-a".to_owned()));
    let replaces = Claim::Ours { speaks: false, replaces: true };
    assert_eq!(look(wrote("2"), 55), replaces);
    assert_eq!(
        look(json!({"writer": "box-b", "lastRun": "3"}), 56),
        Claim::Ours { speaks: true, replaces: false }
    );

    let mut first = Watcher::default();
    let status = json!({"writer": "box-b", "lastRun": "3"});
    let claim = first.look("box-a", ("firewall", "u"), &status, interval, at(60));
    assert_eq!(claim, Claim::Theirs("box-b".to_owned()), "who comes back waits");
    let claim = first.look("firewall", ("firewall", "u"), &status, interval, at(60));
    assert_eq!(
        claim,
        Claim::Ours { speaks: true, replaces: false },
        "the machine it is called after does not"
    );
}

#[test]
fn a_status_that_nobody_claimed_is_claimed_at_once_and_speaks_for_policies_soon() {
    let mut watcher = Watcher::default();
    let mut look = |now| watcher.look("box", ("firewall", "u"), &Value::Null, Duration::from_secs(1), now);
    assert_eq!(look(Duration::ZERO), Claim::Ours { speaks: false, replaces: false });
    assert_eq!(look(Duration::from_secs(10)), Claim::Ours { speaks: true, replaces: false });
}

#[test]
fn times_print_as_kubernetes_prints_them() {
    assert_eq!(rfc3339(Timestamp::new(1_592_400_207, 999_000_000).unwrap()), "2020-06-17T13:23:27Z");
}

proptest! {
    /// Whatever somebody put into a status: no panic, and applying what is wanted leaves nothing to be written.
    #[test]
    fn no_status_is_too_strange_to_be_put_right(
        status in garbage(), firewalls in garbage(), conditions in garbage(), gone in any::<bool>(),
    ) {
        let mut status = status;
        if let Some(map) = status.as_object_mut() {
            map.insert("firewalls".to_owned(), firewalls);
            map.insert("conditions".to_owned(), conditions);
        }
        let mut present = alone("fw-b");
        if gone {
            present.gone.insert("fw-a".to_owned());
        }
        let report = PolicyReport { fqdn_state: addresses(&[("192.0.2.1", "t")]), ..report(PolicyState::Deployed, "", 1) };
        let merged = merge(&report, &status, "fw-b", &present, Some(Difference::Times), time(0));
        prop_assert!(merged.apply.is_some() || merged.prune.is_none());
        let mut server = server::Server::holding(&status);
        for second in 1..4 {
            let merged = merge(&report, &server.status(), "fw-b", &present, Some(Difference::Times), time(second));
            if let Some(list) = &merged.prune {
                server.replace_firewalls(list);
            }
            if let Some(body) = &merged.apply {
                server.apply("fw-b", body);
            }
        }
        let merged = merge(&report, &server.status(), "fw-b", &present, Some(Difference::Times), time(9));
        prop_assert_eq!((merged.apply, merged.prune), (None, None), "{}", server.status());
        let wanted = firewall::wanted(&FirewallStatus::default(), &status, "fw-b");
        let again = firewall::wanted(&FirewallStatus::default(), &wanted, "fw-b");
        prop_assert_eq!(&wanted, &again);
        Watcher::default().look("fw-b", ("firewall", "u"), &status, Duration::ZERO, Duration::ZERO);
    }
}
