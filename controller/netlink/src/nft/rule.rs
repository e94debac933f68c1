//! Rules.

use super::action::Counter;
use super::expr::Expr;
use super::fields::Fields;
use super::udata;
use crate::attr::{Attrs, DecodeError, Writer};

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its expressions in order.
    pub exprs: Vec<Expr>,
    /// Its user data; nft keeps the comment there.
    pub userdata: Vec<u8>,
}

impl Rule {
    /// Writes NEW_RULE.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.text(1, &self.table);
        w.text(2, &self.chain);
        if !self.userdata.is_empty() {
            w.bytes(7, &self.userdata);
        }
        if !self.exprs.is_empty() {
            w.nested(4, |w| self.exprs.iter().for_each(|expr| expr.encode(w, 1)));
        }
    }

    /// Reads NEW_RULE.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let mut f = Fields::read(attrs)?;
        Ok(Self {
            table: f.text(1)?,
            chain: f.text(2)?,
            exprs: f.get(4).map(|a| Expr::decode_list(a.nested())).transpose()?.unwrap_or_default(),
            userdata: f.get(7).map(|a| a.value.to_vec()).unwrap_or_default(),
        })
    }

    /// Writes table and chain only: DEL_RULE then deletes all rules of the chain.
    pub fn all_of_chain(w: &mut Writer<'_>, table: &str, chain: &str) {
        w.text(1, table);
        w.text(2, chain);
    }

    /// Writes what selects the rules of a table in a GET_RULE dump.
    pub fn select(w: &mut Writer<'_>, table: &str) {
        w.text(1, table);
    }
}

/// The figures of a rule, without decoding the rest of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTally {
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Number that no other object of the table has.
    pub handle: u64,
    /// Handle of the rule before it in the chain; `None` for the first.
    pub position: Option<u64>,
    /// Its first anonymous counter.
    pub counter: Option<Counter>,
    /// Its comment.
    pub comment: Option<String>,
}

impl RuleTally {
    /// Reads NEW_RULE.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let mut f = Fields::read(attrs)?;
        let counter = f.get(4).map(|list| first_counter(list.nested())).transpose()?.flatten();
        let comment = f.get(7).and_then(|a| udata::find_comment(a.value));
        let (handle, position) = (f.be64_or(3, 0)?, f.get(6).map(|a| a.be64()).transpose()?);
        Ok(Self { table: f.text(1)?, chain: f.text(2)?, handle, position, counter, comment })
    }
}

fn first_counter(list: Attrs<'_>) -> Result<Option<Counter>, DecodeError> {
    for expr in list {
        let mut outer = Fields::read(expr?.nested())?;
        if outer.need(1)?.value != b"counter\0" {
            continue;
        }
        let mut data = Fields::read(Attrs::new(outer.get(2).map(|a| a.value).unwrap_or_default()))?;
        return Counter::decode(&mut data).map(Some);
    }
    Ok(None)
}
