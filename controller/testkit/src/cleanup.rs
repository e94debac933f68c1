//! What has to go when the process ends, whichever way it ends: namespaces, children, directories and mounts.
//!
//! Normal end and panic: guards. SIGINT and SIGTERM: a thread of ours. `kill -9`: the next process that uses
//! this crate finds the owner's pid in the names of the namespaces and directories and clears up after it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::unistd::Pid;

/// Where `ip netns` keeps its names.
pub(crate) const NETNS_DIR: &str = "/run/netns";
/// Where our directories and mounts are.
pub(crate) const RUN_DIR: &str = "/run";
/// Our names are `fwt-PID-NUMBER-LABEL`.
pub(crate) const PREFIX: &str = "fwt";
/// Environment variable that marks our children with the pid of their owner.
pub(crate) const OWNER_VARIABLE: &str = "FW_TESTKIT_OWNER";

/// What is alive now.
pub(crate) struct Registry {
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) children: BTreeSet<u32>,
    pub(crate) directories: BTreeSet<PathBuf>,
    hooks: Vec<Box<dyn FnOnce() + Send>>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    namespaces: BTreeSet::new(),
    children: BTreeSet::new(),
    directories: BTreeSet::new(),
    hooks: Vec::new(),
});

pub(crate) fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` when SIGINT or SIGTERM ends this process, before namespaces and children go. For things this
/// crate does not know, such as temporary directories.
pub fn on_signal(work: impl FnOnce() + Send + 'static) -> Result<()> {
    prepare_process()?;
    registry().hooks.push(Box::new(work));
    Ok(())
}

/// Once per process: clears up after dead owners and catches SIGINT and SIGTERM.
pub(crate) fn prepare_process() -> Result<()> {
    static ONCE: Once = Once::new();
    static FAILURE: Mutex<Option<String>> = Mutex::new(None);
    ONCE.call_once(|| {
        let outcome = remove_leftovers().and_then(|()| catch_signals());
        *FAILURE.lock().unwrap_or_else(PoisonError::into_inner) = outcome.err().map(|e| format!("{e:#}"));
    });
    match &*FAILURE.lock().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(()),
        Some(text) => Err(anyhow::anyhow!("{text}")),
    }
}

/// Takes a name away. The namespace itself goes with its last process, socket or open file.
pub(crate) fn remove_name(name: &str) -> io::Result<()> {
    let path = Path::new(NETNS_DIR).join(name);
    match nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH) {
        // EINVAL: no mount point, the leftover of an interrupted `ip netns add`.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_leftovers() -> Result<()> {
    let mut dead_owners = BTreeSet::new();
    for (owner, name) in left_in(NETNS_DIR)? {
        dead_owners.insert(owner);
        // Another process may clear up the same name at the same time; who comes second finds nothing.
        let _ = remove_name(&name);
    }
    let directories = left_in(RUN_DIR)?;
    dead_owners.extend(directories.iter().map(|(owner, _)| *owner));
    if !dead_owners.is_empty() {
        kill_orphans(&dead_owners);
    }
    // After the programs that use them.
    for (_, name) in directories {
        crate::workdir::remove(&Path::new(RUN_DIR).join(name));
    }
    Ok(())
}

/// Our names in a directory whose owners are gone, each with its owner.
fn left_in(directory: &str) -> Result<Vec<(u32, String)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {directory}")),
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names
        .filter_map(|name| owner_of(&name).map(|owner| (owner, name)))
        .filter(|(owner, _)| !process_lives(*owner))
        .collect())
}

fn owner_of(name: &str) -> Option<u32> {
    let mut parts = name.split('-');
    (parts.next() == Some(PREFIX)).then(|| parts.next()?.parse().ok()).flatten()
}

fn process_lives(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

/// Ends the children of owners that are gone; they are known by the mark in their environment, so that
/// somebody's debugging shell in a namespace of ours survives.
fn kill_orphans(owners: &BTreeSet<u32>) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    let mut unsure: Vec<u32> =
        processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // A process in the middle of exec shows an empty environment: ask again.
    for _ in 0..5 {
        unsure.retain(|pid| match owner_by_environment(*pid) {
            Mark::Owner(owner) if owners.contains(&owner) => {
                kill(*pid);
                false
            }
            Mark::Owner(_) | Mark::None => false,
            Mark::Unknown => true,
        });
        if unsure.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

enum Mark {
    Owner(u32),
    None,
    Unknown,
}

fn owner_by_environment(pid: u32) -> Mark {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return Mark::None };
    if environment.is_empty() {
        // Kernel threads and zombies have no program.
        return if fs::read_link(format!("/proc/{pid}/exe")).is_ok() { Mark::Unknown } else { Mark::None };
    }
    let prefix = format!("{OWNER_VARIABLE}=");
    let owner = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(prefix.as_bytes()));
    match owner.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()) {
        Some(owner) => Mark::Owner(owner),
        None => Mark::None,
    }
}

pub(crate) fn kill(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Write end of the pipe between the handler and the thread that clears up.
static PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn forward_signal(signal: libc::c_int) {
    let byte = u8::try_from(signal).unwrap_or(0);
    // SAFETY: write(2) is async-signal-safe and reads one byte of a live local.
    unsafe { libc::write(PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

/// A handler rather than a blocked mask: handlers end at exec, a mask would be inherited by every child.
fn catch_signals() -> Result<()> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe for signals")?;
    PIPE.store(std::os::fd::IntoRawFd::into_raw_fd(writer), Ordering::Relaxed);
    std::thread::Builder::new().name("testkit-signals".to_owned()).spawn(move || {
        let mut byte = [0_u8];
        while let Ok(1) | Err(nix::errno::Errno::EINTR) = nix::unistd::read(&reader, &mut byte) {
            if let Ok(signal) = Signal::try_from(i32::from(byte[0])) {
                clear_up_and_die(signal);
            }
        }
    })?;
    let forward = SigAction::new(SigHandler::Handler(forward_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only calls write(2).
        let before = unsafe { sigaction(signal, &forward) }.context("sigaction")?;
        if !matches!(before.handler(), SigHandler::SigDfl) {
            // Ignored (nohup) or somebody else's: leave it as it was.
            // SAFETY: restores what the process had.
            unsafe { sigaction(signal, &before) }.context("sigaction")?;
        }
    }
    Ok(())
}

fn clear_up_and_die(signal: Signal) {
    // Held until the end: nobody makes a namespace or a child any more.
    let mut registry = registry();
    for hook in std::mem::take(&mut registry.hooks) {
        hook();
    }
    for pid in &registry.children {
        kill(*pid);
    }
    for name in &registry.namespaces {
        let _ = remove_name(name);
    }
    for path in &registry.directories {
        crate::workdir::remove(path);
    }
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: sets the default action.
    let _ = unsafe { sigaction(signal, &default) };
    // To the process, as the caller of a program that was interrupted wants to see.
    let _ = nix::sys::signal::kill(Pid::this(), signal);
    let _ = raise(signal);
}
