//! The loop of a load: one thread, one epoll.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};

use crate::dns::load::attempts::{Round, Tries};
use crate::dns::load::{Load, LoadReport, Pace};
use crate::dns::wire::{self, Query};
use crate::traffic::probe::any_address;

/// Questions sent before answers have their turn.
const BURST: usize = 16;
/// Message ids.
const IDS: usize = 1 << 16;

struct Run<'a> {
    load: &'a Load,
    sockets: Vec<UdpSocket>,
    /// For each question: when it was sent, until it is answered or given up.
    sent: Vec<Option<Instant>>,
    /// Which question used a message id last.
    by_id: Vec<usize>,
    /// Questions below this one are answered or given up.
    oldest: usize,
    under_way: usize,
    agains: VecDeque<(Instant, usize, IpAddr)>,
    tries: Tries<'a>,
    report: LoadReport,
    begin: Instant,
}

pub(super) fn run(load: &Load) -> Result<LoadReport> {
    // A connection that is never answered keeps its descriptor until it is given up.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut sockets = Vec::new();
    for number in 0..load.ports.max(1) {
        let socket = UdpSocket::bind(any_address(load.server))?;
        socket.connect(load.server).with_context(|| format!("cannot ask {}", load.server))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(number)?))?;
        sockets.push(socket);
    }
    let first_token = u64::try_from(sockets.len())?;
    let tries = Tries::new(load.connect, load.patience, first_token, &epoll)?;
    let run = Run {
        load,
        sockets,
        sent: vec![None; load.count],
        by_id: vec![usize::MAX; IDS],
        oldest: 0,
        under_way: 0,
        agains: VecDeque::new(),
        tries,
        report: LoadReport::default(),
        begin: Instant::now(),
    };
    run.go(&epoll)
}

impl Run<'_> {
    fn go(mut self, epoll: &Epoll) -> Result<LoadReport> {
        let mut events = [EpollEvent::empty(); 64];
        while !self.is_over() {
            self.send_due()?;
            // Timers have the resolution of this wait; answers end it at once.
            let timeout = if self.may_send_now() { EpollTimeout::ZERO } else { EpollTimeout::from(1_u8) };
            let ready = match epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error).context("epoll"),
            };
            for event in &events[..ready] {
                match usize::try_from(event.data())? {
                    number if number < self.sockets.len() => self.hear(number)?,
                    _ => self.tries.judge(event.data())?,
                }
            }
            self.connect_again()?;
            self.give_up();
            self.tries.give_up();
        }
        self.report.time = self.begin.elapsed();
        let mut report = self.report;
        (report.first, report.again) = self.tries.into_attempts();
        report.latency.sort();
        report.reaction.sort();
        Ok(report)
    }

    fn is_over(&self) -> bool {
        self.report.asked == self.load.count
            && self.under_way == 0
            && self.agains.is_empty()
            && self.tries.is_idle()
    }

    /// How many questions may be out by now.
    fn allowed(&self) -> usize {
        let allowed = match self.load.pace {
            Pace::PerSecond(rate) => {
                let due = self.begin.elapsed().as_micros() * u128::from(rate) / 1_000_000;
                usize::try_from(due).unwrap_or(usize::MAX).saturating_add(1)
            }
            Pace::InFlight(most) => self.report.asked + most.saturating_sub(self.under_way),
        };
        allowed.min(self.load.count)
    }

    fn may_send_now(&self) -> bool {
        self.report.asked < self.allowed()
    }

    fn send_due(&mut self) -> Result<()> {
        for _ in 0..BURST {
            if !self.may_send_now() {
                break;
            }
            let number = self.report.asked;
            let id = number % IDS;
            let mut query = Query::new(u16::try_from(id)?, &(self.load.name)(number), self.load.kind)?;
            if let Some(size) = self.load.edns {
                query = query.with_size(size);
            }
            let bytes = query.bytes()?;
            let now = Instant::now();
            // What cannot be sent is a question without an answer.
            let _ = self.sockets[number % self.sockets.len()].send(&bytes);
            self.sent[number] = Some(now);
            self.by_id[id] = number;
            self.report.asked += 1;
            self.under_way += 1;
        }
        Ok(())
    }

    /// Takes answers of one socket; connects to each before it looks at the next.
    fn hear(&mut self, socket: usize) -> Result<()> {
        for _ in 0..BURST {
            let mut buffer = [0; 4096];
            let mut control = nix::cmsg_space!(libc::timespec);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let fd = self.sockets[socket].as_raw_fd();
            let received =
                recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT);
            let message = match received {
                Ok(message) => message,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(()),
                // An ICMP error; the question will be given up.
                Err(nix::errno::Errno::ECONNREFUSED | nix::errno::Errno::EHOSTUNREACH) => return Ok(()),
                Err(error) => return Err(error).context("cannot receive an answer"),
            };
            let now = Instant::now();
            let arrived = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                _ => None,
            });
            let length = message.bytes;
            self.take(&buffer[..length], now, arrived)?;
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], now: Instant, arrived: Option<Duration>) -> Result<()> {
        let Some(header) = bytes.first_chunk::<4>() else { return Ok(()) };
        let number = self.by_id[usize::from(u16::from_be_bytes([header[0], header[1]]))];
        let Some(sent) = self.sent.get_mut(number).and_then(Option::take) else { return Ok(()) };
        self.under_way -= 1;
        if header[3] & 0xf != 0 {
            self.report.failed += 1;
            return Ok(());
        }
        if self.load.connect.is_some()
            && let Some((address, ttl)) = wire::addresses(bytes).first().copied()
        {
            self.tries.start(Round::First, number, address)?;
            if let Some(arrived) = arrived {
                let clock = SystemTime::now().duration_since(UNIX_EPOCH)?;
                self.report.reaction.0.push(clock.saturating_sub(arrived));
            }
            self.report.ttls.push(ttl);
            if let Some(after) = self.load.again.filter(|after| Duration::from_secs(ttl.into()) > *after) {
                self.agains.push_back((now + after, number, address));
            }
        }
        self.report.answered += 1;
        self.report.latency.0.push(now - sent);
        Ok(())
    }

    fn connect_again(&mut self) -> Result<()> {
        while let Some((_, number, address)) = self.agains.pop_front_if(|(due, ..)| *due <= Instant::now()) {
            self.tries.start(Round::Again, number, address)?;
        }
        Ok(())
    }

    fn give_up(&mut self) {
        while self.oldest < self.report.asked {
            match self.sent[self.oldest] {
                Some(sent) if sent.elapsed() < self.load.patience => return,
                Some(_) => {
                    self.sent[self.oldest] = None;
                    self.under_way -= 1;
                    self.report.unanswered += 1;
                }
                None => {}
            }
            self.oldest += 1;
        }
    }
}
