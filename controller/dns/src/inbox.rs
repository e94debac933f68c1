//! Many datagrams by one system call.

use std::io::{self, IoSliceMut};
use std::os::fd::RawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, RecvMsg, SockaddrLike, recvmmsg};

/// Datagrams taken at a time. What they lead to is sent when all have been looked at: a receiver that sleeps is then
/// woken once for all of them, which costs more than the rest of sending.
pub(crate) const BATCH: usize = 32;
/// Between datagrams, so that the first bytes of all do not compete for one set of the processor's cache.
const STAGGER: usize = 64;

/// Room for a batch of datagrams, each with the address (`S`; `()`: none) and whatever else (`M`) it came with.
#[derive(Debug)]
pub(crate) struct Inbox<S, M> {
    headers: MultiHeaders<S>,
    control: Option<Vec<u8>>,
    bytes: Vec<u8>,
    room: usize,
    received: Vec<(usize, M)>,
}

impl<S: Copy + SockaddrLike, M> Inbox<S, M> {
    /// Takes `room` bytes of each datagram, and the control messages that fit into `control`.
    pub(crate) fn new(room: usize, control: Option<Vec<u8>>) -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, control.clone()),
            control,
            // Zeroed by the kernel when it is first written to: a place costs what the longest datagram in it was.
            bytes: vec![0; BATCH * (room + STAGGER)],
            room,
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Receives what is there, in place of what was; says how many. An error, EAGAIN above all: there was nothing.
    pub(crate) fn receive(
        &mut self,
        socket: RawFd,
        about: impl Fn(&RecvMsg<'_, '_, S>) -> M,
    ) -> io::Result<usize> {
        self.received.clear();
        let room = self.room;
        let places = self.bytes.chunks_exact_mut(room + STAGGER);
        let mut slices: Vec<_> = places.map(|place| [IoSliceMut::new(&mut place[..room])]).collect();
        // With MSG_TRUNC the kernel gives a datagram's real length (recv(2)).
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let messages = recvmmsg(socket, &mut self.headers, slices.iter_mut(), flags, None)?;
        self.received.extend(messages.map(|message| (message.bytes.min(room), about(&message))));
        Ok(self.received.len())
    }

    /// Makes room for control messages again: the kernel lowers it to what the last one took.
    pub(crate) fn renew(&mut self) {
        self.headers = MultiHeaders::preallocate(BATCH, self.control.clone());
    }

    /// What was received, cut to the room.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = (&[u8], &M)> {
        let places = self.bytes.chunks_exact(self.room + STAGGER);
        self.received.iter().zip(places).map(|((length, about), place)| (&place[..*length], about))
    }
}
