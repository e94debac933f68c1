//! Named points at which a test can have the process killed, to prove that a kill there does no harm.
//!
//! Only with the cargo feature `fault-injection`; without it [`point`] is nothing. `FW_FAULT=before-persist` kills at
//! the first passage, `FW_FAULT=before-persist:3` at the third.

/// Points that exist. Those of the kernel's transaction are raised by the caller of the kernel.
pub const POINTS: [&str; 5] =
    ["before-commit", "before-send", "after-send-before-ack", "before-persist", "after-persist"];

/// Kills this process, as `kill -9` would, when `FW_FAULT` names this point.
#[cfg(feature = "fault-injection")]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};

    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("FW_FAULT") else { return };
    let (wanted, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    let count: u32 = count.parse().unwrap_or(1);
    if wanted == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == count {
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
