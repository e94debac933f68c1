//! Whole rulesets of anybody, message by message and without copies.
//!
//! The kernel takes any bytes but NUL as a name, so names are bytes here; the other readers, which know whose names
//! they read, have text.

use std::borrow::Cow;

use super::action::Counter;
use super::element::Element;
use super::expr::Expr;
use super::fields::Fields;
use super::set::Set;
use super::udata;
use crate::attr::{Attrs, DecodeError, Writer};

/// The name of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableView<'a> {
    /// Its name.
    pub name: &'a [u8],
}

impl<'a> TableView<'a> {
    /// Reads NEW_TABLE.
    pub fn decode(attrs: Attrs<'a>) -> Result<Self, DecodeError> {
        Ok(Self { name: Fields::read(attrs)?.need(1)?.name() })
    }
}

/// The name of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainView<'a> {
    /// Its table.
    pub table: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
    /// Number that no other object of the table has.
    pub handle: u64,
}

impl<'a> ChainView<'a> {
    /// Reads NEW_CHAIN.
    pub fn decode(attrs: Attrs<'a>) -> Result<Self, DecodeError> {
        let mut f = Fields::read(attrs)?;
        Ok(Self { table: f.need(1)?.name(), name: f.need(3)?.name(), handle: f.be64_or(2, 0)? })
    }
}

/// A named counter of any table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterView<'a> {
    /// Its table.
    pub table: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
    /// Its figures.
    pub counter: Counter,
}

/// NFT_OBJECT_COUNTER
const COUNTER: u32 = 1;

impl<'a> CounterView<'a> {
    /// Reads NEW_OBJECT; `None` for objects of another kind.
    pub fn decode(attrs: Attrs<'a>) -> Result<Option<Self>, DecodeError> {
        let mut f = Fields::read(attrs)?;
        if f.be32(3)? != COUNTER {
            return Ok(None);
        }
        let mut data = Fields::read(f.need(4)?.nested())?;
        let counter = Counter::decode(&mut data)?;
        Ok(Some(Self { table: f.need(1)?.name(), name: f.need(2)?.name(), counter }))
    }

    /// Writes what selects the counters of all tables in a GET_OBJECT dump.
    pub fn select_all(w: &mut Writer<'_>) {
        w.be32(3, COUNTER);
    }
}

/// What a set is, without its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetView<'a> {
    /// Its table.
    pub table: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
    /// True: it has no name of its own and stands in one rule.
    pub anonymous: bool,
    /// True: its elements are ranges.
    pub interval: bool,
}

impl<'a> SetView<'a> {
    /// Reads NEW_SET.
    pub fn decode(attrs: Attrs<'a>) -> Result<Self, DecodeError> {
        let mut f = Fields::read(attrs)?;
        let flags = f.be32_or(3, 0)?;
        let has = |flag: u32| flags & flag != 0;
        let (anonymous, interval) = (has(Set::ANONYMOUS), has(Set::INTERVAL));
        Ok(Self { table: f.need(1)?.name(), name: f.need(2)?.name(), anonymous, interval })
    }

    /// Writes what names a set in GET_SET and in GET_ELEMENTS.
    pub fn select(w: &mut Writer<'_>, table: &[u8], set: &[u8]) {
        w.bytes(1, &terminated(table));
        w.bytes(2, &terminated(set));
    }

    /// Gives each element of NEW_ELEMENTS to `take`.
    pub fn elements(attrs: Attrs<'_>, mut take: impl FnMut(Element)) -> Result<(), DecodeError> {
        let mut f = Fields::read(attrs)?;
        if let Some(list) = f.get(3) {
            for element in list.nested() {
                take(Element::decode(element?.nested())?);
            }
        }
        Ok(())
    }
}

fn terminated(name: &[u8]) -> Vec<u8> {
    let mut bytes = name.to_vec();
    bytes.push(0);
    bytes
}

/// A rule of any table.
#[derive(Clone, Copy, Debug)]
pub struct RuleView<'a> {
    /// Its table.
    pub table: &'a [u8],
    /// Its chain.
    pub chain: &'a [u8],
    /// Number that no other object of the table has.
    pub handle: u64,
    /// Handle of the rule before it in the chain; `None` for the first.
    pub position: Option<u64>,
    /// Its user data.
    pub userdata: &'a [u8],
    exprs: Attrs<'a>,
}

impl<'a> RuleView<'a> {
    /// Reads NEW_RULE.
    pub fn decode(attrs: Attrs<'a>) -> Result<Self, DecodeError> {
        let mut f = Fields::read(attrs)?;
        Ok(Self {
            table: f.need(1)?.name(),
            chain: f.need(2)?.name(),
            handle: f.be64_or(3, 0)?,
            position: f.get(6).map(|a| a.be64()).transpose()?,
            userdata: f.get(7).map(|a| a.value).unwrap_or_default(),
            exprs: f.get(4).map_or(Attrs::new(&[]), |a| a.nested()),
        })
    }

    /// Writes what selects the rules of one chain in a GET_RULE dump.
    pub fn select(w: &mut Writer<'_>, table: &[u8], chain: &[u8]) {
        w.bytes(1, &terminated(table));
        w.bytes(2, &terminated(chain));
    }

    /// Its expressions in order, decoded one by one.
    pub fn exprs(&self) -> impl Iterator<Item = Result<Expr, DecodeError>> + use<'a> {
        self.exprs.map(|attr| Expr::decode(attr?))
    }

    /// Its first counter that is no named object, read without decoding the other expressions.
    pub fn counter(&self) -> Result<Option<Counter>, DecodeError> {
        for expr in self.exprs {
            let mut inner = expr?.nested();
            let is_counter =
                matches!(inner.next(), Some(Ok(name)) if name.kind == 1 && name.name() == b"counter");
            if is_counter && let Some(data) = inner.find(|attr| matches!(attr, Ok(attr) if attr.kind == 2)) {
                return Counter::decode(&mut Fields::read(data?.nested())?).map(Some);
            }
        }
        Ok(None)
    }

    /// Its comment; bytes that are no text are replaced.
    pub fn comment(&self) -> Option<Cow<'a, str>> {
        let value = udata::find(self.userdata, udata::COMMENT)?;
        Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)))
    }
}
