//! What kind of device an interface is, by its driver.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Context as _, Error};

const ETHTOOL_GDRVINFO: u32 = 3;
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// ARPHRD_ETHER, ARPHRD_LOOPBACK: frames start with an Ethernet header.
const ETHERNET: [u16; 2] = [1, 772];
/// Drivers without hardware behind them, and those of virtual machines: there native XDP costs the offloads of the
/// other side (on veth the peer's TSO, on virtio the host's), which is more than it saves.
const VIRTUAL: [&str; 17] = [
    "802.1Q VLAN Support",
    "bonding",
    "bridge",
    "dummy",
    "geneve",
    "hv_netvsc",
    "ifb",
    "ipvlan",
    "macvlan",
    "macvtap",
    "openvswitch",
    "team",
    "tun",
    "veth",
    "virtio_net",
    "vxlan",
    "xen_netfront",
];

/// An interface's driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Name of the driver, where the kernel knows one.
    pub driver: Option<String>,
    /// Whether native XDP pays: hardware of its own.
    pub real: bool,
}

/// Says what an interface of this network namespace is.
///
/// # Errors
/// [`Error::NoInterface`]; [`Error::NotEthernet`] where nothing can be attached.
pub fn nic(name: &str) -> Result<Nic, Error> {
    index(name)?;
    let socket = control_socket().context(|| "opening a socket".to_owned())?;
    let kind = hardware_type(&socket, name).context(|| format!("asking for the type of {name}"))?;
    if !ETHERNET.contains(&kind) {
        return Err(Error::NotEthernet(name.to_owned()));
    }
    match driver(&socket, name) {
        Ok((driver, bus)) => {
            let real =
                !bus.is_empty() && bus.contains([':', '.', '-']) && !VIRTUAL.contains(&driver.as_str());
            Ok(Nic { driver: Some(driver), real })
        }
        // No driver answers, as on lo.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Nic { driver: None, real: false }),
        Err(error) => Err(Error::call(format!("asking for the driver of {name}"), error)),
    }
}

/// Number of an interface.
pub(crate) fn index(name: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(name).map_err(|_| Error::NoInterface(name.to_owned()))
}

/// Name of an interface, if there is one of that number.
pub(crate) fn name(index: u32) -> Option<String> {
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the length that if_indextoname wants.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    // SAFETY: on success the buffer holds a string with its NUL.
    (!found.is_null()).then(|| unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

fn control_socket() -> io::Result<std::os::fd::OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: integers, a union of such and a pointer: zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn hardware_type(socket: &std::os::fd::OwnedFd, name: &str) -> io::Result<u16> {
    let mut request = request(name)?;
    // SAFETY: SIOCGIFHWADDR reads and writes one ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call filled this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

/// struct ethtool_drvinfo of `linux/ethtool.h`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// Driver and bus address.
fn driver(socket: &std::os::fd::OwnedFd, name: &str) -> io::Result<(String, String)> {
    let mut information = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rom: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut information).cast();
    // SAFETY: SIOCETHTOOL reads one ifreq, whose data points to what this command fills.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((text(&information.driver), text(&information.bus)))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}
