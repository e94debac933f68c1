//! DNS messages byte by byte, so that a test can also write what a library would refuse to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};

/// Record types by their mnemonic.
pub mod kind {
    /// IPv4 address
    pub const A: u16 = 1;
    /// name server
    pub const NS: u16 = 2;
    /// canonical name
    pub const CNAME: u16 = 5;
    /// start of authority
    pub const SOA: u16 = 6;
    /// text
    pub const TXT: u16 = 16;
    /// IPv6 address
    pub const AAAA: u16 = 28;
    /// EDNS pseudo record
    pub const OPT: u16 = 41;
    /// service binding
    pub const SVCB: u16 = 64;
    /// service binding for HTTPS
    pub const HTTPS: u16 = 65;
}

/// Class IN.
pub const CLASS_IN: u16 = 1;
/// Bytes of a message's header.
pub const HEADER: usize = 12;
/// Where the first question's name begins, as a compression pointer.
const POINTER_TO_QUESTION: [u8; 2] = [0xc0, 0x0c];

/// Header flags, as in the second word of a message.
pub mod flag {
    /// answer
    pub const QR: u16 = 0x8000;
    /// authoritative
    pub const AA: u16 = 0x0400;
    /// truncated
    pub const TC: u16 = 0x0200;
    /// recursion desired
    pub const RD: u16 = 0x0100;
    /// recursion available
    pub const RA: u16 = 0x0080;
}

/// A name on the wire: length-prefixed labels and the root's zero, not compressed, case as written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(Vec<u8>);

impl Name {
    /// Reads `www.example.test` (a trailing dot changes nothing; `\DDD` is any byte). At most 63 bytes a label and
    /// 255 on the wire (RFC 1035 section 3.1).
    pub fn parse(text: &str) -> Result<Self> {
        let mut wire = Vec::with_capacity(text.len() + 2);
        let text = text.strip_suffix('.').unwrap_or(text);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            let bytes = unescape(label)?;
            let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
            ensure!((1..=63).contains(&length), "label {label:?} of {text:?} has {} bytes", bytes.len());
            wire.push(length);
            wire.extend(bytes);
        }
        wire.push(0);
        ensure!(wire.len() <= 255, "name {text:?} has {} bytes on the wire", wire.len());
        Ok(Self(wire))
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The labels without their lengths.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first().filter(|(length, _)| **length > 0)?;
            let (label, tail) = tail.split_at_checked(usize::from(*length))?;
            rest = tail;
            Some(label)
        })
    }

    /// In lower case (ASCII only, RFC 4343).
    pub fn to_lowercase(&self) -> Self {
        // Lengths are at most 63, below every letter.
        Self(self.0.to_ascii_lowercase())
    }

    /// Every other letter in upper case, as resolvers that hide bits in the case do (draft-vixie-dnsext-dns0x20).
    pub fn to_mixed_case(&self) -> Self {
        let mixed = |(at, byte): (usize, &u8)| if at % 2 == 0 { *byte } else { byte.to_ascii_uppercase() };
        Self(self.0.iter().enumerate().map(mixed).collect())
    }

    /// Reads a name that is not compressed from the start of `bytes`; gives it with what follows.
    pub fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let mut at = 0;
        loop {
            let length = usize::from(*bytes.get(at)?);
            at += 1 + length;
            if length > 63 || at > 255 {
                return None;
            }
            if length == 0 {
                let (name, rest) = bytes.split_at_checked(at)?;
                return Some((Self(name.to_vec()), rest));
            }
        }
    }
}

