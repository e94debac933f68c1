//! DNS messages made and read by the tests, apart from the proxy's own code.

use hickory_proto::op::Message;

pub(crate) const A: u16 = 1;
pub(crate) const TXT: u16 = 16;
pub(crate) const AAAA: u16 = 28;

/// A name in wire format, case as written.
pub(crate) fn name(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in text.trim_end_matches('.').split('.').filter(|label| !label.is_empty()) {
        wire.push(label.len() as u8);
        wire.extend(label.as_bytes());
    }
    wire.push(0);
    wire
}

/// A question with RD.
pub(crate) fn query(id: u16, text: &str, kind: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(name(text));
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// A question with an OPT record.
pub(crate) fn edns_query(
    id: u16,
    text: &str,
    kind: u16,
    size: u16,
    dnssec_ok: bool,
    options: &[u8],
) -> Vec<u8> {
    let mut message = query(id, text, kind);
    message[11] = 1;
    message.extend([0, 0, 41]);
    message.extend(size.to_be_bytes());
    message.extend([0, 0, if dnssec_ok { 0x80 } else { 0 }, 0]);
    message.extend((options.len() as u16).to_be_bytes());
    message.extend(options);
    message
}

/// Where the question section ends.
pub(crate) fn question_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] != 0 {
        at += 1 + usize::from(message[at]);
    }
    at + 5
}

/// One record owned by the question's name.
pub(crate) fn record(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut record = vec![0xc0, 12];
    record.extend(kind.to_be_bytes());
    record.extend([0, 1]);
    record.extend(ttl.to_be_bytes());
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    record
}

/// An answer to `query` with these records in its answer section, and no OPT.
pub(crate) fn answer(query: &[u8], records: &[Vec<u8>]) -> Vec<u8> {
    let mut message = query[..question_end(query)].to_vec();
    message[2] |= 0x80;
    message[3] |= 0x80;
    message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
    message[8..12].fill(0);
    message.extend(records.concat());
    message
}

/// An answer with one address.
pub(crate) fn a(query: &[u8], ttl: u32, address: [u8; 4]) -> Vec<u8> {
    answer(query, &[record(A, ttl, &address)])
}

/// An answer without records.
pub(crate) fn empty(query: &[u8], rcode: u8) -> Vec<u8> {
    let mut message = answer(query, &[]);
    message[3] |= rcode;
    message
}

/// NXDOMAIN or NODATA with a SOA in the authority section.
pub(crate) fn negative(query: &[u8], rcode: u8, ttl: u32, minimum: u32) -> Vec<u8> {
    let mut soa = vec![0, 0];
    for number in [1, 2, 3, 4, minimum] {
        soa.extend(u32::to_be_bytes(number));
    }
    let mut message = answer(query, &[record(6, ttl, &soa)]);
    message[3] |= rcode;
    message[6..10].copy_from_slice(&[0, 0, 0, 1]);
    message
}

pub(crate) fn id(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

pub(crate) fn with_id(mut message: Vec<u8>, id: u16) -> Vec<u8> {
    message[..2].copy_from_slice(&id.to_be_bytes());
    message
}

pub(crate) fn rcode(message: &[u8]) -> u8 {
    message[3] & 0xf
}

pub(crate) fn truncated(message: &[u8]) -> bool {
    message[2] & 2 != 0
}

/// The message as an independent codec reads it.
pub(crate) fn read(message: &[u8]) -> Message {
    Message::from_vec(message).unwrap()
}

/// TTLs of the answer section.
pub(crate) fn ttls(message: &[u8]) -> Vec<u32> {
    read(message).answers.iter().map(|record| record.ttl).collect()
}
