//! The kernel's functions for eBPF that ask conntrack, by the kernel's own type information (BTF,
//! `Documentation/bpf/btf.rst`).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use crate::sys;

/// Where the kernel shows its BTF.
const FOLDER: &str = "/sys/kernel/btf";
/// The module that has the functions, unless it is built in.
const MODULE: &str = "nf_conntrack";
/// All that are called.
const NAMES: [&str; 3] = ["bpf_xdp_ct_lookup", "bpf_skb_ct_lookup", "bpf_ct_release"];

/// Functions that programs can call.
#[derive(Debug)]
pub(crate) struct Kfuncs {
    pub(crate) xdp_lookup: u32,
    pub(crate) skb_lookup: u32,
    pub(crate) release: u32,
    /// BTF of the module that has them; `None`: the kernel itself.
    pub(crate) module: Option<OwnedFd>,
}

/// Looks for them; the module is loaded if it can be.
///
/// # Errors
/// Why they are not to be had, in words for the status.
pub(crate) fn find() -> Result<Kfuncs, String> {
    let base = read("vmlinux").map_err(|error| format!("this kernel does not show its types: {error}"))?;
    let base = Btf::parse(&base).ok_or("the kernel's types are not understood")?;
    if let Some(found) = ids(&base, 1, None) {
        return Ok(kfuncs(found, None));
    }
    let missing = |error: io::Error| {
        format!(
            "this kernel has no {}, built in or in the module {MODULE} (it needs \
             CONFIG_DEBUG_INFO_BTF_MODULES): {error}",
            NAMES[0]
        )
    };
    let module = match read(MODULE) {
        Ok(module) => module,
        Err(_) => {
            sys::load_conntrack().map_err(missing)?;
            read(MODULE).map_err(missing)?
        }
    };
    let module = Btf::parse(&module).ok_or("the types of the module are not understood")?;
    let found = ids(&module, base.types().count() + 1, Some(&base))
        .ok_or_else(|| format!("the module {MODULE} has no {}", NAMES.join(", ")))?;
    let fd = sys::module_btf(MODULE).map_err(missing)?;
    Ok(kfuncs(found, Some(fd)))
}

fn read(name: &str) -> io::Result<Vec<u8>> {
    fs::read(format!("{FOLDER}/{name}"))
}

fn kfuncs([xdp_lookup, skb_lookup, release]: [u32; 3], module: Option<OwnedFd>) -> Kfuncs {
    Kfuncs { xdp_lookup, skb_lookup, release, module }
}

/// The numbers of all functions, or `None` if one is missing. `first` is the number of the first type, `base` what the
/// strings of a module go on from.
fn ids(btf: &Btf<'_>, first: usize, base: Option<&Btf<'_>>) -> Option<[u32; 3]> {
    let mut found = [None; NAMES.len()];
    for (number, (name, kind)) in btf.types().enumerate() {
        const FUNCTION: u32 = 12;
        if kind != FUNCTION {
            continue;
        }
        let name = match base {
            Some(base) if (name as usize) < base.strings.len() => base.string(name as usize),
            Some(base) => btf.string(name as usize - base.strings.len()),
            None => btf.string(name as usize),
        };
        if let Some(at) = NAMES.iter().position(|wanted| name == Some(wanted.as_bytes())) {
            found[at] = u32::try_from(first + number).ok();
        }
    }
    match found {
        [Some(a), Some(b), Some(c)] => Some([a, b, c]),
        _ => None,
    }
}

/// The two sections of BTF.
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    /// `struct btf_header`: magic, version, flags, its length; then offset and length of both sections, from its end on.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        if u16::from_ne_bytes(*bytes.first_chunk()?) != MAGIC {
            return None;
        }
        let body = bytes.get(word(bytes, 4)?..)?;
        let section = |at| {
            let start = word(bytes, at)?;
            body.get(start..start.checked_add(word(bytes, at + 4)?)?)
        };
        Some(Self { types: section(8)?, strings: section(16)? })
    }

    /// Offset of the name and kind of each type.
    fn types(&self) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        let mut rest = self.types;
        std::iter::from_fn(move || {
            let [name, info] = [word(rest, 0)?, word(rest, 4)?];
            let (kind, members) = ((info >> 24) & 0x1f, info & 0xffff);
            let more = match kind {
                // Integers, variables and tags of declarations have a word more; arrays three.
                1 | 14 | 17 => 4,
                3 => 12,
                // By member: structs, unions, sections and enums of 64 bits; enums and prototypes.
                4 | 5 | 15 | 19 => members * 12,
                6 | 13 => members * 8,
                _ => 0,
            };
            rest = rest.get(12 + more..)?;
            Some((u32::try_from(name).ok()?, u32::try_from(kind).ok()?))
        })
    }

    fn string(&self, at: usize) -> Option<&'a [u8]> {
        let rest = self.strings.get(at..)?;
        rest.split(|byte| *byte == 0).next()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_ne_bytes(*word)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type information of some types, each with the words behind it, and strings.
    fn btf(types: &[(u32, u32, usize)], strings: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, info, words) in types {
            body.extend(name.to_ne_bytes());
            body.extend(info.to_ne_bytes());
            body.extend(vec![0; 4 + words * 4]);
        }
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        for word in [24, 0, length(&body), length(&body), length(strings)] {
            bytes.extend(word.to_ne_bytes());
        }
        [&bytes, &body[..], strings].concat()
    }

    const FUNCTION: u32 = 12 << 24;

    #[test]
    fn functions_of_a_module_are_numbered_after_the_types_of_the_kernel() {
        let base = btf(
            &[
                (1, 1 << 24, 1),
                (1, (4 << 24) | 2, 6),
                (1, 3 << 24, 3),
                (1, (6 << 24) | 3, 6),
                (5, FUNCTION, 0),
            ],
            b"\0int\0bpf_xdp_ct_lookup\0",
        );
        let base = Btf::parse(&base).unwrap();
        assert_eq!(base.types().count(), 5);
        assert_eq!(ids(&base, 1, None), None, "one of three is not enough");
        // Strings of a module go on behind those of the kernel, which has 23 bytes of them.
        let module = btf(
            &[
                (24, FUNCTION, 0),
                (1, (13 << 24) | 2, 4),
                (42, FUNCTION, 0),
                (5, FUNCTION, 0),
                (60, 2 << 24, 0),
            ],
            b"\0bpf_skb_ct_lookup\0bpf_ct_release\0",
        );
        let module = Btf::parse(&module).unwrap();
        assert_eq!(ids(&module, base.types().count() + 1, Some(&base)), Some([9, 6, 8]));
    }

    #[test]
    fn bytes_that_are_no_type_information_are_refused() {
        let whole = btf(&[(1, FUNCTION, 0)], b"\0f\0");
        assert!(Btf::parse(&whole).is_some());
        for length in 0..whole.len() {
            assert!(Btf::parse(&whole[..length]).is_none(), "{length}");
        }
        let mut other = whole.clone();
        other[0] ^= 1;
        assert!(Btf::parse(&other).is_none());
        // A member count that leads out of the section ends the list.
        let lying = btf(&[(1, (4 << 24) | 0xffff, 0), (1, FUNCTION, 0)], b"\0f\0");
        assert_eq!(Btf::parse(&lying).unwrap().types().count(), 0);
    }
}
