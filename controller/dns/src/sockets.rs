//! Listening sockets that know which of the box's addresses was asked.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::cmsg_space;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo, Ipv6V6Only, RcvBuf, ReuseAddr, SndBuf};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, SockFlag, SockType,
    SockaddrStorage, bind, listen, sendmsg, setsockopt, socket,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::inbox::Inbox;

/// A burst of questions must fit while the thread is busy; the kernel grants what `net.core.rmem_max` allows.
const SOCKET_BUFFER: usize = 4 << 20;
/// Connections not accepted yet.
const BACKLOG: i32 = 1024;

/// The way a UDP question came, which its answer takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Who asked.
    pub(crate) client: SocketAddr,
    /// The address of ours that was asked, as it is after nftables redirected it; port 0.
    pub(crate) local: IpAddr,
    /// The interface by which it came, and then (0: the routing table's choice) by which the answer goes.
    pub(crate) interface: u32,
}

/// Questions with the ways they came, as far as the kernel says.
pub(crate) type Arrivals = Inbox<SockaddrStorage, Option<Path>>;

/// A UDP socket bound to all addresses of one family, or to one address.
#[derive(Debug)]
pub(crate) struct UdpListener {
    socket: UdpSocket,
    ipv6: bool,
}

fn bound(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    if kind == SockType::Stream {
        // Past connections in TIME_WAIT must not keep the port. For UDP it would let two processes share it silently.
        setsockopt(&fd, ReuseAddr, &true)?;
    }
    if address.is_ipv6() {
        setsockopt(&fd, Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

impl UdpListener {
    /// Needs a tokio runtime around it.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        let fd = bound(address, SockType::Datagram)?;
        setsockopt(&fd, RcvBuf, &SOCKET_BUFFER)?;
        setsockopt(&fd, SndBuf, &SOCKET_BUFFER)?;
        if address.is_ipv6() {
            setsockopt(&fd, Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&fd, Ipv4PacketInfo, &true)?;
        }
        Ok(fd.into())
    }

    /// Takes a socket made by [`UdpListener::bind`] into the runtime.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let ipv6 = socket.local_addr()?.is_ipv6();
        Ok(Self { socket: UdpSocket::from_std(socket)?, ipv6 })
    }

    /// Waits until there may be something to receive.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Room for what [`UdpListener::receive`] finds.
    pub(crate) fn inbox(room: usize) -> Arrivals {
        Inbox::new(room, Some(cmsg_space!(in6_pktinfo)))
    }

    /// Receives datagrams, each with its way.
    pub(crate) fn receive(&self, inbox: &mut Arrivals) -> io::Result<usize> {
        let fd = self.socket.as_raw_fd();
        self.socket.try_io(Interest::READABLE, || inbox.receive(fd, path))
    }

    /// Sends one datagram from the address that was asked. What the kernel has no room for is lost, as UDP may be.
    pub(crate) fn send(&self, message: &[u8], path: &Path) -> io::Result<()> {
        let slices = [IoSlice::new(message)];
        let to = SockaddrStorage::from(path.client);
        let flags = MsgFlags::MSG_DONTWAIT;
        let fd = self.socket.as_raw_fd();
        match path.local {
            IpAddr::V4(local) if !self.ipv6 => {
                let info = in_pktinfo {
                    ipi_ifindex: i32::try_from(path.interface).unwrap_or(0),
                    ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(local.octets()) },
                    ipi_addr: in_addr { s_addr: 0 },
                };
                sendmsg(fd, &slices, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&to))
            }
            IpAddr::V6(local) => {
                let info = in6_pktinfo {
                    ipi6_addr: in6_addr { s6_addr: local.octets() },
                    ipi6_ifindex: path.interface,
                };
                sendmsg(fd, &slices, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&to))
            }
            IpAddr::V4(_) => sendmsg(fd, &slices, &[], flags, Some(&to)),
        }?;
        Ok(())
    }
}

fn path(message: &RecvMsg<'_, '_, SockaddrStorage>) -> Option<Path> {
    let client = message.address.and_then(socket_address)?;
    let (local, interface) = message.cmsgs().ok()?.find_map(packet_info)?;
    Some(Path { client, local, interface })
}

fn socket_address(address: SockaddrStorage) -> Option<SocketAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(address), _) => Some(SocketAddr::V4((*address).into())),
        (_, Some(address)) => Some(SocketAddr::V6((*address).into())),
        _ => None,
    }
}

fn packet_info(message: ControlMessageOwned) -> Option<(IpAddr, u32)> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let local = info.ipi_spec_dst.s_addr.to_ne_bytes();
            Some((IpAddr::from(local), u32::try_from(info.ipi_ifindex).ok()?))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some((IpAddr::from(info.ipi6_addr.s6_addr), info.ipi6_ifindex))
        }
        _ => None,
    }
}

/// A TCP socket that listens.
pub(crate) fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = bound(address, SockType::Stream)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd.into())
}
