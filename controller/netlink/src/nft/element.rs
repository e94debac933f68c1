//! Elements of sets and maps.

use super::data::{Verdict, encode_value};
use super::fields::Fields;
use crate::attr::{Attrs, DecodeError, MAX_VALUE, Writer, align};

/// One element. An interval is two of them: its first key, and the key after its last with `interval_end`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Element {
    /// The key; `None` only for the catch-all element of maps we did not write.
    pub key: Option<Vec<u8>>,
    /// Last key, for concatenated intervals (KEY_END).
    pub key_end: Option<Vec<u8>>,
    /// NFT_SET_ELEM_INTERVAL_END
    pub interval_end: bool,
    /// What a map gives.
    pub data: Option<ElementData>,
    /// Lifetime in milliseconds, when it is not the set's.
    pub timeout_ms: Option<u64>,
    /// Time left in milliseconds; writing it (Linux 6.12) renews an element.
    pub expiration_ms: Option<u64>,
    /// Its user data.
    pub userdata: Vec<u8>,
}

/// Value of a map's element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElementData {
    /// In a verdict map.
    Verdict(Verdict),
    /// In any other map.
    Value(Vec<u8>),
}

const INTERVAL_END: u32 = 0x1;

impl Element {
    fn encode(&self, w: &mut Writer<'_>, kind: u16) {
        w.nested(kind, |w| {
            if self.interval_end {
                w.be32(3, INTERVAL_END);
            }
            if let Some(timeout) = self.timeout_ms {
                w.be64(4, timeout);
            }
            if let Some(expiration) = self.expiration_ms {
                w.be64(5, expiration);
            }
            if let Some(key) = &self.key {
                encode_value(w, 1, key);
            }
            if let Some(key_end) = &self.key_end {
                encode_value(w, 10, key_end);
            }
            match &self.data {
                Some(ElementData::Verdict(verdict)) => verdict.encode(w, 2),
                Some(ElementData::Value(value)) => encode_value(w, 2, value),
                None => {}
            }
            if !self.userdata.is_empty() {
                w.bytes(6, &self.userdata);
            }
        });
    }

    /// Reads one entry of a list of elements.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let mut f = Fields::read(attrs)?;
        let optional = |f: &mut Fields<'_>, kind| f.get(kind).is_some().then(|| f.value(kind)).transpose();
        let data = match f.get(2) {
            None => None,
            Some(data) => {
                let mut inner = Fields::read(data.nested())?;
                Some(match inner.get(2) {
                    Some(verdict) => ElementData::Verdict(Verdict::decode(verdict)?),
                    None => ElementData::Value(inner.need(1)?.value.to_vec()),
                })
            }
        };
        Ok(Self {
            key: optional(&mut f, 1)?,
            key_end: optional(&mut f, 10)?,
            interval_end: f.be32_or(3, 0)? & INTERVAL_END != 0,
            data,
            timeout_ms: f.get(4).map(|a| a.be64()).transpose()?,
            expiration_ms: f.get(5).map(|a| a.be64()).transpose()?,
            userdata: f.get(6).map(|a| a.value.to_vec()).unwrap_or_default(),
        })
    }

    /// Bytes it takes in a list, at most.
    fn cost(&self) -> usize {
        const NESTED_VALUE: usize = 8;
        let value = |bytes: &Vec<u8>| NESTED_VALUE + align(bytes.len());
        let data = match &self.data {
            // Data, verdict, code and chain: four headers, a number, the name with its NUL.
            Some(ElementData::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) => {
                20 + align(chain.len() + 1)
            }
            Some(ElementData::Verdict(_)) => 16,
            Some(ElementData::Value(bytes)) => value(bytes),
            None => 0,
        };
        let keys = self.key.as_ref().map_or(0, value) + self.key_end.as_ref().map_or(0, value);
        // List entry 4, flags 8, two times 12 each.
        36 + keys + data + 4 + align(self.userdata.len())
    }
}

/// A range of elements that fits into one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementChunk {
    /// Index of the first.
    pub start: usize,
    /// Index after the last.
    pub end: usize,
}

/// Cuts a list so that each part fits into one attribute, whose length has 16 bits.
pub fn chunk_elements(elements: &[Element]) -> Vec<ElementChunk> {
    let mut chunks = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (index, element) in elements.iter().enumerate() {
        let cost = element.cost();
        if size + cost > MAX_VALUE && index > start {
            chunks.push(ElementChunk { start, end: index });
            (start, size) = (index, 0);
        }
        size += cost;
    }
    if start < elements.len() {
        chunks.push(ElementChunk { start, end: elements.len() });
    }
    chunks
}

/// Writes NEW_ELEMENTS or DEL_ELEMENTS.
pub fn encode_elements(w: &mut Writer<'_>, table: &str, set: &str, elements: &[Element]) {
    w.text(2, set);
    w.text(1, table);
    w.nested(3, |w| {
        // The kernel does not look at the numbers of the entries; libnftnl counts them.
        let numbers = (1..0x3fff_u16).cycle();
        elements.iter().zip(numbers).for_each(|(element, number)| element.encode(w, number));
    });
}

/// Reads NEW_ELEMENTS: table, set and elements.
pub fn decode_elements(attrs: Attrs<'_>) -> Result<(String, String, Vec<Element>), DecodeError> {
    let mut f = Fields::read(attrs)?;
    let mut elements = Vec::new();
    if let Some(list) = f.get(3) {
        for element in list.nested() {
            elements.push(Element::decode(element?.nested())?);
        }
    }
    Ok((f.text(1)?, f.text(2)?, elements))
}

/// Writes what selects the elements of a set in a GET_ELEMENTS dump.
pub fn elements_request(w: &mut Writer<'_>, table: &str, set: &str) {
    w.text(1, table);
    w.text(2, set);
}
