//! Sets and their elements, both ways.

use std::collections::BTreeMap;

use fw_netlink::nft::{Element, ElementData, Set as KernelSet, SetData, udata};
use fw_policy::IfName;
use fw_ruleset::ir::{Field, Key, Set, SetKind, TABLE, Value, Verdict};

use crate::lower::{LowerError, value_bytes, verdict};

/// nft's numbers for types (enum datatypes in its include/datatype.h), bytes, and BYTEORDER_HOST (1) or
/// BYTEORDER_BIG_ENDIAN (2).
fn type_of(field: Field) -> (u32, u32, u32) {
    match field {
        Field::Ipv4 => (7, 4, 2),
        Field::Ipv6 => (8, 16, 2),
        Field::Protocol => (12, 1, 2),
        Field::Port => (13, 2, 2),
        Field::IfName => (41, 16, 1),
    }
}

const FIELDS: [Field; 5] = [Field::Ipv4, Field::Ipv6, Field::Protocol, Field::Port, Field::IfName];

/// nft numbers a concatenated type by its parts' numbers, six bits each (TYPE_BITS).
const TYPE_BITS: u32 = 6;
const TYPE_MASK: u32 = (1 << TYPE_BITS) - 1;

/// The kernel counts timeouts in jiffies; at HZ=100 they come back up to 10 ms off.
const TIMEOUT_GRAIN_MS: u64 = 10;

/// The definition of a set as the kernel takes it.
pub(crate) fn definition(name: &str, set: &Set, id: u32) -> KernelSet {
    let (size, timeout_ms, flags) = match set.kind {
        SetKind::Exact => (None, 0, 0),
        SetKind::Interval => (None, 0, KernelSet::INTERVAL),
        SetKind::Dynamic { size, timeout_ms } => {
            (Some(size), timeout_ms, KernelSet::EVAL | KernelSet::TIMEOUT)
        }
    };
    let concatenated = set.key.len() > 1;
    KernelSet {
        table: TABLE.to_owned(),
        name: name.to_owned(),
        flags: flags | if set.map { KernelSet::MAP } else { 0 },
        key_type: set.key.iter().fold(0, |number, field| (number << TYPE_BITS) | type_of(*field).0),
        key_len: set.key.iter().map(|field| padded(*field, concatenated)).sum(),
        data: set.map.then_some(SetData::Verdict),
        id,
        size,
        fields: Vec::new(),
        timeout_ms,
        userdata: userdata(set),
    }
}

fn padded(field: Field, concatenated: bool) -> u32 {
    let width = type_of(field).1;
    if concatenated { width.next_multiple_of(4) } else { width }
}

/// Without the byte order nft would print the keys of a set with their bytes swapped.
fn userdata(set: &Set) -> Vec<u8> {
    let byteorder = match set.key.as_slice() {
        [one] => type_of(*one).2,
        _ => 0,
    };
    let mut bytes = udata::number(udata::SET_KEY_BYTEORDER, byteorder);
    if set.map {
        bytes.extend(udata::number(udata::SET_DATA_BYTEORDER, 0));
    }
    bytes
}

/// The elements of keys, each with the index of the key it belongs to. A key's values say how wide it is; the
/// kernel refuses one that is not as long as its set wants.
pub(crate) fn elements<'a>(
    keys: impl IntoIterator<Item = (&'a Key, Option<&'a Verdict>)>,
) -> Result<Vec<(usize, Element)>, LowerError> {
    let mut list = Vec::new();
    for (index, (key, value)) in keys.into_iter().enumerate() {
        let data = value.map(|value| ElementData::Verdict(verdict(value)));
        match key {
            Key::Exact(values) => {
                let bytes = exact(values);
                list.push((index, Element { key: Some(bytes), data, ..Element::default() }));
            }
            Key::Range(first, last) => {
                let (first, last) = (value_bytes(first), value_bytes(last));
                if first.len() != last.len() || first > last {
                    return Err(LowerError::Key(describe_key(key)));
                }
                let end = successor(&last);
                let open = udata::number(udata::ELEMENT_FLAGS, udata::INTERVAL_OPEN);
                let userdata = if end.is_none() { open } else { Vec::new() };
                list.push((index, Element { key: Some(first), data, userdata, ..Element::default() }));
                if end.is_some() {
                    list.push((index, Element { key: end, interval_end: true, ..Element::default() }));
                }
            }
        }
    }
    Ok(list)
}

