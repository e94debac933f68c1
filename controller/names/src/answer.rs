//! What a DNS message says: the names that lead from its question to addresses, and for how long.
//!
//! The own walker finds the records; hickory-proto reads those that matter. So an unknown or odd record of another
//! type spoils nothing, and forwarded messages stay bit for bit what their server wrote.

use std::net::IpAddr;

use hickory_proto::rr::rdata::SVCB;
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name as WireName, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

use crate::name::Name;
use crate::records::{Cut, Header, IN, Place, Section, after_name, kind, u16_at, walk};

/// Names from the question to an address, the question included. Chains in the field are shorter than ten.
pub const MAX_CHAIN: usize = 17;

/// Answers longer than a DNS message can be are not looked at.
const MAX_MESSAGE: usize = 65_535;

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Message id.
    pub id: u16,
    /// TC: more records exist than are here.
    pub truncated: bool,
    /// RCODE of the header, 0..=15.
    pub rcode: u8,
    /// QTYPE.
    pub kind: u16,
    /// QCLASS.
    pub class: u16,
    /// The question and what its CNAMEs (alias records of HTTPS and SVCB) lead to. Never empty; no name twice.
    pub chain: Vec<Hop>,
    /// Addresses of names in the chain, sorted, each once per owner.
    pub addresses: Vec<Address>,
    /// Seconds that the message may be kept: the least TTL of its answer and authority sections; for NXDOMAIN and
    /// NODATA also bounded by the SOA as RFC 2308 section 5 says. `None`: not at all.
    pub keep: Option<u32>,
}

/// A name of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The name.
    pub name: Name,
    /// Seconds of the link to the next hop; the longest there is at the last one.
    pub ttl: u32,
}

/// An address that a hop has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Index in the chain of the record's owner.
    pub hop: usize,
    /// Seconds, of the record alone; see [`Answer::ttl_from`].
    pub ttl: u32,
}

/// Why a message is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Malformed {
    /// It ends inside a header, a name or a record; or is longer than 65,535 octets.
    #[error("the message is cut short or too long")]
    Cut,
    /// QR is not set, or the opcode is not QUERY.
    #[error("the message is no response to a query")]
    NotAnAnswer,
    /// QDCOUNT is not 1.
    #[error("the message has not exactly one question")]
    Questions,
    /// A compression loop, a pointer forwards, a name that is too long.
    #[error("a name of the message cannot be read")]
    Name,
    /// A record that matters has data of a wrong form.
    #[error("a record of the message cannot be read")]
    Record,
}

impl From<Cut> for Malformed {
    fn from(_: Cut) -> Self {
        Self::Cut
    }
}

/// Reads a message.
///
/// # Errors
/// See [`Malformed`]. Never panics, whatever the octets.
pub fn read(message: &[u8]) -> Result<Answer, Malformed> {
    let header = Header::read(message)?;
    if message.len() > MAX_MESSAGE {
        return Err(Malformed::Cut);
    }
    // QR set and opcode QUERY.
    if header.flags & 0xf800 != 0x8000 {
        return Err(Malformed::NotAnAnswer);
    }
    if header.questions != 1 {
        return Err(Malformed::Questions);
    }
    let after = after_name(message, Header::LENGTH)?;
    let (kind, class) = (u16_at(message, after)?, u16_at(message, after + 2)?);
    let records = Records::read(message, class)?;
    let [_, flags] = header.flags.to_be_bytes();
    let rcode = flags & 0xf;
    let mut answer = Answer {
        id: header.id,
        truncated: header.flags & 0x0200 != 0,
        rcode,
        kind,
        class,
        chain: records.chain(name_at(message, Header::LENGTH)?),
        addresses: Vec::new(),
        keep: None,
    };
    if rcode == 0 {
        answer.addresses = records.addresses(&answer.chain);
    }
    answer.keep = records.keep(&answer);
    Ok(answer)
}

impl Answer {
    /// The name that was asked for.
    pub fn question(&self) -> &Name {
        // The chain begins with the question, see `Records::chain`.
        &self.chain[0].name
    }

