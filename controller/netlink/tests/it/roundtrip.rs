//! decode(encode(x)) == x, and no bytes make a reader panic.

use fw_netlink::attr::{Attrs, Writer};
use fw_netlink::ctnetlink::{Entry, Tuple};
use fw_netlink::message::{Head, Messages, write};
use fw_netlink::nft::{
    Chain, Expr, Generation, NamedCounter, Rule, RuleTally, Set, Table, UdpTimeout, chunk_elements,
    decode_elements, encode_elements, udata,
};
use proptest::prelude::*;

use crate::strategy::{chain, counter_object, element, entry, expr, rule, set, table, udp_timeout};

pub(crate) fn written(fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    fill(&mut writer);
    assert!(!writer.overflowed());
    bytes
}

/// Everything that reads attributes of a message.
fn read_all(attrs: Attrs<'_>) {
    let _ = Rule::decode(attrs);
    let _ = RuleTally::decode(attrs);
    let _ = Table::decode(attrs);
    let _ = Chain::decode(attrs);
    let _ = Set::decode(attrs);
    let _ = decode_elements(attrs);
    let _ = NamedCounter::decode(attrs);
    let _ = UdpTimeout::decode(attrs);
    let _ = (Entry::decode(attrs), Tuple::decode(attrs));
    let _ = Generation::decode(attrs);
    let _ = Expr::decode_list(attrs);
}

