//! The object with the programs.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use aya::EbpfLoader;
use aya_obj::ProgramSection;
use aya_obj::btf::{Btf, BtfFeatures};
use aya_obj::generated::bpf_insn;
use fw_bpf_common::call;
use sha2::{Digest as _, Sha256};

use crate::datapath::Sizes;
use crate::error::{Context as _, Error};
use crate::kfunc::Kfuncs;
use crate::sys;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fw-xdp"));

/// The compiled eBPF object.
#[must_use]
pub fn object() -> &'static [u8] {
    OBJECT
}

/// SHA-256 of the object, and of whether its programs ask conntrack.
pub(crate) fn hash(asks: bool) -> [u8; 32] {
    Sha256::new().chain_update(OBJECT).chain_update([u8::from(asks)]).finalize().into()
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
pub(crate) const MAPS: [&str; 10] =
    ["CONFIG", "ALLOW4", "ALLOW6", "CLASSES", "STATIC4", "STATIC6", "DROPS", "RATES", "CLOCK", "SAMPLES"];

/// Makes the maps of the object and pins them; those that are pinned already stay.
pub(crate) fn make_maps(folder: &Path, sizes: &Sizes) -> Result<(), Error> {
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, folder.join(name));
    }
    loader
        .map_max_entries("ALLOW4", sizes.ipv4)
        .map_max_entries("ALLOW6", sizes.ipv6)
        .map_max_entries("STATIC4", sizes.prefixes)
        .map_max_entries("STATIC6", sizes.prefixes)
        .map_max_entries("SAMPLES", sizes.sample_bytes);
    loader.load(OBJECT).map(drop).map_err(|error| Error::Load(error.into()))
}

/// Loads the programs over the pinned maps and pins them in `folder`, none or all. They ask conntrack if there are
/// functions for it.
pub(crate) fn load(maps: &Path, folder: &Path, kfuncs: Option<&Kfuncs>) -> Result<(), Error> {
    let linked = Linked::new(maps, kfuncs)?;
    let loaded: Vec<_> =
        Program::ALL.into_iter().map(|program| linked.load(program)).collect::<Result<_, _>>()?;
    for (program, fd) in Program::ALL.into_iter().zip(loaded) {
        sys::pin(&fd, &folder.join(program.name()))
            .context(|| format!("pinning the program {}", program.name()))?;
    }
    Ok(())
}

/// The object with all addresses filled in. The library does so much; its own call of the kernel has no place for the
/// modules whose functions a program calls.
struct Linked<'a> {
    object: aya_obj::Object,
    btf: OwnedFd,
    /// The instructions hold the numbers of these descriptors.
    _maps: Vec<OwnedFd>,
    module: Option<&'a OwnedFd>,
}

impl<'a> Linked<'a> {
    fn new(maps: &Path, kfuncs: Option<&'a Kfuncs>) -> Result<Self, Error> {
        let mut object = aya_obj::Object::parse(OBJECT).map_err(not_taken)?;
        // Kernels with TCX know all of it.
        let features = BtfFeatures::new(true, true, true, true, true, true, true, true);
        let types = object.fixup_and_sanitize_btf(&features).map_err(not_taken)?.map(Btf::to_bytes);
        let btf = sys::btf_load(&types.unwrap_or_default())
            .context(|| "loading the types of the programs".to_owned())?;
        for instruction in object.functions.values_mut().flat_map(|function| &mut function.instructions) {
            replace(instruction, kfuncs);
        }
        let pinned = MAPS.into_iter().map(|name| {
            let fd = sys::get(&maps.join(name)).context(|| format!("opening the map {name}"))?;
            Ok((name, fd))
        });
        let pinned: Vec<(&str, OwnedFd)> = pinned.collect::<Result<_, Error>>()?;
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        let content = object.maps.clone();
        let named = pinned.iter().filter_map(|(name, fd)| Some((*name, fd.as_raw_fd(), content.get(*name)?)));
        object.relocate_maps(named, &sections).map_err(not_taken)?;
        object.relocate_calls(&sections).map_err(not_taken)?;
        let maps = pinned.into_iter().map(|(_, fd)| fd).collect();
        Ok(Self { object, btf, _maps: maps, module: kfuncs.and_then(|kfuncs| kfuncs.module.as_ref()) })
    }

