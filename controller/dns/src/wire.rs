//! Reads just enough of a DNS message (RFC 1035 section 4, RFC 6891) to forward it bit for bit.
//!
//! Offsets only, no allocation; every read is bounds-checked, and no compression pointer is ever followed.

use crate::metrics::Spoof;

/// Bytes of a header.
pub(crate) const HEADER: usize = 12;

/// Resource record types and query types.
pub(crate) mod kind {
    pub(crate) const SOA: u16 = 6;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// The Internet.
pub(crate) const CLASS_IN: u16 = 1;
/// Chaosnet, used for questions about the server itself.
pub(crate) const CLASS_CH: u16 = 3;

/// Response codes.
pub(crate) mod rcode {
    pub(crate) const NOERROR: u8 = 0;
    pub(crate) const FORMERR: u8 = 1;
    pub(crate) const SERVFAIL: u8 = 2;
    pub(crate) const NXDOMAIN: u8 = 3;
    pub(crate) const NOTIMP: u8 = 4;
    pub(crate) const REFUSED: u8 = 5;
}

/// Flags in the third byte of a header.
mod third {
    pub(super) const QR: u8 = 0x80;
    pub(super) const OPCODE: u8 = 0x78;
    pub(super) const AA: u8 = 0x04;
    pub(super) const TC: u8 = 0x02;
    pub(super) const RD: u8 = 0x01;
}

/// Flags in the fourth byte of a header.
mod fourth {
    pub(super) const RA: u8 = 0x80;
    pub(super) const Z: u8 = 0x40;
    pub(super) const AD: u8 = 0x20;
    pub(super) const CD: u8 = 0x10;
    pub(super) const RCODE: u8 = 0x0f;
}

/// The longest name (RFC 1035 section 2.3.4).
const NAME_MAX: usize = 255;
/// The option that carries a client's subnet (RFC 7871).
const CLIENT_SUBNET: u16 = 8;

/// Two bytes, big-endian.
pub(crate) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn put(message: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = message.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// The id of a message.
pub(crate) fn id(message: &[u8]) -> Option<u16> {
    u16_at(message, 0)
}

/// Gives a message another id.
pub(crate) fn set_id(message: &mut [u8], id: u16) {
    put(message, 0, &id.to_be_bytes());
}

/// Where an uncompressed name ends, its root label included.
pub(crate) fn name_end(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return (at - start <= NAME_MAX).then_some(at);
        }
        if length > 63 {
            return None;
        }
        at += length;
        if at - start > NAME_MAX {
            return None;
        }
    }
}

/// Where a name ends that may end in a compression pointer.
fn skip_name(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(length),
            0xc0.. => return (at + 2 <= message.len()).then_some(at + 2),
            _ => return None,
        }
        if at - start > NAME_MAX {
            return None;
        }
    }
}

/// One resource record, by offsets.
#[derive(Clone, Copy, Debug)]
struct Record {
    start: usize,
    kind: u16,
    ttl_at: usize,
    data: usize,
    end: usize,
}

fn record(message: &[u8], start: usize) -> Option<Record> {
    let fixed = skip_name(message, start)?;
    let length = usize::from(u16_at(message, fixed + 8)?);
    let (data, end) = (fixed + 10, fixed + 10 + length);
    (end <= message.len()).then_some(Record {
        start,
        kind: u16_at(message, fixed)?,
        ttl_at: fixed + 4,
        data,
        end,
    })
}

/// The OPT record of a message (RFC 6891 section 6.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    start: usize,
    end: usize,
    /// The UDP payload size the sender takes.
    pub(crate) size: u16,
    /// Whether there are options.
    pub(crate) options: bool,
    /// Extended RCODE, version and flags are all zero but for DO.
    plain: bool,
    /// The sender wants DNSSEC records.
    pub(crate) dnssec_ok: bool,
}

impl Edns {
    fn of(message: &[u8], record: &Record) -> Option<Self> {
        let ttl = u32_at(message, record.ttl_at)?;
        Some(Self {
            start: record.start,
            end: record.end,
            size: u16_at(message, record.ttl_at - 2)?,
            options: record.end > record.data,
            plain: ttl & !0x8000 == 0,
            dnssec_ok: ttl & 0x8000 != 0,
        })
    }
}

/// Why something is no question that can be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// No header, or an answer: saying anything could start a loop of answers.
    NoQuestion,
    /// FORMERR.
    Malformed,
    /// NOTIMP.
    NotImplemented,
}

/// A question with its offsets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    pub(crate) message: &'a [u8],
    name_end: usize,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) edns: Option<Edns>,
    others: bool,
}

impl<'a> Query<'a> {
    /// Reads a whole message of a client: one question, at most an OPT, and perhaps other additional records (TSIG).
    pub(crate) fn read(message: &'a [u8]) -> Result<Self, Invalid> {
        let flags = *message.get(2).ok_or(Invalid::NoQuestion)?;
        if message.len() < HEADER || flags & third::QR != 0 {
            return Err(Invalid::NoQuestion);
        }
        if flags & third::OPCODE != 0 {
            return Err(Invalid::NotImplemented);
        }
        let query = Self::parse(message).ok_or(Invalid::Malformed)?;
        if matches!(query.kind, kind::AXFR | kind::IXFR) {
            return Err(Invalid::NotImplemented);
        }
        Ok(query)
    }

