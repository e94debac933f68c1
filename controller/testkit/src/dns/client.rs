//! Clients that send any bytes and keep every byte that comes back.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hickory_proto::op::Message;

use crate::Netns;
use crate::dns::wire::{self, Query};
use crate::traffic::probe::{any_address, connect_within};
use crate::traffic::server::is_temporary;

/// A message that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As it was on the wire, without a TCP length prefix.
    pub bytes: Vec<u8>,
    /// Who sent it, as the client saw it.
    pub from: SocketAddr,
    /// Since the question was sent (the first of them, when several were sent at once).
    pub after: Duration,
}

impl Answer {
    /// The message id.
    pub fn id(&self) -> Option<u16> {
        Some(u16::from_be_bytes([*self.bytes.first()?, *self.bytes.get(1)?]))
    }

    /// The RCODE without its EDNS part.
    pub fn rcode(&self) -> Option<u8> {
        self.bytes.get(3).map(|byte| byte & 0xf)
    }

    /// True when it was cut (TC).
    pub fn is_truncated(&self) -> bool {
        self.bytes.get(2).is_some_and(|byte| byte & 2 != 0)
    }

    /// The addresses of the answer section with their TTLs.
    pub fn addresses(&self) -> Vec<(IpAddr, u32)> {
        wire::addresses(&self.bytes)
    }

    /// The addresses of the answer section in ascending order.
    pub fn ips(&self) -> Vec<IpAddr> {
        let mut ips: Vec<IpAddr> = self.addresses().into_iter().map(|(ip, _)| ip).collect();
        ips.sort_unstable();
        ips
    }

    /// The question as it came back: name, type and class byte for byte.
    pub fn question(&self) -> Option<Query> {
        Query::read(&self.bytes)
    }

    /// The message as hickory-proto reads it.
    pub fn message(&self) -> Result<Message> {
        Message::from_vec(&self.bytes).context("not a DNS message")
    }
}

/// A client with one UDP socket.
#[derive(Debug)]
pub struct Client {
    socket: UdpSocket,
    server: SocketAddr,
    asked: Instant,
}

impl Client {
    /// In a namespace, from any port, to one server.
    pub fn new(ns: &Netns, server: SocketAddr) -> Result<Self> {
        Self::from(ns, any_address(server), server)
    }

    /// As [`Client::new`], from a given address and port.
    pub fn from(ns: &Netns, from: SocketAddr, server: SocketAddr) -> Result<Self> {
        // Not connected: whoever answers is seen, also the wrong one.
        let socket =
            ns.run(|| UdpSocket::bind(from))?.with_context(|| format!("cannot ask from udp {from}"))?;
        Ok(Self { socket, server, asked: Instant::now() })
    }

    /// Its own address.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }

    /// Sends a question and waits for the answer with its id; others are passed over. `None`: there was none in time.
    pub fn ask(&mut self, query: &Query, patience: Duration) -> Result<Option<Answer>> {
        self.send(&query.bytes()?)?;
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(answer) if answer.id() == Some(query.id) => return Ok(Some(answer)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Sends any bytes as one datagram.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.asked = Instant::now();
        let sent = self.socket.send_to(bytes, self.server);
        sent.map(drop).with_context(|| format!("cannot send to {}", self.server))
    }

    /// The next datagram, whoever sent it.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Answer>> {
        // Zero would mean "for ever".
        self.socket.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let mut buffer = vec![0; 65_535];
        match self.socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                buffer.truncate(length);
                Ok(Some(Answer { bytes: buffer, from, after: self.asked.elapsed() }))
            }
            Err(error) if is_temporary(&error) => Ok(None),
            Err(error) => Err(error).context("cannot receive"),
        }
    }
}

/// A client with one TCP connection, on which several questions may be under way.
#[derive(Debug)]
pub struct TcpClient {
    stream: TcpStream,
    server: SocketAddr,
    received: Vec<u8>,
    asked: Instant,
}

impl TcpClient {
    /// Connects from a namespace.
    pub fn connect(ns: &Netns, server: SocketAddr, patience: Duration) -> Result<Self> {
        let stream = ns
            .run(|| connect_within(None, server, patience))?
            .with_context(|| format!("cannot connect to {server}"))?;
        Ok(Self { stream, server, received: Vec::new(), asked: Instant::now() })
    }

    /// Sends all questions at once in one segment and gives the answers in the order in which they came, fewer when
    /// the time is over or the server closes.
    pub fn ask_all(&mut self, queries: &[Query], patience: Duration) -> Result<Vec<Answer>> {
        let mut bytes = Vec::new();
        for query in queries {
            bytes.extend(framed(&query.bytes()?)?);
        }
        self.send(&bytes)?;
        let deadline = Instant::now() + patience;
        let mut answers = Vec::new();
        while answers.len() < queries.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(answer) => answers.push(answer),
                None => break,
            }
        }
        Ok(answers)
    }

    /// One question, one answer.
    pub fn ask(&mut self, query: &Query, patience: Duration) -> Result<Option<Answer>> {
        Ok(self.ask_all(std::slice::from_ref(query), patience)?.pop())
    }

    /// Sends bytes as they are: length prefixes are the caller's (see [`framed`]).
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.asked = Instant::now();
        self.stream.write_all(bytes).with_context(|| format!("cannot send to {}", self.server))
    }

    /// Sends bytes in pieces cut at the given offsets, each piece a segment of its own `pause` after the one before.
    pub fn send_split(&mut self, bytes: &[u8], cuts: &[usize], pause: Duration) -> Result<()> {
        let mut start = 0;
        for end in cuts.iter().copied().chain([bytes.len()]) {
            let piece = bytes.get(start..end).with_context(|| format!("no bytes {start}..{end} to send"))?;
            if start > 0 {
                std::thread::sleep(pause);
            }
            // No delay is set: what is written is sent.
            self.send(piece)?;
            start = end;
        }
        Ok(())
    }

    /// The next message; `None` when the time is over or the server has closed.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Answer>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(bytes) = take_message(&mut self.received) {
                return Ok(Some(Answer { bytes, from: self.server, after: self.asked.elapsed() }));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.read_some(left)? == 0 {
                return Ok(None);
            }
        }
    }

    /// Waits until the server closes the connection; false when it does not in time. Messages are passed over.
    pub fn wait_for_close(&mut self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            match self.read_some(left) {
                Ok(0) => return Ok(Instant::now() < deadline),
                Ok(_) => self.received.clear(),
                Err(_) => return Ok(true),
            }
        }
    }

    /// 0: the end, or the time is over.
    fn read_some(&mut self, patience: Duration) -> Result<usize> {
        self.stream.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let mut buffer = vec![0; 65_535];
        match self.stream.read(&mut buffer) {
            Ok(length) => {
                self.received.extend(&buffer[..length]);
                Ok(length)
            }
            Err(error) if is_temporary(&error) => Ok(0),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                bail!("{} reset the connection", self.server)
            }
            Err(error) => Err(error).context("cannot receive"),
        }
    }
}

/// A message with the length prefix that TCP wants (RFC 1035 section 4.2.2).
pub fn framed(message: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(message.len()).context("a message over TCP has at most 65,535 bytes")?;
    Ok([&length.to_be_bytes()[..], message].concat())
}

/// Takes a complete message off the front of what has been received over TCP.
pub(crate) fn take_message(received: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes([*received.first()?, *received.get(1)?]));
    if received.len() < 2 + length {
        return None;
    }
    let message = received[2..2 + length].to_vec();
    received.drain(..2 + length);
    Some(message)
}
