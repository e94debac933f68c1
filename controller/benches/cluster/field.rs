//! A lab whose firewall runs the real binary against a real API server.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::cluster::{Cluster, Credentials, Faults, Lease, Mode};
use fw_testkit::topology::{Lab, LabSpec};
use fw_testkit::{BpfMount, Process, WorkDir};
use nix::sys::signal::Signal;
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_firewall-controller");
const DEPLOYED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/base");
const PATIENCE: Duration = Duration::from_secs(120);
const POLICIES: &str = "/apis/metal-stack.io/v1/namespaces/firewall/clusterwidenetworkpolicies";

const FIREWALL: &str = "
apiVersion: metal-stack.io/v1
kind: Firewall
metadata: {name: firewall, namespace: firewall}
spec:
  internalprefixes: [10.0.0.0/8]
  firewallNetworks:
  - {networkid: cluster, networktype: privateprimaryunshared, vrf: 104009, prefixes: [10.0.16.0/22, '2001:db8:10::/48']}
  - {networkid: internet, networktype: external, vrf: 179, prefixes: [203.0.113.0/24, '2001:db8:179::/64']}
";

/// Fields go in this order.
pub(crate) struct Field {
    process: Option<Process>,
    /// The way out of the lab's namespace to the API server: bytes go through, nothing else happens.
    faults: Faults,
    bpf: BpfMount,
    directory: WorkDir,
    pub(crate) lab: Lab,
    pub(crate) cluster: Lease,
}

impl Field {
    /// The controller does not run yet.
    pub(crate) fn new() -> Result<Self> {
        let cluster = Cluster::shared()?;
        cluster.kubectl(&["apply", "-k", DEPLOYED])?.ok()?;
        cluster.apply(FIREWALL)?;
        let lab = Lab::new(&LabSpec::standard("bench-cluster")?)?;
        let faults = Faults::start(&cluster, &lab.firewall, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        faults.set_mode(Mode::Passthrough)?;
        let directory = WorkDir::new("bench-cluster")?;
        let token = cluster.token_for("firewall", "firewall-controller", Duration::from_secs(7200))?;
        let kubeconfig = cluster.kubeconfig_for(Credentials::Token(&token), &faults.server())?;
        fs::write(directory.path().join("kubeconfig"), kubeconfig)?;
        let bpf = BpfMount::new("bench-cluster")?;
        Ok(Self { process: None, faults, bpf, directory, lab, cluster })
    }

    /// Starts the controller as on a box that was just installed; how long it takes until it enforces the cluster.
    pub(crate) fn start(&mut self) -> Result<Duration> {
        let state = self.directory.path().join("state");
        fs::remove_dir_all(&state).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let mut command = self.lab.firewall.command(BINARY);
        command.args(["run", "--firewall-name", "firewall", "--kubeconfig"]);
        command.arg(self.directory.path().join("kubeconfig"));
        command.arg("--state-dir").arg(state);
        command.arg("--control-socket").arg(self.directory.path().join("control"));
        command.arg("--bpf-dir").arg(self.bpf.path().join("pins"));
        let began = Instant::now();
        let process = Process::spawn(command)?;
        process.wait_for_line(" policies, ", PATIENCE).with_context(|| self.faults.server())?;
        self.process = Some(process);
        Ok(began.elapsed())
    }

    /// Ends it; the rules stay.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the controller does not run")?;
        process.signal(Signal::SIGTERM)?;
        ensure!(process.wait(PATIENCE)?.success(), "the controller failed:\n{}", process.lines().join("\n"));
        Ok(())
    }

    fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the controller does not run")
    }

    /// Resident memory in MB: now, and the most there ever was.
    pub(crate) fn resident(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process()?.id()))?;
        let figure = |key: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
            let kilobytes: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
            Ok(kilobytes / 1024.0)
        };
        Ok((figure("VmRSS")?, figure("VmHWM")?))
    }

    /// Transactions since the controller's start.
    pub(crate) fn transactions(&self) -> Result<u64> {
        let mut command = Command::new(BINARY);
        command.args(["status", "-o", "json", "--control-socket"]).arg(self.directory.path().join("control"));
        let status: Value = serde_json::from_slice(&command.output()?.stdout).context("status is no JSON")?;
        status["status"]["controller"]["transactions"]["commits"].as_u64().context("no transactions")
    }

    /// How many policies say that they are deployed.
    pub(crate) fn deployed(&self) -> Result<usize> {
        let all = self.cluster.request("GET", POLICIES, "application/json", "")?.ok()?;
        let items = all["items"].as_array().into_iter().flatten();
        Ok(items.filter(|object| object["status"]["state"] == "deployed").count())
    }
}
