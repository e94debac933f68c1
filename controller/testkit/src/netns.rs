//! Named network namespaces, as `ip netns` knows them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use crate::cleanup::{NETNS_DIR, PREFIX, prepare_process, registry, remove_name};

/// A network namespace with a name under `/run/netns`; both go with this value.
///
/// Names are `fwt-PID-NUMBER-LABEL`, so any number of processes and threads can have theirs. The first one
/// made in a process also removes those of processes that are gone, and from then on SIGINT and SIGTERM
/// remove all of this process before it dies (unless the process handles these signals itself).
///
/// With `FW_KEEP_NETNS` in the environment, the namespaces of a thread that panics stay, and how to get into them
/// is printed; the next process removes them.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: Arc<File>,
}

impl Netns {
    /// Makes a namespace. `label` (letters, digits, `-`, `_`) is for people who list namespaces.
    pub fn new(label: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        ensure!(
            label.len() <= 64 && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)),
            "label {label:?} of a namespace may have at most 64 letters, digits, '-' and '_'"
        );
        prepare_process()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}-{label}", std::process::id());
        let mut registry = registry();
        registry.namespaces.insert(name.clone());
        let made = run_ip(&["netns", "add", &name]).and_then(|()| {
            File::open(Path::new(NETNS_DIR).join(&name))
                .with_context(|| format!("cannot open namespace {name}"))
        });
        match made {
            Ok(file) => Ok(Self { name, file: Arc::new(file) }),
            Err(error) => {
                let _ = remove_name(&name);
                registry.namespaces.remove(&name);
                Err(error.context("cannot make a network namespace; this needs root and iproute2"))
            }
        }
    }

    /// Name for `ip netns`, `ip -n`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// File of the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// The namespace as a descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How a person gets into it while it exists.
    pub fn hint(&self) -> String {
        format!("ip netns exec {} bash   (or: nsenter --net={} bash)", self.name, self.path().display())
    }

    /// Runs `work` in this namespace on a thread made for it, so that no other thread ever changes
    /// namespace. Panics of `work` go on in the caller.
    ///
    /// Sockets made inside stay in the namespace and can be returned. `/proc/sys/net` is the namespace's,
    /// `/proc/net` is not (it follows the process; use `/proc/thread-self/net`), nor is `/sys`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name(self.name.clone()).spawn_scoped(scope, || {
                self.enter()?;
                Ok(work())
            })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// As [`Netns::run`], but goes on in the background.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let file = Arc::clone(&self.file);
        let name = self.name.clone();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            setns(&*file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter namespace {name}"))?;
            Ok(work())
        })?;
        Ok(thread)
    }

    fn enter(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter namespace {}", self.name))
    }

    /// A command whose child enters this namespace before it executes. `/sys` stays the host's; a program
    /// that reads `/sys/class/net` needs [`Netns::exec`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        let enter = move || {
            // SAFETY: setns is async-signal-safe in the sense needed between fork and exec: a bare system
            // call on a descriptor that the closure keeps open.
            let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: the closure only makes one system call; it neither allocates nor takes locks.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// A command through `ip netns exec`, which also gives the child this namespace's `/sys` and
    /// `/etc/netns/NAME`. The child's pid is that of the program.
    pub fn exec(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a program to its end and gives its standard output. An error has the program's messages and
    /// says how to look into the namespace.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.output_with_input(program, arguments, "")
    }

    /// As [`Netns::output`], with text for the program's standard input.
    pub fn output_with_input(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        run_to_end(self.command(program).args(arguments), input)
            .with_context(|| format!("inspect: {}", self.hint()))
    }

    /// Runs one batch of `ip` commands, one per line.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.output_with_input("ip", &["-batch", "-"], batch)
            .map(drop)
            .with_context(|| format!("ip -batch:\n{batch}"))
    }

    /// Sets sysctls of this namespace, named as in `net.ipv4.ip_forward`; only below `net.`, for nothing
    /// else belongs to a network namespace.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                fs::write(sysctl_path(key)?, value)
                    .with_context(|| format!("cannot set {key} to {value}"))?;
            }
            Ok(())
        })?
    }

    /// Reads a sysctl of this namespace.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = sysctl_path(key)?;
        let text = self.run(|| fs::read_to_string(&path))?.with_context(|| format!("cannot read {key}"))?;
        Ok(text.trim_end().to_owned())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let mut registry = registry();
        if std::thread::panicking() && std::env::var_os("FW_KEEP_NETNS").is_some() {
            print_to_stderr(&format!("kept: {}\n", self.hint()));
        } else {
            let _ = remove_name(&self.name);
        }
        registry.namespaces.remove(&self.name);
    }
}

/// Not `eprint!`, which libtest captures and the panic of a drop would lose.
fn print_to_stderr(text: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
}

fn sysctl_path(key: &str) -> Result<PathBuf> {
    ensure!(key.starts_with("net.") && !key.contains(".."), "{key} is no sysctl of a network namespace");
    Ok(Path::new("/proc/sys").join(key.replace('.', "/")))
}

fn run_ip(arguments: &[&str]) -> Result<()> {
    run_to_end(Command::new("ip").args(arguments), "").map(drop)
}

/// Runs a command to its end: standard output, or an error that has what it said.
pub(crate) fn run_to_end(command: &mut Command, input: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let writer = child.stdin.take();
    // Written from a thread: a program that fills its output before it has read its input would hang both.
    let output = std::thread::scope(|scope| {
        if let Some(mut writer) = writer {
            scope.spawn(move || {
                // A program that gives up early closes its input; its exit status says why.
                let _ = std::io::Write::write_all(&mut writer, input.as_bytes());
            });
        }
        child.wait_with_output()
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = if said.trim().is_empty() { String::from_utf8_lossy(&output.stdout) } else { said };
        bail!("{program}: {}: {}", output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} did not print UTF-8"))
}
