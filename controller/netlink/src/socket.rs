//! The system calls: one netfilter netlink socket, transactions, dumps and notifications.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::attr::{DecodeError, Writer};
use crate::batch::{Batch, Encoded, Finish};
use crate::message::{Ack, Head, Message, Messages, flag, kind, write};

/// Receive buffer. The kernel fills at most 32 KiB per dump datagram (netlink_dump) and one page more per
/// notification; a datagram that does not fit is reported, never cut.
const BUFFER: usize = 256 * 1024;
/// How long an answer may take. The kernel answers within sendmsg, so only a broken one needs it.
const ANSWER: Duration = Duration::from_secs(10);
/// Buffers for transactions: at least this, and never more than what the largest rulesets need.
const BATCH_BUFFER: std::ops::RangeInclusive<usize> = 1 << 20..=256 << 20;
/// A queued acknowledgement with extended information costs about this much receive buffer (skb->truesize).
const ACK_COST: usize = 1024;

/// Why talking to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A system call failed.
    #[error("netlink {call} failed")]
    Call {
        /// Name of the call.
        call: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("the kernel refused the request: {}{}", io::Error::from_raw_os_error(.0.errno), text(.0))]
    Refused(Ack),
    /// Answers did not fit into the receive buffer (ENOBUFS): what became of the request is unknown.
    #[error("answers of the kernel were lost (ENOBUFS)")]
    Lost,
    /// No answer came.
    #[error("the kernel did not answer within {} s", ANSWER.as_secs())]
    Timeout,
    /// The dump was torn by changes (NLM_F_DUMP_INTR).
    #[error("the ruleset changed while it was read")]
    Interrupted,
    /// The kernel's answer cannot be read.
    #[error("the kernel's answer cannot be read")]
    Decode(#[from] DecodeError),
}

fn text(ack: &Ack) -> String {
    ack.text.as_ref().map_or_else(String::new, |text| format!(" ({text})"))
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every message was taken.
    Done,
    /// The transaction as a whole was refused: stale generation (ERESTART), no privilege (EPERM), no memory.
    Whole(Ack),
    /// Messages were refused, by index, in order; nothing was applied.
    Messages(Vec<(usize, Ack)>),
}

