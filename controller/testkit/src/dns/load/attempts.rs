//! Connections and datagrams to the addresses of answers, and whether their first packet got through.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};

use crate::dns::load::{Attempts, Connect};
use crate::traffic::steady::retransmits;

/// When a connection is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// The moment the answer is there.
    First,
    /// Later.
    Again,
}

/// All attempts of a load.
pub(super) struct Tries<'a> {
    connect: Option<(Connect, u16)>,
    patience: Duration,
    epoll: &'a Epoll,
    /// For datagrams, IPv4 and IPv6; their tokens are the first two.
    udp: Vec<UdpSocket>,
    first_token: u64,
    next_token: u64,
    under_way: BTreeMap<u64, Try>,
    deadlines: VecDeque<(Instant, u64)>,
    first: Attempts,
    again: Attempts,
}

struct Try {
    round: Round,
    number: usize,
    address: IpAddr,
    /// None: a datagram.
    stream: Option<TcpStream>,
}

enum Fate {
    AtOnce,
    Late,
    Refused,
    Silent,
}

impl<'a> Tries<'a> {
    pub(super) fn new(
        connect: Option<(Connect, u16)>,
        patience: Duration,
        first_token: u64,
        epoll: &'a Epoll,
    ) -> Result<Self> {
        let mut udp = Vec::new();
        for (token, any) in
            (first_token..).zip([IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)])
        {
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
            epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
            udp.push(socket);
        }
        Ok(Self {
            connect,
            patience,
            epoll,
            udp,
            first_token,
            next_token: first_token + 2,
            under_way: BTreeMap::new(),
            deadlines: VecDeque::new(),
            first: Attempts::default(),
            again: Attempts::default(),
        })
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(super) fn into_attempts(self) -> (Attempts, Attempts) {
        (self.first, self.again)
    }

    /// The first packet is out when this returns.
    pub(super) fn start(&mut self, round: Round, number: usize, address: IpAddr) -> Result<()> {
        let Some((how, port)) = self.connect else { return Ok(()) };
        let to = SocketAddr::new(address, port);
        let token = self.next_token;
        self.next_token += 1;
        let mut attempt = Try { round, number, address, stream: None };
        match how {
            Connect::Tcp => match begin(to) {
                Ok(stream) => {
                    let interest = EpollFlags::EPOLLOUT | EpollFlags::EPOLLONESHOT;
                    self.epoll.add(&stream, EpollEvent::new(interest, token))?;
                    attempt.stream = Some(stream);
                }
                Err(error) if is_refusal(&error) => {
                    self.record(&attempt, &Fate::Refused);
                    return Ok(());
                }
                Err(error) => return Err(error).with_context(|| format!("cannot connect to {to}")),
            },
            Connect::Udp => {
                // One that cannot be sent is one that is never returned.
                let _ = self.udp[usize::from(address.is_ipv6())].send_to(&token.to_be_bytes(), to);
            }
        }
        self.under_way.insert(token, attempt);
        self.deadlines.push_back((Instant::now() + self.patience, token));
        Ok(())
    }

    /// Something happened to the socket with this token.
    pub(super) fn judge(&mut self, token: u64) -> Result<()> {
        if token < self.first_token + 2 {
            return self.hear(usize::try_from(token - self.first_token)?);
        }
        let Some(attempt) = self.under_way.remove(&token) else { return Ok(()) };
        let Some(stream) = &attempt.stream else { return Ok(()) };
        let fate = match stream.take_error()? {
            None if retransmits(stream)? == 0 => Fate::AtOnce,
            None => Fate::Late,
            Some(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) => Fate::Silent,
            Some(_) => Fate::Refused,
        };
        // Reset on close: no TIME_WAIT, which would use up the ports.
        setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        self.record(&attempt, &fate);
        Ok(())
    }

    fn hear(&mut self, socket: usize) -> Result<()> {
        let mut buffer = [0; 64];
        loop {
            let (length, from) = match self.udp[socket].recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot receive a datagram"),
            };
            let Some(token) = buffer[..length].first_chunk().map(|bytes| u64::from_be_bytes(*bytes)) else {
                continue;
            };
            // The answer must come from the address that was asked.
            if self.under_way.get(&token).is_some_and(|attempt| attempt.address == from.ip())
                && let Some(attempt) = self.under_way.remove(&token)
            {
                self.record(&attempt, &Fate::AtOnce);
            }
        }
    }

    pub(super) fn give_up(&mut self) {
        let now = Instant::now();
        while let Some((_, token)) = self.deadlines.pop_front_if(|(deadline, _)| *deadline <= now) {
            if let Some(attempt) = self.under_way.remove(&token) {
                self.record(&attempt, &Fate::Silent);
            }
        }
    }

    fn record(&mut self, attempt: &Try, fate: &Fate) {
        let attempts = match attempt.round {
            Round::First => &mut self.first,
            Round::Again => &mut self.again,
        };
        match fate {
            Fate::AtOnce => attempts.at_once += 1,
            Fate::Late => attempts.late += 1,
            Fate::Refused => attempts.refused += 1,
            Fate::Silent => attempts.silent += 1,
        }
        if !matches!(fate, Fate::AtOnce) && attempts.lost.len() < 100 {
            attempts.lost.push((attempt.number, attempt.address));
        }
    }
}

/// Sends the SYN.
fn begin(to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(fd)),
        Err(error) => Err(error.into()),
    }
}

fn is_refusal(error: &io::Error) -> bool {
    let refusals = [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EACCES, libc::EPERM];
    error.raw_os_error().is_some_and(|code| refusals.contains(&code))
}
