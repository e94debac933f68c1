//! Sets and their elements, both ways.

use std::collections::BTreeMap;

use fw_netlink::nft::{Element, ElementData, Set as KernelSet, SetData, udata};
use fw_policy::IfName;
use fw_ruleset::ir::{Field, Key, Set, SetKind, TABLE, Value, Verdict};

use crate::kernel::TimedElement;
use crate::lower::{LowerError, ordered_bytes, value_bytes, verdict};

/// nft's numbers for types (enum datatypes in its include/datatype.h), bytes, and BYTEORDER_HOST (1) or
/// BYTEORDER_BIG_ENDIAN (2).
fn type_of(field: Field) -> (u32, u32, u32) {
    match field {
        Field::Ipv4 => (7, 4, 2),
        Field::Ipv6 => (8, 16, 2),
        Field::Protocol => (12, 1, 2),
        Field::Port => (13, 2, 2),
        Field::IfName => (41, 16, 1),
        Field::Mark => (19, 4, 1),
    }
}

const FIELDS: [Field; 6] =
    [Field::Ipv4, Field::Ipv6, Field::Protocol, Field::Port, Field::IfName, Field::Mark];

/// What maps of marks give.
const MARK_DATA: SetData = SetData::Value { kind: 19, len: 4 };

/// nft numbers a concatenated type by its parts' numbers, six bits each (TYPE_BITS).
const TYPE_BITS: u32 = 6;
const TYPE_MASK: u32 = (1 << TYPE_BITS) - 1;

/// The kernel counts timeouts in jiffies; at HZ=100 they come back up to 10 ms off.
const TIMEOUT_GRAIN_MS: u64 = 10;
/// A year. The kernel refuses times that do not fit into 64 bits of nanoseconds (nf_msecs_to_jiffies64).
const LONGEST_MS: u64 = 365 * 24 * 3600 * 1000;

/// The definition of a set as the kernel takes it.
pub(crate) fn definition(name: &str, set: &Set, id: u32) -> KernelSet {
    let (size, timeout_ms, flags) = match set.kind {
        SetKind::Exact => (None, 0, 0),
        SetKind::Interval => (None, 0, KernelSet::INTERVAL),
        SetKind::Dynamic { size, timeout_ms } => {
            (Some(size), timeout_ms, KernelSet::EVAL | KernelSet::TIMEOUT)
        }
        SetKind::Learned { size } => (Some(size), 0, KernelSet::TIMEOUT),
        SetKind::LearnedBoxes { size } => (Some(size), 0, KernelSet::INTERVAL | KernelSet::CONCAT),
    };
    let concatenated = set.key.len() > 1;
    let fields = match set.kind {
        SetKind::LearnedBoxes { .. } => set.key.iter().map(|field| type_of(*field).1).collect(),
        _ => Vec::new(),
    };
    KernelSet {
        table: TABLE.to_owned(),
        name: name.to_owned(),
        flags: flags | if set.map { KernelSet::MAP } else { 0 },
        key_type: set.key.iter().fold(0, |number, field| (number << TYPE_BITS) | type_of(*field).0),
        key_len: set.key.iter().map(|field| padded(*field, concatenated)).sum(),
        data: set.map.then_some(if learned(set) { MARK_DATA } else { SetData::Verdict }),
        id,
        size,
        fields,
        timeout_ms,
        userdata: userdata(set),
    }
}

/// True for sets whose elements come from user space outside of plans.
pub(crate) fn learned(set: &Set) -> bool {
    matches!(set.kind, SetKind::Learned { .. } | SetKind::LearnedBoxes { .. })
}

/// Whether rules can look keys of these fields up in a set of this kind: a rule does not say what kind of set it
/// names, and interval sets of the kernel want marks in another byte order than all others.
pub(crate) fn check(set: &Set) -> Result<(), LowerError> {
    let has = |field| set.key.contains(&field);
    let good = match set.kind {
        SetKind::Exact | SetKind::Dynamic { .. } => true,
        SetKind::Interval => !has(Field::Mark),
        SetKind::Learned { .. } => set.key.len() == 1 || !has(Field::Mark),
        SetKind::LearnedBoxes { .. } => {
            set.key.len() > 1 && !has(Field::IfName) && (set.map || !has(Field::Mark))
        }
    };
    if good { Ok(()) } else { Err(LowerError::KeyType(format!("{:?}", set.key))) }
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
        let host = u32::from(learned(set));
        bytes.extend(udata::number(udata::SET_DATA_BYTEORDER, host));
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
                let bytes = concatenate(values, value_bytes);
                list.push((index, Element { key: Some(bytes), data, ..Element::default() }));
            }
            Key::Range(first, last) => {
                let (first, last) = (ordered_bytes(first), ordered_bytes(last));
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
            Key::Box(first, last) => {
                let (key, key_end) = box_bytes(key, first, last)?;
                list.push((
                    index,
                    Element { key: Some(key), key_end: Some(key_end), data, ..Element::default() },
                ));
            }
        }
    }
    Ok(list)
}

