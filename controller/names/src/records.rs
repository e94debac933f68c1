//! Where the records of a DNS message stand. Names are skipped, not read: hickory-proto reads what is needed of them.

/// QTYPE and TYPE numbers (IANA).
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const SVCB: u16 = 64;
    pub(crate) const HTTPS: u16 = 65;
    pub(crate) const TSIG: u16 = 250;
    pub(crate) const ANY: u16 = 255;
}

/// Class IN.
pub(crate) const IN: u16 = 1;

/// The longest TTL (RFC 2181 section 8); one with the top bit counts as 0.
pub(crate) const MAX_TTL: u32 = 0x7fff_ffff;

/// The message ends inside a header, a name or a record, or a name has a label of an unknown kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut;

/// The twelve octets at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) questions: u16,
    /// Answer, authority, additional.
    pub(crate) records: [u16; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    Answer,
    Authority,
    Additional,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) section: Section,
    /// Offset of the owner's name.
    pub(crate) at: usize,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// As it counts (RFC 2181 section 8).
    pub(crate) ttl: u32,
    pub(crate) ttl_at: usize,
}

impl Place {
    /// False for the pseudo records whose TTL field means something else (RFC 6891) or is signed (RFC 8945).
    pub(crate) fn has_ttl(&self) -> bool {
        self.kind != kind::OPT && self.kind != kind::TSIG
    }
}

impl Header {
    pub(crate) const LENGTH: usize = 12;

    pub(crate) fn read(message: &[u8]) -> Result<Self, Cut> {
        let field = |index: usize| u16_at(message, index * 2);
        Ok(Self {
            id: field(0)?,
            flags: field(1)?,
            questions: field(2)?,
            records: [field(3)?, field(4)?, field(5)?],
        })
    }
}

/// Calls `each` for every record in order. Octets after the last one are nobody's business, as for resolvers.
pub(crate) fn walk(message: &[u8], mut each: impl FnMut(Place)) -> Result<(), Cut> {
    let header = Header::read(message)?;
    let mut at = Header::LENGTH;
    for _ in 0..header.questions {
        at = within(message, after_name(message, at)? + 4)?;
    }
    let sections = [Section::Answer, Section::Authority, Section::Additional];
    for (section, count) in sections.into_iter().zip(header.records) {
        for _ in 0..count {
            let (place, next) = record(message, section, at)?;
            each(place);
            at = next;
        }
    }
    Ok(())
}

fn record(message: &[u8], section: Section, at: usize) -> Result<(Place, usize), Cut> {
    let fixed = after_name(message, at)?;
    let ttl_at = fixed + 4;
    let place = Place {
        section,
        at,
        kind: u16_at(message, fixed)?,
        class: u16_at(message, fixed + 2)?,
        ttl: ttl_at_offset(message, ttl_at)?,
        ttl_at,
    };
    let next = fixed + 10 + usize::from(u16_at(message, fixed + 8)?);
    Ok((place, within(message, next)?))
}

/// The TTL at an offset as it counts.
pub(crate) fn ttl_at_offset(message: &[u8], at: usize) -> Result<u32, Cut> {
    let high = u32::from(u16_at(message, at)?);
    let ttl = high << 16 | u32::from(u16_at(message, at + 2)?);
    Ok(if ttl > MAX_TTL { 0 } else { ttl })
}

/// The offset after the name at `at`; a compression pointer ends it and is not followed.
pub(crate) fn after_name(message: &[u8], mut at: usize) -> Result<usize, Cut> {
    loop {
        let length = *message.get(at).ok_or(Cut)?;
        match length >> 6 {
            0 if length == 0 => return Ok(at + 1),
            0 => at += 1 + usize::from(length),
            3 => return within(message, at + 2),
            _ => return Err(Cut),
        }
    }
}

fn within(message: &[u8], at: usize) -> Result<usize, Cut> {
    if at <= message.len() { Ok(at) } else { Err(Cut) }
}

pub(crate) fn u16_at(message: &[u8], at: usize) -> Result<u16, Cut> {
    let octets = message.get(at..).and_then(|rest| rest.first_chunk::<2>()).ok_or(Cut)?;
    Ok(u16::from_be_bytes(*octets))
}
