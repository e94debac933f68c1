//! bpf(2), as in `linux/bpf.h`: the commands that aya has no public call for.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use fw_bpf_common::{Allow, Class, Config};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// Commands.
mod command {
    pub(super) const MAP_CREATE: u32 = 0;
    pub(super) const MAP_LOOKUP: u32 = 1;
    pub(super) const MAP_UPDATE: u32 = 2;
    pub(super) const MAP_DELETE: u32 = 3;
    pub(super) const MAP_NEXT_KEY: u32 = 4;
    pub(super) const PROG_LOAD: u32 = 5;
    pub(super) const OBJ_PIN: u32 = 6;
    pub(super) const OBJ_GET: u32 = 7;
    pub(super) const TEST_RUN: u32 = 10;
    pub(super) const INFO_BY_FD: u32 = 15;
    pub(super) const PROG_QUERY: u32 = 16;
    pub(super) const BTF_LOAD: u32 = 18;
    pub(super) const BTF_FD_BY_ID: u32 = 19;
    pub(super) const BTF_NEXT_ID: u32 = 23;
    pub(super) const MAP_LOOKUP_BATCH: u32 = 24;
    pub(super) const MAP_UPDATE_BATCH: u32 = 26;
    pub(super) const MAP_DELETE_BATCH: u32 = 27;
    pub(super) const LINK_CREATE: u32 = 28;
    pub(super) const LINK_UPDATE: u32 = 29;
    pub(super) const LINK_DETACH: u32 = 34;
}

/// BPF_PROG_TYPE_SCHED_CLS.
pub(crate) const PROGRAM_CLASSIFIER: u32 = 3;
/// BPF_PROG_TYPE_XDP.
pub(crate) const PROGRAM_XDP: u32 = 6;
/// BPF_F_XDP_HAS_FRAGS.
pub(crate) const HAS_FRAGS: u32 = 1 << 5;
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
    BtfLoad { btf: u64, log: u64, size: u32, log_size: u32, log_level: u32, _log_true_size: u32 }
    Id { id: u32, next: u32, flags: u32 }
    BtfInfo { btf: u64, size: u32, id: u32, name: u64, name_length: u32, _kernel: u32 }
    Load {
        kind: u32, count: u32, instructions: u64, license: u64, log_level: u32, log_size: u32, log: u64,
        _kernel_version: u32, flags: u32, name: [u8; 16], _ifindex: u32, attach_type: u32, btf: u32,
        function_size: u32, functions: u64, function_count: u32, line_size: u32, lines: u64, line_count: u32,
        _attach_btf: u32, _attach_to: u32, _relocations: u32, modules: u64,
    }
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

/// At most 15 bytes and a zero.
fn short_name(name: &str) -> [u8; 16] {
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    short
}

/// Hands type information to the kernel.
pub(crate) fn btf_load(types: &[u8]) -> io::Result<OwnedFd> {
    let btf = types.as_ptr() as u64;
    bpf_fd(command::BTF_LOAD, &mut BtfLoad { btf, size: length(types.len())?, ..BtfLoad::default() })
}

/// The type information of a loaded module.
pub(crate) fn module_btf(module: &str) -> io::Result<OwnedFd> {
    let mut id = 0;
    loop {
        let mut next = Id { id, ..Id::default() };
        bpf(command::BTF_NEXT_ID, &mut next)?;
        id = next.next;
        // One that has gone since is none of ours.
        let Ok(fd) = bpf_fd(command::BTF_FD_BY_ID, &mut Id { id, ..Id::default() }) else { continue };
        let mut name = [0_u8; 64];
        let mut info = BtfInfo {
            name: name.as_mut_ptr() as u64,
            name_length: length(name.len())?,
            ..BtfInfo::default()
        };
        let size = length(size_of::<BtfInfo>())?;
        let asked = bpf(
            command::INFO_BY_FD,
            &mut Info { fd: raw(&fd), length: size, info: std::ptr::from_mut(&mut info) as u64 },
        );
        if asked.is_ok() && name.split(|byte| *byte == 0).next() == Some(module.as_bytes()) {
            return Ok(fd);
        }
    }
}

/// Has the kernel load its conntrack, if that is a module: the part that answers about it, which is asked for nothing
/// here, is loaded when it is first spoken to (`nfnetlink_rcv_msg()`), and conntrack with it.
pub(crate) fn load_conntrack() -> io::Result<()> {
    /// `struct nlmsghdr` (length, type NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_GET_STATS, NLM_F_REQUEST) and an empty
    /// `struct nfgenmsg`.
    const LENGTH: u32 = 20;
    const KIND: u16 = (1 << 8) | 5;
    const REQUEST: u16 = 1;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let message = [&LENGTH.to_ne_bytes()[..], &KIND.to_ne_bytes(), &REQUEST.to_ne_bytes(), &[0; 12]].concat();
    nix::unistd::write(&socket, &message)?;
    Ok(())
}

/// A program with all that the kernel is told about it.
pub(crate) struct ProgramLoad<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: u32,
    pub(crate) attach_type: u32,
    pub(crate) flags: u32,
    pub(crate) license: &'a CStr,
    pub(crate) instructions: &'a [[u8; 8]],
    pub(crate) btf: &'a OwnedFd,
    /// Size and number of records, and the records.
    pub(crate) functions: (usize, usize, &'a [u8]),
    /// As above.
    pub(crate) lines: (usize, usize, &'a [u8]),
    /// Descriptors of the types of modules, by the numbers in calls of their functions.
    pub(crate) modules: &'a [i32],
}

/// Loads a program, or says why not, with the last words of the verifier.
pub(crate) fn program_load(program: &ProgramLoad<'_>) -> Result<OwnedFd, (io::Error, String)> {
    let mut load = load_attributes(program).map_err(|error| (error, String::new()))?;
    let error = match bpf_fd(command::PROG_LOAD, &mut load) {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let mut log = vec![0_u8; 64 << 10];
    (load.log, load.log_level) = (log.as_mut_ptr() as u64, 1);
    load.log_size = length(log.len()).map_err(|error| (error, String::new()))?;
    match bpf_fd(command::PROG_LOAD, &mut load) {
        Ok(fd) => Ok(fd),
        Err(_) => {
            let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
            Err((error, String::from_utf8_lossy(text).into_owned()))
        }
    }
}

fn load_attributes(program: &ProgramLoad<'_>) -> io::Result<Load> {
    let (function_size, functions, function_bytes) = program.functions;
    let (line_size, lines, line_bytes) = program.lines;
    Ok(Load {
        kind: program.kind,
        count: length(program.instructions.len())?,
        instructions: program.instructions.as_ptr() as u64,
        license: program.license.as_ptr() as u64,
        flags: program.flags,
        name: short_name(program.name),
        attach_type: program.attach_type,
        btf: raw(program.btf),
        function_size: length(function_size)?,
        functions: function_bytes.as_ptr() as u64,
        function_count: length(functions)?,
        line_size: length(line_size)?,
        lines: line_bytes.as_ptr() as u64,
        line_count: length(lines)?,
        modules: program.modules.as_ptr() as u64,
        ..Load::default()
    })
}

/// An array of `entries` values.
pub(crate) fn create_array(name: &str, value_size: usize, entries: u32) -> io::Result<OwnedFd> {
    let name = short_name(name);
    let value = length(value_size)?;
    bpf_fd(
        command::MAP_CREATE,
        &mut Create { kind: ARRAY, key: 4, value, entries, name, ..Create::default() },
    )
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
