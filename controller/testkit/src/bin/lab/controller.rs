//! The real binary, at work in the firewall of the lab.

use std::cell::Cell;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::{BpfMount, Netns, Process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PROGRAM: &str = "firewall-controller";
/// Directories are called `fw-lab-PID-LABEL`.
const DIRECTORY: &str = "fw-lab-";
/// A generous deadline for what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The controller's pid while it runs, for the end by signal.
static RUNNING: AtomicI32 = AtomicI32::new(0);

/// The controller, its manifests and its state.
pub(crate) struct Controller {
    program: PathBuf,
    directory: PathBuf,
    /// Pins of eBPF programs and maps, which outlive the process.
    bpf: BpfMount,
    process: Option<Process>,
    /// What processes before this one have logged.
    logged: Vec<String>,
    early_drops: Cell<u64>,
}

impl Controller {
    /// Copies manifests but those left out; starts nothing.
    pub(crate) fn prepare(label: &str, examples: &Path, left_out: &[&str]) -> Result<Self> {
        let program = program()?;
        remove_leftovers();
        let directory = std::env::temp_dir().join(format!("{DIRECTORY}{}-{label}", std::process::id()));
        let of_signal = directory.clone();
        fw_testkit::on_signal(move || end_by_signal(&of_signal))?;
        let bpf = BpfMount::new(&format!("{label}-bpf"))?;
        let (logged, early_drops) = (Vec::new(), Cell::default());
        let controller = Self { program, directory, bpf, process: None, logged, early_drops };
        fs::create_dir_all(controller.manifests())?;
        let entries = fs::read_dir(examples).with_context(|| format!("no {}", examples.display()))?;
        for entry in entries {
            let entry = entry?;
            if !left_out.iter().any(|name| entry.file_name() == *name) {
                fs::copy(entry.path(), controller.manifests().join(entry.file_name()))?;
            }
        }
        Ok(controller)
    }

    /// The directory it watches.
    fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// Starts it and waits until it enforces the manifests; the time that took.
    pub(crate) fn start(&mut self, firewall: &Netns) -> Result<Duration> {
        let mut command = firewall.command(&self.program);
        command.arg("run").arg("--manifests").arg(self.manifests());
        command.arg("--state-dir").arg(self.directory.join("state"));
        command.arg("--control-socket").arg(self.socket());
        command.arg("--bpf-dir").arg(self.bpf.path().join("pins"));
        // Ctrl-C on the terminal is for the lab, which then ends the controller.
        command.process_group(0);
        let begin = Instant::now();
        let process = Process::spawn(command)?;
        RUNNING.store(i32::try_from(process.id())?, Ordering::Relaxed);
        self.process = Some(process);
        self.wait_until("it enforces the manifests", |status| {
            status["status"]["controller"]["ruleset"] == "objects"
        })?;
        Ok(begin.elapsed())
    }

    /// Ends it as an operator would. It leaves its rules in place.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        RUNNING.store(0, Ordering::Relaxed);
        let status = process.terminate(PATIENCE)?;
        ensure!(status.success(), "{PROGRAM} ended with {status}:\n{}", process.lines().join("\n"));
        Ok(())
    }

    /// SIGKILL: it can do nothing about it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        // Asked of it one last time.
        self.early_drops()?;
        let mut process = self.process.take().context("the controller does not run")?;
        RUNNING.store(0, Ordering::Relaxed);
        process.kill()?;
        self.logged.extend(process.lines());
        Ok(())
    }

    /// False after [`Controller::kill`].
    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> Vec<String> {
        let lines = self.process.as_ref().map(Process::lines).unwrap_or_default();
        self.logged.iter().cloned().chain(lines).collect()
    }

    /// Packets that its programs dropped before nftables; while it does not run, as many as there were last.
    pub(crate) fn early_drops(&self) -> Result<u64> {
        if self.process.is_some() {
            let status = self.status()?;
            let total = status["status"]["controller"]["names"]["earlyDrops"]["total"].as_u64();
            // None before the first policy with names.
            self.early_drops.set(total.unwrap_or_default());
        }
        Ok(self.early_drops.get())
    }

    /// Text of a manifest file.
    pub(crate) fn manifest(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(self.manifests().join(name))?)
    }

    /// Writes a manifest file as editors do: beside it, then renamed over it.
    pub(crate) fn edit(&self, name: &str, text: &str) -> Result<()> {
        let beside = self.manifests().join(format!(".{name}.swp"));
        fs::write(&beside, text)?;
        Ok(fs::rename(beside, self.manifests().join(name))?)
    }

    /// Removes a manifest file.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.manifests().join(name))?)
    }

    /// Standard output of a subcommand that asks the running controller.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(arguments)
            .arg("--control-socket")
            .arg(self.socket())
            .output()
            .with_context(|| format!("cannot start {PROGRAM}"))?;
        // 3 = "no": dropped, or not enforcing.
        match output.status.code() {
            Some(0 | 3) => Ok(String::from_utf8(output.stdout)?),
            _ => bail!("{PROGRAM} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// `status -o json`.
    pub(crate) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask(&["status", "-o", "json"])?)?)
    }

    /// `explain` of the running controller.
    pub(crate) fn explain(&self, packet: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask(&["explain", "--json", "--packet", packet])?)?)
    }

    /// Lines of the status that say what is wrong with the manifests.
    pub(crate) fn findings(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        let findings = status["status"]["controller"]["findings"].as_array();
        Ok(findings.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// A figure about the controller's transactions, e.g. `commits`.
    pub(crate) fn transactions(&self, key: &str) -> Result<u64> {
        let status = self.status()?;
        let figure = &status["status"]["controller"]["transactions"][key];
        figure.as_u64().with_context(|| format!("the status has no figure transactions.{key}"))
    }

    /// Does something to the manifests and waits until a transaction has brought it into the kernel; the time
    /// from the one to the other.
    pub(crate) fn after_change(&self, change: impl FnOnce() -> Result<()>) -> Result<Duration> {
        let commits = |status: &Value| status["status"]["controller"]["transactions"]["commits"].as_u64();
        let before = commits(&self.status()?);
        let begin = Instant::now();
        change()?;
        self.wait_until("a transaction with the change", |status| commits(status) > before)?;
        Ok(begin.elapsed())
    }

    /// Asks for the status until it is as wanted.
    pub(crate) fn wait_until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if status.as_ref().is_ok_and(&wanted) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not within {PATIENCE:?}: {what}; last status: {status:#?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        RUNNING.store(0, Ordering::Relaxed);
        self.process = None;
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Beside the lab's own executable, where cargo puts both.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where am I?")?;
    let program = own.with_file_name(PROGRAM);
    ensure!(
        program.is_file(),
        "{} is not there; `make demo` builds it, or: cargo build -p fw-controller --bin {PROGRAM}",
        program.display()
    );
    Ok(program)
}

/// First the controller, which would write its state when told to end, then its directory.
fn end_by_signal(directory: &Path) {
    let pid = RUNNING.load(Ordering::Relaxed);
    if pid != 0 {
        // Not reaped before this returns (the caller holds the lock that reaping takes), so the pid is still its.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let deadline = Instant::now() + Duration::from_secs(2);
        while !has_ended(pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let _ = fs::remove_dir_all(directory);
}

/// Gone, or a zombie: the state follows the name, which is in brackets and may have any character in it.
fn has_ended(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Directories of labs that were killed.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(DIRECTORY)?.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
