use proptest::prelude::*;

use super::*;
use crate::attr::Writer;
use crate::nft::{Ct, Payload, Rule, RuleView, register_at};

const INET: u8 = 1;

fn read(family: u8, exprs: &[Expr]) -> Reading {
    let mut reader = RuleReader::new(family);
    exprs.iter().for_each(|expr| reader.read(expr));
    reader.finish()
}

fn payload(base: u32, offset: u32, len: u32, dreg: u32) -> Expr {
    Expr::Payload(Payload { base, offset, len, dreg })
}

fn cmp(sreg: u32, op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp(Cmp { sreg, op, data: data.to_vec() })
}

fn lookup(sreg: u32, dreg: Option<u32>) -> Expr {
    Expr::Lookup(Lookup { set: "s".to_owned(), sreg, dreg, inverted: false })
}

fn fields(reading: &Reading) -> Vec<Vec<Option<Field>>> {
    reading.matches.iter().map(|found| found.parts.iter().map(|part| part.field).collect()).collect()
}

const SOURCE: Field = Field::Source(AddressKind::V4);
const DESTINATION: Field = Field::Destination(AddressKind::V4);

#[test]
fn one_load_of_two_fields_is_two_matches() {
    let exprs = [payload(Payload::NETWORK, 12, 8, 1), cmp(1, CmpOp::Eq, &[1, 2, 3, 4, 5, 6, 7, 8])];
    let reading = read(2, &exprs);
    let value = |value: &[u8]| Test::Compare { op: CmpOp::Eq, value: value.to_vec() };
    assert_eq!(fields(&reading), [[Some(SOURCE)], [Some(DESTINATION)]]);
    assert_eq!(reading.matches[0].test, value(&[1, 2, 3, 4]));
    assert_eq!(reading.matches[1].test, value(&[5, 6, 7, 8]));
}

#[test]
fn a_negated_load_of_two_fields_excludes_neither_by_itself() {
    let exprs = [payload(Payload::NETWORK, 12, 8, 1), cmp(1, CmpOp::Neq, &[0; 8])];
    assert_eq!(fields(&read(2, &exprs)), [[Some(SOURCE), Some(DESTINATION)]]);
}

#[test]
fn two_comparisons_of_one_register_are_a_range() {
    let port = payload(Payload::TRANSPORT, 2, 2, 1);
    let reading = read(INET, &[port.clone(), cmp(1, CmpOp::Gte, &[0, 5]), cmp(1, CmpOp::Lte, &[0, 9])]);
    let range = Test::Range { inverted: false, from: vec![0, 5], to: vec![0, 9] };
    assert_eq!(reading.matches.iter().map(|found| &found.test).collect::<Vec<_>>(), [&range]);
    // With a load between them they are two.
    let exprs = [port.clone(), cmp(1, CmpOp::Gte, &[0, 5]), port, cmp(1, CmpOp::Lte, &[0, 9])];
    assert_eq!(read(INET, &exprs).matches.len(), 2);
}

#[test]
fn the_same_bytes_are_a_port_an_icmp_type_or_another_header() {
    let l4 = |protocol: u8| [Expr::Meta(Meta::load(Meta::L4PROTO, 1)), cmp(1, CmpOp::Eq, &[protocol])];
    let ports = [payload(Payload::TRANSPORT, 0, 2, 1), cmp(1, CmpOp::Eq, &[8, 0])];
    for (protocol, count) in [(6, 1), (17, 1), (1, 0), (58, 0), (50, 0)] {
        let exprs = [l4(protocol).as_slice(), &ports].concat();
        assert_eq!(read(INET, &exprs).matches.len(), count, "protocol {protocol}");
    }
    let network = [payload(Payload::NETWORK, 8, 16, 1), cmp(1, CmpOp::Eq, &[0; 16])];
    assert_eq!(fields(&read(10, &network)), [[Some(Field::Source(AddressKind::V6))]]);
    let arp = [payload(Payload::NETWORK, 14, 4, 1), cmp(1, CmpOp::Eq, &[0; 4])];
    assert_eq!(fields(&read(3, &arp)), [[Some(SOURCE)]]);
}

#[test]
fn what_an_earlier_match_left_in_registers_is_no_part_of_a_concatenation() {
    let at = |offset: u32| register_at(offset);
    let three = [
        payload(Payload::NETWORK, 12, 4, at(0)),
        payload(Payload::NETWORK, 16, 4, at(4)),
        payload(Payload::TRANSPORT, 2, 2, at(8)),
        lookup(1, None),
    ];
    let two =
        [payload(Payload::NETWORK, 12, 4, at(0)), payload(Payload::TRANSPORT, 2, 2, at(4)), lookup(1, None)];
    let reading = read(2, &[three.as_slice(), &two].concat());
    let port = Some(Field::DestinationPort);
    let wanted = [vec![Some(SOURCE), Some(DESTINATION), port], vec![Some(SOURCE), port]];
    assert_eq!(fields(&reading), wanted);
}

