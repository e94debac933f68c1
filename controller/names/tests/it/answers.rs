//! What messages say.

use fw_names::answer::{Address, MAX_CHAIN, Malformed};
use fw_names::{answer, ttl};
use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use proptest::prelude::*;

use crate::messages::{address, answer as answered, cname, https, message, octets, read, soa, txt};
use crate::oracle::ip;

/// Addresses with the index of their hop and the TTL from the question.
fn found(answer: &fw_names::Answer) -> Vec<(String, usize, u32)> {
    let of = |it: &Address| (it.address.to_string(), it.hop, answer.ttl_from(0, it).expect("reachable"));
    answer.addresses.iter().map(of).collect()
}

fn chain(answer: &fw_names::Answer) -> Vec<&str> {
    answer.chain.iter().map(|hop| hop.name.as_str()).collect()
}

#[test]
fn a_chain_of_eight_in_mixed_case_and_any_order_leads_to_its_addresses() {
    let mut records =
        vec![address("H8.eXample.", 300, "192.0.2.8"), address("h8.example.", 200, "192.0.2.9")];
    for hop in (0..8).rev() {
        records.push(cname(&format!("h{hop}.EXAMPLE."), 100 + hop, &format!("H{}.example.", hop + 1)));
    }
    // A loop elsewhere, and an owner nothing leads to.
    records.push(cname("l1.example.", 9, "l2.example."));
    records.push(cname("l2.example.", 9, "l1.example."));
    records.push(address("other.example.", 9, "192.0.2.66"));
    let answer = answered("h0.Example.", records);
    assert_eq!(chain(&answer).len(), 9);
    assert_eq!(answer.question().as_str(), "h0.example");
    assert_eq!(found(&answer), [("192.0.2.8".to_owned(), 8, 100), ("192.0.2.9".to_owned(), 8, 100)]);
    let last = &answer.addresses[0];
    assert_eq!(answer.ttl_from(7, last), Some(107));
    assert_eq!(answer.ttl_from(8, last), Some(300));
    assert_eq!(answer.ttl_from(9, last), None);
}

#[test]
fn a_loop_ends_and_so_does_a_chain_that_is_too_long() {
    let looped =
        answered("a.", vec![cname("a.", 5, "b."), cname("b.", 5, "A."), address("b.", 9, "192.0.2.1")]);
    assert_eq!(chain(&looped), ["a", "b"]);
    assert_eq!(found(&looped), [("192.0.2.1".to_owned(), 1, 5)]);
    let mut records: Vec<Record> =
        (0..40).map(|hop| cname(&format!("h{hop}."), 5, &format!("h{}.", hop + 1))).collect();
    records.push(address("h40.", 5, "192.0.2.1"));
    let long = answered("h0.", records);
    assert_eq!(long.chain.len(), MAX_CHAIN);
    assert!(long.addresses.is_empty());
}

#[test]
fn a_hop_before_the_end_does_not_lead_backwards() {
    let answer = answered(
        "a.",
        vec![address("a.", 30, "192.0.2.1"), cname("a.", 20, "b."), address("b.", 10, "192.0.2.2")],
    );
    let (first, last) = (&answer.addresses[0], &answer.addresses[1]);
    assert_eq!((first.hop, last.hop), (0, 1));
    assert_eq!(answer.ttl_from(1, first), None);
    assert_eq!(answer.ttl_from(0, first), Some(30));
    assert_eq!(answer.ttl_from(0, last), Some(10));
}

#[test]
fn authority_and_additional_sections_teach_nothing() {
    let mut message = message("a.", RecordType::A, vec![txt("a.", 60)]);
    message.authorities = vec![address("a.", 60, "192.0.2.1"), cname("a.", 60, "b.")];
    message.additionals = vec![address("a.", 60, "192.0.2.2"), address("b.", 60, "192.0.2.3")];
    let answer = read(&message);
    assert!(answer.addresses.is_empty());
    assert_eq!(chain(&answer), ["a"]);
}

