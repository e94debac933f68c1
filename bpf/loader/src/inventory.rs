//! Counters and sizes.

use std::fs;
use std::os::fd::OwnedFd;

use fw_bpf_common::{Reason, counter};

use crate::error::{Context as _, Error};
use crate::sys;

/// Packets dropped since the maps were made, over all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// By XDP, in the order of [`Reason::ALL`].
    pub xdp: [u64; Reason::ALL.len()],
    /// By TCX, in the order of [`Reason::ALL`].
    pub tcx: [u64; Reason::ALL.len()],
    /// Of these, those of which no sample was sent.
    pub unsampled: u64,
    /// Of those, the samples that found the ring full; the others were above the rate.
    pub ring_full: u64,
}

impl Drops {
    /// All dropped packets.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.xdp.iter().chain(&self.tcx).sum()
    }
}

/// Entries and memory of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUse {
    /// Its name in the object.
    pub name: &'static str,
    /// Entries in use.
    pub used: u64,
    /// Entries it may have.
    pub bound: u64,
    /// Bytes of kernel memory it takes now.
    pub memory: u64,
}

/// Sums the per-CPU counters.
pub(crate) fn drops(map: &OwnedFd) -> Result<Drops, Error> {
    let cpus = possible_cpus()?;
    let sum = |slot: u32| -> Result<u64, Error> {
        let mut values = vec![0_u64; cpus];
        sys::lookup(map, &slot, &mut values).context(|| "reading the map DROPS".to_owned())?;
        Ok(values.iter().fold(0, |sum, value| sum.wrapping_add(*value)))
    };
    // A packet counts in its reason first, then here: read the other way round these are never more than those.
    let ring_full = sum(counter::RING_FULL)?;
    let mut drops = Drops { ring_full, unsampled: sum(counter::UNSAMPLED)?, ..Drops::default() };
    for ((reason, xdp), tcx) in Reason::ALL.into_iter().zip(&mut drops.xdp).zip(&mut drops.tcx) {
        *xdp = sum(counter::XDP + reason as u32)?;
        *tcx = sum(counter::TCX + reason as u32)?;
    }
    Ok(drops)
}

/// CPUs that per-CPU maps have room for: `0-3`, `0,2-5`.
fn possible_cpus() -> Result<usize, Error> {
    let path = "/sys/devices/system/cpu/possible";
    let text = fs::read_to_string(path).context(|| format!("reading {path}"))?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|number| number.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| Error::call(path, std::io::Error::other("not a list of CPUs")))
}
