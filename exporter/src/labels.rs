//! Values of fields as label text: addresses, ports and interfaces as nft prints them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use fw_netlink::nft::reading::{AddressKind, Field, Match, Part, Test};
use fw_netlink::nft::{CmpOp, Element};

/// Elements of an anonymous set that are shown; the others are counted in the text.
pub const MAX_ELEMENTS: usize = 512;

/// What stands in the labels of a rule, apart from names and comment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Matches {
    /// `input_interfaces`
    pub input: Vec<String>,
    /// `output_interfaces`
    pub output: Vec<String>,
    /// `source_addresses`
    pub source: Vec<String>,
    /// `destination_addresses`
    pub destination: Vec<String>,
    /// `source_ports`
    pub source_ports: Vec<String>,
    /// `destination_ports`
    pub destination_ports: Vec<String>,
}

impl Matches {
    fn list(&mut self, field: Field) -> &mut Vec<String> {
        match field {
            Field::InputName | Field::InputIndex => &mut self.input,
            Field::OutputName | Field::OutputIndex => &mut self.output,
            Field::Source(_) => &mut self.source,
            Field::Destination(_) => &mut self.destination,
            Field::SourcePort => &mut self.source_ports,
            Field::DestinationPort => &mut self.destination_ports,
        }
    }

    /// Adds what a match asks. `elements` are those of the set it names, when that is an anonymous one; `interface`
    /// knows the names of interfaces by number.
    pub fn add(
        &mut self,
        found: &Match,
        elements: Option<&Elements>,
        interface: &mut dyn FnMut(u32) -> String,
    ) {
        match found.parts.as_slice() {
            [part] => {
                if let Some((field, text)) = part.field.zip(single(part, &found.test, elements, interface)) {
                    self.list(field).push(text);
                }
            }
            parts => self.add_tuple(parts, &found.test, elements, interface),
        }
    }

    /// Of a concatenation each label shows its component. Of one that is negated no component is excluded by itself, so
    /// each label shows the whole.
    fn add_tuple(
        &mut self,
        parts: &[Part],
        test: &Test,
        elements: Option<&Elements>,
        interface: &mut dyn FnMut(u32) -> String,
    ) {
        let inverted = match test {
            Test::Set { inverted, .. } | Test::Range { inverted, .. } => *inverted,
            Test::Compare { op, .. } => *op == CmpOp::Neq,
        };
        let whole = inverted.then(|| format!("!= {}", tuples(parts, test, elements, interface)));
        for (index, part) in parts.iter().enumerate() {
            let Some(field) = part.field else { continue };
            let text = match (&whole, test, elements) {
                (Some(whole), ..) => whole.clone(),
                (None, Test::Set { .. }, Some(elements)) => elements.component(parts, index, interface),
                (None, Test::Set { name, .. }, None) => format!("@{name}"),
                // Other comparisons of several fields at once are not made by any program known.
                (None, ..) => continue,
            };
            self.list(field).push(text);
        }
    }
}

fn single(
    part: &Part,
    test: &Test,
    elements: Option<&Elements>,
    interface: &mut dyn FnMut(u32) -> String,
) -> Option<String> {
    let field = part.field?;
    Some(match test {
        Test::Compare { op, value } => compare(field, part, *op, value, interface)?,
        Test::Range { inverted, from, to } => {
            let range = range(field, from, to, interface)?;
            if *inverted { format!("!= {range}") } else { range }
        }
        Test::Set { inverted, name } => {
            let mut text = if *inverted { String::from("!= ") } else { String::new() };
            match part.mask.as_deref().map(|mask| (mask, prefix_length(mask))) {
                Some((mask, None)) => {
                    let _ = write!(text, "& {} ", value_text(field, mask, interface)?);
                }
                Some((_, Some(length))) if length < mask_bits(part) => {
                    let _ = write!(text, "& /{length} ");
                }
                _ => {}
            }
            match elements {
                Some(elements) => {
                    text.push_str(&elements.component(std::slice::from_ref(part), 0, interface))
                }
                None => {
                    let _ = write!(text, "@{name}");
                }
            }
            text
        }
    })
}

fn mask_bits(part: &Part) -> usize {
    part.len * 8
}

fn compare(
    field: Field,
    part: &Part,
    op: CmpOp,
    value: &[u8],
    interface: &mut dyn FnMut(u32) -> String,
) -> Option<String> {
    let sign = match op {
        CmpOp::Eq => "",
        CmpOp::Neq => "!= ",
        CmpOp::Lt => "< ",
        CmpOp::Lte => "<= ",
        CmpOp::Gt => "> ",
        CmpOp::Gte => ">= ",
    };
    let mask = part.mask.as_deref();
    let all = width(field) * 8;
    Some(match mask.map(|mask| (mask, prefix_length(mask))) {
        Some((_, Some(length))) if length < all && is_address(field) => {
            format!("{sign}{}/{length}", value_text(field, value, interface)?)
        }
        Some((_, Some(length))) if length == all => format!("{sign}{}", value_text(field, value, interface)?),
        Some((mask, _)) => {
            let sign = if op == CmpOp::Eq { "== " } else { sign };
            format!("& {} {sign}{}", mask_text(field, mask), value_text(field, value, interface)?)
        }
        // A beginning of a field: nft's way to compare with prefixes of whole bytes, and with `eth*`.
        None if value.len() < width(field) && is_address(field) => {
            format!("{sign}{}/{}", value_text(field, value, interface)?, value.len() * 8)
        }
        None => format!("{sign}{}", value_text(field, value, interface)?),
    })
}