#[test]
fn hints_of_services_count_and_their_aliases_are_hops() {
    let records = vec![
        https("a.", 50, 0, "svc.b.", &["192.0.2.66"]),
        https("svc.b.", 40, 1, ".", &["192.0.2.1", "2001:db8::1"]),
        https("other.", 40, 1, ".", &["192.0.2.67"]),
    ];
    let answer = read(&message("a.", RecordType::HTTPS, records));
    assert_eq!(chain(&answer), ["a", "svc.b"]);
    assert_eq!(found(&answer), [("192.0.2.1".to_owned(), 1, 40), ("2001:db8::1".to_owned(), 1, 40)]);
}

#[test]
fn ttls_with_the_top_bit_count_as_zero() {
    let answer = answered(
        "a.",
        vec![address("a.", 0x8000_0000, "192.0.2.1"), address("a.", 0x7fff_ffff, "192.0.2.2")],
    );
    assert_eq!(answer.addresses[0], Address { address: ip("192.0.2.1"), hop: 0, ttl: 0 });
    assert_eq!(answer.addresses[1].ttl, 0x7fff_ffff);
}

#[test]
fn an_error_has_no_addresses_and_another_class_neither() {
    let mut message = message("a.", RecordType::A, vec![address("a.", 60, "192.0.2.1")]);
    message.metadata.response_code = ResponseCode::ServFail;
    let answer = read(&message);
    assert_eq!((answer.rcode, answer.addresses.len(), answer.keep), (2, 0, None));
    message.metadata.response_code = ResponseCode::NoError;
    let mut octets = octets(&message);
    // Class CH in the question and in the record.
    octets[12 + 3 + 3] = 3;
    octets[12 + 7 + 2 + 3] = 3;
    let answer = answer::read(&octets).expect("a message");
    assert_eq!((answer.class, answer.addresses.len()), (3, 0));
}

#[test]
fn a_message_is_kept_as_long_as_its_shortest_record_and_a_denial_as_its_soa_says() {
    let positive = answered("a.", vec![cname("a.", 70, "b."), address("b.", 60, "192.0.2.1")]);
    assert_eq!(positive.keep, Some(60));
    let mut denial = message("a.", RecordType::A, vec![]);
    denial.authorities = vec![soa("example.", 300, 40)];
    assert_eq!(read(&denial).keep, Some(40), "NODATA");
    denial.metadata.response_code = ResponseCode::NXDomain;
    assert_eq!(read(&denial).keep, Some(40), "NXDOMAIN");
    denial.answers = vec![cname("a.", 7, "b.")];
    assert_eq!(read(&denial).keep, Some(7), "NXDOMAIN behind a link");
    denial.authorities.clear();
    assert_eq!(read(&denial).keep, None, "no SOA, nothing to go by");
    denial.metadata.response_code = ResponseCode::Refused;
    assert_eq!(read(&denial).keep, None, "REFUSED");
    let mut cut = message("a.", RecordType::A, vec![address("a.", 60, "192.0.2.1")]);
    cut.metadata.truncation = true;
    assert_eq!((read(&cut).keep, read(&cut).truncated), (None, true));
}

#[test]
fn age_lowers_every_ttl_and_none_below_zero() {
    let answer = answered("a.", vec![cname("a.", 70, "b."), address("b.", 5, "192.0.2.1")]).aged(10);
    assert_eq!((answer.chain[0].ttl, answer.addresses[0].ttl, answer.keep), (60, 0, Some(0)));
}

