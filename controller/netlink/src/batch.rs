//! Transactions: messages between BATCH_BEGIN and BATCH_END that the kernel applies all or none.

use crate::attr::Writer;
use crate::message::{HEADER, Head, flag, write};

/// NFNL_MSG_BATCH_BEGIN and _END (include/uapi/linux/netfilter/nfnetlink.h).
const BEGIN: u8 = 0x10;
const END: u8 = 0x11;
/// NFNL_BATCH_GENID.
const GENID: u16 = 1;

/// A message too long for netlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message {index} of the transaction has an attribute of more than 64 KiB")]
pub struct TooLong {
    /// Index of the message, from 0.
    pub index: usize,
}

/// A transaction being written.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    subsystem: u8,
    first_sequence: u32,
    starts: Vec<usize>,
    guarded: bool,
    too_long: Option<usize>,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// With BATCH_END: applied when every message is good.
    Commit,
    /// Without: the kernel goes through every message, validates the result and undoes it (nfnetlink_rcv_batch
    /// aborts with NFNL_ABORT_VALIDATE when the end is missing).
    DryRun,
}

/// A transaction ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Everything, for ONE sendmsg: the kernel takes a batch only whole.
    pub bytes: Vec<u8>,
    /// Sequence number of BATCH_BEGIN; message `i` has this plus `1 + i`.
    pub first_sequence: u32,
    /// Where each message begins in `bytes`.
    pub starts: Vec<usize>,
    guarded: bool,
}

impl Batch {
    /// Begins a transaction. With a generation the kernel refuses it with ERESTART when the ruleset of the
    /// namespace has had another commit since.
    pub fn new(subsystem: u8, generation: Option<u32>, first_sequence: u32) -> Self {
        let mut bytes = Vec::with_capacity(4096);
        let head = Head {
            message: BEGIN,
            sequence: first_sequence,
            resource: u16::from(subsystem),
            ..Head::default()
        };
        write(&mut bytes, &head, |w| {
            if let Some(generation) = generation {
                w.be32(GENID, generation);
            }
        });
        let guarded = generation.is_some();
        Self { bytes, subsystem, first_sequence, starts: Vec::new(), guarded, too_long: None }
    }

    /// Appends a message and gives its index.
    pub fn push(&mut self, message: u8, flags: u16, family: u8, fill: impl FnOnce(&mut Writer<'_>)) -> usize {
        let index = self.starts.len();
        self.starts.push(self.bytes.len());
        let sequence = self.sequence(index);
        let head = Head { subsystem: self.subsystem, message, flags, sequence, family, resource: 0 };
        if !write(&mut self.bytes, &head, fill) {
            self.too_long.get_or_insert(index);
        }
        index
    }

    /// Messages so far.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// True without messages.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Ends the transaction. Asks for an acknowledgement of the first and the last message only: every one
    /// costs a buffer in the receive queue, and the end itself is acknowledged only by Linux 6.10 and newer.
    pub fn finish(mut self, finish: Finish) -> Result<Encoded, TooLong> {
        if let Some(index) = self.too_long {
            return Err(TooLong { index });
        }
        for start in [self.starts.first(), self.starts.last()].into_iter().flatten() {
            acknowledge(&mut self.bytes, *start);
        }
        if finish == Finish::Commit {
            let head = Head {
                message: END,
                sequence: self.sequence(self.starts.len()),
                resource: u16::from(self.subsystem),
                ..Head::default()
            };
            write(&mut self.bytes, &head, |_| {});
        }
        let Self { bytes, first_sequence, starts, guarded, .. } = self;
        Ok(Encoded { bytes, first_sequence, starts, guarded })
    }

    fn sequence(&self, index: usize) -> u32 {
        // Sequence numbers wrap; only their difference matters.
        self.first_sequence.wrapping_add(1).wrapping_add(u32::try_from(index).unwrap_or(u32::MAX))
    }
}

/// Sets NLM_F_ACK in the header at `start`.
fn acknowledge(bytes: &mut [u8], start: usize) {
    let flags = &mut bytes[start + 6..start + 8];
    let asked = u16::from_ne_bytes([flags[0], flags[1]]) | flag::ACK;
    flags.copy_from_slice(&asked.to_ne_bytes());
}

impl Encoded {
    /// Asks for an acknowledgement of the last header: BATCH_END's in a transaction without messages.
    pub(crate) fn acknowledge_end(&mut self) {
        if let Some(start) = self.bytes.len().checked_sub(HEADER + crate::message::NFGEN) {
            acknowledge(&mut self.bytes, start);
        }
    }