/// As in zone files: `www.example.test.`, with `\DDD` for what is neither letter, digit, `-`, `_` nor `*`.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == [0] {
            return f.write_str(".");
        }
        for label in self.labels() {
            for byte in label {
                match byte {
                    b'-' | b'_' | b'*' => write!(f, "{}", char::from(*byte))?,
                    _ if byte.is_ascii_alphanumeric() => write!(f, "{}", char::from(*byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn unescape(label: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(label.len());
    let mut rest = label.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'\\' {
            let (digits, tail) = tail.split_at_checked(3).context("an escape has three digits")?;
            bytes.push(std::str::from_utf8(digits)?.parse()?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    Ok(bytes)
}

/// A resource record of class IN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Owner.
    pub name: Name,
    /// See [`kind`].
    pub kind: u16,
    /// Seconds.
    pub ttl: u32,
    /// RDATA without compression.
    pub data: Vec<u8>,
}

impl Record {
    /// An A or AAAA record.
    pub fn address(name: Name, ttl: u32, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self { name, kind: kind::A, ttl, data: v4.octets().to_vec() },
            IpAddr::V6(v6) => Self { name, kind: kind::AAAA, ttl, data: v6.octets().to_vec() },
        }
    }

    /// A CNAME record.
    pub fn cname(name: Name, ttl: u32, target: &Name) -> Self {
        Self { name, kind: kind::CNAME, ttl, data: target.0.clone() }
    }

    /// A TXT record with so many bytes of text, in strings of at most 255.
    pub fn text(name: Name, ttl: u32, bytes: usize) -> Self {
        let text = vec![b't'; bytes];
        let mut data = Vec::with_capacity(bytes + bytes / 255 + 1);
        for piece in text.chunks(255) {
            data.push(u8::try_from(piece.len()).unwrap_or(u8::MAX));
            data.extend(piece);
        }
        Self { name, kind: kind::TXT, ttl, data }
    }

    /// An HTTPS or SVCB record (`kind`) in service mode with address hints (RFC 9460 sections 2.2 and 7.3).
    pub fn service(name: Name, kind: u16, ttl: u32, target: &Name, hints: &[IpAddr]) -> Result<Self> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for hint in hints {
            match hint {
                IpAddr::V4(address) => v4.extend(address.octets()),
                IpAddr::V6(address) => v6.extend(address.octets()),
            }
        }
        let mut data = 1_u16.to_be_bytes().to_vec();
        data.extend(target.bytes());
        // alpn=h2, ipv4hint, ipv6hint: keys in ascending order.
        for (key, value) in [(1_u16, b"\x02h2".to_vec()), (4, v4), (6, v6)] {
            if !value.is_empty() {
                data.extend(key.to_be_bytes());
                data.extend(u16::try_from(value.len())?.to_be_bytes());
                data.extend(value);
            }
        }
        Ok(Self { name, kind, ttl, data })
    }

    /// Appends the record; an owner equal to `question` byte by byte becomes a pointer to it.
    fn write(&self, question: Option<&Name>, message: &mut Vec<u8>) -> Result<()> {
        if question == Some(&self.name) {
            message.extend(POINTER_TO_QUESTION);
        } else {
            message.extend(self.name.bytes());
        }
        message.extend(self.kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message.extend(self.ttl.to_be_bytes());
        message.extend(u16::try_from(self.data.len()).context("RDATA too long")?.to_be_bytes());
        message.extend(&self.data);
        Ok(())
    }
}

/// What EDNS adds to a question (RFC 6891).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP answer.
    pub size: u16,
    /// DNSSEC OK.
    pub dnssec: bool,
    /// Options: code and data.
    pub options: Vec<(u16, Vec<u8>)>,
}

impl Edns {
    /// No options.
    pub fn with_size(size: u16) -> Self {
        Self { size, dnssec: false, options: Vec::new() }
    }

    fn write(&self, message: &mut Vec<u8>) -> Result<()> {
        let mut data = Vec::new();
        for (code, value) in &self.options {
            data.extend(code.to_be_bytes());
            data.extend(u16::try_from(value.len())?.to_be_bytes());
            data.extend(value);
        }
        message.push(0);
        message.extend(kind::OPT.to_be_bytes());
        message.extend(self.size.to_be_bytes());
        message.extend([0, 0, if self.dnssec { 0x80 } else { 0 }, 0]);
        message.extend(u16::try_from(data.len())?.to_be_bytes());
        message.extend(data);
        Ok(())
    }
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Message id.
    pub id: u16,
    /// See [`flag`].
    pub flags: u16,
    /// What is asked for, case as it shall be sent.
    pub name: Name,
    /// See [`kind`].
    pub kind: u16,
    /// Usually [`CLASS_IN`].
    pub class: u16,
    /// `None`: plain DNS, UDP answers of at most 512 bytes.
    pub edns: Option<Edns>,
}

impl Query {
    /// Recursion desired, class IN, no EDNS. Give each its own id.
    pub fn new(id: u16, name: &str, kind: u16) -> Result<Self> {
        Ok(Self { id, flags: flag::RD, name: Name::parse(name)?, kind, class: CLASS_IN, edns: None })
    }

    /// With EDNS of the given UDP size.
    pub fn with_size(mut self, size: u16) -> Self {
        self.edns = Some(Edns::with_size(size));
        self
    }

    /// With the letters of its name in mixed case.
    pub fn in_mixed_case(mut self) -> Self {
        self.name = self.name.to_mixed_case();
        self
    }

    /// The message.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut message = Vec::with_capacity(64);
        for word in [self.id, self.flags, 1, 0, 0, u16::from(self.edns.is_some())] {
            message.extend(word.to_be_bytes());
        }
        self.write_question(&mut message);
        if let Some(edns) = &self.edns {
            edns.write(&mut message)?;
        }
        Ok(message)
    }

    fn write_question(&self, message: &mut Vec<u8>) {
        message.extend(self.name.bytes());
        message.extend(self.kind.to_be_bytes());
        message.extend(self.class.to_be_bytes());
    }

    /// Reads a message with one question; `None` when it is something else.
    pub fn read(message: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
        if word(4)? != 1 {
            return None;
        }
        let (name, rest) = Name::read(message.get(HEADER..)?)?;
        let (fixed, rest) = rest.split_at_checked(4)?;
        Some(Self {
            id: word(0)?,
            flags: word(2)?,
            name,
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            edns: read_edns(rest),
        })
    }
}

/// Reads an OPT record that comes first after the question, as every client writes it. Options are left out.
fn read_edns(rest: &[u8]) -> Option<Edns> {
    let (fixed, _) = rest.split_at_checked(11)?;
    let is_opt = fixed[0] == 0 && fixed[1..3] == kind::OPT.to_be_bytes();
    is_opt.then(|| Edns {
        size: u16::from_be_bytes([fixed[3], fixed[4]]),
        dnssec: fixed[7] & 0x80 != 0,
        options: Vec::new(),
    })
}

/// An answer to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Flags beside QR and those of the question.
    pub flags: u16,
    /// RCODE.
    pub rcode: u8,
    /// Answer section.
    pub answers: Vec<Record>,
    /// Authority section.
    pub authority: Vec<Record>,
    /// Additional section, beside EDNS.
    pub additional: Vec<Record>,
}

impl Response {
    /// The message that answers `query`. It repeats the question and its EDNS; with `limit` it is cut to so many bytes:
    /// TC set, as many answer records as fit.
    pub fn bytes(&self, query: &Query, limit: Option<usize>) -> Result<Vec<u8>> {
        let whole = self.encode(query, 0, usize::MAX)?;
        let Some(limit) = limit.filter(|limit| whole.len() > *limit) else { return Ok(whole) };
        let cut = Self { authority: Vec::new(), additional: Vec::new(), ..self.clone() };
        // The answers' lengths differ little; one pass over them finds how many fit.
        let mut fitting = 0;
        let mut length = cut.encode(query, flag::TC, 0)?.len();
        let mut record = Vec::new();
        for answer in &self.answers {
            record.clear();
            answer.write(Some(&query.name), &mut record)?;
            length += record.len();
            if length > limit {
                break;
            }
            fitting += 1;
        }
        cut.encode(query, flag::TC, fitting)
    }

    fn encode(&self, query: &Query, flags: u16, most_answers: usize) -> Result<Vec<u8>> {
        let answers = &self.answers[..self.answers.len().min(most_answers)];
        let flags = flag::QR | (query.flags & flag::RD) | self.flags | flags | u16::from(self.rcode & 0xf);
        let mut message = Vec::with_capacity(128 + answers.len() * 16);
        let counts = [answers.len(), self.authority.len(), self.additional.len()];
        for word in [query.id, flags, 1] {
            message.extend(word.to_be_bytes());
        }
        for (section, count) in counts.into_iter().enumerate() {
            let edns = usize::from(section == 2 && query.edns.is_some());
            message.extend(u16::try_from(count + edns)?.to_be_bytes());
        }
        query.write_question(&mut message);
        for record in answers.iter().chain(&self.authority).chain(&self.additional) {
            record.write(Some(&query.name), &mut message)?;
        }
        if query.edns.is_some() {
            Edns::with_size(1232).write(&mut message)?;
        }
        Ok(message)
    }
}

/// The addresses and TTLs in a message's answer section, whoever owns them; what cannot be read ends the list. Much
/// quicker than parsing the message, for clients that are measured.
pub fn addresses(message: &[u8]) -> Vec<(IpAddr, u32)> {
    let mut found = Vec::new();
    let mut read = || -> Option<()> {
        let word = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
        let mut at = HEADER;
        for _ in 0..word(4)? {
            at = skip_name(message, at)? + 4;
        }
        for _ in 0..word(6)? {
            at = skip_name(message, at)?;
            let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
            let ttl = u32::from(word(at + 4)?) << 16 | u32::from(word(at + 6)?);
            let data = message.get(at + 10..at + 10 + length)?;
            match kind {
                kind::A => found.push((IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?)), ttl)),
                kind::AAAA => {
                    found.push((IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?)), ttl))
                }
                _ => {}
            }
            at += 10 + length;
        }
        Some(())
    };
    read();
    found
}