    /// For how many seconds a client that asked for the hop may keep the address: the least TTL on the way. `None`
    /// when the hop does not lead there.
    pub fn ttl_from(&self, hop: usize, address: &Address) -> Option<u32> {
        let links = self.chain.get(hop..address.hop)?;
        Some(links.iter().map(|link| link.ttl).fold(address.ttl, u32::min))
    }

    /// The same answer after it has been kept for some seconds.
    #[must_use]
    pub fn aged(mut self, seconds: u32) -> Self {
        let links = self.chain.iter_mut().map(|hop| &mut hop.ttl);
        for ttl in links.chain(self.addresses.iter_mut().map(|address| &mut address.ttl)) {
            *ttl = ttl.saturating_sub(seconds);
        }
        self.keep = self.keep.map(|keep| keep.saturating_sub(seconds));
        self
    }
}

/// The records that matter.
#[derive(Default)]
struct Records {
    links: Vec<Link>,
    /// Owner, address, TTL.
    addresses: Vec<(Name, IpAddr, u32)>,
    /// Types in the answer section, with their owners.
    others: Vec<(Name, u16)>,
    /// The least TTL of the answer and authority sections.
    least: Option<u32>,
    /// The least of the TTL of the SOA record and of its MINIMUM (RFC 2308 section 5).
    negative: Option<u32>,
}

/// A record that says that one name stands for another.
struct Link {
    owner: Name,
    target: Name,
    ttl: u32,
    /// CNAMEs go before alias records.
    kind: u16,
}

impl Records {
    fn read(message: &[u8], class: u16) -> Result<Self, Malformed> {
        let mut records = Self::default();
        let mut result = Ok(());
        walk(message, |place| {
            if result.is_ok() {
                result = records.take(message, class, &place);
            }
        })?;
        result.map(|()| records)
    }

    fn take(&mut self, message: &[u8], class: u16, place: &Place) -> Result<(), Malformed> {
        if place.section == Section::Additional || !place.has_ttl() {
            return Ok(());
        }
        self.least = Some(self.least.map_or(place.ttl, |least| least.min(place.ttl)));
        if place.class != class {
            return Ok(());
        }
        match (place.section, place.kind) {
            (Section::Answer, kind::A | kind::AAAA | kind::CNAME | kind::SVCB | kind::HTTPS)
                if class == IN =>
            {
                self.answer(message, place)
            }
            (Section::Answer, other) => {
                self.others.push((name_at(message, place.at)?, other));
                Ok(())
            }
            (Section::Authority, kind::SOA) => self.soa(message, place),
            _ => Ok(()),
        }
    }

    fn answer(&mut self, message: &[u8], place: &Place) -> Result<(), Malformed> {
        let record = record_at(message, place.at)?;
        let owner = name(&record.name)?;
        self.others.push((owner.clone(), place.kind));
        match &record.data {
            RData::A(a) => self.addresses.push((owner, IpAddr::V4(a.0), place.ttl)),
            RData::AAAA(aaaa) => self.addresses.push((owner, IpAddr::V6(aaaa.0), place.ttl)),
            RData::CNAME(target) => self.link(owner, name(target)?, place),
            RData::SVCB(svcb) => self.service(owner, svcb, place)?,
            RData::HTTPS(https) => self.service(owner, https, place)?,
            _ => return Err(Malformed::Record),
        }
        Ok(())
    }

    fn link(&mut self, owner: Name, target: Name, place: &Place) {
        self.links.push(Link { owner, target, ttl: place.ttl, kind: place.kind });
    }

