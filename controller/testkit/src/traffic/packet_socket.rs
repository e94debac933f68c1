//! AF_PACKET sockets: the part that needs `libc`.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Netns;

/// All protocols (ETH_P_ALL).
pub(crate) const ALL: u16 = 0x0003;
/// ARP (ETH_P_ARP).
pub(crate) const ARP: u16 = 0x0806;
/// Nothing is received: for sending.
pub(crate) const NONE: u16 = 0;

/// Messages in one system call.
pub(crate) const BATCH: usize = 64;
/// Longest frame that is read; what is longer is cut.
pub(crate) const FRAME: usize = 2048;

/// A raw packet socket on one interface of a namespace. Does not see what the interface itself sends.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    fd: OwnedFd,
    buffers: Vec<u8>,
}

/// Frames to be sent one after the other, for ever.
#[derive(Debug)]
pub(crate) struct Ring {
    frames: Vec<Vec<u8>>,
    next: usize,
}

impl Ring {
    /// At least one frame.
    pub(crate) fn new(frames: Vec<Vec<u8>>) -> Self {
        Self { frames, next: 0 }
    }

    /// Leaves the next frame out.
    pub(crate) fn skip(&mut self) {
        self.advance(1);
    }

    fn advance(&mut self, by: usize) {
        self.next = (self.next + by) % self.frames.len().max(1);
    }
}

/// What the kernel has counted at a socket since the last time it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SocketStatistics {
    /// Packets that matched, the dropped ones included.
    pub packets: u32,
    /// Packets that found the socket's buffer full.
    pub dropped: u32,
}

impl PacketSocket {
    pub(crate) fn open(ns: &Netns, interface: &str, protocol: u16) -> Result<Self> {
        let fd = ns
            .run(|| open(interface, protocol))?
            .with_context(|| format!("cannot open a packet socket on {interface} in {}", ns.name()))?;
        Ok(Self { fd, buffers: Vec::new() })
    }

    /// Sends frames of the given parts in order, up to [`BATCH`] of them; gives how many went out.
    pub(crate) fn send(&self, frames: &[(&[u8], &[u8])]) -> io::Result<usize> {
        let mut parts: Vec<[libc::iovec; 2]> =
            frames.iter().take(BATCH).map(|(header, rest)| [part(header), part(rest)]).collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|parts| {
                let mut message = empty_message();
                message.msg_hdr.msg_iov = parts.as_mut_ptr();
                message.msg_hdr.msg_iovlen = parts.len();
                message
            })
            .collect();
        let count = libc::c_uint::try_from(messages.len()).map_err(io::Error::other)?;
        // SAFETY: `messages` holds `count` headers; each points to two parts in `parts`, which point to the
        // caller's slices; all outlive the call, and sending only reads them.
        let sent = unsafe { libc::sendmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Hands frames straight to the driver (PACKET_QDISC_BYPASS).
    pub(crate) fn bypass_queue(&self) -> io::Result<()> {
        set_option(&self.fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)
    }

    /// Sends the next frames of a ring, at most `most` and at most to its end; gives how many went out.
    pub(crate) fn send_ring(&self, ring: &mut Ring, most: usize) -> io::Result<usize> {
        let rest = &ring.frames[ring.next..];
        let mut parts: [libc::iovec; BATCH] = std::array::from_fn(|at| part(rest.get(at).map_or(&[], |f| f)));
        let mut messages: [libc::mmsghdr; BATCH] = std::array::from_fn(|_| empty_message());
        for (message, part) in messages.iter_mut().zip(&mut parts) {
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        let count = rest.len().min(BATCH).min(most);
        let length = libc::c_uint::try_from(count).map_err(io::Error::other)?;
        // SAFETY: the first `count` headers each point to one part in `parts`, which points to a frame of the ring; all
        // outlive the call, and sending only reads them.
        let sent = unsafe { libc::sendmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), length, 0) };
        let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
        ring.advance(sent);
        Ok(sent)
    }

    /// Takes up to [`BATCH`] frames that are there; gives how many. Does not wait.
    pub(crate) fn receive(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
        self.buffers.resize(BATCH * FRAME, 0);
        let mut parts: Vec<libc::iovec> = self
            .buffers
            .chunks_mut(FRAME)
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                let mut message = empty_message();
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let count = libc::c_uint::try_from(messages.len()).map_err(io::Error::other)?;
        // SAFETY: `messages` holds `count` headers; each points to one part, and that to its own FRAME bytes of
        // `self.buffers`; all outlive the call and nothing else refers to the buffers meanwhile.
        let received = unsafe {
            libc::recvmmsg(
                self.fd.as_raw_fd(),
                messages.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let Ok(received) = usize::try_from(received) else {
            return match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                error => Err(error),
            };
        };
        for (message, buffer) in messages.iter().zip(self.buffers.chunks(FRAME)).take(received) {
            let length = usize::try_from(message.msg_len).unwrap_or(FRAME).min(FRAME);
            each(&buffer[..length]);
        }
        Ok(received)
    }

    /// Waits until there is something to receive; false when the time is over.
    pub(crate) fn wait(&self, patience: Duration) -> io::Result<bool> {
        let milliseconds = libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX);
        let mut entry = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live entry.
        let ready = unsafe { libc::poll(&raw mut entry, 1, milliseconds) };
        match ready {
            0 => Ok(false),
            1.. => Ok(true),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn statistics(&self) -> io::Result<SocketStatistics> {
        // SAFETY: a plain struct of integers.
        let mut statistics: libc::tpacket_stats = unsafe { zeroed() };
        let mut length = socklen::<libc::tpacket_stats>();
        // SAFETY: value and length are live and belong together.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        check(result)?;
        Ok(SocketStatistics { packets: statistics.tp_packets, dropped: statistics.tp_drops })
    }
}

fn open(interface: &str, protocol: u16) -> io::Result<OwnedFd> {
    let name = CString::new(interface)?;
    // SAFETY: a live C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // Opened for protocol 0, so that nothing of other interfaces gets in before it is bound.
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: just opened and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    // Past the host's limit (root may): a batch must fit although nobody reads meanwhile.
    set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 8 << 20)?;
    // SAFETY: a plain struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().map_err(io::Error::other)?;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.try_into().map_err(io::Error::other)?;
    // SAFETY: address and length are live and belong together.
    let result =
        unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), socklen::<libc::sockaddr_ll>()) };
    check(result)?;
    Ok(fd)
}

fn set_option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: value and length are live and belong together.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), socklen::<libc::c_int>())
    };
    check(result)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(libc::socklen_t::MAX)
}

fn part(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

fn empty_message() -> libc::mmsghdr {
    // SAFETY: integers and pointers, for which all zeros mean "none".
    unsafe { zeroed() }
}
