use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::answer::{Address, Hop};

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(number))
}

fn name(number: u32) -> Name {
    Name::from_text(&format!("n{number}.example")).unwrap()
}

fn answer(question: Name, addresses: std::ops::Range<u32>) -> Answer {
    let record = |number| Address { address: address(number), hop: 0, ttl: 60 };
    Answer {
        id: 0,
        truncated: false,
        rcode: 0,
        kind: 1,
        class: 1,
        chain: vec![Hop { name: question, ttl: 60 }],
        addresses: addresses.map(record).collect(),
        keep: Some(60),
    }
}

#[test]
fn an_answer_notes_its_addresses_under_the_question_up_to_a_bound() {
    let mut reverse = Reverse::default();
    assert!(reverse.is_empty());
    reverse.note(&answer(name(1), 0..100));
    assert_eq!(reverse.len(), MAX_PER_ANSWER);
    assert_eq!(reverse.counters(), Counters { evicted: 0, left_out: 36 });
    assert_eq!(reverse.get(address(0)), Some(&name(1)));
    reverse.note(&answer(name(2), 0..1));
    assert_eq!(reverse.get(address(0)), Some(&name(2)), "the last answer counts");
}

#[test]
fn a_table_without_room_knows_nothing() {
    let mut reverse = Reverse::new(0);
    reverse.put(address(1), &name(1));
    assert!(reverse.is_empty() && reverse.get(address(1)).is_none());
}

proptest! {
    /// The model: a list with the latest address last.
    #[test]
    fn the_address_that_was_not_answered_for_the_longest_time_makes_room(
        bound in 1_usize..6,
        puts in proptest::collection::vec((0_u32..10, 0_u32..4), 0..60),
    ) {
        let mut reverse = Reverse::new(bound);
        let mut model: Vec<(u32, u32)> = Vec::new();
        let mut evicted = 0;
        for (number, who) in puts {
            reverse.put(address(number), &name(who));
            model.retain(|(other, _)| *other != number);
            model.push((number, who));
            if model.len() > bound {
                model.remove(0);
                evicted += 1;
            }
            prop_assert_eq!(reverse.len(), model.len());
            prop_assert_eq!(reverse.order.len(), model.len());
            prop_assert_eq!(reverse.counters().evicted, evicted);
            for number in 0..10 {
                let expected = model.iter().find(|(other, _)| *other == number).map(|(_, who)| name(*who));
                prop_assert_eq!(reverse.get(address(number)).cloned(), expected);
            }
        }
    }
}
