//! Any octets as answers of an upstream, up to what the data path is told.
#![no_main]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use fw_names::{Change, Learner, Table, answer, journal, ttl};
use fw_policy::{FqdnSelector, NameEntry, Protocol};
use hickory_proto::op::Message;
use hickory_proto::op::{MessageType, OpCode, Query};
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, SVCB};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use libfuzzer_sys::fuzz_target;

const SECOND: u64 = 1_000_000_000;

/// Small bounds, so that a few messages reach them.
fn table() -> Table {
    let selectors = [
        FqdnSelector::Pattern("*".to_owned()),
        FqdnSelector::Pattern("*a*".to_owned()),
        FqdnSelector::Regex("[a-m].*".to_owned()),
        FqdnSelector::Name("a.example".to_owned()),
    ];
    let entry = |(number, selector): (u32, FqdnSelector)| {
        let entry = NameEntry { policy: "p".to_owned(), selector, protocol: Protocol::Tcp };
        (entry, (number, vec![(80, 80), (443, 1000 + u16::try_from(number).unwrap_or(0))]))
    };
    let mut table = Table { entries: (1..).zip(selectors).map(entry).collect(), ..Table::default() };
    table.dns.max_names = 12;
    table.dns.max_names_per_pattern = 8;
    table.dns.max_addresses_per_name = 6;
    table.dns.grace = 3;
    table
}

/// What hickory-proto reads as addresses of the answer section, whoever owns them.
fn addresses(message: &Message) -> BTreeSet<IpAddr> {
    let mut addresses = BTreeSet::new();
    for record in &message.answers {
        match &record.data {
            RData::A(a) => drop(addresses.insert(IpAddr::V4(a.0))),
            RData::AAAA(aaaa) => drop(addresses.insert(IpAddr::V6(aaaa.0))),
            _ => {}
        }
    }
    addresses
}

fn patched(message: &[u8]) {
    let mut lowered = message.to_vec();
    let mut aged = message.to_vec();
    assert_eq!(ttl::lower_ttls(&mut lowered, 30).is_ok(), ttl::age_ttls(&mut aged, 30).is_ok());
    assert_eq!(lowered.len(), message.len());
    let Ok(offsets) = ttl::ttl_offsets(message) else {
        assert_eq!(lowered, message);
        return;
    };
    assert_eq!(ttl::ttl_offsets(&lowered), Ok(offsets.clone()));
    let in_a_ttl = |at: usize| offsets.iter().any(|offset| (*offset..offset + 4).contains(&at));
    let changed = message.iter().zip(&lowered).enumerate().filter(|(_, (old, new))| old != new);
    assert!(changed.map(|(at, _)| at).all(in_a_ttl));
    if let (Ok(before), Ok(after)) = (Message::from_vec(message), Message::from_vec(&lowered)) {
        assert_eq!(before.answers.len(), after.answers.len());
        assert!(after.answers.iter().all(|record| record.ttl <= 30));
    }
}

fn taught(learner: &mut Learner, now: u64, message: &[u8]) {
    let Ok(answer) = answer::read(message) else { return };
    assert!(answer.chain.len() <= answer::MAX_CHAIN);
    if answer.kind == 1
        && let Ok(message) = Message::from_vec(message)
    {
        let known = addresses(&message);
        let read = answer.addresses.iter().map(|address| address.address);
        // Hints of services are read as well.
        let has_services =
            message.answers.iter().any(|it| matches!(it.data, RData::HTTPS(_) | RData::SVCB(_)));
        assert!(has_services || read.clone().all(|address| known.contains(&address)));
    }
    let lesson = learner.learn(now, &answer);
    assert!(!lesson.opens || lesson.hold.is_some() || lesson.ttl_max.is_some());
    let lines: String = lesson.facts.iter().map(journal::encode).collect();
    assert_eq!(journal::decode(lines.as_bytes()).broken, 0);
    let changes = learner.changes(now);
    for change in &changes {
        if let Change::Put { address, .. } = change {
            assert!(!address.is_loopback() && !address.is_unspecified() && !address.is_multicast());
        }
    }
    learner.confirm(&changes);
    let sizes = learner.sizes();
    assert!(sizes.names <= 12 && sizes.fullest_pattern <= 8 && sizes.longest_name <= 6);
}

/// Names that chance alone would hardly spell.
const NAMES: [&str; 6] = ["a.example.", "B.Example.", "l.m.", "l.", "zz.a.", "x_y.a."];

/// A well-formed answer, seven octets a record: owner, type, target or address, TTL.
fn composed(octets: &[u8]) -> Option<Vec<u8>> {
    let name = |octet: u8| Name::from_ascii(NAMES[usize::from(octet) % NAMES.len()]).ok();
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    let (first, records) = octets.split_first()?;
    message.add_query(Query::query(name(*first)?, RecordType::A));
    for record in records.chunks_exact(7) {
        let [owner, kind, what, a, b, c, d] = *record else { return None };
        let v4 = A::new(what, 0, 2, d);
        let v6 = AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, u16::from(what), u16::from(d));
        let data = match kind % 4 {
            0 => RData::A(v4),
            1 => RData::AAAA(v6),
            2 => RData::CNAME(CNAME(name(what)?)),
            _ => {
                let hints = vec![(SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![v4])))];
                RData::HTTPS(HTTPS(SVCB::new(u16::from(kind / 128), name(what)?, hints)))
            }
        };
        let ttl = u32::from_be_bytes([a & 0x80, 0, b & 1, c]);
        message.add_answer(Record::from_rdata(name(owner)?, ttl, data));
    }
    message.to_vec().ok()
}

fuzz_target!(|octets: &[u8]| {
    let mut learner = Learner::new();
    learner.set_table(Arc::new(table()), SECOND);
    let mut now = SECOND;
    // Messages stand one after another, each with its length as over TCP, and the seconds before it.
    let mut rest = octets;
    while let Some(([wait, high, low], after)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (message, next) = after.split_at(length);
        now += u64::from(*wait) * SECOND;
        learner.expire(now, Arc::default());
        patched(message);
        taught(&mut learner, now, message);
        if let Some(composed) = composed(message) {
            patched(&composed);
            taught(&mut learner, now, &composed);
        }
        rest = next;
    }
    let _ = answer::read(octets);
    patched(octets);
    taught(&mut learner, now, octets);
    let _ = journal::decode(octets);
});
