//! The rights of the deployment are those that are used, no more and no less.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use fw_kube::owned::{self, Own, Owned, Pace};
use fw_kube::{Connection, Credentials};
use fw_testkit::cluster::Call;
use serde_json::Value;
use tokio::sync::watch;

use crate::daemon::eventually;
use crate::rig::{FIREWALL, policy};

use super::field::{ACCOUNT, Field};

/// Group, resource with its subresource, verb.
type Right = (String, String, String);

/// Half a second in place of five minutes, for a neighbour that is to be found dead.
const HASTE: Pace = Pace {
    heartbeat: Duration::from_millis(500),
    gone: Duration::from_secs(2),
    pause: Duration::from_millis(100),
};

fn used(call: &Call) -> Right {
    let separator = if call.subresource.is_empty() { "" } else { "/" };
    (call.group.clone(), format!("{}{separator}{}", call.resource, call.subresource), call.verb.clone())
}

/// Everything that the roles of the account hold.
fn granted(field: &Field) -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    for role in [["clusterrole", ACCOUNT], ["role", ACCOUNT]] {
        let role = field.cluster.get_json(&["-n", "firewall", role[0], role[1]])?;
        let list = |value: &Value| -> Vec<String> {
            let texts = value.as_array().cloned().unwrap_or_default();
            texts.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        for rule in role["rules"].as_array().cloned().unwrap_or_default() {
            for group in list(&rule["apiGroups"]) {
                for resource in list(&rule["resources"]) {
                    let verbs = list(&rule["verbs"]).into_iter();
                    rights.extend(verbs.map(|verb| (group.clone(), resource.clone(), verb)));
                }
            }
        }
    }
    Ok(rights)
}

/// Was it answered, and with what was asked for? One that is under way, or lost against another writer, uses no right.
fn succeeded(call: &Call) -> bool {
    call.code.is_some_and(|code| code < 300)
}

fn count(field: &Field, wanted: impl Fn(&Call) -> bool) -> usize {
    field.faults.calls().iter().filter(|call| succeeded(call) && wanted(call)).count()
}

/// A Service that is wrong, right, and wrong again in the same way.
fn complain_twice(field: &Field) -> Result<()> {
    let service = |protocol: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: radio, namespace: default}}\n\
             spec: {{type: LoadBalancer, ports: [{{name: p, port: 2905, protocol: {protocol}}}]}}\n"
        )
    };
    let about = |verb: &'static str| move |call: &Call| call.resource == "events" && call.verb == verb;
    let told = count(field, about("create"));
    field.cluster.apply(&service("SCTP"))?;
    eventually("an event for the Service", || Ok(count(field, about("create")) > told))?;
    field.cluster.apply(&service("TCP"))?;
    let complains = || Ok(field.daemon.findings()?.iter().any(|finding| finding.contains("SCTP")));
    eventually("all is well", || complains().map(|it: bool| !it))?;
    // Longer than reports are apart, so that the writer of events sees it too.
    std::thread::sleep(Duration::from_secs(1));
    field.cluster.apply(&service("SCTP"))?;
    eventually("the event that is there already counts on", || Ok(count(field, about("patch")) > 0))
}

/// Two more firewalls with the rights of the same account, of which one goes: what is left of it is removed by the other.
fn bury_a_neighbour(field: &Field) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Clients start a task of their own.
    let inside = runtime.enter();
    let connection = Connection::new(Credentials::Kubeconfig(field.kubeconfig()));
    let neighbour = |name: &str, address: &str| -> Result<_> {
        let own = Own { firewall: name.to_owned(), address: address.parse()? };
        let (wanted, receiver) = watch::channel(Some(own));
        let (told, _) = watch::channel(Owned::default());
        Ok((wanted, owned::own(connection.client(), receiver, told, HASTE)))
    };
    let (gone, going) = neighbour("gone", "10.0.17.1")?;
    let (_stays, staying) = neighbour("stays", "10.0.18.1")?;
    drop(inside);
    let deleted = |call: &Call| call.resource == "endpointslices" && call.verb == "delete";
    let (done, finished) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The line to the API server begins in the firewall's namespace.
            field.lab.firewall.run(|| {
                runtime.block_on(async {
                    tokio::spawn(connection.clone().follow());
                    tokio::spawn(going);
                    tokio::spawn(staying);
                    finished.await.ok();
                });
            })
        });
        std::thread::sleep(Duration::from_secs(2));
        drop(gone);
        // And what others took away is put back.
        let others = field.cluster.kubectl(&["-n", "firewall", "label", "service", "node-exporter", "app-"]);
        let mended = |call: &Call| call.resource == "services" && call.verb == "update";
        let result = others.and_then(|said| said.ok().map(drop)).and_then(|()| {
            eventually("what is left of it is removed", || Ok(count(field, deleted) > 0))?;
            eventually("the Service has its label again", || Ok(count(field, mended) > 0))
        });
        drop(done);
        result
    })
}

#[test]
fn every_right_is_used_and_none_is_missing() -> Result<()> {
    let mut field = Field::new("k-rights")?;
    let private = "privateprimaryunshared, ";
    field.cluster.apply(&FIREWALL.replace(private, &format!("{private}ips: [10.0.16.1], ")))?;
    field.cluster.apply(&policy("web", "{egress: [{to: [{cidr: 203.0.113.0/24}]}]}"))?;
    let elsewhere =
        policy("elsewhere", "{egress: [{}]}").replace("namespace: firewall", "namespace: default");
    field.cluster.apply(&elsewhere)?;
    field.cluster.apply(&super::legacy::fqdn_state(&[]))?;
    // What the Go controller left is read at the first start.
    let left = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fqdnstate, namespace: firewall}\ndata: {state: \"{}\"}\n";
    field.cluster.apply(left)?;
    field.start()?;
    field.wait_for_state("web", "deployed")?;
    let events = |call: &Call| call.resource == "events" && call.verb == "create";
    eventually("it is told what does not count", || Ok(count(&field, events) > 0))?;
    eventually("the exporters are to be found", || {
        Ok(count(&field, |call| call.resource == "endpointslices" && call.verb == "create") > 1)
    })?;
    complain_twice(&field)?;
    bury_a_neighbour(&field)?;

    let calls = field.faults.calls();
    let refused: Vec<&Call> = calls.iter().filter(|call| matches!(call.code, Some(401 | 403))).collect();
    ensure!(refused.is_empty(), "refused: {refused:#?}");
    let done = calls.iter().filter(|call| succeeded(call));
    let done: BTreeSet<Right> = done.map(used).collect();
    let granted = granted(&field)?;
    ensure!(granted.len() > 15, "only {} rights were found", granted.len());
    let unused: Vec<&Right> = granted.difference(&done).collect();
    ensure!(unused.is_empty(), "granted and never used: {unused:?}");
    Ok(())
}
