//! bpf(2), as in `linux/bpf.h`: the commands that aya has no public call for.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use fw_bpf_common::{Allow, Class, Config};

/// Commands.
mod command {
    pub(super) const MAP_CREATE: u32 = 0;
    pub(super) const MAP_LOOKUP: u32 = 1;
    pub(super) const MAP_UPDATE: u32 = 2;
    pub(super) const MAP_DELETE: u32 = 3;
    pub(super) const MAP_NEXT_KEY: u32 = 4;
    pub(super) const OBJ_PIN: u32 = 6;
    pub(super) const OBJ_GET: u32 = 7;
    pub(super) const TEST_RUN: u32 = 10;
    pub(super) const INFO_BY_FD: u32 = 15;
    pub(super) const PROG_QUERY: u32 = 16;
    pub(super) const MAP_LOOKUP_BATCH: u32 = 24;
    pub(super) const MAP_UPDATE_BATCH: u32 = 26;
    pub(super) const MAP_DELETE_BATCH: u32 = 27;
    pub(super) const LINK_CREATE: u32 = 28;
    pub(super) const LINK_UPDATE: u32 = 29;
    pub(super) const LINK_DETACH: u32 = 34;
}

/// BPF_MAP_TYPE_ARRAY.
const ARRAY: u32 = 2;
/// Attach type BPF_XDP.
pub(crate) const XDP: u32 = 37;
/// Attach type BPF_TCX_INGRESS.
pub(crate) const TCX_INGRESS: u32 = 46;
/// XDP_FLAGS_SKB_MODE.
pub(crate) const XDP_SKB_MODE: u32 = 1 << 1;
/// XDP_FLAGS_DRV_MODE.
pub(crate) const XDP_DRV_MODE: u32 = 1 << 2;
/// BPF_F_BEFORE: with no other program named, before all of them.
pub(crate) const BEFORE: u32 = 1 << 3;

/// Types whose bytes are all named and may have any value.
///
/// # Safety
/// No padding, no niches, no pointers.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: bytes.
unsafe impl<const N: usize> Plain for [u8; N] {}
// SAFETY: `repr(C)` of integers, padding named.
unsafe impl Plain for Config {}
// SAFETY: as above.
unsafe impl Plain for Allow {}
// SAFETY: as above.
unsafe impl Plain for Class {}

