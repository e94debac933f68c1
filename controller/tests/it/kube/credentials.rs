//! Credentials that change on disk.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fw_testkit::cluster::{Credentials, Faults};
use fw_testkit::topology::{Lab, LabSpec};

use crate::daemon::{Daemon, eventually, soak_factor};
use crate::rig::FIREWALL;

use super::edits::open_port;
use super::field::{ACCOUNT, Field};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

/// A second firewall in front of the same cluster, with a file for its token.
struct Second {
    daemon: Daemon,
    faults: Faults,
    lab: Lab,
    token: PathBuf,
}

impl Second {
    fn new(field: &Field, token: &str) -> Result<Self> {
        let lab = Lab::new(&LabSpec::standard("k-token-file")?)?;
        let faults = Faults::start(&field.cluster, &lab.firewall, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        let path = field.directory.path().join("token");
        replace(&path, token)?;
        let kubeconfig = field.directory.path().join("kubeconfig-with-file");
        replace(
            &kubeconfig,
            &field.cluster.kubeconfig_for(Credentials::TokenFile(&path), &faults.server())?,
        )?;
        let daemon = Daemon::of_cluster("k-token-file", &kubeconfig, "second")?;
        Ok(Self { daemon, faults, lab, token: path })
    }
}

/// As agents do it: beside it, then renamed over it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, text)?;
    Ok(fs::rename(beside, path)?)
}

/// True once a rule of a policy is in the kernel.
fn has_rule(lab: &Lab, policy: &str) -> Result<bool> {
    let rules = lab.firewall.output("nft", &["-s", "list", "table", "inet", "firewall"])?;
    Ok(rules.contains(&format!("np {policy} tcp")))
}

#[test]
fn a_token_that_is_replaced_on_disk_outlives_the_first_and_garbage_leaves_it_in_use() -> Result<()> {
    let mut field = Field::new("k-token")?;
    field.cluster.apply(FIREWALL)?;
    let lifetime = Duration::from_secs(if soak_factor() > 1 { 30 } else { 8 });
    let began = Instant::now();
    let token = |lifetime| field.cluster.token_for("firewall", ACCOUNT, lifetime);
    let (first, short, next) = (token(lifetime)?, token(lifetime)?, token(LONG)?);
    let inline =
        |token: &str| field.cluster.kubeconfig_for(Credentials::Token(token), &field.faults.server());
    let next_config = inline(&next)?;
    // The same token without the proxy, to see that it is really over.
    let probe = field.directory.path().join("probe");
    fs::write(&probe, field.cluster.kubeconfig_for(Credentials::Token(&first), &field.cluster.server())?)?;
    replace(&field.kubeconfig(), &inline(&first)?)?;
    let mut second = Second::new(&field, &short)?;
    field.start()?;
    second.daemon.start(&second.lab.firewall, &[])?;
    second.daemon.wait_until_enforcing()?;
    let pids = [field.daemon.process()?.id(), second.daemon.process()?.id()];
    ensure!(began.elapsed() < lifetime, "started with tokens that are over already");

    replace(&field.kubeconfig(), &next_config)?;
    replace(&second.token, &next)?;
    std::thread::sleep(lifetime.saturating_sub(began.elapsed()));
    let refused = || {
        let said = field.cluster.kubectl_as(&probe, &["-n", "firewall", "get", "firewalls"], "")?;
        std::thread::sleep(Duration::from_millis(500));
        Ok(!said.success && said.stderr.contains("logged in"))
    };
    eventually("the first token is refused", refused)?;
    // The watches of before were let in by the old tokens; new ones are asked who they are.
    for faults in [&field.faults, &second.faults] {
        faults.clear_calls();
        faults.close_connections();
    }
    open_port(&field.cluster, "after", 7000)?;
    eventually("both enforce what came after it", || {
        Ok(has_rule(&field.lab, "after")? && has_rule(&second.lab, "after")?)
    })?;
    for faults in [&field.faults, &second.faults] {
        let refused = faults.calls().iter().filter(|call| call.code == Some(401)).count();
        ensure!(refused == 0, "{refused} requests with the old token");
    }

    fs::write(field.kubeconfig(), "no kubeconfig: [")?;
    let says = |status: &serde_json::Value| {
        crate::field::controller(status)["problems"].to_string().contains("kubeconfig")
    };
    field.daemon.wait_until("it says that the kubeconfig cannot be used", says)?;
    field.faults.close_connections();
    open_port(&field.cluster, "garbage", 7001)?;
    eventually("the credentials of before are in use", || has_rule(&field.lab, "garbage"))?;
    replace(&field.kubeconfig(), &next_config)?;
    field.daemon.wait_until("it says nothing once it is well again", |status| !says(status))?;
    assert_eq!([field.daemon.process()?.id(), second.daemon.process()?.id()], pids, "nothing was restarted");
    Ok(())
}