/// The first and the last key of a box.
fn box_bytes(key: &Key, first: &[Value], last: &[Value]) -> Result<(Vec<u8>, Vec<u8>), LowerError> {
    let ordered = |(first, last): (&Value, &Value)| {
        let (first, last) = (ordered_bytes(first), ordered_bytes(last));
        first.len() == last.len() && first <= last
    };
    if first.len() != last.len() || first.len() < 2 || !first.iter().zip(last).all(ordered) {
        return Err(LowerError::Key(describe_key(key)));
    }
    Ok((concatenate(first, ordered_bytes), concatenate(last, ordered_bytes)))
}

fn concatenate(values: &[Value], bytes_of: fn(&Value) -> Vec<u8>) -> Vec<u8> {
    if let [one] = values {
        return bytes_of(one);
    }
    let mut bytes = Vec::with_capacity(32);
    for value in values {
        bytes.extend(bytes_of(value));
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
        Value::Mark(mark) => format!("0x{mark:08x}"),
    };
    let range = |first: &Value, last: &Value| match first == last {
        true => one(first),
        false => format!("{}-{}", one(first), one(last)),
    };
    match key {
        Key::Exact(values) => values.iter().map(one).collect::<Vec<_>>().join(" . "),
        Key::Range(first, last) => format!("{}-{}", one(first), one(last)),
        Key::Box(first, last) => {
            first.iter().zip(last).map(|(first, last)| range(first, last)).collect::<Vec<_>>().join(" . ")
        }
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
        SetKind::Dynamic { .. } | SetKind::Learned { .. } | SetKind::LearnedBoxes { .. } => {
            Some(BTreeMap::new())
        }
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
        && ours.fields == theirs.fields
        && ours.timeout_ms.abs_diff(theirs.timeout_ms) <= TIMEOUT_GRAIN_MS
}

pub(crate) fn raise_definition(kernel: &KernelSet) -> Option<Set> {
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
        (KernelSet::TIMEOUT, Some(size)) => SetKind::Learned { size },
        (flags, Some(size)) if flags == KernelSet::INTERVAL | KernelSet::CONCAT => {
            SetKind::LearnedBoxes { size }
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
    let values = raise_values(&set.key, element.key.as_deref()?, raise_value)?;
    Some((Key::Exact(values), raise_data(set, element)?))
}

/// An element that user space put there outside of plans; `None` when it is not one of ours.
pub(crate) fn raise_timed(set: &Set, element: &Element) -> Option<TimedElement> {
    let bytes = element.key.as_deref()?;
    let key = match (&set.kind, &element.key_end) {
        (SetKind::LearnedBoxes { .. }, end) => {
            let last = end.as_deref().unwrap_or(bytes);
            Key::Box(
                raise_values(&set.key, bytes, raise_ordered)?,
                raise_values(&set.key, last, raise_ordered)?,
            )
        }
        (_, None) => Key::Exact(raise_values(&set.key, bytes, raise_value)?),
        (_, Some(_)) => return None,
    };
    let mark = match &element.data {
        Some(ElementData::Value(data)) => Some(u32::from_ne_bytes(data.as_slice().try_into().ok()?)),
        Some(ElementData::Verdict(_)) => return None,
        None => None,
    };
    Some(TimedElement { key, mark, expires_in_ms: element.expiration_ms })
}

/// An element as user space puts it. The kernel counts from the timeout that it is given and, from Linux 6.12 on,
/// from the time left.
pub(crate) fn timed_element(wanted: &TimedElement) -> Result<Element, LowerError> {
    let (key, key_end) = match &wanted.key {
        Key::Exact(values) => (concatenate(values, value_bytes), None),
        Key::Box(first, last) => box_bytes(&wanted.key, first, last).map(|(key, end)| (key, Some(end)))?,
        Key::Range(..) => return Err(LowerError::Key(describe_key(&wanted.key))),
    };
    let left = wanted.expires_in_ms.map(|left| left.clamp(TIMEOUT_GRAIN_MS, LONGEST_MS));
    let data = wanted.mark.map(|mark| ElementData::Value(mark.to_ne_bytes().to_vec()));
    Ok(Element { key: Some(key), key_end, data, timeout_ms: left, expiration_ms: left, ..Element::default() })
}

fn raise_values(
    fields: &[Field],
    bytes: &[u8],
    raise: fn(Field, &[u8]) -> Option<Value>,
) -> Option<Vec<Value>> {
    let mut values = Vec::with_capacity(fields.len());
    let mut rest = bytes;
    for field in fields {
        let width = usize::try_from(type_of(*field).1).ok()?;
        let step = usize::try_from(padded(*field, fields.len() > 1)).ok()?;
        values.push(raise(*field, rest.get(..width)?)?);
        rest = rest.get(step..)?;
    }
    Some(values)
}

/// As [`raise_value`], of bytes that are in order of size.
fn raise_ordered(field: Field, bytes: &[u8]) -> Option<Value> {
    match field {
        Field::Mark => Some(Value::Mark(u32::from_be_bytes(bytes.try_into().ok()?))),
        field => raise_value(field, bytes),
    }
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
        Field::Mark => Value::Mark(u32::from_ne_bytes(bytes.try_into().ok()?)),
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
        ranges.insert(Key::Range(raise_ordered(field, first)?, raise_ordered(field, &last)?), verdict);
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