fn mask_text(field: Field, mask: &[u8]) -> String {
    match field {
        Field::Source(AddressKind::V4 | AddressKind::V6)
        | Field::Destination(AddressKind::V4 | AddressKind::V6) => {
            value_text(field, mask, &mut |_| String::new()).unwrap_or_default()
        }
        _ => hex(mask),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_address(field: Field) -> bool {
    matches!(field, Field::Source(_) | Field::Destination(_))
}

/// Bytes of a field.
fn width(field: Field) -> usize {
    match field {
        Field::InputName | Field::OutputName => 16,
        Field::InputIndex | Field::OutputIndex => 4,
        Field::Source(kind) | Field::Destination(kind) => match kind {
            AddressKind::V4 => 4,
            AddressKind::V6 => 16,
            AddressKind::Mac => 6,
        },
        Field::SourcePort | Field::DestinationPort => 2,
    }
}

/// The length of a mask that keeps the first bits only.
fn prefix_length(mask: &[u8]) -> Option<usize> {
    let ones = mask.iter().take_while(|byte| **byte == 0xff).count();
    let next = mask.get(ones).copied().unwrap_or(0);
    let rest = mask.get(ones + 1..).unwrap_or_default();
    let partial = usize::try_from(next.leading_ones()).ok()?;
    let sound = next.count_ones() == next.leading_ones() && rest.iter().all(|byte| *byte == 0);
    sound.then_some(ones * 8 + partial)
}

/// A value; shorter than the field, the rest is 0. `None` when it cannot be one of this field.
fn value_text(field: Field, value: &[u8], interface: &mut dyn FnMut(u32) -> String) -> Option<String> {
    Some(match field {
        Field::InputName | Field::OutputName => interface_text(value),
        Field::InputIndex | Field::OutputIndex => interface(u32::from_ne_bytes(value.try_into().ok()?)),
        Field::Source(AddressKind::V4) | Field::Destination(AddressKind::V4) => {
            Ipv4Addr::from(filled::<4>(value)?).to_string()
        }
        Field::Source(AddressKind::V6) | Field::Destination(AddressKind::V6) => {
            Ipv6Addr::from(filled::<16>(value)?).to_string()
        }
        Field::Source(AddressKind::Mac) | Field::Destination(AddressKind::Mac) => {
            let [a, b, c, d, e, f] = filled::<6>(value)?;
            format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
        }
        Field::SourcePort | Field::DestinationPort => u16::from_be_bytes(value.try_into().ok()?).to_string(),
    })
}

fn filled<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    bytes.get_mut(..value.len())?.copy_from_slice(value);
    Some(bytes)
}

/// A name without NUL is the beginning of one (`eth*`), unless it has all 16 bytes.
fn interface_text(value: &[u8]) -> String {
    let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let star = if name.len() == value.len() && value.len() < 16 { "*" } else { "" };
    format!("{}{star}", String::from_utf8_lossy(name))
}

/// One value, a prefix where it is one and the field is an address, else `from-to`.
fn range(field: Field, from: &[u8], to: &[u8], interface: &mut dyn FnMut(u32) -> String) -> Option<String> {
    if from == to {
        return value_text(field, from, interface);
    }
    if let Some(text) = wildcard(field, from, to) {
        return Some(text);
    }
    let mask: Vec<u8> = from.iter().zip(to).map(|(from, to)| !(from ^ to)).collect();
    let is_prefix = is_address(field)
        && from.iter().zip(&mask).all(|(byte, mask)| byte & !mask == 0)
        && to.iter().zip(&mask).all(|(byte, mask)| byte | mask == 0xff);
    let length = prefix_length(&mask).filter(|_| is_prefix && from.len() == to.len());
    let first = value_text(field, from, interface)?;
    Some(match length {
        Some(length) => format!("{first}/{length}"),
        None => format!("{first}-{}", value_text(field, to, interface)?),
    })
}

/// In sets of ranges `eth*` is all names from `eth` to `eth` with 0xff behind it.
fn wildcard(field: Field, from: &[u8], to: &[u8]) -> Option<String> {
    let name = from.split(|byte| *byte == 0).next().unwrap_or_default();
    let is_name = matches!(field, Field::InputName | Field::OutputName);
    let reaches = to.starts_with(name) && to.get(name.len()..)?.iter().all(|byte| *byte == 0xff);
    (is_name && reaches).then(|| format!("{}*", String::from_utf8_lossy(name)))
}

/// A key, and the last one it stands for.
type Span = (Vec<u8>, Vec<u8>);

/// Elements of an anonymous set, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elements {
    spans: Vec<Span>,
    more: usize,
}

