//! Any bytes as an answer of conntrack. What can be read must write and read back as the same value.
#![no_main]

use fw_netlink::attr::{Attrs, Writer};
use fw_netlink::ctnetlink::{Entry, Tuple};
use fw_netlink::message::Messages;
use libfuzzer_sys::fuzz_target;

fn written(fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    fill(&mut writer);
    assert!(!writer.overflowed());
    bytes
}

fn attributes(attrs: Attrs<'_>) {
    if let Ok(entry) = Entry::decode(attrs) {
        let bytes = written(|w| entry.encode(w));
        assert_eq!(Entry::decode(Attrs::new(&bytes)), Ok(entry));
        let _ = entry.is_live();
    }
    tuple(attrs);
}

fn tuple(attrs: Attrs<'_>) {
    if let Ok(tuple) = Tuple::decode(attrs) {
        assert_eq!(tuple.source.is_ipv4(), tuple.destination.is_ipv4());
        let bytes = written(|w| tuple.encode(w, 1));
        let attr = Attrs::new(&bytes).next().expect("one attribute").expect("that is whole");
        assert_eq!(Tuple::decode(attr.nested()), Ok(tuple));
    }
}

/// The input as the insides of addresses and protocol, which chance alone would hardly nest.
fn nested(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let (addresses, protocol) = rest.split_at(rest.len().min(usize::from(*first)));
    let inside = written(|w| {
        w.nested_raw(1, addresses);
        w.nested_raw(2, protocol);
    });
    tuple(Attrs::new(&inside));
    attributes(Attrs::new(&written(|w| {
        w.nested_raw(1, &inside);
        w.nested_raw(2, &inside);
        w.nested_raw(4, rest);
    })));
}

fuzz_target!(|bytes: &[u8]| {
    for message in Messages::new(bytes).flatten() {
        attributes(message.attrs());
    }
    attributes(Attrs::new(bytes));
    // Longer than any message of conntrack, and than an attribute can be.
    if bytes.len() < 8192 {
        nested(bytes);
    }
});
