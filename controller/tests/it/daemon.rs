//! The real binary, running in the firewall of a lab.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fw_testkit::topology::Lab;
use fw_testkit::{BpfMount, Netns, Process, WorkDir};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_firewall-controller");
/// A generous deadline for anything that takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A controller's directories, and the controller while it runs.
pub(crate) struct Daemon {
    // First, for it ends before its files go.
    process: Option<Process>,
    base: WorkDir,
    /// Pins that outlive the process; unmounted when this goes.
    bpf: BpfMount,
    /// Flags of `run` that say where objects come from.
    objects: Vec<OsString>,
}

impl Daemon {
    /// Fresh directories, nothing started.
    pub(crate) fn new(label: &str) -> Result<Self> {
        let base = WorkDir::new(label)?;
        let manifests = base.path().join("manifests");
        fs::create_dir_all(&manifests)?;
        let objects = vec!["--manifests".into(), manifests.into()];
        Ok(Self { base, bpf: BpfMount::new(label)?, objects, process: None })
    }

    /// The same for a controller that asks an API server, and the name of the Firewall object that is its own.
    pub(crate) fn of_cluster(label: &str, kubeconfig: &Path, firewall: &str) -> Result<Self> {
        let mut daemon = Self::new(label)?;
        daemon.objects =
            vec!["--kubeconfig".into(), kubeconfig.into(), "--firewall-name".into(), firewall.into()];
        Ok(daemon)
    }

    /// One more flag of `run`.
    pub(crate) fn flag(&mut self, flag: impl Into<OsString>) {
        self.objects.push(flag.into());
    }

    /// The directory that the controller watches.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.base.path().join("manifests")
    }

    /// The directory that outlives it.
    pub(crate) fn state(&self) -> PathBuf {
        self.base.path().join("state")
    }

    /// A path beside these two that goes with them.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// Where its eBPF programs and maps are pinned.
    pub(crate) fn pins(&self) -> PathBuf {
        self.bpf.path().join("pins")
    }

    fn socket(&self) -> PathBuf {
        self.beside("control.sock")
    }

    /// A connection to its control socket.
    pub(crate) fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Sends a request as it is; the result.
    pub(crate) fn request(&self, request: &Value) -> Result<Value> {
        let mut stream = self.connect()?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let mut answer: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        if answer["error"].is_string() {
            bail!("{}", answer["error"]);
        }
        Ok(answer["result"].take())
    }

    /// Writes a manifest file as editors do: beside it, then renamed over it.
    pub(crate) fn write(&self, name: &str, yaml: &str) -> Result<()> {
        let beside = self.manifests().join(format!(".{name}.swp"));
        fs::write(&beside, yaml)?;
        Ok(fs::rename(beside, self.manifests().join(name))?)
    }

    /// Removes a manifest file.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.manifests().join(name))?)
    }

    /// Starts the controller in a namespace, with environment variables of the feature `fault-injection`.
    pub(crate) fn start(&mut self, ns: &Netns, variables: &[(&str, &str)]) -> Result<()> {
        let mut command = ns.command(BINARY);
        command.arg("run").args(&self.objects);
        command.arg("--state-dir").arg(self.state()).arg("--control-socket").arg(self.socket());
        command.arg("--bpf-dir").arg(self.pins());
        command.arg("--droptailer-dir").arg(self.beside("droptailer-client"));
        command.envs(variables.iter().copied());
        self.process = Some(Process::spawn(command)?);
        Ok(())
    }

    /// Starts the controller in the firewall of a lab and waits until it enforces all manifests.
    pub(crate) fn start_in(&mut self, lab: &Lab) -> Result<()> {
        self.start(&lab.firewall, &[])?;
        self.wait_until_enforcing()
    }

    /// Waits until all manifests are enforced.
    pub(crate) fn wait_until_enforcing(&self) -> Result<()> {
        self.wait_until("it enforces the objects", |status| {
            status["status"]["controller"]["ruleset"] == "objects"
        })
        .map(drop)
    }

    /// The process, for signals and output.
    pub(crate) fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the controller is not running")
    }

    /// What it has logged so far.
    pub(crate) fn lines(&self) -> Result<Vec<String>> {
        Ok(self.process.as_ref().context("the controller is not running")?.lines())
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the controller is not running")?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(PATIENCE)?;
        if !status.success() {
            bail!("the controller ended with {status}:\n{}", process.lines().join("\n"));
        }
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.take().context("the controller is not running")?.kill().map(drop)
    }

    /// A subcommand that asks the running controller.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--control-socket").arg(self.socket());
        Ok(command.output()?)
    }

    /// `status -o json`, of a firewall that enforces (exit code 0) or does not (3).
    pub(crate) fn status(&self) -> Result<Value> {
        let output = self.ask(&["status", "-o", "json"])?;
        if !matches!(output.status.code(), Some(0 | 3)) {
            bail!("status: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Findings of the status, one line each.
    pub(crate) fn findings(&self) -> Result<Vec<String>> {
        Ok(findings(&self.status()?))
    }

    /// Asks for the status until it is as wanted.
    pub(crate) fn wait_until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if let Ok(status) = &status
                && wanted(status)
            {
                return Ok(status.clone());
            }
            if Instant::now() > deadline {
                let output = self.process.as_ref().map(Process::lines).unwrap_or_default();
                bail!("not within {PATIENCE:?}: {what}\n{status:#?}\n{}", output.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Findings of a status, one line each.
pub(crate) fn findings(status: &Value) -> Vec<String> {
    let findings = status["status"]["controller"]["findings"].as_array().cloned().unwrap_or_default();
    findings.iter().filter_map(|line| line.as_str().map(str::to_owned)).collect()
}

/// How much longer `make soak` runs than `make test`.
pub(crate) fn soak_factor() -> u32 {
    if std::env::var_os("FW_SOAK").is_some() { 10 } else { 1 }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !so()? {
        if Instant::now() > deadline {
            bail!("not within {PATIENCE:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
