//! The listener of one NFLOG group.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use super::packet::{Config, Packet};
use crate::message::{Head, Messages, subsystem};
use crate::nft::message::GET_GENERATION;
use crate::socket::{Socket, SocketError};

/// Why a group cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum NflogError {
    /// The kernel gives a group to one listener per network namespace.
    #[error("NFLOG group {0} has another listener in this network namespace")]
    Busy(u16),
    /// No CAP_NET_ADMIN.
    #[error("listening to NFLOG needs CAP_NET_ADMIN")]
    Privilege,
    /// The socket failed.
    #[error("talking to NFLOG failed")]
    Socket(#[from] SocketError),
}

/// What is read and how it is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The group that `log group N` names.
    pub group: u16,
    /// Bytes of each packet.
    pub snaplen: u32,
    /// Packets the kernel collects before it sends.
    pub threshold: u32,
    /// How long it collects, at most, in hundredths of a second.
    pub timeout: u32,
    /// Bytes of receive buffer.
    pub receive_buffer: usize,
}

impl Options {
    /// A group, with the first 256 bytes of each packet, at most 0.1 s of delay, and 16 MiB of buffer, which hold
    /// a burst of some ten thousand packets.
    pub fn group(group: u16) -> Self {
        Self { group, snaplen: 256, threshold: 32, timeout: 10, receive_buffer: 16 << 20 }
    }
}

/// What did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Loss {
    /// Packets missing, by gaps in their numbers.
    pub packets: u64,
    /// How often the receive buffer overflowed (ENOBUFS).
    pub overruns: u64,
    /// Messages that could not be read.
    pub malformed: u64,
}

/// The listener of one NFLOG group, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Reader {
    socket: Socket,
    next: Option<u32>,
    loss: Loss,
}

impl Reader {
    /// Becomes the listener of a group.
    pub fn open(options: Options) -> Result<Self, NflogError> {
        let mut socket = Socket::open()?;
        socket.receive_buffer(options.receive_buffer)?;
        let steps = [
            Config::Bind,
            Config::Snaplen(options.snaplen),
            Config::Sequence,
            Config::BufferSize(64 * 1024),
            Config::Threshold(options.threshold),
            Config::Timeout(options.timeout),
        ];
        for step in steps {
            let head = Config::head(options.group);
            let result = socket.request(head, |w| step.encode(w), |_| Ok(()));
            result.map_err(|error| explain(error, &mut socket, options.group))?;
        }
        Ok(Self { socket, next: None, loss: Loss::default() })
    }

    /// Waits up to `timeout` for packets and gives each to `take`; gives their number. What was lost is in
    /// [`Self::loss`] and is no error. With a zero timeout it only takes what is there, for use with epoll.
    pub fn read(
        &mut self,
        timeout: Duration,
        mut take: impl FnMut(&Packet<'_>),
    ) -> Result<usize, NflogError> {
        let (loss, next) = (&mut self.loss, &mut self.next);
        let datagram = match self.socket.receive(timeout) {
            Ok(Some(datagram)) => datagram,
            Ok(None) => return Ok(0),
            Err(SocketError::Lost) => {
                loss.overruns += 1;
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        let mut count = 0;
        for message in Messages::new(datagram) {
            match message.and_then(|message| Packet::decode(&message)) {
                Ok(Some(packet)) => {
                    loss.packets += follow(next, packet.sequence);
                    take(&packet);
                    count += 1;
                }
                Ok(None) => {}
                Err(_) => loss.malformed += 1,
            }
        }
        Ok(count)
    }

    /// What was lost since the group was opened.
    pub fn loss(&self) -> Loss {
        self.loss
    }
}

impl AsRawFd for Reader {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A group that has a listener is refused with EPERM (nfulnl_recv_config), as is everything without the privilege;
/// a request that anybody with the privilege may make tells the two apart.
fn explain(error: SocketError, socket: &mut Socket, group: u16) -> NflogError {
    let is_eperm =
        |error: &SocketError| matches!(error, SocketError::Refused(ack) if ack.errno == libc::EPERM);
    if !is_eperm(&error) {
        return NflogError::Socket(error);
    }
    let head = Head { subsystem: subsystem::NFTABLES, message: GET_GENERATION, ..Head::default() };
    match socket.request(head, |_| {}, |_| Ok(())) {
        Err(error) if is_eperm(&error) => NflogError::Privilege,
        _ => NflogError::Busy(group),
    }
}

/// Numbers missing before `sequence`. A listener's first packet is number 0.
fn follow(next: &mut Option<u32>, sequence: Option<u32>) -> u64 {
    let Some(sequence) = sequence else { return 0 };
    let expected = next.replace(sequence.wrapping_add(1)).unwrap_or(0);
    u64::from(sequence.wrapping_sub(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_counted_also_before_the_first_packet_and_across_the_wrap() {
        let mut next = None;
        assert_eq!(follow(&mut next, Some(2)), 2);
        assert_eq!(follow(&mut next, Some(3)), 0);
        assert_eq!(follow(&mut next, Some(7)), 3);
        next = Some(u32::MAX);
        assert_eq!(follow(&mut next, Some(u32::MAX)), 0);
        assert_eq!(follow(&mut next, Some(1)), 1);
        assert_eq!(follow(&mut next, None), 0);
    }
}
