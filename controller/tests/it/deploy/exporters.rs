//! The objects of the exporters, on a real API server, with exactly the rights of `deploy/base`.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_kube::owned::{self, Own, Owned, Pace};
use fw_kube::{Connection, Credentials};
use fw_testkit::WorkDir;
use fw_testkit::cluster::Cluster;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::daemon::PATIENCE;
use crate::tree;

/// Half a second for five minutes, and the rest to scale.
const PACE: Pace = Pace {
    heartbeat: Duration::from_millis(500),
    gone: Duration::from_secs(3),
    pause: Duration::from_millis(100),
};

struct Firewall {
    wanted: watch::Sender<Option<Own>>,
    told: watch::Receiver<Owned>,
}

fn start(tasks: &Handle, connection: &Connection, name: &str, address: &str) -> Result<Firewall> {
    let own = Own { firewall: name.to_owned(), address: address.parse()? };
    let (wanted, receiver) = watch::channel(Some(own));
    let (sender, told) = watch::channel(Owned::default());
    tasks.spawn(owned::own(connection.client(), receiver, sender, PACE));
    Ok(Firewall { wanted, told })
}

/// What Prometheus finds, by either kind of object.
fn found(cluster: &Cluster) -> Result<[BTreeSet<String>; 2]> {
    let endpoints = cluster.get_json(&["-n", "firewall", "endpoints", "node-exporter"])?;
    let selector = "kubernetes.io/service-name=node-exporter";
    let slices = cluster.get_json(&["-n", "firewall", "endpointslices", "-l", selector])?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let subsets = list(&endpoints["subsets"]);
    let in_endpoints = subsets.iter().flat_map(|it| list(&it["addresses"])).filter_map(|it| text(&it["ip"]));
    let slices = list(&slices["items"]);
    let in_slices = slices.iter().flat_map(|it| list(&it["endpoints"])).flat_map(|it| list(&it["addresses"]));
    Ok([in_endpoints.collect(), in_slices.filter_map(|it| text(&it)).collect()])
}

fn until(cluster: &Cluster, wanted: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = wanted.iter().map(|it| (*it).to_owned()).collect();
    let end = Instant::now() + PATIENCE;
    loop {
        match found(cluster) {
            Ok(both) if both.iter().all(|it| *it == wanted) => return Ok(()),
            other => ensure!(Instant::now() < end, "{other:?} in place of {wanted:?}"),
        }
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn prometheus_finds_every_firewall_that_lives_and_users_keep_what_they_add() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = runtime.handle().clone();
    // On a thread of its own: kubectl stops this one. It ends with the process, and its tasks with their channels.
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    let _inside = tasks.enter();
    let cluster = Cluster::shared()?;
    cluster.kubectl(&["apply", "-k", &tree::root().join("deploy/base").display().to_string()])?.ok()?;
    let directory = WorkDir::new("exporters")?;
    let kubeconfig = directory.path().join("kubeconfig");
    let made = Command::new(tree::root().join("deploy/scripts/kubeconfig.sh"))
        .arg("1h")
        .env("KUBECONFIG", cluster.kubeconfig())
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::write(&kubeconfig, made.stdout)?;
    let connection = Connection::new(Credentials::Kubeconfig(kubeconfig));
    tasks.spawn(connection.clone().follow());
    let end = Instant::now() + PATIENCE;
    while connection.reloads() == 0 {
        ensure!(Instant::now() < end, "{:?}", connection.problem());
        thread::sleep(Duration::from_millis(20));
    }

    let first = start(&tasks, &connection, "fw1", "10.0.16.1")?;
    let second = start(&tasks, &connection, "fw2.example", "10.0.16.2")?;
    let third = start(&tasks, &connection, "FW 3", "2001:db8:16::3")?;
    until(&cluster, &["10.0.16.1", "10.0.16.2", "2001:db8:16::3"])?;
    for object in ["service/node-exporter", "endpoints/node-exporter", "endpointslice/node-exporter-fw1"] {
        cluster.kubectl(&["-n", "firewall", "label", object, "team=network"])?.ok()?;
    }
    cluster.kubectl(&["-n", "firewall", "delete", "service", "nftables-exporter"])?.ok()?;

    // Who stops is out after a while, who changes its address (and family) at once.
    drop(second.wanted);
    first.wanted.send_replace(Some(Own { firewall: "fw1".to_owned(), address: "2001:db8:16::1".parse()? }));
    until(&cluster, &["2001:db8:16::1", "2001:db8:16::3"])?;

    let service = cluster.get_json(&["-n", "firewall", "service", "nftables-exporter"])?;
    ensure!(service["spec"]["clusterIP"] == "None", "{service}");
    for object in ["service/node-exporter", "endpoints/node-exporter"] {
        let labels = &cluster.get_json(&["-n", "firewall", object])?["metadata"]["labels"];
        ensure!(labels["team"] == "network" && labels["app"] == "node-exporter", "{object}: {labels}");
    }
    for firewall in [&first, &third] {
        let told = firewall.told.borrow().clone();
        ensure!(told.failed == 0 && told.problems.is_empty() && told.written > 0, "{told:?}");
    }
    let slices = cluster.get_json(&["-n", "firewall", "endpointslices"])?;
    let count = slices["items"].as_array().context("a list")?.len();
    ensure!(count == 4, "{count} slices for two firewalls and two exporters: {slices}");
    Ok(())
}