/// A netlink socket of family NETLINK_NETFILTER. Owner of the tables it creates with the owner flag, so it is
/// opened once and kept.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens and binds a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, SocketError> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket() takes three integers; the descriptor it gives is ours alone.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER) };
        if fd < 0 {
            return Err(failed("socket"));
        }
        // SAFETY: `fd` is a fresh descriptor that nothing else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut socket = Self { fd, port: 0, sequence: 1, buffer: vec![0; BUFFER] };
        socket.bind()?;
        // Both only add detail to errors; kernels before 4.12 lack them.
        let _ = socket.option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        let _ = socket.option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        Ok(socket)
    }

    /// The netlink port the kernel gave us: who we are in owner attributes and notifications.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Subscribes to a multicast group (NFNLGRP_NFTABLES is 7).
    pub fn subscribe(&self, group: u32) -> Result<(), SocketError> {
        let group = libc::c_int::try_from(group).unwrap_or(libc::c_int::MAX);
        self.option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)
    }

    /// Asks for a receive buffer of `bytes`; past the system's limit only with CAP_NET_ADMIN.
    pub fn receive_buffer(&self, bytes: usize) -> Result<(), SocketError> {
        self.size_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes)
    }

    /// Drops datagrams that `port` caused before they are queued, so that a large transaction of our own does
    /// not fill the receive buffer of our own monitor.
    pub fn ignore_port(&self, port: u32) -> Result<(), SocketError> {
        // Classic BPF loads big-endian, nlmsg_pid (offset 12) is in host order.
        let wanted = u32::from_be_bytes(port.to_ne_bytes());
        let op =
            |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k };
        let mut program = [
            op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 12),
            op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, wanted),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ];
        let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        // SAFETY: `filter` and the four instructions it points to outlive the call, which copies them; the
        // length given is the size of the structure the option wants.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const filter).cast(),
                socklen::<libc::sock_fprog>(),
            )
        };
        if result < 0 { Err(failed("setsockopt(SO_ATTACH_FILTER)")) } else { Ok(()) }
    }

    /// The sequence number for a request of `count` messages.
    pub fn reserve(&mut self, count: usize) -> u32 {
        let first = self.sequence;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Sends a transaction with one sendmsg. The kernel handles it before the call returns.
    pub fn send_batch(&mut self, batch: &Encoded) -> Result<(), SocketError> {
        // netlink_sendmsg refuses messages above sk_sndbuf - 32 with EMSGSIZE.
        let within = |bytes: usize| bytes.clamp(*BATCH_BUFFER.start(), *BATCH_BUFFER.end());
        let length = within(batch.bytes.len().saturating_add(4096));
        self.size_buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, length)?;
        // In the worst case every message is answered with an error.
        self.receive_buffer(within(batch.starts.len().saturating_mul(ACK_COST)))?;
        self.send(&batch.bytes)
    }

    /// Reads the kernel's answers to a transaction that was sent.
    pub fn finish_batch(&mut self, batch: &Encoded) -> Result<Outcome, SocketError> {
        let mut verdict = Verdict::default();
        let last = batch.starts.len().checked_sub(1);
        let deadline = Instant::now() + ANSWER;
        loop {
            // All answers were queued while sendmsg ran: an empty queue after a conclusive one is the end.
            let conclusive = verdict.whole.is_some() || (last.is_some() && verdict.last == last);
            match self.receive_now()? {
                Some(length) => verdict.read(&self.buffer[..length], batch)?,
                None if conclusive || last.is_none() => return Ok(verdict.outcome()),
                None => self.wait(deadline)?,
            }
        }
    }

    /// Sends a transaction without messages, which changes nothing, and tells whether its end was acknowledged
    /// (Linux 6.10 and newer).
    pub fn empty_transaction(&mut self, subsystem: u8) -> Result<bool, SocketError> {
        let sequence = self.reserve(2);
        let Ok(mut batch) = Batch::new(subsystem, None, sequence).finish(Finish::Commit) else {
            return Ok(false);
        };
        batch.acknowledge_end();
        self.send_batch(&batch)?;
        let mut acknowledged = false;
        while let Some(length) = self.receive_now()? {
            for message in Messages::new(&self.buffer[..length]) {
                let message = message?;
                let end = message.kind == kind::ERROR && message.sequence == sequence.wrapping_add(1);
                acknowledged |= end && message.ack()?.errno == 0;
            }
        }
        Ok(acknowledged)
    }

    /// Sends a request and gives every message of the answer to `take`; for dumps and for requests with one answer.
    /// [`SocketError::Interrupted`] when the dump was torn; `take` has then seen an inconsistent part.
    pub fn request(
        &mut self,
        head: Head,
        fill: impl FnOnce(&mut Writer<'_>),
        take: impl FnMut(&Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<(), SocketError> {
        if self.request_through(head, fill, take)?.torn { Err(SocketError::Interrupted) } else { Ok(()) }
    }

    /// As [`Self::request`], of what commits to the rest of the ruleset leave as it is.
    pub fn request_through(
        &mut self,
        head: Head,
        fill: impl FnOnce(&mut Writer<'_>),
        mut take: impl FnMut(&Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<Answered, SocketError> {
        let dump = head.flags & flag::DUMP != 0;
        // Without a dump the acknowledgement tells where the answer ends.
        let flags = if dump { head.flags } else { head.flags | flag::ACK };
        let sequence = self.send_request(Head { flags, ..head }, fill)?;
        let mut answer = Answer { sequence, answered: Answered::default(), failure: None };
        let deadline = Instant::now() + ANSWER;
        loop {
            match self.receive_now() {
                Ok(Some(length)) => {
                    if let Some(result) = answer.read(&self.buffer[..length], &mut take) {
                        return result;
                    }
                }
                Ok(None) => self.wait(deadline)?,
                // A socket runs one dump at a time (EBUSY), so a failed one is still read to its end.
                Err(SocketError::Lost) if dump => answer.fail(SocketError::Lost),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a request that is answered by one message or refused, and gives the message to `take`. Saves the second
    /// datagram that an acknowledgement is.
    pub fn ask(
        &mut self,
        head: Head,
        fill: impl FnOnce(&mut Writer<'_>),
        mut take: impl FnMut(&Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<(), SocketError> {
        let sequence = self.send_request(head, fill)?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let Some(length) = self.receive_now()? else {
                self.wait(deadline)?;
                continue;
            };
            for message in Messages::new(&self.buffer[..length]) {
                let message = message?;
                if message.sequence != sequence {
                    continue;
                }
                return match message.kind {
                    kind::ERROR => Err(SocketError::Refused(message.ack()?)),
                    _ => Ok(take(&message)?),
                };
            }
        }
    }

    fn send_request(&mut self, head: Head, fill: impl FnOnce(&mut Writer<'_>)) -> Result<u32, SocketError> {
        let head = Head { sequence: self.reserve(1), ..head };
        let mut bytes = Vec::with_capacity(256);
        if !write(&mut bytes, &head, fill) {
            return Err(SocketError::Decode(DecodeError::Length(0)));
        }
        self.send(&bytes)?;
        Ok(head.sequence)
    }

    /// Waits up to `timeout` for a datagram and gives it; `None` when none came.
    /// [`SocketError::Lost`] when the kernel had to drop some.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<&[u8]>, SocketError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(length) = self.receive_now()? {
                return Ok(Some(&self.buffer[..length]));
            }
            match self.wait(deadline) {
                Ok(()) => {}
                Err(SocketError::Timeout) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn bind(&mut self) -> Result<(), SocketError> {
        let mut address = empty_address();
        // SAFETY: `address` is a sockaddr_nl and the length given is its size.
        let bound = unsafe {
            libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), socklen::<libc::sockaddr_nl>())
        };
        if bound < 0 {
            return Err(failed("bind"));
        }
        let mut length = socklen::<libc::sockaddr_nl>();
        // SAFETY: `address` has room for `length` bytes, which the kernel does not exceed.
        let named =
            unsafe { libc::getsockname(self.fd.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
        if named < 0 {
            return Err(failed("getsockname"));
        }
        self.port = address.nl_pid;
        Ok(())
    }

    fn option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<(), SocketError> {
        // SAFETY: the option takes an int; pointer and length are those of `value`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                socklen::<libc::c_int>(),
            )
        };
        if result < 0 { Err(failed("setsockopt")) } else { Ok(()) }
    }

    fn size_buffer(&self, force: libc::c_int, plain: libc::c_int, bytes: usize) -> Result<(), SocketError> {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        self.option(libc::SOL_SOCKET, force, bytes).or_else(|_| self.option(libc::SOL_SOCKET, plain, bytes))
    }

    fn send(&self, bytes: &[u8]) -> Result<(), SocketError> {
        let kernel = empty_address();
        let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: all-zero is a valid msghdr (null pointers with zero lengths).
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = (&raw const kernel).cast_mut().cast();
        message.msg_namelen = socklen::<libc::sockaddr_nl>();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        loop {
            // SAFETY: `message` points to `kernel` and `part`, and `part` to `bytes`; all outlive the call, and
            // sendmsg only reads through them.
            let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, 0) };
            if usize::try_from(sent).is_ok_and(|sent| sent == bytes.len()) {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            // EINTR comes before the kernel took the message, never after (netlink_sendmsg).
            if sent >= 0 || error.kind() != io::ErrorKind::Interrupted {
                return Err(SocketError::Call { call: "sendmsg", source: error });
            }
        }
    }

    /// One datagram from the kernel into the buffer; `None` when the queue is empty.
    fn receive_now(&mut self) -> Result<Option<usize>, SocketError> {
        loop {
            let mut sender = empty_address();
            let mut length = socklen::<libc::sockaddr_nl>();
            // SAFETY: the buffer has room for the bytes announced, `sender` for `length` bytes; MSG_TRUNC makes the
            // call return the datagram's real length without writing past the buffer.
            let received = unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    libc::MSG_TRUNC,
                    (&raw mut sender).cast(),
                    &raw mut length,
                )
            };
            let Ok(received) = usize::try_from(received) else {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN) => return Ok(None),
                    Some(libc::ENOBUFS) => return Err(SocketError::Lost),
                    _ => return Err(SocketError::Call { call: "recvfrom", source: error }),
                }
            };
            // Anybody with CAP_NET_ADMIN may write to our port; only the kernel has port 0.
            if sender.nl_pid != 0 {
                continue;
            }
            return if received <= self.buffer.len() { Ok(Some(received)) } else { Err(SocketError::Lost) };
        }
    }

    fn wait(&self, deadline: Instant) -> Result<(), SocketError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, or the last fraction of a millisecond would be spent spinning.
            let millis = libc::c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX);
            let mut descriptor = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: `descriptor` is one pollfd, as the count says.
            let ready = unsafe { libc::poll(&raw mut descriptor, 1, millis) };
            match ready {
                0 => return Err(SocketError::Timeout),
                1.. => return Ok(()),
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(failed("poll")),
            }
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// How an answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Answered {
    /// True when others committed while a dump was read (NLM_F_DUMP_INTR).
    pub torn: bool,
    /// Datagrams that held something. One is written in one go; each further one goes on by counting.
    pub parts: u32,
}

/// The answer to one request while it is read.
struct Answer {
    sequence: u32,
    answered: Answered,
    failure: Option<SocketError>,
}

impl Answer {
    fn fail(&mut self, error: impl Into<SocketError>) {
        let error = error.into();
        self.failure.get_or_insert(error);
    }

    /// Reads one datagram; gives the result when it holds the end of the answer.
    fn read(
        &mut self,
        datagram: &[u8],
        take: &mut impl FnMut(&Message<'_>) -> Result<(), DecodeError>,
    ) -> Option<Result<Answered, SocketError>> {
        let mut is_part = false;
        for message in Messages::new(datagram) {
            let message = match message {
                Ok(message) if message.sequence == self.sequence => message,
                Ok(_) => continue,
                Err(error) => {
                    self.fail(error);
                    break;
                }
            };
            self.answered.torn |= message.flags & flag::DUMP_INTR != 0;
            let end = match message.kind {
                kind::ERROR => message.ack().map_err(SocketError::from),
                kind::DONE => Ok(Ack { errno: message.done(), ..Ack::default() }),
                _ if self.failure.is_some() => continue,
                _ => {
                    self.answered.parts += u32::from(!std::mem::replace(&mut is_part, true));
                    if let Err(error) = take(&message) {
                        self.fail(error);
                    }
                    continue;
                }
            };
            return Some(self.end(end));
        }
        None
    }

    fn end(&mut self, ack: Result<Ack, SocketError>) -> Result<Answered, SocketError> {
        let ack = ack?;
        match self.failure.take() {
            Some(error) => Err(error),
            None if ack.errno == libc::EINTR => Err(SocketError::Interrupted),
            None if ack.errno != 0 => Err(SocketError::Refused(ack)),
            None => Ok(self.answered),
        }
    }
}

/// Answers to a transaction, collected.
#[derive(Debug, Default)]
struct Verdict {
    whole: Option<Ack>,
    refused: Vec<(usize, Ack)>,
    last: Option<usize>,
}

impl Verdict {
    fn read(&mut self, datagram: &[u8], batch: &Encoded) -> Result<(), SocketError> {
        for message in Messages::new(datagram) {
            let message = message?;
            if message.kind != kind::ERROR || !batch.owns(message.sequence) {
                continue;
            }
            let ack = message.ack()?;
            match batch.index_of(message.sequence) {
                Some(index) => {
                    self.last = self.last.max(Some(index));
                    if ack.errno != 0 {
                        self.refused.push((index, ack));
                    }
                }
                // Answers to BATCH_BEGIN speak for all: commit-time errors carry its sequence number too.
                None if ack.errno != 0 => self.whole = Some(ack),
                None => {}
            }
        }
        Ok(())
    }

    fn outcome(mut self) -> Outcome {
        self.refused.sort_by_key(|(index, _)| *index);
        match (self.whole, self.refused.is_empty()) {
            (_, false) => Outcome::Messages(self.refused),
            (Some(ack), true) => Outcome::Whole(ack),
            (None, true) => Outcome::Done,
        }
    }
}

fn failed(call: &'static str) -> SocketError {
    SocketError::Call { call, source: io::Error::last_os_error() }
}

fn empty_address() -> libc::sockaddr_nl {
    // SAFETY: sockaddr_nl is plain integers; all-zero is the kernel's address, or "choose a port" in bind.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).unwrap_or(0);
    address
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}
