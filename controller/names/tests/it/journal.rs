//! Lines that survive crashes.

use fw_names::journal::{Decoded, decode, encode};
use fw_names::{Fact, Name};
use proptest::prelude::*;

use crate::oracle::ip;

fn fact(name: &str, address: &str, until: u64) -> Fact {
    let name = Name::from_text(name).expect("a name");
    Fact { name, address: ip(address), asked: 1, handed: 2, until }
}

#[test]
fn a_line_is_text_that_says_what_it_is() {
    // The sum is zlib's of what follows it.
    assert_eq!(encode(&fact("www.example", "192.0.2.1", 3)), "1 c0ce6036 1 2 3 192.0.2.1 www.example\n");
}

#[test]
fn the_last_line_about_a_name_and_address_counts() {
    let lines = [fact("a", "192.0.2.1", 3), fact("a", "2001:db8::1", 4), fact("a", "192.0.2.1", 5)];
    let text: String = lines.iter().map(encode).collect();
    let expected = vec![fact("a", "192.0.2.1", 5), fact("a", "2001:db8::1", 4)];
    assert_eq!(decode(text.as_bytes()), Decoded { facts: expected, broken: 0, replaced: 1 });
}

#[test]
fn every_torn_end_loses_the_last_line_alone() {
    let first = encode(&fact("a.example", "192.0.2.1", 3));
    let both = format!("{first}{}", encode(&fact("b.example", "2001:db8::1", 4)));
    for end in first.len() + 1..both.len() {
        let decoded = decode(&both.as_bytes()[..end]);
        assert_eq!(decoded.facts, [fact("a.example", "192.0.2.1", 3)], "cut at {end}");
        assert_eq!(decoded.broken, 1);
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..60), 0..4),
        v6 in any::<bool>(), octets in any::<u128>(), short in any::<u32>(), times in any::<[u64; 3]>(),
    ) {
        let name = Name::from_labels(labels.iter().map(Vec::as_slice)).expect("a name");
        let address = if v6 {
            std::net::Ipv6Addr::from(octets).into()
        } else {
            std::net::Ipv4Addr::from(short).into()
        };
        let [asked, handed, until] = times;
        let fact = Fact { name, address, asked, handed, until };
        let decoded = decode(encode(&fact).as_bytes());
        prop_assert_eq!(decoded, Decoded { facts: vec![fact], broken: 0, replaced: 0 });
    }

    #[test]
    fn a_changed_octet_never_makes_another_fact(at in any::<proptest::sample::Index>(), octet in any::<u8>()) {
        let good = fact("www.example", "192.0.2.1", 30);
        let mut line = encode(&good).into_bytes();
        let at = at.index(line.len());
        line[at] = octet;
        let decoded = decode(&line);
        prop_assert!(decoded.facts.iter().all(|fact| *fact == good));
        prop_assert!(!decoded.facts.is_empty() || decoded.broken > 0);
    }

    #[test]
    fn any_octets_are_read_without_harm(octets in proptest::collection::vec(any::<u8>(), 0..400)) {
        let decoded = decode(&octets);
        prop_assert!(decoded.facts.is_empty());
    }
}