macro_rules! attributes {
    ($($(#[$documentation:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$documentation])*
        #[repr(C)]
        #[derive(Clone, Copy, Default)]
        struct $name { $($field: $type),* }
    )*};
}

attributes! {
    Create { kind: u32, key: u32, value: u32, entries: u32, flags: u32, inner: u32, numa: u32, name: [u8; 16] }
    Element { map: u32, _pad: u32, key: u64, value: u64, flags: u64 }
    Batch {
        input: u64, output: u64, keys: u64, values: u64, count: u32, map: u32, element_flags: u64, flags: u64,
    }
    Object { path: u64, fd: u32, flags: u32 }
    Info { fd: u32, length: u32, info: u64 }
    Query {
        ifindex: u32, kind: u32, flags: u32, attach_flags: u32, programs: u64, count: u32, _pad: u32,
        program_flags: u64, links: u64, link_flags: u64, revision: u64,
    }
    LinkCreate { program: u32, ifindex: u32, kind: u32, flags: u32, relative: u32, _pad: u32, revision: u64 }
    LinkUpdate { link: u32, program: u32, flags: u32, old: u32 }
    LinkDetach { link: u32 }
    Test {
        program: u32, retval: u32, data_in_size: u32, data_out_size: u32, data_in: u64, data_out: u64,
        repeat: u32, duration: u32, context_in_size: u32, context_out_size: u32, context_in: u64,
        context_out: u64, flags: u32, cpu: u32, batch: u32, _pad: u32,
    }
}

fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<i64> {
    let size = size_of_val(attributes);
    // SAFETY: the attributes are live for the call and as long as said; what they point to is borrowed by the callers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn bpf_fd<T>(command: u32, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(clippy::cast_sign_loss, reason = "descriptors are not negative")]
fn raw(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(io::Error::other)
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// An array of `entries` values.
pub(crate) fn create_array(name: &str, value_size: usize, entries: u32) -> io::Result<OwnedFd> {
    let mut attributes =
        Create { kind: ARRAY, key: 4, value: length(value_size)?, entries, ..Create::default() };
    for (to, from) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bpf_fd(command::MAP_CREATE, &mut attributes)
}

pub(crate) fn pin(fd: &impl AsFd, at: &Path) -> io::Result<()> {
    let name = path(at)?;
    let mut attributes = Object { path: name.as_ptr() as u64, fd: raw(fd), flags: 0 };
    bpf(command::OBJ_PIN, &mut attributes).map(drop)
}

pub(crate) fn get(at: &Path) -> io::Result<OwnedFd> {
    let name = path(at)?;
    bpf_fd(command::OBJ_GET, &mut Object { path: name.as_ptr() as u64, ..Object::default() })
}

pub(crate) fn update<K: Plain, V: Plain>(map: &OwnedFd, key: &K, value: &V) -> io::Result<()> {
    let mut attributes =
        Element { map: raw(map), key: address(key), value: address(value), ..Element::default() };
    bpf(command::MAP_UPDATE, &mut attributes).map(drop)
}

pub(crate) fn delete<K: Plain>(map: &OwnedFd, key: &K) -> io::Result<()> {
    bpf(command::MAP_DELETE, &mut Element { map: raw(map), key: address(key), ..Element::default() })
        .map(drop)
}

/// Fills `value`, which must be as long as the map's values are (times the possible CPUs, for per-CPU maps).
pub(crate) fn lookup<K: Plain, V: Plain>(map: &OwnedFd, key: &K, value: &mut [V]) -> io::Result<()> {
    let mut attributes =
        Element { map: raw(map), key: address(key), value: value.as_mut_ptr() as u64, ..Element::default() };
    bpf(command::MAP_LOOKUP, &mut attributes).map(drop)
}

/// The key after `key`, or the first one.
pub(crate) fn next_key<K: Plain + Default>(map: &OwnedFd, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::default();
    let key = key.map_or(0, address);
    let value = std::ptr::from_mut(&mut next) as u64;
    match bpf(command::MAP_NEXT_KEY, &mut Element { map: raw(map), key, value, ..Element::default() }) {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads from `cursor` on as many elements as there is room for; says how many, and whether there may be more.
pub(crate) fn lookup_batch<K: Plain, V: Plain>(
    map: &OwnedFd,
    cursor: &mut Option<[u8; 32]>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    let mut output = [0_u8; 32];
    let mut attributes = Batch {
        input: cursor.as_ref().map_or(0, address),
        output: std::ptr::from_mut(&mut output) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: length(keys.len().min(values.len()))?,
        map: raw(map),
        ..Batch::default()
    };
    let more = match bpf(command::MAP_LOOKUP_BATCH, &mut attributes) {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => return Err(error),
    };
    *cursor = Some(output);
    Ok((attributes.count as usize, more))
}

/// Writes all elements or says how many were written before the error.
pub(crate) fn update_batch<K: Plain, V: Plain>(
    map: &OwnedFd,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    let count = length(keys.len().min(values.len())).map_err(|error| (0, error))?;
    let mut attributes = Batch {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map: raw(map),
        ..Batch::default()
    };
    match bpf(command::MAP_UPDATE_BATCH, &mut attributes) {
        Ok(_) => Ok(()),
        Err(error) => Err((attributes.count as usize, error)),
    }
}

/// Deletes all keys or says how many were deleted before the error.
pub(crate) fn delete_batch<K: Plain>(map: &OwnedFd, keys: &[K]) -> Result<(), (usize, io::Error)> {
    let count = length(keys.len()).map_err(|error| (0, error))?;
    let mut attributes = Batch { keys: keys.as_ptr() as u64, count, map: raw(map), ..Batch::default() };
    match bpf(command::MAP_DELETE_BATCH, &mut attributes) {
        Ok(_) => Ok(()),
        Err(error) => Err((attributes.count as usize, error)),
    }
}

/// The first words of what the kernel tells about a program, map or link.
fn info<const N: usize>(fd: &impl AsFd) -> io::Result<[u32; N]> {
    let mut words = [0_u32; N];
    let info = std::ptr::from_mut(&mut words) as u64;
    bpf(command::INFO_BY_FD, &mut Info { fd: raw(fd), length: length(size_of::<[u32; N]>())?, info })?;
    Ok(words)
}

/// A program's id.
pub(crate) fn program_id(program: &OwnedFd) -> io::Result<u32> {
    let [_, id] = info(program)?;
    Ok(id)
}

/// A map's size in entries.
pub(crate) fn map_entries(map: &impl AsFd) -> io::Result<u32> {
    let [_, _, _, _, entries] = info(map)?;
    Ok(entries)
}

/// Bytes of a map's values.
pub(crate) fn value_size(map: &impl AsFd) -> io::Result<u32> {
    let [_, _, _, size] = info(map)?;
    Ok(size)
}

/// What a link binds; interface 0 is one that has gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkInfo {
    pub(crate) program: u32,
    pub(crate) ifindex: u32,
}

pub(crate) fn link_info(link: &OwnedFd) -> io::Result<LinkInfo> {
    // struct bpf_link_info: type, id, prog_id, then the union (aligned to 8), which starts with ifindex for both.
    let [_, _, program, _, ifindex] = info(link)?;
    Ok(LinkInfo { program, ifindex })
}

pub(crate) fn link_create(program: &OwnedFd, ifindex: u32, kind: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate { program: raw(program), ifindex, kind, flags, ..LinkCreate::default() };
    bpf_fd(command::LINK_CREATE, &mut attributes)
}

pub(crate) fn link_update(link: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    let mut attributes = LinkUpdate { link: raw(link), program: raw(program), ..LinkUpdate::default() };
    bpf(command::LINK_UPDATE, &mut attributes).map(drop)
}

pub(crate) fn link_detach(link: &OwnedFd) -> io::Result<()> {
    bpf(command::LINK_DETACH, &mut LinkDetach { link: raw(link) }).map(drop)
}

/// Asks for the TCX programs of the loopback interface: fails where there is no TCX.
pub(crate) fn query_tcx(ifindex: u32) -> io::Result<()> {
    bpf(command::PROG_QUERY, &mut Query { ifindex, kind: TCX_INGRESS, ..Query::default() }).map(drop)
}

/// What a test run gave: the program's result, the nanoseconds of one run, and the context afterwards.
pub(crate) fn test_run(
    program: &OwnedFd,
    frame: &[u8],
    context: &mut [u8],
    repeat: u32,
) -> io::Result<(u32, u32)> {
    let context_size = length(context.len())?;
    let mut attributes = Test {
        program: raw(program),
        data_in_size: length(frame.len())?,
        data_in: frame.as_ptr() as u64,
        repeat,
        context_in_size: context_size,
        context_out_size: context_size,
        context_in: context.as_ptr() as u64,
        context_out: context.as_mut_ptr() as u64,
        ..Test::default()
    };
    if context.is_empty() {
        (attributes.context_in, attributes.context_out) = (0, 0);
    }
    bpf(command::TEST_RUN, &mut attributes)?;
    Ok((attributes.retval, attributes.duration))
}
