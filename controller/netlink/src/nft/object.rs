//! Named objects; of the kinds only counters.

use super::action::Counter;
use super::fields::Fields;
use crate::attr::{Attrs, DecodeError, Writer};

/// NFT_OBJECT_COUNTER
const COUNTER: u32 = 1;

/// A named counter.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NamedCounter {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its figures; when written: start values.
    pub counter: Counter,
}

impl NamedCounter {
    /// The kind in [`super::Expr::ObjRef`].
    pub const KIND: u32 = COUNTER;

    /// Writes NEW_OBJECT.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.text(1, &self.table);
        w.text(2, &self.name);
        w.be32(3, COUNTER);
        w.nested(4, |w| self.counter.encode(w));
    }

    /// Reads NEW_OBJECT; `None` for objects of another kind.
    pub fn decode(attrs: Attrs<'_>) -> Result<Option<Self>, DecodeError> {
        let mut f = Fields::read(attrs)?;
        if f.be32(3)? != COUNTER {
            return Ok(None);
        }
        let mut data = Fields::read(f.need(4)?.nested())?;
        Ok(Some(Self { table: f.text(1)?, name: f.text(2)?, counter: Counter::decode(&mut data)? }))
    }

    /// Writes what names it: for DEL_OBJECT.
    pub fn name(w: &mut Writer<'_>, table: &str, name: &str) {
        w.text(1, table);
        w.text(2, name);
        w.be32(3, COUNTER);
    }

    /// Writes what selects the counters of a table in a GET_OBJECT dump.
    pub fn select(w: &mut Writer<'_>, table: &str) {
        w.text(1, table);
        w.be32(3, COUNTER);
    }
}