proptest! {
    #[test]
    fn conntrack_entries_read_back_as_they_were_written(entry in entry()) {
        let bytes = written(|w| entry.encode(w));
        prop_assert_eq!(Entry::decode(Attrs::new(&bytes)).unwrap(), entry);
    }

    #[test]
    fn timeout_policies_read_back_as_they_were_written_and_are_no_counters(policy in udp_timeout()) {
        let bytes = written(|w| policy.encode(w));
        prop_assert_eq!(UdpTimeout::decode(Attrs::new(&bytes)), Ok(Some(policy)));
        prop_assert_eq!(NamedCounter::decode(Attrs::new(&bytes)), Ok(None));
    }

    #[test]
    fn expressions_read_back_as_they_were_written(expr in expr()) {
        let bytes = written(|w| expr.encode(w, 1));
        let attr = Attrs::new(&bytes).next().unwrap().unwrap();
        prop_assert_eq!(Expr::decode(attr).unwrap(), expr);
    }

    #[test]
    fn expressions_that_nobody_knows_are_kept_with_their_bytes(name in "x[a-z]{1,20}", data in prop::collection::vec(any::<u8>(), 0..50)) {
        let expr = Expr::Unknown { name, data };
        let bytes = written(|w| expr.encode(w, 1));
        let attr = Attrs::new(&bytes).next().unwrap().unwrap();
        prop_assert_eq!(Expr::decode(attr).unwrap(), expr);
    }

    #[test]
    fn a_known_expression_with_an_attribute_more_is_not_taken_for_what_it_is_without(expr in expr()) {
        let bytes = written(|w| {
            w.nested(1, |w| {
                w.text(1, expr.name());
                let plain = written(|w| expr.encode(w, 1));
                let mut outer = Attrs::new(&plain).next().unwrap().unwrap().nested();
                let data = outer.nth(1).map(|a| a.unwrap().value.to_vec()).unwrap_or_default();
                let more = written(|w| w.be32(31, 1));
                w.nested_raw(2, &[data, more].concat());
            });
        });
        let attr = Attrs::new(&bytes).next().unwrap().unwrap();
        let read = Expr::decode(attr).unwrap();
        prop_assert!(matches!(&read, Expr::Unknown { name, .. } if name == expr.name()), "{:?}", read);
    }

    #[test]
    fn rules_read_back_as_they_were_written_and_their_tallies_agree(rule in rule()) {
        let bytes = written(|w| rule.encode(w));
        prop_assert_eq!(&Rule::decode(Attrs::new(&bytes)).unwrap(), &rule);
        let tally = RuleTally::decode(Attrs::new(&bytes)).unwrap();
        let first = rule.exprs.iter().find_map(|expr| match expr { Expr::Counter(counter) => Some(*counter), _ => None });
        prop_assert_eq!(tally.counter, first);
        prop_assert_eq!(tally.comment, udata::find_comment(&rule.userdata));
        prop_assert_eq!((tally.table, tally.chain), (rule.table, rule.chain));
    }

    #[test]
    fn tables_chains_sets_and_counters_read_back_as_they_were_written(table in table(), chain in chain(), set in set(), counter in counter_object()) {
        let bytes = written(|w| table.encode(w));
        prop_assert_eq!(Table::decode(Attrs::new(&bytes)).unwrap(), table);
        let bytes = written(|w| chain.encode(w));
        prop_assert_eq!(Chain::decode(Attrs::new(&bytes)).unwrap(), chain);
        let bytes = written(|w| set.encode(w));
        prop_assert_eq!(Set::decode(Attrs::new(&bytes)).unwrap(), set);
        let bytes = written(|w| counter.encode(w));
        prop_assert_eq!(NamedCounter::decode(Attrs::new(&bytes)).unwrap(), Some(counter));
    }

    #[test]
    fn elements_read_back_as_they_were_written(list in prop::collection::vec(element(), 0..20)) {
        let bytes = written(|w| encode_elements(w, "t", "s", &list));
        prop_assert_eq!(decode_elements(Attrs::new(&bytes)).unwrap(), ("t".to_owned(), "s".to_owned(), list));
    }

    #[test]
    fn chunks_cover_every_element_once_in_order_and_each_fits_its_message(list in prop::collection::vec(element(), 0..40), copies in 1..60_usize) {
        let list: Vec<_> = list.iter().cycle().take(list.len() * copies).cloned().collect();
        let mut next = 0;
        for chunk in chunk_elements(&list) {
            prop_assert_eq!(chunk.start, next);
            prop_assert!(chunk.end > chunk.start);
            next = chunk.end;
            // `written` fails when an attribute overflows.
            written(|w| encode_elements(w, "t", "s", &list[chunk.start..chunk.end]));
        }
        prop_assert_eq!(next, list.len());
    }

    #[test]
    fn hostile_bytes_are_errors_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read_all(Attrs::new(&bytes));
        for message in Messages::new(&bytes).flatten() {
            read_all(message.attrs());
            let _ = message.ack();
        }
    }

    #[test]
    fn a_message_with_one_byte_changed_is_read_or_refused(rule in rule(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = Vec::new();
        write(&mut bytes, &Head::default(), |w| rule.encode(w));
        let at = at.index(bytes.len());
        bytes[at] = byte;
        for message in Messages::new(&bytes).flatten() {
            read_all(message.attrs());
        }
    }
}

#[test]
fn expressions_nested_deeper_than_the_kernel_nests_them_are_kept_as_bytes() {
    let mut bytes = written(|w| Expr::Notrack.encode(w, 1));
    for _ in 0..1000 {
        let inner = bytes.clone();
        bytes = written(|w| {
            w.nested(1, |w| {
                w.text(1, "dynset");
                w.nested_raw(
                    2,
                    &written(|w| {
                        w.text(1, "s");
                        w.be32(3, 0);
                        w.be32(4, 1);
                        w.nested_raw(10, &inner);
                    }),
                );
            });
        });
        if bytes.len() > 60_000 {
            break;
        }
    }
    let attr = Attrs::new(&bytes).next().unwrap().unwrap();
    let Ok(Expr::Dynset(outer)) = Expr::decode(attr) else { panic!("the outermost is well-formed") };
    assert!(matches!(outer.exprs.as_slice(), [Expr::Unknown { .. }]), "what it holds is kept as bytes");
}