#[test]
fn what_is_not_followed_is_no_match() {
    let address = payload(Payload::NETWORK, 12, 4, 1);
    let compare = cmp(1, CmpOp::Eq, &[1, 2, 3, 4]);
    let overwriting = [
        Expr::Ct(Ct { key: 0, direction: None, load: true, register: 1 }),
        Expr::Immediate { dreg: 1, data: vec![0; 4] },
        Expr::Byteorder(Byteorder::to_network(1, 4)),
        Expr::Unknown { name: "new".to_owned(), data: Vec::new() },
        lookup(1, Some(1)),
    ];
    for expr in overwriting {
        let reading = read(2, &[address.clone(), expr.clone(), compare.clone()]);
        assert!(reading.matches.is_empty(), "{expr:?}: {reading:?}");
    }
    let unknown = Expr::Unknown { name: "new".to_owned(), data: Vec::new() };
    assert_eq!(read(2, &[unknown]).unread, ["new"]);
}

#[test]
fn the_last_statement_that_decides_is_the_action() {
    let verdict = |verdict| Expr::Verdict(verdict);
    let tproxy = Expr::Tproxy(crate::nft::Tproxy { family: 2, address: None, port: Some(1) });
    for (exprs, action) in [
        (vec![], None),
        (vec![tproxy, verdict(Verdict::Accept)], Some(Action::Accept)),
        (vec![verdict(Verdict::Jump("x".to_owned()))], Some(Action::Jump)),
        (vec![verdict(Verdict::Other(u32::MAX))], Some(Action::Continue)),
        (vec![verdict(Verdict::Other(3 | 7 << 16))], Some(Action::Queue)),
        (vec![Expr::Unknown { name: "queue".to_owned(), data: Vec::new() }], Some(Action::Queue)),
        (vec![lookup(1, Some(0))], Some(Action::Vmap)),
    ] {
        assert_eq!(read(INET, &exprs).action, action, "{exprs:?}");
    }
    let mut target = Vec::new();
    Writer::new(&mut target).text(1, "MASQUERADE");
    let target = Expr::Unknown { name: "target".to_owned(), data: target };
    assert_eq!(read(2, &[target]).action, Some(Action::Masquerade));
}

/// Expressions that move registers about, with numbers of all kinds.
fn any_expr() -> impl Strategy<Value = Expr> {
    let register = prop_oneof![0_u32..26, any::<u32>()];
    let small = prop_oneof![0_u32..40, any::<u32>()];
    let bytes = prop::collection::vec(any::<u8>(), 0..20);
    let load = (0_u32..4, small.clone(), small.clone(), register.clone());
    prop_oneof![
        load.prop_map(|(base, offset, len, dreg)| payload(base, offset, len, dreg)),
        (0_u32..20, register.clone()).prop_map(|(key, register)| Expr::Meta(Meta::load(key, register))),
        (register.clone(), 0..6_usize, bytes.clone()).prop_map(|(sreg, op, data)| {
            let ops = [CmpOp::Eq, CmpOp::Neq, CmpOp::Lt, CmpOp::Lte, CmpOp::Gt, CmpOp::Gte];
            cmp(sreg, ops[op], &data)
        }),
        (register.clone(), register.clone(), bytes.clone(), bytes.clone())
            .prop_map(|(sreg, dreg, mask, xor)| Expr::Bitwise(Bitwise { sreg, dreg, mask, xor })),
        (register.clone(), any::<bool>(), bytes.clone(), bytes)
            .prop_map(|(sreg, inverted, from, to)| Expr::Range(Range { sreg, inverted, from, to })),
        (register.clone(), prop::option::of(register)).prop_map(|(sreg, dreg)| lookup(sreg, dreg)),
        small.prop_map(|code| Expr::Verdict(Verdict::Other(code))),
    ]
}

proptest! {
    #[test]
    fn any_expressions_are_read_without_panic(family in any::<u8>(), exprs in prop::collection::vec(any_expr(), 0..24)) {
        let reading = read(family, &exprs);
        prop_assert!(reading.matches.len() <= 2 * exprs.len());
    }

    #[test]
    fn any_bytes_are_read_as_a_rule_without_panic(family in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(view) = RuleView::decode(Attrs::new(&bytes)) {
            let mut reader = RuleReader::new(family);
            view.exprs().flatten().for_each(|expr| reader.read(&expr));
            let _ = (reader.finish(), view.counter(), view.comment());
        }
    }

    #[test]
    fn a_view_of_a_rule_has_what_the_rule_has(exprs in prop::collection::vec(any_expr(), 0..8), comment in "[ -~]{0,40}") {
        let userdata = crate::nft::udata::comment(&comment);
        let rule = Rule { table: "t".to_owned(), chain: "c".to_owned(), exprs, userdata };
        let mut bytes = Vec::new();
        rule.encode(&mut Writer::new(&mut bytes));
        let view = RuleView::decode(Attrs::new(&bytes)).unwrap();
        let again: Vec<Expr> = view.exprs().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(&again, &Rule::decode(Attrs::new(&bytes)).unwrap().exprs);
        let comment_again = view.comment();
        prop_assert_eq!((view.table, view.chain), (&b"t"[..], &b"c"[..]));
        prop_assert_eq!(comment_again.as_deref(), Some(comment.as_str()));
    }
}