/// Collects elements as they come; keeps the lowest ones, so that the same set gives the same text.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    /// Keys; `false` ends an interval, before the one that begins there.
    points: BTreeSet<(Vec<u8>, bool, Option<Vec<u8>>)>,
    more: usize,
    interval: bool,
}

impl Collector {
    /// For a set of ranges, or of single keys.
    pub fn new(interval: bool) -> Self {
        Self { interval, ..Self::default() }
    }

    /// Takes an element.
    pub fn add(&mut self, element: Element) {
        let Some(key) = element.key else {
            self.more += 1;
            return;
        };
        self.points.insert((key, !element.interval_end, element.key_end));
        let bound = if self.interval { 2 * MAX_ELEMENTS } else { MAX_ELEMENTS };
        if self.points.len() > bound && self.points.pop_last().is_some_and(|(_, start, _)| start) {
            self.more += 1;
        }
    }

    /// The elements.
    pub fn finish(self) -> Elements {
        let mut spans: Vec<Span> = Vec::new();
        let mut open: Option<Vec<u8>> = None;
        for (key, is_start, end) in self.points {
            // Concatenated ranges carry both ends, and sets of single keys have none.
            if end.is_some() || !self.interval {
                spans.push((key.clone(), end.unwrap_or(key)));
                continue;
            }
            if let Some(start) = open.take() {
                spans.push((start, before(&key)));
            }
            open = is_start.then_some(key);
        }
        if let Some(start) = open {
            let last = vec![0xff; start.len()];
            spans.push((start, last));
        }
        Elements { spans, more: self.more }
    }
}

/// The key before this one.
fn before(key: &[u8]) -> Vec<u8> {
    let mut bytes = key.to_vec();
    for byte in bytes.iter_mut().rev() {
        let (less, borrow) = byte.overflowing_sub(1);
        *byte = less;
        if !borrow {
            break;
        }
    }
    bytes
}

impl Elements {
    /// True when some are not shown.
    pub fn shortened(&self) -> bool {
        self.more > 0
    }

    /// Distinct values of one component, in the order of the keys.
    fn component(&self, parts: &[Part], index: usize, interface: &mut dyn FnMut(u32) -> String) -> String {
        let mut seen = BTreeSet::new();
        let mut texts: Vec<String> = Vec::new();
        for span in &self.spans {
            let text = component_text(span, parts, index, interface);
            if seen.insert(text.clone()) {
                texts.push(text);
            }
        }
        self.join(&texts)
    }

    fn join(&self, texts: &[String]) -> String {
        let mut text = texts.join(",");
        if self.more > 0 {
            let _ = write!(text, ",… {} more", self.more);
        }
        text
    }
}

fn tuples(
    parts: &[Part],
    test: &Test,
    elements: Option<&Elements>,
    interface: &mut dyn FnMut(u32) -> String,
) -> String {
    match (test, elements) {
        (Test::Set { .. }, Some(elements)) => {
            let mut texts = Vec::new();
            for span in &elements.spans {
                let mut components = Vec::new();
                for index in 0..parts.len() {
                    components.push(component_text(span, parts, index, interface));
                }
                texts.push(components.join(" . "));
            }
            elements.join(&texts)
        }
        (Test::Set { name, .. }, None) => format!("@{name}"),
        (Test::Compare { value, .. }, _) => {
            let mut components = Vec::new();
            let mut at = 0;
            for part in parts {
                let slice = value.get(at..value.len().min(at + part.len)).unwrap_or_default();
                let text = part.field.and_then(|field| value_text(field, slice, interface));
                components.push(text.unwrap_or_else(|| hex(slice)));
                at += part.len;
            }
            components.join(" . ")
        }
        (Test::Range { from, to, .. }, _) => format!("{}-{}", hex(from), hex(to)),
    }
}

/// One component of a concatenated key, whose fields are padded to 4 bytes each.
fn component_text(
    (from, to): &Span,
    parts: &[Part],
    index: usize,
    interface: &mut dyn FnMut(u32) -> String,
) -> String {
    let start: usize = parts.iter().take(index).map(|part| part.len.next_multiple_of(4)).sum();
    let Some(part) = parts.get(index) else { return String::new() };
    let slice =
        |key: &Vec<u8>| key.get(start..(start + part.len).min(key.len())).unwrap_or_default().to_vec();
    let (from, to) = (slice(from), slice(to));
    let text = part.field.and_then(|field| range(field, &from, &to, interface));
    text.unwrap_or_else(|| if from == to { hex(&from) } else { format!("{}-{}", hex(&from), hex(&to)) })
}