    fn load(&self, program: Program) -> Result<OwnedFd, Error> {
        let missing = || Error::Load(format!("the object has no program {}", program.name()).into());
        let found = self.object.programs.get(program.name()).ok_or_else(missing)?;
        let function = self.object.functions.get(&found.function_key()).ok_or_else(missing)?;
        let (kind, attach_type, flags) = match &found.section {
            ProgramSection::Xdp { frags, .. } => {
                (sys::PROGRAM_XDP, sys::XDP, if *frags { sys::HAS_FRAGS } else { 0 })
            }
            ProgramSection::SchedClassifier => (sys::PROGRAM_CLASSIFIER, 0, 0),
            _ => return Err(missing()),
        };
        let instructions: Vec<[u8; 8]> = function.instructions.iter().map(bytes).collect();
        let load = sys::ProgramLoad {
            name: program.name(),
            kind,
            attach_type,
            flags,
            license: &found.license,
            instructions: &instructions,
            btf: &self.btf,
            functions: (
                function.func_info_rec_size,
                function.func_info.len(),
                &function.func_info.func_info_bytes(),
            ),
            lines: (
                function.line_info_rec_size,
                function.line_info.len(),
                &function.line_info.line_info_bytes(),
            ),
            // The place of a module in the list stands in the calls, and 0 is the kernel.
            modules: &self.module.map_or(vec![], |module| vec![0, module.as_raw_fd()]),
        };
        sys::program_load(&load).map_err(|(error, log)| {
            let what = format!("loading {}", program.name());
            let error = if log.is_empty() { error } else { io::Error::other(format!("{error}: {log}")) };
            Error::Load(Box::new(Error::call(what, error)))
        })
    }
}

fn not_taken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Load(Box::new(error))
}

/// As the kernel reads it (`struct bpf_insn`).
fn bytes(instruction: &bpf_insn) -> [u8; 8] {
    let registers = (instruction.src_reg() << 4) | instruction.dst_reg();
    let [a, b] = instruction.off.to_ne_bytes();
    let [c, d, e, f] = instruction.imm.to_ne_bytes();
    [instruction.code, registers, a, b, c, d, e, f]
}

/// Puts what the kernel has in the place of a call of what it has not (see [`call`]).
fn replace(instruction: &mut bpf_insn, kfuncs: Option<&Kfuncs>) {
    /// `call`, and `r0 = immediate`.
    const CALL: u8 = 0x85;
    const MOVE: u8 = 0xb7;
    /// In the place of the source register: the immediate is a function of the kernel.
    const KFUNC: u8 = 2;
    if instruction.code != CALL || instruction.src_reg() != 0 {
        return;
    }
    let number = match (u32::try_from(instruction.imm), kfuncs) {
        (Ok(call::CAN_BE_ASKED), _) => {
            (instruction.code, instruction.imm) = (MOVE, kfuncs.is_some().into());
            return;
        }
        (Ok(call::XDP_LOOKUP | call::SKB_LOOKUP | call::RELEASE), None) => {
            (instruction.code, instruction.imm) = (MOVE, 0);
            return;
        }
        (Ok(call::XDP_LOOKUP), Some(kfuncs)) => kfuncs.xdp_lookup,
        (Ok(call::SKB_LOOKUP), Some(kfuncs)) => kfuncs.skb_lookup,
        (Ok(call::RELEASE), Some(kfuncs)) => kfuncs.release,
        _ => return,
    };
    instruction.set_src_reg(KFUNC);
    instruction.imm = number.cast_signed();
    instruction.off = kfuncs.is_some_and(|kfuncs| kfuncs.module.is_some()).into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call_of(number: u32) -> bpf_insn {
        // SAFETY: integers.
        let mut instruction: bpf_insn = unsafe { std::mem::zeroed() };
        (instruction.code, instruction.imm) = (0x85, number.cast_signed());
        instruction
    }

    fn replaced(number: u32, kfuncs: Option<&Kfuncs>) -> [u8; 8] {
        let mut instruction = call_of(number);
        replace(&mut instruction, kfuncs);
        bytes(&instruction)
    }

    #[test]
    fn calls_of_what_the_kernel_lacks_become_moves_or_calls_of_its_functions() {
        let mut kfuncs = Kfuncs { xdp_lookup: 0x0102, skb_lookup: 0x0203, release: 0x0304, module: None };
        let all = [call::CAN_BE_ASKED, call::XDP_LOOKUP, call::SKB_LOOKUP, call::RELEASE];
        for number in all {
            assert_eq!(replaced(number, None), [0xb7, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(replaced(call::CAN_BE_ASKED, Some(&kfuncs)), [0xb7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(replaced(call::XDP_LOOKUP, Some(&kfuncs)), [0x85, 0x20, 0, 0, 2, 1, 0, 0]);
        assert_eq!(replaced(call::SKB_LOOKUP, Some(&kfuncs)), [0x85, 0x20, 0, 0, 3, 2, 0, 0]);
        kfuncs.module = Some(std::fs::File::open("/dev/null").unwrap().into());
        assert_eq!(replaced(call::RELEASE, Some(&kfuncs)), [0x85, 0x20, 1, 0, 4, 3, 0, 0]);
        // Helpers that there are stay.
        assert_eq!(replaced(1, Some(&kfuncs)), [0x85, 0, 0, 0, 1, 0, 0, 0]);
    }
}
