//! The table of conntrack over one socket.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::entry::{Entry, ID, ORIGINAL, REPLY, Tuple, ZONE};
use crate::attr::DecodeError;
use crate::message::{Head, Message, flag, subsystem};
use crate::socket::{Socket, SocketError};

/// IPCTNL_MSG_CT_NEW, _GET and _DELETE.
const NEW: u8 = 0;
const GET: u8 = 1;
const DELETE: u8 = 2;
/// Entries that are remembered between a dump and their deletion; a dump that finds more is followed by another.
const DELETE_AT_ONCE: usize = 65_536;
/// Dumps for one deletion, at most: what comes up meanwhile is not chased for ever.
const DELETE_ROUNDS: usize = 64;

/// Why the table cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No CAP_NET_ADMIN.
    #[error(
        "reading and changing conntrack needs CAP_NET_ADMIN in the user namespace of the network namespace"
    )]
    Privilege,
    /// The socket failed.
    #[error("talking to conntrack failed")]
    Socket(#[source] SocketError),
}

impl From<SocketError> for ConntrackError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Refused(ack) if ack.errno == libc::EPERM => Self::Privilege,
            error => Self::Socket(error),
        }
    }
}

/// Which of an entry's tuples is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// [`Entry::original`]
    Original,
    /// [`Entry::reply`]
    Reply,
}

impl Direction {
    fn attribute(self) -> u16 {
        match self {
            Self::Original => ORIGINAL,
            Self::Reply => REPLY,
        }
    }

    fn of(self, entry: &Entry) -> Tuple {
        match self {
            Self::Original => entry.original,
            Self::Reply => entry.reply,
        }
    }
}

/// The table of the network namespace of the thread that opened it. Keep it open: a question is two system calls more
/// with a new socket.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens the socket.
    pub fn open() -> Result<Self, ConntrackError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Gives every entry of both families to `take`, one after the other; gives their number. Entries that come, go or
    /// move while the table is read may be missed or seen twice, as in any listing of conntrack.
    pub fn dump(&mut self, mut take: impl FnMut(&Entry)) -> Result<usize, ConntrackError> {
        let head = Head { flags: flag::DUMP, ..head(GET, 0) };
        let mut count = 0;
        self.socket.request(
            head,
            |_| {},
            |message| {
                if let Some(entry) = decode(message)? {
                    take(&entry);
                    count += 1;
                }
                Ok(())
            },
        )?;
        Ok(count)
    }

    /// The entry with this tuple in zone 0; `None` when there is none.
    pub fn get(&mut self, direction: Direction, tuple: &Tuple) -> Result<Option<Entry>, ConntrackError> {
        let mut found = None;
        let asked = self.socket.ask(
            head(GET, tuple.family()),
            |w| tuple.encode(w, direction.attribute()),
            |message| {
                found = decode(message)?;
                Ok(())
            },
        );
        match asked {
            Err(SocketError::Refused(ack)) if ack.errno == libc::ENOENT => Ok(None),
            Err(error) => Err(error.into()),
            // The kernel looks a tuple up among those of both directions (nf_conntrack_find_get).
            Ok(()) => Ok(found.filter(|entry: &Entry| direction.of(entry) == *tuple)),
        }
    }

    /// Where packets from `peer` that reach `local`, this machine's end, were sent to before they were redirected.
    /// `None` when conntrack knows nothing of them.
    pub fn original_destination(
        &mut self,
        protocol: u8,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Option<SocketAddr>, ConntrackError> {
        let answer = Tuple::with_ports(protocol, local, peer);
        let entry = self.get(Direction::Reply, &answer)?;
        Ok(entry.and_then(|entry| {
            let port = entry.original.destination_port()?;
            Some(SocketAddr::new(entry.original.destination, port))
        }))
    }

    /// Deletes an entry that was read; false when it is gone, or another one is in its place.
    pub fn delete(&mut self, entry: &Entry) -> Result<bool, ConntrackError> {
        let tuple = &entry.original;
        // With a tuple the kernel deletes that entry, without one the whole table (ctnetlink_del_conntrack).
        let asked = self.socket.request(
            head(DELETE, tuple.family()),
            |w| {
                tuple.encode(w, ORIGINAL);
                if let Some(id) = entry.id {
                    w.be32(ID, id);
                }
                if entry.zone != 0 {
                    w.be16(ZONE, entry.zone);
                }
            },
            |_| Ok(()),
        );
        match asked {
            Err(SocketError::Refused(ack)) if ack.errno == libc::ENOENT => Ok(false),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(true),
        }
    }

    /// Deletes the entry with this tuple in zone 0; false when there is none.
    pub fn delete_tuple(&mut self, direction: Direction, tuple: &Tuple) -> Result<bool, ConntrackError> {
        match self.get(direction, tuple)? {
            Some(entry) => self.delete(&entry),
            None => Ok(false),
        }
    }

    /// Deletes all entries that `wanted` says yes to; gives their number.
    ///
    /// ```no_run
    /// # use fw_netlink::ctnetlink::Conntrack;
    /// # fn redirected_from_now_on(inside: &[std::net::IpAddr]) -> Result<usize, fw_netlink::ctnetlink::ConntrackError> {
    /// Conntrack::open()?.delete_where(|entry| {
    ///     let tuple = &entry.original;
    ///     matches!(tuple.protocol, 6 | 17)
    ///         && tuple.destination_port() == Some(53)
    ///         && inside.contains(&tuple.source)
    /// })
    /// # }
    /// ```
    pub fn delete_where(&mut self, mut wanted: impl FnMut(&Entry) -> bool) -> Result<usize, ConntrackError> {
        let mut deleted = 0;
        for _ in 0..DELETE_ROUNDS {
            let mut list = Vec::new();
            let mut more = false;
            self.dump(|entry| {
                if !wanted(entry) {
                } else if list.len() < DELETE_AT_ONCE {
                    list.push(*entry);
                } else {
                    more = true;
                }
            })?;
            for entry in &list {
                deleted += usize::from(self.delete(entry)?);
            }
            if !more {
                break;
            }
        }
        Ok(deleted)
    }

    /// The addresses that live connections were made to, as their clients named them: what must not be forgotten
    /// while they last. See [`Entry::is_live`].
    pub fn live_destinations(&mut self) -> Result<BTreeSet<IpAddr>, ConntrackError> {
        let mut addresses = BTreeSet::new();
        self.dump(|entry| {
            if entry.is_live() {
                addresses.insert(entry.original.destination);
            }
        })?;
        Ok(addresses)
    }
}

fn head(message: u8, family: u8) -> Head {
    Head { subsystem: subsystem::CTNETLINK, message, family, ..Head::default() }
}

fn decode(message: &Message<'_>) -> Result<Option<Entry>, DecodeError> {
    if message.nfnl() != (subsystem::CTNETLINK, NEW) {
        return Ok(None);
    }
    let (family, _) = message.nfgen()?;
    // Only IPv4 and IPv6 are tracked.
    if matches!(family, 2 | 10) { Entry::decode(message.attrs()).map(Some) } else { Ok(None) }
}
