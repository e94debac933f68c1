use std::time::Duration;

use anyhow::{Result, ensure};
use fw_crds::{Counter, FirewallStats, FirewallStatus, RuleStats};
use fw_kube::PolicyState;
use fw_policy::ObjectKind;
use fw_testkit::cluster::Cluster;
use serde_json::{Value, json};

use crate::machine::{Machine, status, until};

fn firewall(name: &str) -> String {
    format!(
        "apiVersion: metal-stack.io/v1\nkind: Firewall\nmetadata: {{name: {name}, namespace: firewall}}\nspec: {{}}\n---\n"
    )
}

fn policy(name: &str) -> String {
    format!(
        "apiVersion: metal-stack.io/v1\nkind: ClusterwideNetworkPolicy\nmetadata: {{name: {name}, namespace: firewall}}\n\
         spec: {{egress: [{{to: [{{cidr: 192.0.2.0/24}}]}}]}}\n---\n"
    )
}

fn alive(run: &str) -> FirewallStatus {
    FirewallStatus {
        state: Some("enforcing".to_owned()),
        last_run: Some(run.to_owned()),
        ..FirewallStatus::default()
    }
}

fn version(cluster: &Cluster, kind: &str, name: &str) -> Result<Value> {
    Ok(cluster.get_json(&["-n", "firewall", kind, name])?["metadata"]["resourceVersion"].clone())
}

#[test]
fn statuses_and_events_are_written_once_and_read_well() -> Result<()> {
    let cluster = Cluster::shared()?;
    cluster.apply(&(firewall("firewall") + &policy("web")))?;
    let machine = Machine::start(&cluster, "firewall")?;
    machine.own(&cluster, "firewall", alive("2026-01-01T00:00:00Z"))?;
    machine.judge(&cluster, "web", PolicyState::Invalid, "spec.egress[1].to[0].cidr: wrong")?;
    let uid = cluster.get_json(&["-n", "firewall", "cwnp", "web"])?["metadata"]["uid"].clone();
    machine.complain(
        ObjectKind::ClusterwideNetworkPolicy,
        "web",
        uid.as_str().unwrap_or_default(),
        "Inapplicable",
        "spec.egress[1].to[0].cidr: wrong; next: correct it",
    );
    let web = until(
        "the policy has its status",
        || status(&cluster, "cwnp", "web"),
        |it| it["state"] == "invalid",
    )?;
    ensure!(web["observedGeneration"] == 1 && web["conditions"][1]["status"] == "False", "{web:#}");
    ensure!(web.get("firewalls").is_none(), "a lone firewall needs no entry: {web:#}");
    let own = until(
        "the Firewall has its",
        || status(&cluster, "firewall", "firewall"),
        |it| it["state"] == "enforcing",
    )?;
    ensure!(own["writer"] == "firewall", "{own:#}");

    let described = || Ok(json!(cluster.kubectl(&["-n", "firewall", "describe", "cwnp", "web"])?.ok()?));
    let has_event = |it: &Value| {
        it.as_str().is_some_and(|text| text.contains("Inapplicable") && text.contains("next: correct it"))
    };
    let text = until("the event is shown", described, has_event)?;
    println!("{}", text.as_str().unwrap_or_default());
    println!("{}", cluster.kubectl(&["-n", "firewall", "get", "fw,cwnp", "-o", "wide"])?.ok()?);

    let before = (version(&cluster, "cwnp", "web")?, version(&cluster, "firewall", "firewall")?);
    std::thread::sleep(Duration::from_secs(4));
    let after = (version(&cluster, "cwnp", "web")?, version(&cluster, "firewall", "firewall")?);
    ensure!(before == after, "written again without a reason: {before:?} {after:?}");
    ensure!(machine.figures.policies.written() == 1, "{:?}", machine.figures);

    // Somebody else's write is put right, and an edit is judged anew.
    let path = "/apis/metal-stack.io/v1/namespaces/firewall/clusterwidenetworkpolicies/web/status";
    let wrong = json!({"status": {"state": "deployed", "message": "", "conditions": null}}).to_string();
    cluster.request("PATCH", path, "application/merge-patch+json", &wrong)?.ok()?;
    until("it is put right", || status(&cluster, "cwnp", "web"), |it| it["state"] == "invalid")?;
    machine.judge(&cluster, "web", PolicyState::Deployed, "")?;
    let web = until("it is well", || status(&cluster, "cwnp", "web"), |it| it["state"] == "deployed")?;
    ensure!(web["message"] == "" && web["conditions"][0]["reason"] == "Enforced", "{web:#}");
    Ok(())
}