#[test]
fn what_is_no_answer_is_said_to_be_none() {
    let good = octets(&message("a.", RecordType::A, vec![address("a.", 60, "192.0.2.1")]));
    let with = |at: usize, octet: u8| {
        let mut octets = good.clone();
        octets[at] = octet;
        answer::read(&octets)
    };
    assert_eq!(with(2, 0), Err(Malformed::NotAnAnswer), "a query");
    assert_eq!(with(2, 0xa8), Err(Malformed::NotAnAnswer), "an update");
    assert_eq!(with(5, 0), Err(Malformed::Questions));
    assert_eq!(with(5, 2), Err(Malformed::Questions));
    assert_eq!(with(7, 2), Err(Malformed::Cut), "more records than there are");
    let loops = [0, 1, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1];
    assert_eq!(answer::read(&loops), Err(Malformed::Name), "a question that points at itself");
    // The owner's pointer leads to itself.
    let owner = 12 + 3 + 4;
    assert_eq!(good[owner] & 0xc0, 0xc0);
    assert_eq!(with(owner + 1, u8::try_from(owner).expect("near")), Err(Malformed::Record));
    assert_eq!(with(owner + 11, 3), Err(Malformed::Record), "an address of three octets");
}

#[test]
fn odd_records_of_other_types_spoil_nothing() {
    let mut octets = octets(&message("a.", RecordType::A, vec![address("a.", 60, "192.0.2.1")]));
    // A CAA record whose data is nonsense, and a type nobody knows.
    for kind in [257_u16, 65_399] {
        octets.extend([0xc0, 12]);
        octets.extend(kind.to_be_bytes());
        octets.extend([0, 1, 0, 0, 0, 9, 0, 2, 255, 255]);
        octets[7] += 1;
    }
    let answer = answer::read(&octets).expect("a message");
    assert_eq!(found(&answer), [("192.0.2.1".to_owned(), 0, 60)]);
    assert_eq!(answer.keep, Some(9));
}

#[test]
fn every_cut_of_a_message_is_refused_or_teaches_no_more() {
    let mut message = message("a.", RecordType::A, vec![cname("a.", 9, "b."), address("b.", 9, "192.0.2.1")]);
    message.edns = Some(Edns::new());
    let octets = octets(&message);
    let whole = answer::read(&octets).expect("a message");
    for end in 0..octets.len() {
        assert_eq!(answer::read(&octets[..end]), Err(Malformed::Cut), "cut at {end}");
    }
    let mut longer = octets;
    longer.extend([1, 2, 3]);
    assert_eq!(answer::read(&longer), Ok(whole));
    longer.resize(65_536, 0);
    assert_eq!(answer::read(&longer), Err(Malformed::Cut));
}

fn any_record() -> impl Strategy<Value = Record> {
    let owner = "[a-c]{1,2}(\\.[a-c]{1,2}){0,2}\\.";
    prop_oneof![
        (owner, any::<u32>(), any::<[u8; 4]>()).prop_map(|(owner, ttl, v4)| address(
            &owner,
            ttl,
            &std::net::Ipv4Addr::from(v4).to_string()
        )),
        (owner, any::<u32>(), any::<u128>()).prop_map(|(owner, ttl, v6)| address(
            &owner,
            ttl,
            &std::net::Ipv6Addr::from(v6).to_string()
        )),
        (owner, any::<u32>(), owner).prop_map(|(owner, ttl, target)| cname(&owner, ttl, &target)),
        (owner, any::<u32>(), any::<u32>()).prop_map(|(owner, ttl, minimum)| soa(&owner, ttl, minimum)),
        (owner, any::<u32>()).prop_map(|(owner, ttl)| txt(&owner, ttl)),
        (owner, any::<u32>(), 0_u16..3, owner).prop_map(|(owner, ttl, priority, target)| https(
            &owner,
            ttl,
            priority,
            &target,
            &["192.0.2.7"]
        )),
    ]
}

fn any_message() -> impl Strategy<Value = Message> {
    let records = || proptest::collection::vec(any_record(), 0..6);
    (records(), records(), records(), any::<bool>()).prop_map(|(answers, authorities, additionals, edns)| {
        let mut message = message("a.b.", RecordType::A, answers);
        message.authorities = authorities;
        message.additionals = additionals;
        message.edns = edns.then(Edns::new);
        message
    })
}

