//! What a scripted server can say.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::dns::scripted::Transport;
use crate::dns::wire::{Name, Query, Record, Response, flag, kind};
use crate::r#gen::Rng;

/// What a name gets. Answers honour the client's UDP size: what is larger is cut and says so.
#[derive(Clone)]
pub enum Reply {
    /// These records as far as they are of the type asked for or CNAMEs, whoever owns them (see [`Reply::chain`]);
    /// without any, NODATA.
    Records(Vec<Record>),
    /// These addresses as far as they are of the family asked for.
    Addresses {
        /// Addresses of either family.
        addresses: Vec<IpAddr>,
        /// Seconds.
        ttl: u32,
    },
    /// Other addresses each time: so many of the family asked for, chosen from the pool.
    Rotating {
        /// Addresses of either family.
        pool: Vec<IpAddr>,
        /// How many an answer has.
        choose: usize,
        /// Seconds.
        ttl: u32,
    },
    /// An address of its own for each numbered name.
    Unique(Unique),
    /// A whole response of one's own.
    Response(Response),
    /// Nothing but an RCODE (2 SERVFAIL, 3 NXDOMAIN, 5 REFUSED).
    Rcode(u8),
    /// Never.
    Silence,
    /// So much later.
    Late(Duration, Box<Reply>),
    /// Over UDP an answer without records that says it is cut, over TCP the reply.
    OnlyTcp(Box<Reply>),
    /// The reply with something wrong.
    Spoofed(Spoof, Box<Reply>),
    /// One after the other.
    Each(Vec<Reply>),
    /// Any bytes as a message; `true`: the question's id is put in front of what follows the first two bytes.
    Raw(Vec<u8>, bool),
    /// Any number of messages.
    Custom(Custom),
}

/// Makes messages of a question.
pub type Custom = Arc<dyn Fn(&Query, Transport) -> Vec<Vec<u8>> + Send + Sync>;

/// Addresses for numbered names: the number that the first label ends in, e.g. `host0042`, is added to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unique {
    /// For A.
    pub v4: Ipv4Net,
    /// For AAAA.
    pub v6: Ipv6Net,
    /// Seconds.
    pub ttl: u32,
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoof {
    /// The id has one bit flipped.
    Id,
    /// It is about another name, in question and answer.
    Question,
    /// It comes from this address, port included, instead of the one that was asked (UDP only).
    From(SocketAddr),
    /// Authority and additional sections have this address, for the name asked for.
    Beside(IpAddr),
    /// The answer section has this address for a name that nobody asked for, and which no CNAME leads to.
    Stranger(IpAddr),
    /// It is a question (QR not set).
    NoAnswer,
}

/// The name that wrong answers are about.
const WRONG: &str = "wrong.invalid";

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) after: Duration,
    pub(super) from: Option<SocketAddr>,
}

impl Reply {
    /// CNAMEs from name to name, then addresses of the last one, all with one TTL.
    pub fn chain(names: &[&str], ttl: u32, addresses: &[IpAddr]) -> Result<Self> {
        let names = names.iter().map(|name| Name::parse(name)).collect::<Result<Vec<_>>>()?;
        let mut records: Vec<Record> =
            names.windows(2).map(|pair| Record::cname(pair[0].clone(), ttl, &pair[1])).collect();
        if let Some(last) = names.last() {
            records.extend(addresses.iter().map(|address| Record::address(last.clone(), ttl, *address)));
        }
        Ok(Self::Records(records))
    }

    /// The reply, wrong first and then right.
    pub fn spoofed_then_right(spoof: Spoof, reply: Reply) -> Self {
        Self::Each(vec![Self::Spoofed(spoof, Box::new(reply.clone())), reply])
    }

    /// The messages for one question.
    pub(super) fn messages(
        &self,
        query: &Query,
        transport: Transport,
        rng: &mut Rng,
    ) -> Result<Vec<Message>> {
        let plain = |bytes: Vec<u8>| Ok(vec![Message { bytes, after: Duration::ZERO, from: None }]);
        match self {
            Self::Silence => Ok(Vec::new()),
            Self::Late(by, reply) => {
                let mut messages = reply.messages(query, transport, rng)?;
                messages.iter_mut().for_each(|message| message.after += *by);
                Ok(messages)
            }
            Self::OnlyTcp(reply) if transport == Transport::Tcp => reply.messages(query, transport, rng),
            Self::OnlyTcp(_) => {
                plain(Response { flags: flag::TC, ..Response::default() }.bytes(query, None)?)
            }
            Self::Each(replies) => {
                let mut messages = Vec::new();
                for reply in replies {
                    messages.extend(reply.messages(query, transport, rng)?);
                }
                Ok(messages)
            }
            Self::Spoofed(spoof, reply) => spoof.messages(reply, query, transport, rng),
            Self::Raw(bytes, with_id) => {
                let mut bytes = bytes.clone();
                if let Some(id) = bytes.get_mut(..2).filter(|_| *with_id) {
                    id.copy_from_slice(&query.id.to_be_bytes());
                }
                plain(bytes)
            }
            Self::Custom(make) => {
                let messages = make(query, transport).into_iter();
                Ok(messages.map(|bytes| Message { bytes, after: Duration::ZERO, from: None }).collect())
            }
            reply => plain(reply.response(query, rng).bytes(query, limit(query, transport))?),
        }
    }

