use fw_policy::PolicySet;
use fw_ruleset::{Counts, DEFAULT_CELL_LIMIT, compile};

use super::*;

fn published(named: &[(&str, u64)]) -> (Ruleset, Published) {
    let ruleset = compile(&PolicySet::default(), DEFAULT_CELL_LIMIT).ruleset;
    let count = |packets: u64| Count { packets, bytes: packets * 100 };
    let mut counts = Counts {
        named: named.iter().map(|(name, packets)| ((*name).to_owned(), count(*packets))).collect(),
        ..Counts::default()
    };
    for (chain, definition) in &ruleset.chains {
        for (position, rule) in definition.rules.iter().enumerate() {
            if rule.comment.as_deref() == Some("accept icmp") {
                counts.rules.insert((chain.clone(), position), count(1));
            }
        }
    }
    let mut published = Published::default();
    published.observe(&ruleset, &counts);
    (ruleset, published)
}

#[test]
fn devices_and_rules_have_the_fields_shape() {
    let (ruleset, published) = published(&[("external_in", 3), ("external_out", 4), ("drop_total", 5)]);
    let value = serde_json::to_value(stats(&ruleset, &published)).unwrap();
    assert_eq!(value["devices"]["external"], serde_json::json!({"in": 300, "out": 400, "total": 700}));
    let rules = &value["rules"];
    assert_eq!(rules["other"]["count external traffic incoming"]["counter"]["packets"], 3);
    assert!(rules["accept"]["accept established connections"]["counter"]["bytes"].is_u64());
    assert!(rules["drop"]["drop packets with invalid ct state"].is_object(), "{rules}");
    assert!(rules["other"]["count and log dropped packets"].is_object(), "{rules}");
}

#[test]
fn equal_comments_are_summed_over_all_chains() {
    let (ruleset, published) = published(&[]);
    let with_comment = ruleset
        .chains
        .values()
        .flat_map(|chain| &chain.rules)
        .filter(|rule| rule.comment.as_deref() == Some("accept icmp"))
        .count();
    assert!(with_comment > 1);
    let stats = stats(&ruleset, &published);
    assert_eq!(stats.rules["accept"]["accept icmp"].counter.packets, with_comment as u64);
}

#[test]
fn drops_have_their_reasons_and_the_log_adds_up() {
    let (ruleset, published) =
        published(&[("drop_total", 100), ("drop_spoofed", 20), ("drop_invalid", 7), ("drop_logged", 30)]);
    let stats = stats(&ruleset, &published);
    assert_eq!(stats.drops["policy"]["nftables"].packets, 100);
    assert_eq!(stats.drops["spoofed"]["nftables"].packets, 20);
    assert_eq!(stats.drops["invalid"]["nftables"].packets, 7);
    assert!(!stats.drops.contains_key("logged"));
    // Invalid packets are dropped without being offered to the log.
    assert_eq!(stats.drop_log, Some(DropLogStats { shown: 30, suppressed: 90 }));
}

#[test]
fn the_headline_says_what_is_in_force() {
    let mut view = View::default();
    assert_eq!(headline(&view), "NOT ENFORCING: starting");
    view.state = State::Enforcing(Basis::Snapshot);
    view.waiting_for = "waiting for directory /m: No such file".to_owned();
    assert_eq!(headline(&view), "ENFORCING a stale snapshot, waiting for directory /m: No such file");
    view.waiting_for.clear();
    view.state = State::Enforcing(Basis::Current);
    view.refused = Some("no memory".to_owned());
    assert_eq!(
        headline(&view),
        "ENFORCING 0 policies, 0 services; the last change was not applied: no memory"
    );
}

#[test]
fn a_status_survives_json_and_yaml() {
    let view = View { enforced: Some(crate::reconcile::Judged::base().into()), ..View::default() };
    let of = Identification { firewall: "fw1".to_owned(), ..Identification::default() };
    let status = status(&view, &of, Value::Null, Value::Null, SystemTime::UNIX_EPOCH);
    let value = serde_json::to_value(&status).unwrap();
    assert_eq!(value["metadata"], serde_json::json!({"name": "fw1", "namespace": "firewall"}));
    assert_eq!(value["status"]["controllerVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(value["status"]["controller"]["enforcing"], false);
    let again: Status = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(serde_json::to_value(again).unwrap(), value);
    let yaml = serde_saphyr::to_string(&status).unwrap();
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), value);
}
