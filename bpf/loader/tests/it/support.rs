//! A folder of pins of our own for each test.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use fw_bpf::{Datapath, Options, Sizes};
use fw_bpf_common::{Allow, Cell, Step};

/// Small maps: tests run side by side.
pub(crate) const SMALL: Sizes = Sizes { ipv4: 64, ipv6: 64, prefixes: 64, sample_bytes: 65_536 };

/// A folder that goes with all its pins.
pub(crate) struct Pins(pub(crate) PathBuf);

impl Pins {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(PathBuf::from(format!("/run/fw-bpf-test-{}-{number}", std::process::id())))
    }

    pub(crate) fn options(&self, sizes: Sizes) -> Options {
        Options { pins: self.0.clone(), sizes, conntrack: true }
    }

    pub(crate) fn open(&self) -> Datapath {
        self.open_with(SMALL)
    }

    pub(crate) fn open_with(&self, sizes: Sizes) -> Datapath {
        Datapath::open(&self.options(sizes))
            .unwrap_or_else(|error| panic!("this needs root: {}", chain(&error)))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let Ok(entries) = std::fs::read_dir(&self.0) else { return };
        for entry in entries.flatten() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// An allow without end.
pub(crate) fn forever(class: u32) -> Allow {
    let mut allow = Allow::default();
    allow.steps[0] = Step { until_ns: u64::MAX, class, reserved: 0 };
    allow
}

pub(crate) fn cell(protocol: u8, first: u16, last: u16, index: u32) -> Cell {
    Cell { protocol, reserved: [0; 3], first, last, index }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
