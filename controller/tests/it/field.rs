//! A lab whose firewall runs the real binary: manifests into its directory, packets through its rules.

use anyhow::{Result, bail};
use fw_testkit::nft;
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::Crafted;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::rig::{self, From};

/// A lab and the controller in its firewall.
pub(crate) struct Field {
    pub(crate) lab: Lab,
    pub(crate) daemon: Daemon,
}

impl Field {
    /// The standard lab; nothing runs, no manifest is written.
    pub(crate) fn bare(label: &str) -> Result<Self> {
        Ok(Self { lab: Lab::standard(label)?, daemon: Daemon::new(label)? })
    }

    /// The standard lab with a controller that enforces one file, `all.yaml`.
    pub(crate) fn new(label: &str, yaml: &str) -> Result<Self> {
        let mut field = Self::bare(label)?;
        field.daemon.write("all.yaml", yaml)?;
        field.start()?;
        Ok(field)
    }

    /// Starts the controller and waits until it enforces all manifests.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.daemon.start_in(&self.lab)
    }

    /// Starts the controller with more variables in its environment and waits for nothing.
    pub(crate) fn launch(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        self.daemon.start(&self.lab.firewall, variables)
    }

    /// Starts the controller and waits until a fault point has killed it.
    pub(crate) fn start_and_be_killed(&mut self, fault: &str) -> Result<()> {
        use std::os::unix::process::ExitStatusExt as _;
        self.launch(&[("FW_FAULT", fault)])?;
        let status = self.daemon.process()?.wait(crate::daemon::PATIENCE)?;
        if status.signal() != Some(9) {
            let lines = self.daemon.lines()?.join("\n");
            bail!("{fault} did not kill it (is feature fault-injection on?): {status}\n{lines}");
        }
        Ok(())
    }

    /// Sends packets; of each whether it came out.
    pub(crate) fn fire(&self, shots: &[(From, Crafted)]) -> Result<Vec<bool>> {
        rig::fire(&self.lab, shots)
    }

    /// What `nft` lists, without counts and without who owns the table.
    pub(crate) fn listing(&self) -> Result<String> {
        let text = self.lab.firewall.output("nft", &["-s", "list", "ruleset"])?;
        let is_ownership = |line: &&str| line.starts_with("\tflags ");
        let lines = text.lines().filter(|line| !is_ownership(line));
        Ok(lines.map(|line| format!("{}\n", line.split(" # progname").next().unwrap_or_default())).collect())
    }

    /// Fails with the first lines that differ unless the rules are these.
    pub(crate) fn expect_rules(&self, expected: &str, when: &str) -> Result<()> {
        let rules = self.listing()?;
        let mut pairs = rules.lines().zip(expected.lines());
        match pairs.find(|(is, was)| is != was) {
            Some((is, was)) => bail!("{when}, the rules are not as expected: {is:?} instead of {was:?}"),
            None if rules.len() != expected.len() => bail!("{when}, there are more or fewer rules:\n{rules}"),
            None => Ok(()),
        }
    }

    /// What `nft` says the counters are.
    pub(crate) fn counters(&self) -> Result<nft::Counters> {
        nft::counters(&self.lab.firewall)
    }

    /// Others flush the ruleset: as a reboot leaves it when no controller holds the table.
    pub(crate) fn flush_ruleset(&self) -> Result<()> {
        nft::load(&self.lab.firewall, "flush ruleset")?;
        match self.listing()?.as_str() {
            "" => Ok(()),
            left => bail!("flush ruleset left\n{left}"),
        }
    }

    /// Waits until the rules come from these objects or these bases: `objects`, `snapshot`, `base` …
    pub(crate) fn wait_for_ruleset(&self, basis: &str) -> Result<Value> {
        let what = format!("its ruleset is from {basis}");
        self.daemon.wait_until(&what, |status| controller(status)["ruleset"] == basis)
    }
}

/// A policy that lets the cluster reach 1.2.3.0/24 at one port.
pub(crate) fn reach(name: &str, port: u16) -> String {
    rig::policy(name, &format!("{{egress: [{{to: [{{cidr: 1.2.3.0/24}}], ports: [{{port: {port}}}]}}]}}"))
}

/// The part of a status that only our controller has.
pub(crate) fn controller(status: &Value) -> &Value {
    &status["status"]["controller"]
}

/// The headline of a status.
pub(crate) fn headline(status: &Value) -> &str {
    status["status"]["message"].as_str().unwrap_or_default()
}

/// Published packets of the rules with a comment.
pub(crate) fn published(status: &Value, action: &str, comment: &str) -> Option<u64> {
    status["status"]["stats"]["rules"][action][comment]["counter"]["packets"].as_u64()
}
