//! Whether eBPF can be used here.

use std::fs;
use std::io;

use crate::error::Unavailable;
use crate::sys;

/// Whether this process may and this kernel can; cheap, changes nothing.
///
/// # Errors
/// What is missing, with the remedy.
pub fn probe() -> Result<(), Unavailable> {
    sys::create_array("fw_probe", 4, 1).map_err(unavailable)?;
    let loopback = nix::net::if_::if_nametoindex("lo").map_err(|error| Unavailable::Other(error.into()))?;
    sys::query_tcx(loopback).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::EOPNOTSUPP) => Unavailable::NoTcx,
        _ => unavailable(error),
    })?;
    let systems = fs::read_to_string("/proc/filesystems").map_err(Unavailable::Other)?;
    if !systems.lines().any(|line| line.split_whitespace().last() == Some("bpf")) {
        return Err(Unavailable::NoBpffs);
    }
    Ok(())
}

fn unavailable(error: io::Error) -> Unavailable {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => Unavailable::NoSyscall,
        Some(libc::ENOMEM) => Unavailable::Memlock,
        Some(libc::EPERM | libc::EACCES) => Unavailable::Privilege,
        _ => Unavailable::Other(error),
    }
}
