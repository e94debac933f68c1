//! Any bytes as an answer of nftables: messages, acknowledgements, tables, chains, rules, sets, elements, counters.
//! What can be read must write and read back as the same value.
#![no_main]

use fw_netlink::attr::{Attrs, Writer};
use fw_netlink::message::{Message, Messages};
use fw_netlink::nft::reading::RuleReader;
use fw_netlink::nft::{
    Chain, ChainView, CounterView, Element, Expr, Generation, NamedCounter, Rule, RuleTally, RuleView, Set, SetView,
    Table, TableView, UdpTimeout, chunk_elements,
    decode_elements, encode_elements, udata,
};
use libfuzzer_sys::fuzz_target;

fn written(fill: impl FnOnce(&mut Writer<'_>)) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    fill(&mut writer);
    // What came as several attributes may not fit into one; that is noticed, not cut.
    (!writer.overflowed()).then_some(bytes)
}

fn message(message: &Message<'_>) {
    let _ = (message.ack(), message.done(), message.nfnl(), message.nfgen());
    attributes(message.attrs());
}

fn attributes(attrs: Attrs<'_>) {
    let _ = (Table::decode(attrs), Chain::decode(attrs), Set::decode(attrs), Generation::decode(attrs));
    let _ = (NamedCounter::decode(attrs), RuleTally::decode(attrs));
    let _ = (TableView::decode(attrs), ChainView::decode(attrs), CounterView::decode(attrs));
    let _ = (SetView::decode(attrs), SetView::elements(attrs, drop));
    if let Ok(view) = RuleView::decode(attrs) {
        let _ = (view.counter(), view.comment());
        for family in [1, 2, 3, 7, 10] {
            let mut reader = RuleReader::new(family);
            view.exprs().flatten().for_each(|expr| reader.read(&expr));
            let _ = reader.finish();
        }
    }
    if let Ok(Some(policy)) = UdpTimeout::decode(attrs)
        && let Some(bytes) = written(|w| policy.encode(w))
    {
        assert_eq!(UdpTimeout::decode(Attrs::new(&bytes)), Ok(Some(policy)));
    }
    if let Ok(rule) = Rule::decode(attrs) {
        let _ = udata::find_comment(&rule.userdata);
        rule_again(&rule);
    }
    if let Ok((_, _, elements)) = decode_elements(attrs) {
        elements_again(&elements);
    }
}

fn rule_again(rule: &Rule) {
    let Some(bytes) = written(|w| rule.encode(w)) else { return };
    let again = Rule::decode(Attrs::new(&bytes)).expect("what was written can be read");
    for (expr, again) in rule.exprs.iter().zip(&again.exprs) {
        assert!(expr == again || matches!(expr, Expr::Unknown { .. }), "{expr:?} became {again:?}");
    }
    assert_eq!(rule.exprs.len(), again.exprs.len());
}

fn elements_again(elements: &[Element]) {
    let mut next = 0;
    for chunk in chunk_elements(elements) {
        assert_eq!(chunk.start, next);
        next = chunk.end;
        let part = &elements[chunk.start..chunk.end];
        let Some(bytes) = written(|w| encode_elements(w, "t", "s", part)) else {
            assert_eq!(part.len(), 1, "a chunk of several elements is too long");
            continue;
        };
        let (_, _, again) = decode_elements(Attrs::new(&bytes)).expect("what was written can be read");
        assert_eq!(again, part);
    }
    assert_eq!(next, elements.len());
}

/// Names that chance alone would hardly spell.
const NAMES: [&str; 24] = [
    "meta",
    "payload",
    "cmp",
    "bitwise",
    "range",
    "lookup",
    "immediate",
    "counter",
    "objref",
    "limit",
    "log",
    "ct",
    "nat",
    "masq",
    "redir",
    "tproxy",
    "hash",
    "numgen",
    "dynset",
    "byteorder",
    "reject",
    "fib",
    "quota",
    "notrack",
];

/// The rest of the input as the data of the expression that its first byte names.
fn expression(bytes: &[u8]) {
    let Some((first, data)) = bytes.split_first() else { return };
    let name = NAMES[usize::from(*first) % NAMES.len()];
    let attribute = |w: &mut Writer<'_>| {
        w.nested(1, |w| {
            w.text(1, name);
            w.nested_raw(2, data);
        });
    };
    let Some(bytes) = written(attribute) else { return };
    let expr = Attrs::new(&bytes).next().and_then(Result::ok).and_then(|attr| Expr::decode(attr).ok());
    let rule = Rule { exprs: expr.into_iter().collect(), ..Rule::default() };
    rule_again(&rule);
}

fuzz_target!(|bytes: &[u8]| {
    for received in Messages::new(bytes).flatten() {
        message(&received);
    }
    // Most inputs are no message; as attributes they reach the readers all the same.
    attributes(Attrs::new(bytes));
    let _ = Expr::decode_list(Attrs::new(bytes));
    expression(bytes);
});