fn change(record: &mut Record, new: impl Fn(u32) -> u32) {
    let ttl = if record.ttl > 0x7fff_ffff { 0 } else { record.ttl };
    record.ttl = new(ttl);
}

/// The TTLs of a whole message as hickory-proto reads them.
fn changed(message: &Message, new: impl Fn(u32) -> u32 + Copy) -> Message {
    let mut message = message.clone();
    for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
        section.iter_mut().for_each(|record| change(record, new));
    }
    message
}

proptest! {
    #[test]
    fn ttls_are_patched_where_hickory_reads_them_and_nothing_else_changes(
        message in any_message(), seconds in any::<u32>()
    ) {
        let before = octets(&message);
        let mut lowered = before.clone();
        ttl::lower_ttls(&mut lowered, seconds).expect("a message");
        let expected = changed(&message, |ttl| ttl.min(seconds));
        prop_assert_eq!(Message::from_vec(&lowered).expect("a message"), expected.clone());
        prop_assert_eq!(lowered, octets(&expected));
        let mut aged = before;
        ttl::age_ttls(&mut aged, seconds).expect("a message");
        prop_assert_eq!(aged, octets(&changed(&message, |ttl| ttl.saturating_sub(seconds))));
    }

    #[test]
    fn addresses_are_those_that_a_naive_reading_of_hickory_finds(message in any_message()) {
        let answer = read(&message);
        // Owners as text; one step at a time along the records hickory has read.
        let mut at = "a.b.".to_owned();
        let mut seen = vec![at.clone()];
        while seen.len() < MAX_CHAIN {
            let of_owner = |record: &&Record| record.name.to_lowercase().to_ascii() == at;
            let target = |record: &Record| match &record.data {
                RData::CNAME(target) => Some(target.to_lowercase().to_ascii()),
                _ => None,
            };
            let alias = |record: &Record| match &record.data {
                RData::HTTPS(https) if https.svc_priority == 0 => Some(https.target_name.to_ascii()),
                _ => None,
            };
            let mut links = message.answers.iter().filter(of_owner).filter_map(target);
            let mut aliases = message.answers.iter().filter(of_owner).filter_map(alias);
            let Some(next) = links.next().or_else(|| aliases.next()) else { break };
            if seen.contains(&next) {
                break;
            }
            seen.push(next.clone());
            at = next;
        }
        let mut expected = std::collections::BTreeSet::new();
        for record in message.answers.iter().filter(|record| seen.contains(&record.name.to_ascii())) {
            match &record.data {
                RData::A(a) => drop(expected.insert(std::net::IpAddr::V4(a.0))),
                RData::AAAA(aaaa) => drop(expected.insert(std::net::IpAddr::V6(aaaa.0))),
                RData::HTTPS(https) if https.svc_priority > 0 => drop(expected.insert(ip("192.0.2.7"))),
                _ => {}
            }
        }
        let found: std::collections::BTreeSet<_> = answer.addresses.iter().map(|it| it.address).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(answer.chain.len(), seen.len());
    }

    #[test]
    fn any_octets_are_read_without_harm(
        octets in proptest::collection::vec(any::<u8>(), 0..200), message in any_message(),
        at in any::<proptest::sample::Index>(), octet in any::<u8>(),
    ) {
        let _ = answer::read(&octets);
        let mut damaged = crate::messages::octets(&message);
        let position = at.index(damaged.len());
        damaged[position] = octet;
        let before = damaged.clone();
        if ttl::lower_ttls(&mut damaged, 1).is_err() {
            prop_assert_eq!(&damaged, &before);
        } else {
            prop_assert_eq!(ttl::ttl_offsets(&damaged), ttl::ttl_offsets(&before));
        }
        let _ = answer::read(&before);
    }
}
