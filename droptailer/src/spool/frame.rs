//! How records stand in a file; pure.
//!
//! ```text
//! segment:  "FWSPOOL1" first:u64 weight:u64 session:16 crc:u32        weight: of all records before it
//! record:   length:u32 crc:u32 number:u64 weight:u64 bytes            crc: of all but itself
//! slot:     count:u64 oldest:u64 crc:u32                              the valid one with the higher count holds
//! ```
//!
//! All numbers are big-endian. Whatever a crash leaves is read up to the first record that is not whole.

use super::{SESSION_BYTES, Stored};

const MAGIC: &[u8; 8] = b"FWSPOOL1";
/// Bytes of a segment's header.
pub(super) const HEADER: usize = 8 + 8 + 8 + SESSION_BYTES + 4;
/// Bytes before a record's own.
pub(super) const RECORD: usize = 4 + 4 + 8 + 8;
/// Bytes of a slot.
pub(super) const SLOT: usize = 8 + 8 + 4;
/// Longest record; a longer one is a torn length.
pub(super) const LONGEST: usize = 64 << 10;

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) first: u64,
    pub(super) weight: u64,
    pub(super) session: [u8; SESSION_BYTES],
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(MAGIC);
        bytes.extend(self.first.to_be_bytes());
        bytes.extend(self.weight.to_be_bytes());
        bytes.extend(self.session);
        let sum = crc(&bytes);
        bytes.extend(sum.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.get(..HEADER)?.split_at(HEADER - 4);
        if body.get(..8)? != MAGIC || sum != crc(body).to_be_bytes() {
            return None;
        }
        let session = body.get(24..)?.try_into().ok()?;
        Some(Self { first: number(body, 8)?, weight: number(body, 16)?, session })
    }
}

pub(super) fn encode(stored: &Stored) -> Option<Vec<u8>> {
    let length = u32::try_from(stored.bytes.len()).ok().filter(|_| stored.bytes.len() <= LONGEST)?;
    let mut bytes = Vec::with_capacity(RECORD + stored.bytes.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(stored.number.to_be_bytes());
    bytes.extend(stored.weight.to_be_bytes());
    bytes.extend(&stored.bytes);
    let sum = crc_of_record(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_be_bytes());
    Some(bytes)
}

/// The record at the beginning and its length in the file; `None` when it is not whole.
pub(super) fn decode(bytes: &[u8]) -> Option<(Stored, usize)> {
    let length = usize::try_from(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let whole = bytes.get(..RECORD + Some(length).filter(|length| *length <= LONGEST)?)?;
    if whole.get(4..8)? != crc_of_record(whole).to_be_bytes() {
        return None;
    }
    let stored = Stored {
        number: number(whole, 8)?,
        weight: number(whole, 16)?,
        bytes: whole.get(RECORD..)?.to_vec(),
    };
    Some((stored, whole.len()))
}

pub(super) fn encode_slot(count: u64, oldest: u64) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    bytes[..8].copy_from_slice(&count.to_be_bytes());
    bytes[8..16].copy_from_slice(&oldest.to_be_bytes());
    let sum = crc(&bytes[..16]);
    bytes[16..].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Count and oldest number.
pub(super) fn decode_slot(bytes: &[u8]) -> Option<(u64, u64)> {
    let (body, sum) = bytes.get(..SLOT)?.split_at(SLOT - 4);
    if sum != crc(body).to_be_bytes() {
        return None;
    }
    Some((number(body, 0)?, number(body, 8)?))
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn crc_of_record(whole: &[u8]) -> u32 {
    let (length, rest) = whole.split_at(whole.len().min(4));
    !update(update(!0, length), rest.get(4..).unwrap_or_default())
}

/// CRC-32 of IEEE 802.3.
fn crc(bytes: &[u8]) -> u32 {
    !update(!0, bytes)
}

fn update(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |sum, byte| {
        let index = (sum ^ u32::from(*byte)) & 0xff;
        (sum >> 8) ^ usize::try_from(index).ok().and_then(|index| TABLE.get(index)).copied().unwrap_or(0)
    })
}

const TABLE: [u32; 256] = {
    let mut table = [0_u32; 256];
    let mut index = 0_u32;
    while index < 256 {
        let (mut sum, mut bit) = (index, 0);
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
            bit += 1;
        }
        table[index as usize] = sum;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_ieee_802_3() {
        assert_eq!(crc(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found() {
        let stored = Stored { number: 7, weight: 3, bytes: b"record".to_vec() };
        let bytes = encode(&stored).unwrap();
        assert_eq!(decode(&bytes), Some((stored, bytes.len())));
        for bit in 0..bytes.len() * 8 {
            let mut torn = bytes.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&torn), None, "bit {bit}");
        }
        assert!((0..bytes.len()).all(|length| decode(&bytes[..length]).is_none()));
    }
}
