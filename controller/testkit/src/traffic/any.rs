//! A server on every address of a namespace at once, tens of thousands if it has so many.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, bind, listen, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use crate::Netns;

/// Who reached which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// The client.
    pub from: SocketAddr,
    /// The address and port it asked for.
    pub to: SocketAddr,
}

/// Accepts and closes TCP connections, and returns UDP datagrams as they are from the address they were sent to, on one
/// port of all addresses that the namespace has. Made for prefixes that are local by a route
/// ([`crate::topology::LabSpec::with_any_internet`]). One thread; ends on drop.
#[derive(Debug)]
pub struct AnyServer {
    shared: Arc<Shared>,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    tcp: Mutex<Vec<Arrival>>,
    udp: Mutex<Vec<Arrival>>,
    failed: AtomicU64,
}

fn remember(list: &Mutex<Vec<Arrival>>, arrival: Arrival) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
}

impl AnyServer {
    /// On one port, both families, both transports.
    pub fn new(ns: &Netns, port: u16) -> Result<Self> {
        // Lets a socket send from an IPv6 address that is local by a route alone (ipv6_can_nonlocal_bind()).
        ns.sysctl(&[("net.ipv6.ip_nonlocal_bind", "1")])?;
        let sockets = ns
            .run(|| -> io::Result<_> {
                let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
                let at = any.map(|address| SocketAddr::new(address, port));
                Ok((at.map(listener), at.map(echo)))
            })?
            .with_context(|| format!("cannot serve port {port}"))?;
        let listeners = sockets.0.into_iter().collect::<io::Result<Vec<_>>>().context("tcp")?;
        let echoes = sockets.1.into_iter().collect::<io::Result<Vec<_>>>().context("udp")?;
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("testkit-any".to_owned())
            .spawn(move || serve(&listeners, &echoes, &stopped, &its))?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// TCP connections so far, in order.
    pub fn connections(&self) -> Vec<Arrival> {
        self.shared.tcp.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// UDP datagrams so far, in order.
    pub fn datagrams(&self) -> Vec<Arrival> {
        self.shared.udp.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Datagrams that could not be returned.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }
}

impl Drop for AnyServer {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(address: SocketAddr, kind: SockType, protocol: SockProtocol) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    Ok(fd)
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = open(address, SockType::Stream, SockProtocol::Tcp)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    // The standard library's queue of 128 overflows when this thread does not run for a moment.
    listen(&fd, Backlog::MAXALLOWABLE)?;
    Ok(fd.into())
}

fn echo(address: SocketAddr) -> io::Result<UdpSocket> {
    let fd = open(address, SockType::Datagram, SockProtocol::Udp)?;
    if address.is_ipv4() {
        setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20))?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd.into())
}

fn serve(listeners: &[TcpListener], echoes: &[UdpSocket], stopped: &OwnedFd, shared: &Shared) {
    loop {
        let mut entries = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        entries.extend(listeners.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        entries.extend(echoes.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        match poll(&mut entries, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        // The pipe's other end is closed on drop.
        if entries[0].revents().is_some_and(|flags| !flags.is_empty()) {
            return;
        }
        for listener in listeners {
            while let Ok((stream, from)) = listener.accept() {
                if let Ok(to) = stream.local_addr() {
                    remember(&shared.tcp, Arrival { from, to });
                }
            }
        }
        for socket in echoes {
            while let Ok(arrival) = return_one(socket, shared) {
                remember(&shared.udp, arrival);
            }
        }
    }
}

/// Returns one datagram; an error: there was none.
fn return_one(socket: &UdpSocket, shared: &Shared) -> io::Result<Arrival> {
    let mut buffer = [0; 2048];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let fd = socket.as_raw_fd();
    let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let (length, peer) = (message.bytes, message.address);
    let info = message.cmsgs()?.next();
    let port = socket.local_addr()?.port();
    let peer = peer.as_ref().and_then(to_std).ok_or_else(|| io::Error::other("a datagram from nowhere"))?;
    let part = [IoSlice::new(&buffer[..length])];
    let (to, sent) = match info {
        Some(ControlMessageOwned::Ipv4PacketInfo(mut info)) => {
            // The address that the packet was for, whatever interface it came by.
            (info.ipi_spec_dst, info.ipi_ifindex) = (info.ipi_addr, 0);
            let to = Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr));
            (IpAddr::from(to), send(fd, &part, ControlMessage::Ipv4PacketInfo(&info), peer))
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(mut info)) => {
            info.ipi6_ifindex = 0;
            let to = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            (IpAddr::from(to), send(fd, &part, ControlMessage::Ipv6PacketInfo(&info), peer))
        }
        _ => return Err(io::Error::other("a datagram to nowhere")),
    };
    if sent.is_err() {
        shared.failed.fetch_add(1, Ordering::Relaxed);
    }
    Ok(Arrival { from: peer, to: SocketAddr::new(to, port) })
}

fn send(fd: i32, part: &[IoSlice<'_>], control: ControlMessage<'_>, to: SocketAddr) -> nix::Result<usize> {
    sendmsg(fd, part, &[control], MsgFlags::empty(), Some(&SockaddrStorage::from(to)))
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    address.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port()))
}
