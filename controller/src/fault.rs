//! Named points at which a test can have the process killed, to prove that a kill there does no harm.
//!
//! Only with the cargo feature `fault-injection`; without it [`point`] is nothing. `FW_FAULT=before-persist` kills at
//! the first passage, `FW_FAULT=before-persist:3` at the third. With `FW_FAULT_FILE=PATH` passages count only while that
//! file is there, so that a test can choose the edit.

/// Points that exist, in the order in which an edit passes them.
pub const POINTS: [&str; 10] = [
    "after-withdraw",
    "before-commit",
    "before-build",
    "before-send",
    "after-send-before-ack",
    "after-ack",
    "before-install",
    "before-marks",
    "before-persist",
    "after-persist",
];

/// Refuses a `FW_FAULT` that names no point: the test that set it would prove nothing.
pub fn check() -> Result<(), String> {
    let Ok(wanted) = std::env::var("FW_FAULT") else { return Ok(()) };
    let name = wanted.split(':').next().unwrap_or_default();
    if !cfg!(feature = "fault-injection") || POINTS.contains(&name) {
        return Ok(());
    }
    Err(format!("FW_FAULT={wanted} names none of {}", POINTS.join(", ")))
}

/// Kills this process, as `kill -9` would, when `FW_FAULT` names this point.
#[cfg(feature = "fault-injection")]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};

    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("FW_FAULT") else { return };
    let (wanted, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    let count: u32 = count.parse().unwrap_or(1);
    let counts = std::env::var_os("FW_FAULT_FILE").is_none_or(|file| std::path::Path::new(&file).exists());
    if wanted == name && counts && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == count {
        let raised = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        // SIGKILL cannot be refused; if it could, going on would make the test prove nothing.
        if raised.is_err() {
            std::process::abort();
        }
    }
}

/// Nothing.
#[cfg(not(feature = "fault-injection"))]
pub fn point(_name: &str) {}