fn exact(values: &[Value]) -> Vec<u8> {
    if let [one] = values {
        return value_bytes(one);
    }
    let mut bytes = Vec::with_capacity(32);
    for value in values {
        bytes.extend(value_bytes(value));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// The next higher number of the same length; `None` after the highest.
fn successor(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut next = bytes.to_vec();
    for byte in next.iter_mut().rev() {
        let (sum, carry) = byte.overflowing_add(1);
        *byte = sum;
        if !carry {
            return Some(next);
        }
    }
    None
}

fn predecessor(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut previous = bytes.to_vec();
    for byte in previous.iter_mut().rev() {
        let (difference, borrow) = byte.overflowing_sub(1);
        *byte = difference;
        if !borrow {
            return Some(previous);
        }
    }
    None
}

/// A key for people: `192.0.2.0`, `tcp . 80`, `80-90`.
pub(crate) fn describe_key(key: &Key) -> String {
    let one = |value: &Value| match value {
        Value::Ipv4(address) => address.to_string(),
        Value::Ipv6(address) => address.to_string(),
        Value::Protocol(6) => "tcp".to_owned(),
        Value::Protocol(17) => "udp".to_owned(),
        Value::Protocol(number) | Value::IcmpType(number) => number.to_string(),
        Value::Port(port) => port.to_string(),
        Value::IfName(name) => name.to_string(),
    };
    match key {
        Key::Exact(values) => values.iter().map(one).collect::<Vec<_>>().join(" . "),
        Key::Range(first, last) => format!("{}-{}", one(first), one(last)),
    }
}

/// What a set of the kernel is in our terms. A set that has no form there comes back with an empty key type,
/// which equals nothing we would want.
pub(crate) fn raise(kernel: &KernelSet, elements: &[Element], wanted: Option<&Set>) -> Set {
    let strange = Set {
        key: Vec::new(),
        kind: SetKind::Exact,
        elements: BTreeMap::new(),
        map: kernel.flags & KernelSet::MAP != 0,
        origin: None,
    };
    let raised = match wanted.filter(|set| same_definition(&definition(&kernel.name, set, 0), kernel)) {
        Some(set) => Set { elements: BTreeMap::new(), ..set.clone() },
        None => match raise_definition(kernel) {
            Some(set) => set,
            None => return strange,
        },
    };
    let elements = match raised.kind {
        SetKind::Dynamic { .. } => Some(BTreeMap::new()),
        SetKind::Exact => elements.iter().map(|element| raise_exact(&raised, element)).collect(),
        SetKind::Interval => raise_intervals(&raised, elements),
    };
    match elements {
        Some(elements) => Set { elements, ..raised },
        None => strange,
    }
}

fn same_definition(ours: &KernelSet, theirs: &KernelSet) -> bool {
    ours.flags == theirs.flags
        && ours.key_type == theirs.key_type
        && ours.key_len == theirs.key_len
        && ours.data == theirs.data
        && ours.size == theirs.size
        && ours.timeout_ms.abs_diff(theirs.timeout_ms) <= TIMEOUT_GRAIN_MS
}

fn raise_definition(kernel: &KernelSet) -> Option<Set> {
    let mut key = Vec::new();
    let mut rest = kernel.key_type;
    while rest != 0 {
        key.push(*FIELDS.iter().find(|field| type_of(**field).0 == rest & TYPE_MASK)?);
        rest >>= TYPE_BITS;
    }
    key.reverse();
    let kind = match (kernel.flags & !KernelSet::MAP, kernel.size) {
        (0, None) => SetKind::Exact,
        (KernelSet::INTERVAL, None) if key.len() == 1 => SetKind::Interval,
        (flags, Some(size)) if flags == KernelSet::EVAL | KernelSet::TIMEOUT => {
            SetKind::Dynamic { size, timeout_ms: kernel.timeout_ms }
        }
        _ => return None,
    };
    let map = kernel.flags & KernelSet::MAP != 0;
    let set = Set { key, kind, elements: BTreeMap::new(), map, origin: None };
    same_definition(&definition(&kernel.name, &set, 0), kernel).then_some(set)
}

fn raise_exact(set: &Set, element: &Element) -> Option<(Key, Option<Verdict>)> {
    if element.interval_end || element.key_end.is_some() {
        return None;
    }
    let bytes = element.key.as_deref()?;
    let concatenated = set.key.len() > 1;
    let mut values = Vec::with_capacity(set.key.len());
    let mut rest = bytes;
    for field in &set.key {
        let width = usize::try_from(type_of(*field).1).ok()?;
        let step = usize::try_from(padded(*field, concatenated)).ok()?;
        values.push(raise_value(*field, rest.get(..width)?)?);
        rest = rest.get(step..)?;
    }
    Some((Key::Exact(values), raise_data(set, element)?))
}

fn raise_value(field: Field, bytes: &[u8]) -> Option<Value> {
    Some(match field {
        Field::Ipv4 => Value::Ipv4(<[u8; 4]>::try_from(bytes).ok()?.into()),
        Field::Ipv6 => Value::Ipv6(<[u8; 16]>::try_from(bytes).ok()?.into()),
        Field::Protocol => Value::Protocol(*bytes.first()?),
        Field::Port => Value::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
        Field::IfName => {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            Value::IfName(std::str::from_utf8(&bytes[..end]).ok()?.parse::<IfName>().ok()?)
        }
    })
}

/// The verdict of an element: `None` when it is missing in a map, there in a set, or not one of ours.
fn raise_data(set: &Set, element: &Element) -> Option<Option<Verdict>> {
    use fw_netlink::nft::Verdict as In;
    match (&element.data, set.map) {
        (None, false) => Some(None),
        (Some(ElementData::Verdict(verdict)), true) => Some(Some(match verdict {
            In::Accept => Verdict::Accept,
            In::Drop => Verdict::Drop,
            In::Return => Verdict::Return,
            In::Jump(chain) => Verdict::Jump(chain.clone()),
            In::Goto(chain) => Verdict::Goto(chain.clone()),
            In::Other(_) => return None,
        })),
        _ => None,
    }
}

/// Pairs first keys with end keys. `None` when they do not pair: somebody edited the set.
fn raise_intervals(set: &Set, elements: &[Element]) -> Option<BTreeMap<Key, Option<Verdict>>> {
    let field = *set.key.first()?;
    let mut sorted: Vec<(&[u8], bool, &Element)> = Vec::with_capacity(elements.len());
    for element in elements {
        // An end sorts before the first key that equals it: it closes the interval below.
        sorted.push((element.key.as_deref()?, !element.interval_end, element));
    }
    sorted.sort_by_key(|(key, starts, _)| (*key, *starts));
    let mut ranges = BTreeMap::new();
    let mut open: Option<(&[u8], Option<Verdict>)> = None;
    let mut close = |first: &[u8], last: Vec<u8>, verdict| -> Option<()> {
        ranges.insert(Key::Range(raise_value(field, first)?, raise_value(field, &last)?), verdict);
        Some(())
    };
    for (key, starts, element) in sorted {
        match (starts, open.take()) {
            (true, None) => open = Some((key, raise_data(set, element)?)),
            (true, Some(_)) => return None,
            (false, Some((first, verdict))) => close(first, predecessor(key)?, verdict)?,
            // nft marks what lies below the first interval with an end of its own; it means nothing.
            (false, None) => {}
        }
    }
    if let Some((first, verdict)) = open {
        close(first, vec![u8::MAX; first.len()], verdict)?;
    }
    Some(ranges)
}
