//! A lab whose firewall asks a real API server, over a line that can be made to fail.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fw_testkit::WorkDir;
use fw_testkit::cluster::{Cluster, Credentials, Faults, Lease};
use fw_testkit::topology::{Lab, LabSpec};
use serde_json::Value;

use crate::daemon::{Daemon, eventually};
use crate::rig::FIREWALL;

/// What the firewall may do in a cluster, as `kubectl apply -k` brings it.
pub(crate) const DEPLOYED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/base");
/// The service account of the deployment.
pub(crate) const ACCOUNT: &str = "firewall-controller";
/// Longer than any test.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// One firewall in front of the shared cluster.
pub(crate) struct Field {
    pub(crate) daemon: Daemon,
    pub(crate) faults: Faults,
    pub(crate) lab: Lab,
    pub(crate) directory: WorkDir,
    pub(crate) cluster: Lease,
}

/// A firewall machine and the line from it to the API server; the controller on it does not run yet.
pub(crate) struct Machine {
    pub(crate) daemon: Daemon,
    pub(crate) faults: Faults,
    pub(crate) lab: Lab,
    pub(crate) directory: WorkDir,
}

impl Machine {
    /// `firewall` is the name of its Firewall object.
    pub(crate) fn new(cluster: &Cluster, label: &str, firewall: &str) -> Result<Self> {
        let lab = Lab::new(&LabSpec::standard(label)?)?;
        let faults = Faults::start(cluster, &lab.firewall, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        let directory = WorkDir::new(label)?;
        let token = cluster.token_for("firewall", ACCOUNT, TOKEN_LIFETIME)?;
        let kubeconfig = directory.path().join("kubeconfig");
        fs::write(&kubeconfig, cluster.kubeconfig_for(Credentials::Token(&token), &faults.server())?)?;
        let daemon = Daemon::of_cluster(label, &kubeconfig, firewall)?;
        Ok(Self { daemon, faults, lab, directory })
    }
}

impl Field {
    /// The cluster has our definitions and roles and no object; the firewall is called `firewall` and does not run yet.
    pub(crate) fn new(label: &str) -> Result<Self> {
        let cluster = Cluster::shared()?;
        cluster.kubectl(&["apply", "-k", DEPLOYED])?.ok()?;
        let Machine { daemon, faults, lab, directory } = Machine::new(&cluster, label, "firewall")?;
        Ok(Self { daemon, faults, lab, directory, cluster })
    }

    /// As [`Field::new`], with the standard Firewall applied and the controller running and enforcing it.
    pub(crate) fn running(label: &str) -> Result<Self> {
        let mut field = Self::new(label)?;
        field.cluster.apply(FIREWALL)?;
        field.start()?;
        Ok(field)
    }

    /// Starts the controller and waits until it enforces what the cluster says.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.daemon.start(&self.lab.firewall, &[])?;
        self.daemon.wait_until_enforcing()
    }

    /// An object of ours; without kubectl, for loops.
    pub(crate) fn object(&self, plural: &str, name: &str) -> Result<Value> {
        let path = format!("/apis/metal-stack.io/v1/namespaces/firewall/{plural}/{name}");
        self.cluster.request("GET", &path, "application/json", "")?.ok()
    }

    /// How many policies say that they are deployed.
    pub(crate) fn deployed(&self) -> Result<usize> {
        let path = "/apis/metal-stack.io/v1/namespaces/firewall/clusterwidenetworkpolicies";
        let all = self.cluster.request("GET", path, "application/json", "")?.ok()?;
        let states = all["items"].as_array().into_iter().flatten().map(|object| &object["status"]["state"]);
        Ok(states.filter(|state| **state == "deployed").count())
    }

    /// Waits until an object is as wanted.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        (plural, name): (&str, &str),
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let done = eventually(what, || {
            last = self.object(plural, name)?;
            Ok(wanted(&last))
        });
        done.with_context(|| format!("its status is {:#}\n{}", last["status"], self.log()))?;
        Ok(last)
    }

    /// Where the controller's credentials are.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// Waits until the status of a policy says that the spec of now is in this state.
    pub(crate) fn wait_for_state(&self, policy: &str, state: &str) -> Result<Value> {
        let what = format!("policy {policy} is {state}");
        self.wait_for(&what, ("clusterwidenetworkpolicies", policy), |object| {
            let current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
            current && object["status"]["state"] == state
        })
    }

    /// What the controller has logged, for failures.
    pub(crate) fn log(&self) -> String {
        self.daemon.lines().unwrap_or_default().join("\n")
    }
}
