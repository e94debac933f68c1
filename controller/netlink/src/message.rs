//! Netlink messages: header, nfnetlink's own header, acknowledgements with extended information.

use crate::attr::{Attrs, DecodeError, Writer, align};

/// `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// `struct nfgenmsg`.
pub const NFGEN: usize = 4;

/// nfnetlink subsystems (include/uapi/linux/netfilter/nfnetlink.h).
pub mod subsystem {
    /// Conntrack.
    pub const CTNETLINK: u8 = 1;
    /// NFLOG.
    pub const ULOG: u8 = 4;
    /// nftables.
    pub const NFTABLES: u8 = 10;
}

/// Header flags (include/uapi/linux/netlink.h).
pub mod flag {
    /// A request; every message to the kernel has it.
    pub const REQUEST: u16 = 0x1;
    /// Part of an answer that ends with a DONE message.
    pub const MULTI: u16 = 0x2;
    /// Answer with an acknowledgement.
    pub const ACK: u16 = 0x4;
    /// The dump was torn by a change; what was read is not one state.
    pub const DUMP_INTR: u16 = 0x10;
    /// NLM_F_ROOT | NLM_F_MATCH.
    pub const DUMP: u16 = 0x300;
    /// Fail when it exists.
    pub const EXCL: u16 = 0x200;
    /// Create when it does not exist.
    pub const CREATE: u16 = 0x400;
    /// Append (rules).
    pub const APPEND: u16 = 0x800;
    /// An acknowledgement repeats only the header of the request.
    pub const CAPPED: u16 = 0x100;
    /// An acknowledgement has attributes.
    pub const ACK_TLVS: u16 = 0x200;
}

/// Message types every netlink family has.
pub mod kind {
    /// Acknowledgement; errno 0 is success.
    pub const ERROR: u16 = 2;
    /// End of a dump.
    pub const DONE: u16 = 3;
    /// Messages were lost.
    pub const OVERRUN: u16 = 4;
}

/// A received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Type: subsystem in the upper byte, message in the lower one.
    pub kind: u16,
    /// Flags of [`flag`].
    pub flags: u16,
    /// Sequence number of the request it answers.
    pub sequence: u32,
    /// Netlink port of whoever caused it.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Subsystem and message number.
    pub fn nfnl(&self) -> (u8, u8) {
        let [subsystem, message] = self.kind.to_be_bytes();
        (subsystem, message)
    }

    /// nfnetlink's header: family and resource id.
    pub fn nfgen(&self) -> Result<(u8, u16), DecodeError> {
        let head = self.payload.get(..NFGEN).ok_or(DecodeError::Length(HEADER))?;
        Ok((head[0], u16::from_be_bytes([head[2], head[3]])))
    }

    /// The attributes behind nfnetlink's header.
    pub fn attrs(&self) -> Attrs<'a> {
        Attrs::new(self.payload.get(NFGEN..).unwrap_or_default())
    }

    /// Reads an acknowledgement.
    pub fn ack(&self) -> Result<Ack, DecodeError> {
        Ack::decode(self)
    }

    /// The errno of a DONE message: 0, or positive when the dump failed underway.
    pub fn done(&self) -> i32 {
        let code = self.payload.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
        code.checked_neg().unwrap_or(0)
    }
}

/// Iterates over the messages of one datagram; ends after the first error.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Messages<'a> {
    /// The messages of a datagram.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        if rest.is_empty() {
            return None;
        }
        let message = parse(rest);
        let Some((message, length)) = message else {
            let error = DecodeError::Length(self.offset);
            self.offset = self.bytes.len();
            return Some(Err(error));
        };
        self.offset = self.offset.saturating_add(align(length));
        Some(Ok(message))
    }
}

fn parse(rest: &[u8]) -> Option<(Message<'_>, usize)> {
    let word = |at: usize| rest.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let half = |at: usize| rest.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let length = usize::try_from(word(0)?).ok()?;
    let message = Message {
        kind: half(4)?,
        flags: half(6)?,
        sequence: word(8)?,
        port: word(12)?,
        payload: rest.get(HEADER..length)?,
    };
    Some((message, length))
}

/// What the kernel says about one request.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ack {
    /// 0 for success, else a positive errno.
    pub errno: i32,
    /// The kernel's own words (NLMSGERR_ATTR_MSG), when it has some.
    pub text: Option<String>,
    /// Where in the request the attribute lies that it objects to (NLMSGERR_ATTR_OFFS), in bytes from its header.
    pub offset: Option<usize>,
}

impl Ack {
    fn decode(message: &Message<'_>) -> Result<Self, DecodeError> {
        let payload = message.payload;
        let code = payload.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
        let code = code.ok_or(DecodeError::Length(HEADER))?;
        // A positive code would be read as success by a careless caller; the kernel sends none.
        let errno = code.checked_neg().filter(|n| *n >= 0).ok_or(DecodeError::Value(0))?;
        let mut ack = Self { errno, ..Self::default() };
        if message.flags & flag::ACK_TLVS == 0 {
            return Ok(ack);
        }
        let quoted = payload.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let quoted = usize::try_from(quoted.ok_or(DecodeError::Length(HEADER))?).unwrap_or(usize::MAX);
        let skip = if message.flags & flag::CAPPED == 0 { quoted } else { HEADER };
        let start = align(skip.min(payload.len())).saturating_add(4);
        for attr in Attrs::new(payload.get(start..).unwrap_or_default()) {
            let attr = attr?;
            match attr.kind {
                1 => ack.text = attr.text().ok(),
                2 => ack.offset = attr.array().ok().and_then(|b| usize::try_from(u32::from_ne_bytes(b)).ok()),
                _ => {}
            }
        }
        Ok(ack)
    }
}

/// Appends one nfnetlink message. `fill` writes its attributes; returns false when one of them was too long.
pub fn write(buffer: &mut Vec<u8>, head: &Head, fill: impl FnOnce(&mut Writer<'_>)) -> bool {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&u16::from_be_bytes([head.subsystem, head.message]).to_ne_bytes());
    buffer.extend_from_slice(&(head.flags | flag::REQUEST).to_ne_bytes());
    buffer.extend_from_slice(&head.sequence.to_ne_bytes());
    // Port 0: the kernel fills in the sender's.
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&[head.family, 0]);
    buffer.extend_from_slice(&head.resource.to_be_bytes());
    let mut writer = Writer::new(buffer);
    fill(&mut writer);
    let overflowed = writer.overflowed();
    match u32::try_from(buffer.len() - start) {
        Ok(length) => buffer[start..start + 4].copy_from_slice(&length.to_ne_bytes()),
        Err(_) => return false,
    }
    !overflowed
}

/// Headers of a message to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Head {
    /// nfnetlink subsystem; 0 for batch control.
    pub subsystem: u8,
    /// Message within it.
    pub message: u8,
    /// Flags of [`flag`]; REQUEST is always added.
    pub flags: u16,
    /// Sequence number.
    pub sequence: u32,
    /// NFPROTO_*.
    pub family: u8,
    /// Resource id: the group of NFLOG, the subsystem in batch control.
    pub resource: u16,
}
