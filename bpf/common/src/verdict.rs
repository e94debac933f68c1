//! What becomes of a packet.

use crate::layout::{CELLS_PER_CLASS, CLASS_HOPS, Config, NO_CLASS, Reason, Step, flag};
use crate::packet::{Address, Packet, TCP, UDP, bytes_of};
use crate::{Allow, Class};

const PORT_DNS: u16 = 53;
const PORT_DOT: u16 = 853;
/// A DHCP client's: what it is offered may be sent to the address that it does not have yet (RFC 2131, section 4.1).
const PORT_DHCP_CLIENT: u16 = 68;

/// The maps, the configuration and the clock.
pub trait Tables {
    /// `CONFIG[0]`.
    fn config(&self) -> Config;
    /// CLOCK_MONOTONIC in nanoseconds; asked once an entry was found.
    fn now_ns(&self) -> u64;
    /// What names allow for an IPv4 address.
    fn allow4(&self, address: &[u8; 4]) -> Option<&Allow>;
    /// What names allow for an IPv6 address.
    fn allow6(&self, address: &[u8; 16]) -> Option<&Allow>;
    /// A slot of `CLASSES`.
    fn class(&self, slot: u32) -> Option<&Class>;
    /// Class of the longest prefix that holds an IPv4 address.
    fn static4(&self, address: &[u8; 4]) -> Option<u32>;
    /// Class of the longest prefix that holds an IPv6 address.
    fn static6(&self, address: &[u8; 16]) -> Option<u32>;
    /// The class of a step of this address. The kernel's maps say [`NO_CLASS`] where the element was given to another
    /// address while it was being read.
    #[inline(always)]
    fn class_of(&self, step: &Step, _address: &Address) -> u32 {
        step.class
    }
    /// [`cell_index`] over these tables. The kernel's program has it as a function of its own, which the verifier
    /// looks at once and not on every path that leads to it.
    #[inline(always)]
    fn index_in(&self, class: u32, protocol: u8, port: u16) -> Option<u32>
    where
        Self: Sized,
    {
        cell_index(self, class, protocol, port)
    }
}

/// The kernel's table of connections, where it can be asked.
pub trait Conntrack {
    /// Whether it can be. If not, only openings of TCP connections are bounced: every datagram could be one of a live
    /// connection.
    fn can_be_asked(&self) -> bool;
    /// Whether a connection has packets with these addresses and ports, in either direction. Asked last, for what would
    /// be bounced: it costs as much as all the rest.
    fn knows(&self, packet: &Packet) -> bool;
}

/// Conntrack cannot be asked.
#[derive(Clone, Copy, Debug)]
pub struct Unasked;

impl Conntrack for Unasked {
    #[inline(always)]
    fn can_be_asked(&self) -> bool {
        false
    }

    #[inline(always)]
    fn knows(&self, _packet: &Packet) -> bool {
        false
    }
}

/// Whether a packet may be bounced, unless something allows it. Other segments of TCP without a connection are left to
/// nftables: by sysctl nf_conntrack_tcp_loose they are new or invalid, which it counts apart; and conntrack would be asked
/// about every answer of a server inside.
#[inline(always)]
#[must_use]
pub fn is_judged(packet: &Packet, conntrack: &impl Conntrack) -> bool {
    packet.opens && (packet.protocol == TCP || (packet.protocol == UDP && conntrack.can_be_asked()))
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// On to nftables, without a mark.
    Pass,
    /// On to nftables with this index in the mark; never 0.
    Stamp(u32),
    /// Dropped here.
    Bounce(Reason),
}

/// Judges a packet; frames that [`crate::parse`] cannot read pass.
///
/// Names come first and only ever add a mark. What is dropped is what nftables would drop as well: what opens a
/// connection that no name, no prefix of the static table and no interception holds, nor conntrack as a live one.
#[inline(always)]
pub fn verdict(packet: &Packet, tables: &impl Tables, conntrack: &impl Conntrack) -> Verdict {
    if packet.to_group || packet.destination.stays_on_the_link() {
        return Verdict::Pass;
    }
    let allow = match &packet.destination {
        Address::V4(word) => tables.allow4(&word.to_ne_bytes()),
        Address::V6(words) => tables.allow6(&bytes_of(*words)),
    };
    if let Some(allow) = allow {
        let class = live_class(allow, packet, tables);
        if let Some(index) = tables.index_in(class, packet.protocol, packet.port) {
            return if index == 0 { Verdict::Pass } else { Verdict::Stamp(index) };
        }
    }
    if !is_judged(packet, conntrack) {
        return Verdict::Pass;
    }
    let config = tables.config();
    if config.flags & flag::BOUNCE == 0
        || (packet.port == PORT_DNS && config.flags & flag::DNS != 0)
        || (packet.port == PORT_DOT && config.flags & flag::DOT != 0)
        || (packet.port == PORT_DHCP_CLIENT && packet.protocol == UDP)
    {
        return Verdict::Pass;
    }
    let prefix = match &packet.destination {
        Address::V4(word) => tables.static4(&word.to_ne_bytes()),
        Address::V6(words) => tables.static6(&bytes_of(*words)),
    };
    if tables.index_in(prefix.unwrap_or(NO_CLASS), packet.protocol, packet.port).is_some() {
        return Verdict::Pass;
    }
    if conntrack.can_be_asked() && conntrack.knows(packet) {
        return Verdict::Pass;
    }
    // Each class holds what all later ones hold, so the first one says what was ever allowed.
    let once = match allow {
        Some(allow) => tables.class_of(&allow.steps[0], &packet.destination),
        None => NO_CLASS,
    };
    let reason = if tables.index_in(once, packet.protocol, packet.port).is_some() {
        Reason::Expired
    } else {
        Reason::Policy
    };
    Verdict::Bounce(reason)
}

/// Class of the first step that is not over.
#[inline(always)]
fn live_class(allow: &Allow, packet: &Packet, tables: &impl Tables) -> u32 {
    let now = tables.now_ns();
    for step in &allow.steps {
        if now < step.until_ns {
            return tables.class_of(step, &packet.destination);
        }
    }
    NO_CLASS
}

/// Index of the cell that holds a protocol and port, in a class and the slots it is chained over.
#[inline(always)]
pub fn cell_index(tables: &impl Tables, class: u32, protocol: u8, port: u16) -> Option<u32> {
    let mut slot = class;
    let mut hops = 0;
    while hops < CLASS_HOPS && slot != NO_CLASS {
        let content = tables.class(slot)?;
        let mut position = 0;
        while position < CELLS_PER_CLASS {
            let cell = &content.cells[position];
            if cell.protocol == 0 {
                return None;
            }
            if cell.protocol == protocol && cell.first <= port && port <= cell.last {
                return Some(cell.index);
            }
            position += 1;
        }
        slot = content.next;
        hops += 1;
    }
    None
}
