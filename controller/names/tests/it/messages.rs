//! DNS messages for tests, written by hickory-proto.

use std::net::IpAddr;

use fw_names::{Answer, answer};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, SOA, SVCB, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

pub(crate) fn address(owner: &str, ttl: u32, address: &str) -> Record {
    let data = match address.parse().expect("an address") {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(name(owner), ttl, data)
}

pub(crate) fn cname(owner: &str, ttl: u32, target: &str) -> Record {
    Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
}

pub(crate) fn txt(owner: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::TXT(TXT::new(vec!["text".to_owned()])))
}

pub(crate) fn soa(owner: &str, ttl: u32, minimum: u32) -> Record {
    let soa = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name(owner), ttl, RData::SOA(soa))
}

/// A service with hints; priority 0 is an alias.
pub(crate) fn https(owner: &str, ttl: u32, priority: u16, target: &str, hints: &[&str]) -> Record {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for hint in hints {
        match hint.parse().expect("an address") {
            IpAddr::V4(hint) => v4.push(A(hint)),
            IpAddr::V6(hint) => v6.push(AAAA(hint)),
        }
    }
    let mut parameters = Vec::new();
    if !v4.is_empty() {
        parameters.push((SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(v4))));
    }
    if !v6.is_empty() {
        parameters.push((SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(v6))));
    }
    let svcb = SVCB::new(priority, name(target), parameters);
    Record::from_rdata(name(owner), ttl, RData::HTTPS(HTTPS(svcb)))
}

pub(crate) fn message(question: &str, kind: RecordType, answers: Vec<Record>) -> Message {
    let mut message = Message::new(4711, MessageType::Response, OpCode::Query);
    message.metadata.response_code = ResponseCode::NoError;
    message.add_query(Query::query(name(question), kind));
    message.answers = answers;
    message
}

pub(crate) fn octets(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message that can be written")
}

pub(crate) fn read(message: &Message) -> Answer {
    answer::read(&octets(message)).expect("a message that can be read")
}

/// An answer to a question for A.
pub(crate) fn answer(question: &str, answers: Vec<Record>) -> Answer {
    read(&message(question, RecordType::A, answers))
}