    /// Guards the transaction by another generation than the one it was written for. No effect when it has none.
    pub fn guard(&mut self, generation: u32) {
        // Header, nfgenmsg, attribute header; see `Batch::new`.
        let at = HEADER + crate::message::NFGEN + 4;
        if self.guarded {
            self.bytes[at..at + 4].copy_from_slice(&generation.to_be_bytes());
        }
    }

    /// Which message a sequence number belongs to; `None` for BATCH_BEGIN, BATCH_END and strangers.
    pub fn index_of(&self, sequence: u32) -> Option<usize> {
        let distance = sequence.wrapping_sub(self.first_sequence).checked_sub(1)?;
        usize::try_from(distance).ok().filter(|index| *index < self.starts.len())
    }

    /// True for a sequence number between BATCH_BEGIN's and BATCH_END's.
    pub fn owns(&self, sequence: u32) -> bool {
        let distance = sequence.wrapping_sub(self.first_sequence);
        usize::try_from(distance).is_ok_and(|distance| distance <= self.starts.len() + 1)
    }

    /// The attributes of a message and where they begin, counted from its header.
    pub fn attributes(&self, index: usize) -> Option<(&[u8], usize)> {
        let start = *self.starts.get(index)?;
        let length: [u8; 4] = self.bytes.get(start..start + 4)?.try_into().ok()?;
        let end = start.checked_add(usize::try_from(u32::from_ne_bytes(length)).ok()?)?;
        let head = HEADER + crate::message::NFGEN;
        Some((self.bytes.get(start + head..end)?, head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Messages;

    #[test]
    fn only_the_first_and_the_last_message_ask_for_an_acknowledgement() {
        let mut batch = Batch::new(10, Some(7), 100);
        for _ in 0..3 {
            batch.push(0, flag::CREATE, 1, |w| w.text(1, "t"));
        }
        let encoded = batch.finish(Finish::Commit).unwrap();
        let messages: Vec<_> = Messages::new(&encoded.bytes).collect::<Result<_, _>>().unwrap();
        let acks: Vec<bool> = messages.iter().map(|m| m.flags & flag::ACK != 0).collect();
        assert_eq!(acks, [false, true, false, true, false]);
        assert_eq!(messages[0].attrs().next().unwrap().unwrap().be32(), Ok(7));
        assert_eq!(messages.iter().map(|m| m.sequence).collect::<Vec<_>>(), [100, 101, 102, 103, 104]);
        assert_eq!(encoded.index_of(102), Some(1));
        assert_eq!(encoded.index_of(100), None);
        assert_eq!(encoded.index_of(104), None);
    }

    #[test]
    fn the_guard_can_be_renewed_without_writing_the_transaction_again() {
        let mut batch = Batch::new(10, Some(7), 1);
        batch.push(0, 0, 1, |_| {});
        let mut encoded = batch.finish(Finish::Commit).unwrap();
        encoded.guard(0x0102_0304);
        let begin = Messages::new(&encoded.bytes).next().unwrap().unwrap();
        assert_eq!(begin.attrs().next().unwrap().unwrap().be32(), Ok(0x0102_0304));
    }

    #[test]
    fn a_dry_run_has_no_end_and_sequence_numbers_may_wrap() {
        let mut batch = Batch::new(10, None, u32::MAX);
        batch.push(0, 0, 1, |_| {});
        let encoded = batch.finish(Finish::DryRun).unwrap();
        assert_eq!(Messages::new(&encoded.bytes).count(), 2);
        assert_eq!(encoded.index_of(0), Some(0));
        assert!(encoded.owns(u32::MAX) && !encoded.owns(u32::MAX - 1));
    }

    #[test]
    fn a_message_that_does_not_fit_is_named() {
        let mut batch = Batch::new(10, None, 1);
        batch.push(0, 0, 1, |_| {});
        batch.push(0, 0, 1, |w| w.bytes(1, &vec![0; 70_000]));
        assert_eq!(batch.finish(Finish::Commit), Err(TooLong { index: 1 }));
    }
}
