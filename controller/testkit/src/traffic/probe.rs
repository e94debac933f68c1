//! One question each, with real sockets: does it get through, and as whom?

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, socket,
};

use crate::Netns;
use crate::traffic::craft::{Crafted, Tag};

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered, and the server saw it come from there (a translated address where there is SNAT). For
    /// a ping: the target, since nobody tells whom it saw.
    Answered {
        /// The client as the server saw it.
        seen_as: SocketAddr,
    },
    /// Somebody said no: a TCP reset, an ICMP error.
    Refused(String),
    /// Nothing came back in time.
    Silent,
}

impl Outcome {
    /// True when it was answered.
    pub fn passed(&self) -> bool {
        matches!(self, Self::Answered { .. })
    }

    /// The client's address as the server saw it.
    pub fn seen_as(&self) -> Option<IpAddr> {
        match self {
            Self::Answered { seen_as } => Some(seen_as.ip()),
            Self::Refused(_) | Self::Silent => None,
        }
    }
}

/// Connects to an echo [`crate::traffic::server::Server`] and exchanges a few bytes. `from` = source address
/// and port (0 = any) if it matters.
pub fn tcp(ns: &Netns, from: Option<SocketAddr>, to: SocketAddr, patience: Duration) -> Result<Outcome> {
    let deadline = Instant::now() + patience;
    let mut stream = match tcp_connect(ns, from, to, patience)? {
        Ok(stream) => stream,
        Err(outcome) => return Ok(outcome),
    };
    match exchange(&mut stream, deadline) {
        Ok(seen_as) => Ok(Outcome::Answered { seen_as }),
        Err(error) => outcome_of(&error).with_context(|| format!("tcp {to}: {error}")),
    }
}

/// Connects to any server; the stream, or why there is none.
pub fn tcp_connect(
    ns: &Netns,
    from: Option<SocketAddr>,
    to: SocketAddr,
    patience: Duration,
) -> Result<Result<TcpStream, Outcome>> {
    match ns.run(|| connect_within(from, to, patience))? {
        Ok(stream) => Ok(Ok(stream)),
        Err(error) => Ok(Err(outcome_of(&error).with_context(|| format!("tcp {to}: {error}"))?)),
    }
}

/// Sends a datagram to a UDP [`crate::traffic::server::Server`] and waits for the answer.
pub fn udp(ns: &Netns, from: Option<SocketAddr>, to: SocketAddr, patience: Duration) -> Result<Outcome> {
    let ask = || -> io::Result<SocketAddr> {
        let socket = UdpSocket::bind(from.unwrap_or_else(|| any_address(to)))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(patience))?;
        socket.send(b"question")?;
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer)?;
        parse_seen(&buffer[..length], b"question")
    };
    match ns.run(ask)? {
        Ok(seen_as) => Ok(Outcome::Answered { seen_as }),
        Err(error) => outcome_of(&error).with_context(|| format!("udp {to}: {error}")),
    }
}

/// One echo request and its reply.
pub fn ping(ns: &Netns, from: Option<IpAddr>, to: IpAddr, patience: Duration) -> Result<Outcome> {
    ns.run(|| ping_here(from, to, patience))?
}

/// What an error of a socket means for a probe; other errors are the probe's own.
fn outcome_of(error: &io::Error) -> Result<Outcome> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ETIMEDOUT | Errno::EAGAIN) => Ok(Outcome::Silent),
        Some(
            errno @ (Errno::ECONNREFUSED
            | Errno::ECONNRESET
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EACCES
            | Errno::EPERM
            | Errno::ENOPROTOOPT),
        ) => Ok(Outcome::Refused(errno.desc().to_owned())),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Outcome::Refused("closed".to_owned())),
        _ => bail!("the probe itself failed"),
    }
}

pub(crate) fn any_address(like: SocketAddr) -> SocketAddr {
    let any = if like.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    SocketAddr::new(any, 0)
}

/// `TcpStream::connect_timeout` with a source address.
pub(crate) fn connect_within(
    from: Option<SocketAddr>,
    to: SocketAddr,
    patience: Duration,
) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    if let Some(from) = from {
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    if !wait_for(&fd, PollFlags::POLLOUT, patience)? {
        return Err(Errno::ETIMEDOUT.into());
    }
    let stream = TcpStream::from(fd);
    match stream.take_error()? {
        Some(error) => Err(error),
        None => {
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        }
    }
}

fn wait_for(fd: &OwnedFd, what: PollFlags, patience: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut [PollFd::new(fd.as_fd(), what)], timeout)? > 0)
}

/// Reads the greeting, sends a few bytes and wants them back.
fn exchange(stream: &mut TcpStream, deadline: Instant) -> io::Result<SocketAddr> {
    let question = b"question";
    stream.write_all(question)?;
    let mut answer = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero would mean "for ever".
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 256];
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => answer.extend(&buffer[..length]),
        }
        if answer.ends_with(question) {
            return parse_seen(&answer, question);
        }
    }
}

fn parse_seen(answer: &[u8], question: &[u8]) -> io::Result<SocketAddr> {
    let text = answer.strip_suffix(question).and_then(|text| std::str::from_utf8(text).ok());
    let address = text.and_then(|text| text.strip_prefix("seen ")?.trim_end().parse().ok());
    address.ok_or_else(|| io::Error::other("not the answer of a testkit server"))
}

fn ping_here(from: Option<IpAddr>, to: IpAddr, patience: Duration) -> Result<Outcome> {
    ensure!(from.is_none_or(|from| from.is_ipv4() == to.is_ipv4()), "source and target differ in family");
    let deadline = Instant::now() + patience;
    let (family, protocol, header, reply_type) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 20, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 40, 129),
    };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).context("raw socket")?;
    // A raw socket sends and receives like a UDP socket whose payload is the ICMP message.
    let socket = UdpSocket::from(fd);
    if let Some(from) = from {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0))).context("bind")?;
    }
    // Of an IPv6 message the kernel writes the checksum, that of an IPv4 one does not hang on the addresses.
    let tag = Tag { run: std::process::id(), id: next_id() };
    let identifier = u16::try_from(tag.id & 0xffff)?;
    let packet = Crafted::echo(
        any_address(SocketAddr::new(to, 0)).ip(),
        any_address(SocketAddr::new(to, 0)).ip(),
        identifier,
    )
    .encode(tag)?
    .remove(0);
    let question = &packet[header..];
    if let Err(error) = socket.send_to(question, SocketAddr::new(to, 0)) {
        return outcome_of(&error).with_context(|| format!("ping {to}: {error}"));
    }
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Outcome::Silent);
        }
        socket.set_read_timeout(Some(left))?;
        let (length, sender) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) => return outcome_of(&error).with_context(|| format!("ping {to}: {error}")),
        };
        // IPv4 raw sockets also deliver the IP header.
        let skipped = if to.is_ipv4() { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
        let message = buffer.get(skipped..length).unwrap_or_default();
        if message.first() == Some(&reply_type) && message.get(4..) == question.get(4..) {
            return Ok(Outcome::Answered { seen_as: sender });
        }
    }
}

fn next_id() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