#[test]
fn two_firewalls_in_front_of_one_cluster_agree_and_are_quiet() -> Result<()> {
    let cluster = Cluster::shared()?;
    cluster.apply(&(firewall("fw-a") + &firewall("fw-b") + &policy("web")))?;
    let machines = [Machine::start(&cluster, "fw-a")?, Machine::start(&cluster, "fw-b")?];
    for (machine, name) in machines.iter().zip(["fw-a", "fw-b"]) {
        machine.own(&cluster, name, alive("2026-01-01T00:00:00Z"))?;
    }
    let states = [PolicyState::Deployed, PolicyState::Pending, PolicyState::Ignored, PolicyState::Invalid];
    for round in 0..12_usize {
        let mut worst = PolicyState::Deployed;
        for (index, machine) in machines.iter().enumerate() {
            let state = states.iter().copied().cycle().nth(round + index * (round % 3)).unwrap_or_default();
            machine.judge(&cluster, "web", state, if state == PolicyState::Deployed { "" } else { "why" })?;
            worst = worst.max(state);
        }
        until(
            "both entries and the worst state are there",
            || status(&cluster, "cwnp", "web"),
            |it| it["state"] == worst.text() && it["firewalls"].as_array().is_some_and(|all| all.len() == 2),
        )?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let before = version(&cluster, "cwnp", "web")?;
    std::thread::sleep(Duration::from_secs(4));
    ensure!(
        version(&cluster, "cwnp", "web")? == before,
        "they fight: {:#}",
        status(&cluster, "cwnp", "web")?
    );
    let managers = cluster.get_json(&["-n", "firewall", "cwnp", "web", "--show-managed-fields"])?;
    println!("{:#}", managers["metadata"]["managedFields"]);
    Ok(())
}

#[test]
fn of_two_machines_on_one_firewall_one_writes_and_the_other_takes_over() -> Result<()> {
    let cluster = Cluster::shared()?;
    cluster.apply(&firewall("firewall"))?;
    let first = Machine::start(&cluster, "box-a")?;
    first.own(&cluster, "firewall", alive("2026-01-01T00:00:00Z"))?;
    let see = || status(&cluster, "firewall", "firewall");
    until("the first one claims it", see, |it| it["writer"] == "box-a")?;
    let second = Machine::start(&cluster, "box-b")?;
    second.own(&cluster, "firewall", alive("2026-02-02T00:00:00Z"))?;
    until("the second one stands by", || Ok(json!(second.figures.standby())), |it| it == "box-a")?;
    for second_of in 0..10 {
        first.own(&cluster, "firewall", alive(&format!("2026-01-01T00:00:{second_of:02}Z")))?;
        std::thread::sleep(Duration::from_secs(1));
    }
    ensure!(second.figures.firewall.written() == 0, "{:?}", second.figures);
    let told = || Ok(json!(cluster.kubectl(&["-n", "firewall", "describe", "firewall", "firewall"])?.ok()?));
    until("an event says so", told, |it| {
        it.as_str().is_some_and(|text| text.contains("box-a writes the status"))
    })?;
    drop(first);
    until("the second one takes over", see, |it| it["writer"] == "box-b")?;
    ensure!(second.figures.standby().is_none(), "{:?}", second.figures);
    Ok(())
}

#[test]
fn ten_thousand_rules_fit_into_the_object() -> Result<()> {
    let cluster = Cluster::shared()?;
    cluster.apply(&firewall("firewall"))?;
    let machine = Machine::start(&cluster, "firewall")?;
    let rule = |number: u64| {
        let comment = format!(
            "accept traffic for k8s network policy a-policy-with-a-name-as-people-give-{number:05} tcp"
        );
        (
            comment,
            RuleStats { counter: Counter { bytes: number * 1_000_000_007, packets: number * 1_000_003 } },
        )
    };
    let rules = [("accept".to_owned(), (0..10_000).map(rule).collect())].into();
    let stats = FirewallStats { rules, ..FirewallStats::default() };
    machine.own(
        &cluster,
        "firewall",
        FirewallStatus { stats: Some(stats), ..alive("2026-01-01T00:00:00Z") },
    )?;
    until("it is there", || status(&cluster, "firewall", "firewall"), |it| it["writer"] == "firewall")?;
    let path = "/apis/metal-stack.io/v1/namespaces/firewall/firewalls/firewall";
    let object = cluster.request("GET", path, "application/json", "")?.ok()?;
    let (size, managed) = (object.to_string().len(), object["metadata"]["managedFields"].to_string().len());
    let accept = object["status"]["stats"]["rules"]["accept"].as_object().map_or(0, serde_json::Map::len);
    println!("10,000 rules: {size} bytes, of them managedFields {managed}; {accept} counters");
    ensure!(size < 600 * 1024 && managed < 4096 && accept > 3000, "{size} {managed} {accept}");
    Ok(())
}
