//! Netlink attributes: `struct nlattr { u16 len; u16 type; }`, value, padding to 4 bytes.
//!
//! `len` counts the header and the value but not the padding, so a value has at most 65,531 bytes
//! (include/uapi/linux/netlink.h).

/// Set on attributes whose value is a list of attributes.
const NESTED: u16 = 0x8000;
/// Cleared from types before they are compared: NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// Bytes of the largest value an attribute can hold.
pub const MAX_VALUE: usize = u16::MAX as usize - HEADER;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A length points outside what was received.
    #[error("a length at byte {0} points outside the message")]
    Length(usize),
    /// An attribute of fixed size has another one.
    #[error("attribute {0} has the wrong size")]
    Size(u16),
    /// An attribute that must be there is not.
    #[error("attribute {0} is missing")]
    Missing(u16),
    /// A text is not UTF-8 or holds a NUL in its middle.
    #[error("attribute {0} is not text")]
    Text(u16),
    /// A value has no meaning.
    #[error("attribute {0} has a value without meaning")]
    Value(u16),
    /// Expressions nested in expressions deeper than the kernel nests them.
    #[error("expressions are nested too deeply")]
    Depth,
}

/// Rounds up to netlink's alignment of 4.
pub const fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Type without the flag bits.
    pub kind: u16,
    /// Its value without padding.
    pub value: &'a [u8],
}

impl<'a> Attr<'a> {
    /// One byte.
    pub fn u8(&self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Big-endian 16 bits.
    pub fn be16(&self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Big-endian 32 bits, as nearly all of nftables' numbers.
    pub fn be32(&self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Big-endian 64 bits.
    pub fn be64(&self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Text; the NUL at its end is not part of it.
    pub fn text(&self) -> Result<String, DecodeError> {
        self.str().map(str::to_owned)
    }

    /// As [`Attr::text`], without a copy.
    pub fn str(&self) -> Result<&'a str, DecodeError> {
        let text = std::str::from_utf8(self.name()).map_err(|_| DecodeError::Text(self.kind))?;
        if text.contains('\0') { Err(DecodeError::Text(self.kind)) } else { Ok(text) }
    }

    /// The bytes of a text without the NUL at its end: the kernel takes any bytes as a name.
    pub fn name(&self) -> &'a [u8] {
        self.value.strip_suffix(&[0]).unwrap_or(self.value)
    }

    /// Exactly `N` bytes.
    pub fn array<const N: usize>(&self) -> Result<[u8; N], DecodeError> {
        self.value.try_into().map_err(|_| DecodeError::Size(self.kind))
    }

    /// The attributes inside.
    pub fn nested(&self) -> Attrs<'a> {
        Attrs::new(self.value)
    }
}

/// Iterates over attributes; ends after the first error.
#[derive(Clone, Copy, Debug)]
pub struct Attrs<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Attrs<'a> {
    /// Attributes laid one after the other.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Where the next attribute's header begins.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attr<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        // The kernel ignores up to three trailing bytes too (nla_ok, "nlmsg_attr leftover").
        if rest.len() < HEADER {
            return None;
        }
        let len = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]) & TYPE_MASK;
        let Some(value) = rest.get(HEADER..len) else {
            let error = DecodeError::Length(self.offset);
            self.offset = self.bytes.len();
            return Some(Err(error));
        };
        self.offset = self.offset.saturating_add(align(len));
        Some(Ok(Attr { kind, value }))
    }
}

/// Appends attributes to a buffer.
///
/// A value that does not fit poisons the writer instead of being cut; [`Writer::overflowed`] tells.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut Vec<u8>,
    overflowed: bool,
}

impl<'a> Writer<'a> {
    /// Appends to `buffer`, whose length must be a multiple of 4.
    pub fn new(buffer: &'a mut Vec<u8>) -> Self {
        Self { buffer, overflowed: false }
    }

    /// True when an attribute became longer than its 16-bit length can say.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Bytes written so far to the buffer beneath.
    pub fn position(&self) -> usize {
        self.buffer.len()
    }

    /// Raw bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin(kind);
        self.buffer.extend_from_slice(value);
        self.end(start);
    }

    /// One byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// Big-endian 16 bits.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Big-endian 32 bits.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Big-endian 64 bits.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Text with a NUL behind it.
    pub fn text(&mut self, kind: u16, value: &str) {
        let start = self.begin(kind);
        self.buffer.extend_from_slice(value.as_bytes());
        self.buffer.push(0);
        self.end(start);
    }

    /// A list of attributes.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.begin(kind | NESTED);
        fill(self);
        self.end(start);
    }

    /// A list of attributes that is encoded already.
    pub fn nested_raw(&mut self, kind: u16, list: &[u8]) {
        self.bytes(kind | NESTED, list);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0, 0]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        let length = self.buffer.len() - start;
        match u16::try_from(length) {
            Ok(length) => self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.overflowed = true,
        }
        self.buffer.resize(align(self.buffer.len()), 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut buffer = Vec::new();
        let mut writer = Writer::new(&mut buffer);
        fill(&mut writer);
        assert!(!writer.overflowed());
        buffer
    }

    #[test]
    fn an_attribute_is_padded_to_four_bytes_and_its_length_does_not_count_the_padding() {
        assert_eq!(written(|w| w.text(3, "x")), [6, 0, 3, 0, b'x', 0, 0, 0]);
    }

    #[test]
    fn a_nested_attribute_carries_the_flag_and_reads_back_without_it() {
        let bytes = written(|w| w.nested(2, |w| w.be32(1, 7)));
        assert_eq!(bytes[..4], [12, 0, 2, 0x80]);
        let outer = Attrs::new(&bytes).next().unwrap().unwrap();
        assert_eq!(outer.kind, 2);
        assert_eq!(outer.nested().next().unwrap().unwrap().be32(), Ok(7));
    }

    #[test]
    fn a_length_below_the_header_or_past_the_end_is_an_error_and_ends_the_iteration() {
        for bytes in [[3, 0, 1, 0, 0, 0, 0, 0], [9, 0, 1, 0, 0, 0, 0, 0]] {
            let mut attrs = Attrs::new(&bytes);
            assert_eq!(attrs.next(), Some(Err(DecodeError::Length(0))));
            assert_eq!(attrs.next(), None);
        }
    }

    #[test]
    fn a_value_over_64_kib_poisons_the_writer_instead_of_being_cut() {
        let mut buffer = Vec::new();
        let mut writer = Writer::new(&mut buffer);
        writer.bytes(1, &vec![0; MAX_VALUE]);
        assert!(!writer.overflowed());
        writer.bytes(1, &vec![0; MAX_VALUE + 1]);
        assert!(writer.overflowed());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(list in prop::collection::vec((0_u16..0x4000, prop::collection::vec(any::<u8>(), 0..40)), 0..10)) {
            let bytes = written(|w| list.iter().for_each(|(kind, value)| w.bytes(*kind, value)));
            let read: Vec<_> = Attrs::new(&bytes).map(|a| a.map(|a| (a.kind, a.value.to_vec()))).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read, list);
        }

        #[test]
        fn any_bytes_end_the_iteration_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Attrs::new(&bytes).count() <= bytes.len() / 4 + 1);
        }
    }
}