    /// The response, where the reply is one.
    fn response(&self, query: &Query, rng: &mut Rng) -> Response {
        let mut response = Response { flags: flag::AA | flag::RA, ..Response::default() };
        let own = |address: IpAddr, ttl| Record::address(query.name.clone(), ttl, address);
        match self {
            Self::Records(records) => {
                let fits = |record: &&Record| record.kind == query.kind || record.kind == kind::CNAME;
                response.answers = records.iter().filter(fits).cloned().collect();
            }
            Self::Addresses { addresses, ttl } => {
                let fitting = addresses.iter().filter(|address| is_of(query.kind, address));
                response.answers = fitting.map(|address| own(*address, *ttl)).collect();
            }
            Self::Rotating { pool, choose, ttl } => {
                let mut fitting: Vec<IpAddr> =
                    pool.iter().copied().filter(|address| is_of(query.kind, address)).collect();
                for at in 0..fitting.len().min(*choose) {
                    let other = at + rng.below(fitting.len() - at);
                    fitting.swap(at, other);
                }
                response.answers =
                    fitting.into_iter().take(*choose).map(|address| own(address, *ttl)).collect();
            }
            Self::Unique(unique) => match unique.of(&query.name, query.kind) {
                Some(address) => response.answers.push(own(address, unique.ttl)),
                None if matches!(query.kind, kind::A | kind::AAAA) => response.rcode = 3,
                None => {}
            },
            Self::Response(whole) => return whole.clone(),
            Self::Rcode(rcode) => response.rcode = *rcode,
            _ => {}
        }
        response
    }
}

impl Unique {
    /// The address of a name; `None` when it has no number, or one that the network has no address for.
    pub fn of(&self, name: &Name, kind: u16) -> Option<IpAddr> {
        let label = name.labels().next()?;
        let digits = label.len() - label.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let number: u32 = std::str::from_utf8(label.get(digits..)?).ok()?.parse().ok()?;
        match kind {
            kind::A => {
                let address = Ipv4Addr::from_bits(self.v4.network().to_bits().checked_add(number)?);
                self.v4.contains(&address).then_some(address.into())
            }
            kind::AAAA => {
                let address =
                    Ipv6Addr::from_bits(self.v6.network().to_bits().checked_add(u128::from(number))?);
                self.v6.contains(&address).then_some(address.into())
            }
            _ => None,
        }
    }
}

impl Spoof {
    fn messages(
        self,
        reply: &Reply,
        query: &Query,
        transport: Transport,
        rng: &mut Rng,
    ) -> Result<Vec<Message>> {
        let wrong = Name::parse(WRONG)?;
        let beside = match self {
            Self::Question => {
                let query = Query { name: wrong, ..query.clone() };
                return reply.messages(&query, transport, rng);
            }
            Self::Beside(address) => Some((query.name.clone(), address)),
            Self::Stranger(address) => Some((wrong, address)),
            Self::Id | Self::From(_) | Self::NoAnswer => None,
        };
        if let Some((owner, address)) = beside {
            let mut response = reply.response(query, rng);
            let record = Record::address(owner, 300, address);
            if matches!(self, Self::Stranger(_)) {
                response.answers.push(record);
            } else {
                response.authority.push(record.clone());
                response.additional.push(record);
            }
            let bytes = response.bytes(query, limit(query, transport))?;
            return Ok(vec![Message { bytes, after: Duration::ZERO, from: None }]);
        }
        let mut messages = reply.messages(query, transport, rng)?;
        for message in &mut messages {
            match (self, message.bytes.get_mut(..3)) {
                (Self::Id, Some(header)) => header[1] ^= 1,
                (Self::NoAnswer, Some(header)) => header[2] &= 0x7f,
                (Self::From(address), _) => message.from = Some(address),
                _ => {}
            }
        }
        Ok(messages)
    }
}

/// The largest answer that the client takes: 512 bytes unless it says otherwise (RFC 6891 section 6.2.3).
fn limit(query: &Query, transport: Transport) -> Option<usize> {
    let size = query.edns.as_ref().map_or(512, |edns| usize::from(edns.size).max(512));
    (transport == Transport::Udp).then_some(size)
}

fn is_of(kind: u16, address: &IpAddr) -> bool {
    kind == if address.is_ipv4() { kind::A } else { kind::AAAA }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Records(records) => return write!(f, "Records({records:?})"),
            Self::Addresses { addresses, ttl } => return write!(f, "Addresses({addresses:?}, ttl {ttl})"),
            Self::Unique(unique) => return write!(f, "{unique:?}"),
            Self::Rcode(rcode) => return write!(f, "Rcode({rcode})"),
            Self::Late(by, reply) => return write!(f, "Late({by:?}, {reply:?})"),
            Self::OnlyTcp(reply) => return write!(f, "OnlyTcp({reply:?})"),
            Self::Spoofed(spoof, reply) => return write!(f, "Spoofed({spoof:?}, {reply:?})"),
            Self::Each(replies) => return write!(f, "Each({replies:?})"),
            Self::Rotating { .. } => "Rotating",
            Self::Response(_) => "Response",
            Self::Silence => "Silence",
            Self::Raw(..) => "Raw",
            Self::Custom(_) => "Custom",
        };
        f.write_str(name)
    }
}
