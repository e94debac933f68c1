//! Two firewalls in front of one cluster, which must never fight.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fw_testkit::cluster::{Call, Fault};
use serde_json::Value;

use crate::daemon::eventually;
use crate::rig::{FIREWALL, fire, policy};
use crate::traffic::{INTERNET, out};

use super::field::{Field, Machine};

/// Longer than a round of writes, the pauses after them, and the interval of a Firewall's status.
const QUIET: Duration = Duration::from_secs(12);

/// Longer than two firewalls need to enforce one policy, one after the other.
const SAME_MOMENT: Duration = Duration::from_secs(1);
/// Longer than the pauses before a first and a second correction.
const SETTLED: Duration = Duration::from_secs(4);
/// A policy takes each of two firewalls a write or two, and one correction each.
const MAX_WRITES: usize = 2 * 2 * 3;

/// The standard Firewall under a name, with an address in the private network, and more of its spec.
fn firewall(name: &str, address: &str, lines: &str) -> String {
    let named = FIREWALL.replace("{name: firewall, namespace", &format!("{{name: {name}, namespace"));
    let private = "privateprimaryunshared, ";
    format!("{}{lines}\n", named.replace(private, &format!("{private}ips: [{address}], ")))
}

/// Two running firewalls, `firewall` and `second`; the second one may open 203.0.113.0/24 only.
fn pair(label: &str) -> Result<(Field, Machine)> {
    let mut field = Field::new(label)?;
    let mut second = Machine::new(&field.cluster, &format!("{label}2"), "second")?;
    field.cluster.apply(&firewall("firewall", "10.0.16.1", ""))?;
    field.cluster.apply(&firewall("second", "10.0.17.1", "  allowedNetworks: {egress: [203.0.113.0/24]}"))?;
    field.start()?;
    second.daemon.start_in(&second.lab)?;
    Ok((field, second))
}

fn versions(field: &Field, plural: &str) -> Result<BTreeMap<String, String>> {
    let path = format!("/apis/metal-stack.io/v1/namespaces/firewall/{plural}");
    let list = field.cluster.request("GET", &path, "application/json", "")?.ok()?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(items
        .iter()
        .map(|it| (text(&it["metadata"]["name"]), text(&it["metadata"]["resourceVersion"])))
        .collect())
}

/// The versions of the policies once nobody has written for a while. Two that write at the same moment may each correct
/// once more what the other one did not know yet; the pause before that is one second, then two.
fn settled_policies(field: &Field) -> Result<BTreeMap<String, String>> {
    let read = || versions(field, "clusterwidenetworkpolicies");
    let (mut seen, mut since) = (read()?, Instant::now());
    let deadline = since + Duration::from_secs(60);
    while since.elapsed() < SETTLED {
        ensure!(Instant::now() < deadline, "still written after a minute: {seen:?}");
        std::thread::sleep(Duration::from_millis(200));
        let now = read()?;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    Ok(seen)
}

/// What each firewall says of a policy.
fn voices(object: &Value) -> BTreeMap<String, String> {
    let voices = object["status"]["firewalls"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    voices.iter().map(|voice| (text(&voice["name"]), text(&voice["state"]))).collect()
}

fn is_write_of_policies(call: &Call) -> bool {
    call.resource == "clusterwidenetworkpolicies" && call.verb == "patch"
}

#[test]
fn two_firewalls_say_each_their_own_and_then_are_quiet() -> Result<()> {
    let (field, second) = pair("k-pair")?;
    field.cluster.apply(&policy("both", "{egress: [{to: [{cidr: 203.0.113.0/28}]}]}"))?;
    // Neither of them knows what the other one says when it writes.
    for faults in [&field.faults, &second.faults] {
        faults.inject(usize::MAX, Fault::Delay(SAME_MOMENT), |call| {
            is_write_of_policies(call) && call.name == "one"
        });
    }
    field.cluster.apply(&policy("one", "{egress: [{to: [{cidr: 198.51.100.0/24}]}]}"))?;
    let expected = |first: &str, other: &str| -> BTreeMap<String, String> {
        [("firewall", first), ("second", other)]
            .map(|(name, state)| (name.to_owned(), state.to_owned()))
            .into()
    };
    let plural = "clusterwidenetworkpolicies";
    let both = expected("deployed", "deployed");
    field.wait_for("both deploy it", (plural, "both"), |it| {
        voices(it) == both && it["status"]["state"] == "deployed"
    })?;
    let one = expected("deployed", "ignored");
    field.wait_for("one ignores it, and that is what all see", (plural, "one"), |it| {
        voices(it) == one && it["status"]["state"] == "ignored"
    })?;
    assert!(fire(&field.lab, &[out("198.51.100.7", 443)])?[0], "the first firewall has it in force");
    assert!(!fire(&second.lab, &[out("198.51.100.7", 443)])?[0], "the second one does not");

    let before = settled_policies(&field)?;
    let writes = || -> Vec<Call> {
        let calls = [&field.faults, &second.faults].map(|faults| faults.calls());
        calls.into_iter().flatten().filter(is_write_of_policies).collect()
    };
    ensure!(writes().len() <= MAX_WRITES, "too many to agree: {:#?}", writes());
    field.faults.clear_calls();
    second.faults.clear_calls();
    std::thread::sleep(QUIET);
    assert_eq!(versions(&field, plural)?, before, "nobody writes what is said already");
    ensure!(writes().is_empty(), "writes without a change: {:#?}", writes());
    for (name, machine) in [("firewall", &field.daemon), ("second", &second.daemon)] {
        let object = field.object("firewalls", name)?;
        assert_eq!(object["status"]["state"], "enforcing", "{name}: {}", machine.lines()?.join("\n"));
    }
    Ok(())
}

#[test]
fn each_firewall_adds_its_address_and_its_counters_are_its_own() -> Result<()> {
    let (field, second) = pair("k-both")?;
    field.cluster.apply(&policy("both", "{egress: [{to: [{cidr: 203.0.113.0/28}]}]}"))?;
    field.wait_for_state("both", "deployed")?;
    eventually("the second one enforces it", || Ok(fire(&second.lab, &[out(INTERNET[0], 80)])?[0]))?;
    let shots: Vec<_> = (0..4).map(|_| out(INTERNET[0], 443)).collect();
    assert_eq!(fire(&field.lab, &shots)?, [true; 4]);
    let packets = |it: &Value| {
        it["status"]["stats"]["rules"]["accept"]["accept traffic for np both tcp"]["counter"]["packets"]
            .as_u64()
    };
    field.wait_for("the first one's packets", ("firewalls", "firewall"), |it| packets(it) == Some(4))?;
    field.wait_for("the second one's packets", ("firewalls", "second"), |it| {
        packets(it).is_some_and(|n| n >= 1)
    })?;
    let addresses = || -> Result<BTreeSet<String>> {
        let path = "/api/v1/namespaces/firewall/endpoints/nftables-exporter";
        let reply = field.cluster.request("GET", path, "application/json", "")?;
        let subsets = reply.body["subsets"].as_array().cloned().unwrap_or_default();
        let all =
            subsets.iter().flat_map(|subset| subset["addresses"].as_array().cloned().unwrap_or_default());
        Ok(all.filter_map(|address| address["ip"].as_str().map(str::to_owned)).collect())
    };
    let expected = BTreeSet::from(["10.0.16.1".to_owned(), "10.0.17.1".to_owned()]);
    eventually("both addresses are in the Endpoints", || Ok(addresses()? == expected))
}