/// Where what follows a name begins, be it compressed or not.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_escapes_are_any_byte() {
        let name = Name::parse(r"wWw.\000\255-_.test.").unwrap();
        assert_eq!(name.bytes(), b"\x03wWw\x04\x00\xff-_\x04test\x00");
        assert_eq!(name.to_string(), r"wWw.\000\255-_.test.");
        assert_eq!(Name::read(name.bytes()), Some((name.clone(), &[][..])));
        assert_eq!(Name::parse(".").unwrap().bytes(), [0]);
        assert!(Name::parse(&"a".repeat(64)).is_err());
        assert!(Name::parse("a..b").is_err());
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        assert_eq!(Name::parse(&longest).unwrap().bytes().len(), 255);
        assert!(Name::parse(&format!("{longest}e")).is_err());
        for length in 0..name.bytes().len() {
            assert_eq!(Name::read(&name.bytes()[..length]), None);
        }
    }

    #[test]
    fn a_question_reads_back_and_an_answer_is_cut_at_the_limit() {
        let query = Query::new(7, "www.example.test", kind::A).unwrap().in_mixed_case().with_size(1232);
        assert_eq!(Query::read(&query.bytes().unwrap()), Some(query.clone()));
        let addresses_of: Vec<IpAddr> = (0..60).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let answers =
            addresses_of.iter().map(|ip| Record::address(query.name.clone(), 300, *ip)).collect::<Vec<_>>();
        let response = Response { answers, ..Response::default() };
        let whole = response.bytes(&query, None).unwrap();
        assert_eq!(addresses(&whole), addresses_of.iter().map(|address| (*address, 300)).collect::<Vec<_>>());
        let cut = response.bytes(&query, Some(512)).unwrap();
        assert!(cut.len() <= 512 && cut.len() + 16 > 512 && cut[2] & 2 != 0, "{}", cut.len());
        assert_eq!(addresses(&cut), addresses(&whole)[..addresses(&cut).len()]);
        for message in [&whole, &cut] {
            assert!(hickory_proto::op::Message::from_vec(message).is_ok());
        }
    }
}