    /// Priority 0 is an alias, whose parameters do not count; `.` as its target says that there is no service
    /// (RFC 9460 sections 2.4.2 and 2.5.1).
    fn service(&mut self, owner: Name, service: &SVCB, place: &Place) -> Result<(), Malformed> {
        if service.svc_priority == 0 {
            let target = name(&service.target_name)?;
            if !target.is_root() {
                self.link(owner, target, place);
            }
            return Ok(());
        }
        for (_, value) in &service.svc_params {
            match value {
                SvcParamValue::Ipv4Hint(hint) => {
                    let hints = hint.0.iter().map(|a| (owner.clone(), IpAddr::V4(a.0), place.ttl));
                    self.addresses.extend(hints);
                }
                SvcParamValue::Ipv6Hint(hint) => {
                    let hints = hint.0.iter().map(|aaaa| (owner.clone(), IpAddr::V6(aaaa.0), place.ttl));
                    self.addresses.extend(hints);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn soa(&mut self, message: &[u8], place: &Place) -> Result<(), Malformed> {
        let RData::SOA(soa) = record_at(message, place.at)?.data else { return Err(Malformed::Record) };
        let ttl = place.ttl.min(soa.minimum);
        self.negative = Some(self.negative.map_or(ttl, |least| least.min(ttl)));
        Ok(())
    }

    /// Follows the first CNAME of each name, else its first alias record.
    fn chain(&self, question: Name) -> Vec<Hop> {
        let mut chain = vec![Hop { name: question, ttl: crate::records::MAX_TTL }];
        while chain.len() < MAX_CHAIN {
            let Some(last) = chain.last_mut() else { break };
            let of_last = || self.links.iter().filter(|link| link.owner == last.name);
            let Some(link) = of_last().find(|link| link.kind == kind::CNAME).or_else(|| of_last().next())
            else {
                break;
            };
            let (name, ttl) = (link.target.clone(), link.ttl);
            if chain.iter().any(|hop| hop.name == name) {
                break;
            }
            if let Some(last) = chain.last_mut() {
                last.ttl = ttl;
            }
            chain.push(Hop { name, ttl: crate::records::MAX_TTL });
        }
        chain
    }

    fn addresses(&self, chain: &[Hop]) -> Vec<Address> {
        let owned = |(owner, address, ttl): &(Name, IpAddr, u32)| {
            let hop = chain.iter().position(|hop| hop.name == *owner)?;
            Some(Address { address: *address, hop, ttl: *ttl })
        };
        let mut addresses: Vec<Address> = self.addresses.iter().filter_map(owned).collect();
        // Of the same address and owner the least TTL stays: it sorts first.
        addresses.sort_unstable();
        addresses.dedup_by_key(|address| (address.address, address.hop));
        addresses
    }

    fn keep(&self, answer: &Answer) -> Option<u32> {
        let negative = match answer.rcode {
            _ if answer.truncated => return None,
            0 => !self.has_data(answer),
            3 => true,
            _ => return None,
        };
        if negative { self.negative?.min(self.least?).into() } else { self.least }
    }

    /// True when the end of the chain has a record of the type that was asked for.
    fn has_data(&self, answer: &Answer) -> bool {
        let owned = |owner: &Name| answer.chain.iter().any(|hop| hop.name == *owner);
        let asked = |kind: u16| answer.kind == kind::ANY || answer.kind == kind;
        self.others.iter().any(|(owner, kind)| asked(*kind) && owned(owner))
    }
}

fn record_at(message: &[u8], at: usize) -> Result<Record, Malformed> {
    Record::read(&mut decoder_at(message, at)?).map_err(|_| Malformed::Record)
}

fn name_at(message: &[u8], at: usize) -> Result<Name, Malformed> {
    name(&WireName::read(&mut decoder_at(message, at)?).map_err(|_| Malformed::Name)?)
}

/// A decoder of the whole message, so that compression pointers can be followed, that stands at an offset.
fn decoder_at(message: &[u8], at: usize) -> Result<BinDecoder<'_>, Malformed> {
    if at >= message.len() {
        return Err(Malformed::Cut);
    }
    Ok(BinDecoder::new(message).clone(u16::try_from(at).map_err(|_| Malformed::Cut)?))
}

fn name(wire: &WireName) -> Result<Name, Malformed> {
    Name::from_labels(wire.iter()).map_err(|_| Malformed::Name)
}
