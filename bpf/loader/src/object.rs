//! The object with the programs.

use std::path::Path;

use aya::EbpfLoader;
use sha2::{Digest as _, Sha256};

use crate::datapath::Sizes;
use crate::error::{Context as _, Error};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fw-xdp"));

/// The compiled eBPF object.
#[must_use]
pub fn object() -> &'static [u8] {
    OBJECT
}

/// SHA-256 of the object.
pub(crate) fn hash() -> [u8; 32] {
    Sha256::digest(OBJECT).into()
}

/// A program of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// XDP: bounces.
    Xdp,
    /// The same for frames in several pages, native mode only.
    XdpFrags,
    /// TCX: stamps and bounces.
    Tcx,
    /// TCX: stamps, behind XDP.
    Stamp,
}

impl Program {
    /// All.
    pub const ALL: [Self; 4] = [Self::Xdp, Self::XdpFrags, Self::Tcx, Self::Stamp];

    /// Name in the object and of the pin.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "fw_xdp",
            Self::XdpFrags => "fw_xdp_frags",
            Self::Tcx => "fw_tcx",
            Self::Stamp => "fw_stamp",
        }
    }
}

/// The maps of the object.
pub(crate) const MAPS: [&str; 9] =
    ["CONFIG", "ALLOW4", "ALLOW6", "CLASSES", "STATIC4", "STATIC6", "DROPS", "RATES", "SAMPLES"];

/// Loads the programs and pins them in `programs`; maps that are pinned in `maps` are used, others made and pinned.
pub(crate) fn load(maps: &Path, programs: &Path, sizes: &Sizes) -> Result<(), Error> {
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, maps.join(name));
    }
    loader
        .map_max_entries("ALLOW4", sizes.ipv4)
        .map_max_entries("ALLOW6", sizes.ipv6)
        .map_max_entries("STATIC4", sizes.prefixes)
        .map_max_entries("STATIC6", sizes.prefixes)
        .map_max_entries("SAMPLES", sizes.sample_bytes);
    let mut object = loader.load(OBJECT).map_err(|error| Error::Load(error.into()))?;
    for program in Program::ALL {
        let missing = || Error::Load(format!("the object has no program {}", program.name()).into());
        let entry = object.program_mut(program.name()).ok_or_else(missing)?;
        load_one(entry).map_err(|error| Error::Load(Box::new(error)))?;
        let fd = entry.fd().map_err(|error| Error::Load(Box::new(error)))?;
        crate::sys::pin(fd, &programs.join(program.name()))
            .context(|| format!("pinning the program {}", program.name()))?;
    }
    Ok(())
}

fn load_one(program: &mut aya::programs::Program) -> Result<(), aya::programs::ProgramError> {
    match program {
        aya::programs::Program::Xdp(xdp) => xdp.load(),
        aya::programs::Program::SchedClassifier(classifier) => classifier.load(),
        _ => Err(aya::programs::ProgramError::UnexpectedProgramType),
    }
}
