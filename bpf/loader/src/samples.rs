//! Samples of dropped packets.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use aya::maps::{MapData, RingBuf};
use fw_bpf_common::Sample;

use crate::error::{Context as _, Error};
use crate::inventory::{self, Drops};
use crate::sys;

/// Reads the ring of samples; one reader at a time. The descriptor is readable when samples are there.
pub struct Samples {
    ring: RingBuf<MapData>,
    drops: OwnedFd,
}

impl std::fmt::Debug for Samples {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Samples").finish_non_exhaustive()
    }
}

impl Samples {
    pub(crate) fn open(maps: &Path) -> Result<Self, Error> {
        let failed = |error: aya::maps::MapError| Error::Load(Box::new(error));
        let data = MapData::from_pin(maps.join("SAMPLES")).map_err(failed)?;
        let ring = RingBuf::try_from(aya::maps::Map::RingBuf(data)).map_err(failed)?;
        let drops = sys::get(&maps.join("DROPS")).context(|| "opening the map DROPS".to_owned())?;
        Ok(Self { ring, drops })
    }

    /// Dropped packets, with those of which no sample is here.
    ///
    /// # Errors
    /// Failed calls.
    pub fn drops(&self) -> Result<Drops, Error> {
        inventory::drops(&self.drops)
    }

    /// The oldest sample that was not read yet.
    pub fn next_sample(&mut self) -> Option<Sample> {
        loop {
            let item = self.ring.next()?;
            if let Some(sample) = decode(&item) {
                return Some(sample);
            }
        }
    }
}

impl AsFd for Samples {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Samples {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_fd().as_raw_fd()
    }
}

fn decode(bytes: &[u8]) -> Option<Sample> {
    let (at, rest) = bytes.split_first_chunk()?;
    let (ifindex, rest) = rest.split_first_chunk()?;
    let (reason, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (filled, rest) = rest.split_first_chunk()?;
    let (head, _) = rest.split_first_chunk::<{ Sample::HEAD }>()?;
    Some(Sample {
        at_ns: u64::from_ne_bytes(*at),
        ifindex: u32::from_ne_bytes(*ifindex),
        reason: u32::from_ne_bytes(*reason),
        length: u32::from_ne_bytes(*length),
        filled: u32::from_ne_bytes(*filled).min(u32::try_from(Sample::HEAD).unwrap_or(0)),
        head: *head,
    })
}
