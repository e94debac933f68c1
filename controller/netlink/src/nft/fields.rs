//! Attributes of one message or expression, looked up by number.

use crate::attr::{Attr, Attrs, DecodeError};

/// Highest attribute number kept, plus one; nftables has none above 31.
const NUMBERS: u16 = 32;

/// Attributes by number. Remembers which were asked for, so that a reader can notice what it does not understand.
///
/// They are looked for where they lie: a message has few, and a table of them would be written and moved for each of the
/// dozen lists in a rule.
pub(super) struct Fields<'a> {
    attrs: Attrs<'a>,
    present: u32,
    strange: bool,
    asked: u32,
}

impl<'a> Fields<'a> {
    pub(super) fn read(attrs: Attrs<'a>) -> Result<Self, DecodeError> {
        let mut fields = Self { attrs, present: 0, strange: false, asked: 0 };
        for attr in attrs {
            match attr?.kind {
                kind @ 0..NUMBERS => fields.present |= 1 << kind,
                _ => fields.strange = true,
            }
        }
        Ok(fields)
    }

    /// The last attribute of a number.
    pub(super) fn get(&mut self, kind: u16) -> Option<Attr<'a>> {
        self.asked |= 1 << kind;
        if self.present & (1 << kind) == 0 {
            return None;
        }
        self.attrs.filter_map(Result::ok).filter(|attr| attr.kind == kind).last()
    }

    pub(super) fn need(&mut self, kind: u16) -> Result<Attr<'a>, DecodeError> {
        self.get(kind).ok_or(DecodeError::Missing(kind))
    }

    pub(super) fn be16_or(&mut self, kind: u16, default: u16) -> Result<u16, DecodeError> {
        self.get(kind).map_or(Ok(default), |a| a.be16())
    }

    pub(super) fn be32(&mut self, kind: u16) -> Result<u32, DecodeError> {
        self.need(kind)?.be32()
    }

    pub(super) fn be32_or(&mut self, kind: u16, default: u32) -> Result<u32, DecodeError> {
        self.get(kind).map_or(Ok(default), |a| a.be32())
    }

    pub(super) fn be32_opt(&mut self, kind: u16) -> Result<Option<u32>, DecodeError> {
        self.get(kind).map(|a| a.be32()).transpose()
    }

    pub(super) fn be64(&mut self, kind: u16) -> Result<u64, DecodeError> {
        self.need(kind)?.be64()
    }

    pub(super) fn be64_or(&mut self, kind: u16, default: u64) -> Result<u64, DecodeError> {
        self.get(kind).map_or(Ok(default), |a| a.be64())
    }

    pub(super) fn text(&mut self, kind: u16) -> Result<String, DecodeError> {
        self.need(kind)?.text()
    }

    /// NFTA_DATA_VALUE inside a data attribute.
    pub(super) fn value(&mut self, kind: u16) -> Result<Vec<u8>, DecodeError> {
        let mut inner = Self::read(self.need(kind)?.nested())?;
        Ok(inner.need(1)?.value.to_vec())
    }

    /// An attribute that carries nothing (padding on some architectures).
    pub(super) fn ignore(&mut self, kind: u16) {
        self.asked |= 1 << kind;
    }

    /// True when every attribute present was asked for.
    pub(super) fn complete(&self) -> bool {
        !self.strange && self.present & !self.asked == 0
    }
}