    /// Reads what can be read of a question that cannot be forwarded, so that FORMERR and NOTIMP can echo it.
    pub(crate) fn read_any(message: &'a [u8]) -> Option<Self> {
        Self::parse(message)
    }

    fn parse(message: &'a [u8]) -> Option<Self> {
        let counts = [u16_at(message, 4)?, u16_at(message, 6)?, u16_at(message, 8)?];
        if counts != [1, 0, 0] {
            return None;
        }
        let name_end = name_end(message, HEADER)?;
        let (kind, class) = (u16_at(message, name_end)?, u16_at(message, name_end + 2)?);
        let mut query = Self { message, name_end, kind, class, edns: None, others: false };
        let mut at = name_end + 4;
        for _ in 0..u16_at(message, 10)? {
            let record = record(message, at)?;
            at = record.end;
            if record.kind != kind::OPT {
                query.others = true;
            } else if query.edns.is_some() || message.get(record.start) != Some(&0) {
                return None;
            } else {
                query.edns = Edns::of(message, &record);
            }
        }
        (at == message.len()).then_some(query)
    }

    /// The name in wire format, case as written.
    pub(crate) fn name(&self) -> &'a [u8] {
        self.message.get(HEADER..self.name_end).unwrap_or_default()
    }

    /// Name, type and class.
    pub(crate) fn question(&self) -> &'a [u8] {
        self.message.get(HEADER..self.question_end()).unwrap_or_default()
    }

    /// Where the question section ends.
    pub(crate) fn question_end(&self) -> usize {
        self.name_end + 4
    }

    /// The largest UDP answer the client takes (RFC 1035: 512, else what EDNS says), at most `limit`.
    pub(crate) fn udp_size(&self, limit: u16) -> usize {
        let offered = self.edns.map_or(512, |edns| edns.size);
        usize::from(offered.max(512).min(limit.clamp(512, 4096)))
    }

    /// Writes what an answer in the cache must match, if this question may be answered by it at all: no options (a
    /// client's subnet, cookies), no other additional records, an ordinary type, and no unknown flags.
    pub(crate) fn cache_key(&self, key: &mut Vec<u8>) -> bool {
        let (third, fourth) = (self.message[2], self.message[3]);
        let odd_flags = third & (third::AA | third::TC) | fourth & (fourth::RA | fourth::Z | fourth::RCODE);
        let edns_fits = self.edns.is_none_or(|edns| edns.plain && !edns.options);
        let ordinary = self.class == CLASS_IN && self.kind != kind::OPT && !(128..=255).contains(&self.kind);
        if odd_flags != 0 || self.others || !edns_fits || !ordinary {
            return false;
        }
        let edns = self.edns.map_or(0, |edns| 1 + u8::from(edns.dnssec_ok));
        key.clear();
        key.extend(self.name().iter().map(u8::to_ascii_lowercase));
        key.extend(self.kind.to_be_bytes());
        key.push(third & third::RD | fourth & (fourth::AD | fourth::CD) | edns << 1);
        true
    }

    /// An answer of our own without records.
    pub(crate) fn answer(&self, rcode: u8, udp_size: u16) -> Vec<u8> {
        let mut answer = header_answer(self.message, rcode);
        answer.extend(self.question());
        put(&mut answer, 4, &1_u16.to_be_bytes());
        if let Some(edns) = self.edns {
            answer.extend([0]);
            answer.extend(kind::OPT.to_be_bytes());
            answer.extend(udp_size.clamp(512, 4096).to_be_bytes());
            answer.extend([0, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
            put(&mut answer, 10, &1_u16.to_be_bytes());
        }
        answer
    }
}

/// The header of an answer to a message that has one: its id, operation, RD and CD; RA; no sections.
pub(crate) fn header_answer(message: &[u8], rcode: u8) -> Vec<u8> {
    let at = |index: usize| message.get(index).copied().unwrap_or_default();
    let third = third::QR | at(2) & (third::OPCODE | third::RD);
    let fourth = fourth::RA | at(3) & fourth::CD | rcode & fourth::RCODE;
    vec![at(0), at(1), third, fourth, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The question `name` `kind` IN with RD and an EDNS record that takes `size` bytes.
pub(crate) fn question(name: &[u8], kind: u16, size: u16) -> Vec<u8> {
    let mut message = vec![0, 0, third::RD, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    message.extend(name);
    message.extend(kind.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    message.extend([0]);
    message.extend(kind::OPT.to_be_bytes());
    message.extend(size.to_be_bytes());
    message.extend([0, 0, 0, 0, 0, 0]);
    message
}

/// What the proxy must know of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    question_end: usize,
    pub(crate) edns: Option<Edns>,
    /// The response code without its extension.
    pub(crate) rcode: u8,
    /// Cut short (TC).
    pub(crate) truncated: bool,
    /// Seconds for which it may be kept.
    pub(crate) lifetime: Lifetime,
}

/// How long an answer may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Not at all.
    None,
    /// Its smallest TTL.
    Positive(u32),
    /// Its smallest TTL or its zone's (RFC 2308 section 5).
    Negative(u32),
}

impl Answer {
    /// Reads a message whose question section is known to have one question that ends at `question_end`. `None`: its
    /// records cannot be read.
    pub(crate) fn read(message: &[u8], question_end: usize) -> Option<Self> {
        let rcode = message.get(3)? & fourth::RCODE;
        let truncated = message.get(2)? & third::TC != 0;
        let mut answer = Self { question_end, edns: None, rcode, truncated, lifetime: Lifetime::None };
        if truncated {
            // RFC 2181 section 9: of a truncated answer nothing but that is to be used, so its end may be missing.
            return Some(answer);
        }
        let asked = u16_at(message, question_end - 4)?;
        let (mut min, mut zone, mut matched) = (u32::MAX, None, false);
        let counts = [u16_at(message, 6)?, u16_at(message, 8)?, u16_at(message, 10)?];
        let mut at = question_end;
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let record = record(message, at)?;
                at = record.end;
                if record.kind == kind::OPT {
                    answer.edns = Some(Edns::of(message, &record)?);
                    continue;
                }
                let ttl = lifetime(u32_at(message, record.ttl_at)?);
                min = min.min(ttl);
                matched |= section == 0 && (record.kind == asked || asked == kind::ANY);
                if section == 1 && record.kind == kind::SOA && record.end - record.data >= 20 {
                    zone = u32_at(message, record.end - 4).map(lifetime);
                }
            }
        }
        answer.lifetime = match (rcode, matched, zone) {
            (rcode::NOERROR, true, _) => Lifetime::Positive(min),
            (rcode::NOERROR | rcode::NXDOMAIN, _, Some(zone)) => Lifetime::Negative(min.min(zone)),
            _ => Lifetime::None,
        };
        Some(answer)
    }

    /// The message as it can be kept for others: without EDNS options, which belong to one exchange. `None`: it cannot,
    /// as it is meant for a client's subnet or the OPT record is not the last.
    pub(crate) fn for_cache(&self, message: &[u8]) -> Option<Vec<u8>> {
        let Some(edns) = self.edns.filter(|edns| edns.options) else { return Some(message.to_vec()) };
        let data = edns.start + 11;
        let mut at = data;
        while at < edns.end {
            if u16_at(message, at)? == CLIENT_SUBNET {
                return None;
            }
            at += 4 + usize::from(u16_at(message, at + 2)?);
        }
        if edns.end != message.len() {
            return None;
        }
        let mut kept = message.get(..data)?.to_vec();
        put(&mut kept, data - 2, &[0, 0]);
        Some(kept)
    }

    /// Header, question and OPT with TC (RFC 2181 section 9, RFC 6891 section 7), at most `limit` bytes.
    pub(crate) fn cut(&self, message: &[u8], limit: usize) -> Vec<u8> {
        let mut cut = message.get(..self.question_end).unwrap_or_default().to_vec();
        let opt = self.edns.and_then(|edns| message.get(edns.start..edns.end)).unwrap_or_default();
        put(&mut cut, 6, &[0; 6]);
        if !opt.is_empty() && cut.len() + opt.len() <= limit {
            cut.extend(opt);
            put(&mut cut, 10, &1_u16.to_be_bytes());
        }
        if let Some(flags) = cut.get_mut(2) {
            *flags |= third::TC;
        }
        cut
    }
}

/// RFC 2181 section 8: a TTL with the highest bit set counts as 0.
fn lifetime(ttl: u32) -> u32 {
    if ttl >> 31 == 0 { ttl } else { 0 }
}

/// Whether a message answers this question: QR, one question, the very same bytes.
pub(crate) fn answers(message: &[u8], question: &[u8]) -> bool {
    let flags = message.get(2).copied().unwrap_or_default();
    flags & (third::QR | third::OPCODE) == third::QR
        && u16_at(message, 4) == Some(1)
        && message.get(HEADER..HEADER + question.len()) == Some(question)
}

/// Makes a message an answer of this proxy: RA, and its question as this client wrote it.
pub(crate) fn adopt(message: &mut [u8], question: &[u8]) {
    if let Some(flags) = message.get_mut(3) {
        *flags |= fourth::RA;
    }
    put(message, HEADER, question);
}

/// Whether a message says that it is an answer.
pub(crate) fn is_answer(message: &[u8]) -> bool {
    message.len() >= HEADER && message.get(2).is_some_and(|flags| flags & third::QR != 0)
}

/// What a message that came for this query is, if not its answer.
pub(crate) fn check(message: &[u8], query: &[u8], question: &[u8]) -> Result<(), Spoof> {
    if !is_answer(message) {
        return Err(Spoof::Malformed);
    }
    if id(message) != id(query) {
        return Err(Spoof::Id);
    }
    if answers(message, question) { Ok(()) } else { Err(Spoof::Question) }
}
