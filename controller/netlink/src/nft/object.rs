//! Named objects; of the kinds only counters and conntrack timeout policies of UDP.

use super::action::Counter;
use super::fields::Fields;
use crate::attr::{Attrs, DecodeError, Writer};

/// NFT_OBJECT_COUNTER
const COUNTER: u32 = 1;
/// NFT_OBJECT_CT_TIMEOUT
const CT_TIMEOUT: u32 = 7;
/// IPPROTO_UDP
const UDP: u8 = 17;

/// NFT_OBJECT_CT_HELPER
const CT_HELPER: u32 = 3;

/// A conntrack helper that somebody's rules can assign, by table and name.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CtHelper {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
}

impl CtHelper {
    /// Reads NEW_OBJECT; `None` for objects of another kind.
    pub fn decode(attrs: Attrs<'_>) -> Result<Option<Self>, DecodeError> {
        let mut f = Fields::read(attrs)?;
        if f.be32(3)? != CT_HELPER {
            return Ok(None);
        }
        Ok(Some(Self { table: f.text(1)?, name: f.text(2)? }))
    }

    /// Writes what selects the helpers of all tables in a GET_OBJECT dump.
    pub fn select_all(w: &mut Writer<'_>) {
        w.be32(3, CT_HELPER);
    }
}

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

/// How long conntrack keeps UDP entries that a rule gives this policy to.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct UdpTimeout {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// NFPROTO_* it is for; `None`: the table's, which the kernel then dumps.
    pub family: Option<u16>,
    /// Seconds before the first reply.
    pub unreplied: u32,
    /// Seconds after it.
    pub replied: u32,
}

impl UdpTimeout {
    /// The kind in [`super::Expr::ObjRef`].
    pub const KIND: u32 = CT_TIMEOUT;

    /// Writes NEW_OBJECT.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.text(1, &self.table);
        w.text(2, &self.name);
        w.be32(3, CT_TIMEOUT);
        w.nested(4, |w| {
            if let Some(family) = self.family {
                w.be16(1, family);
            }
            w.u8(2, UDP);
            // CTA_TIMEOUT_UDP_UNREPLIED and _REPLIED (include/uapi/linux/netfilter/nfnetlink_cttimeout.h).
            w.nested(3, |w| {
                w.be32(1, self.unreplied);
                w.be32(2, self.replied);
            });
        });
    }

    /// Reads NEW_OBJECT; `None` for objects of another kind and for policies of other protocols.
    pub fn decode(attrs: Attrs<'_>) -> Result<Option<Self>, DecodeError> {
        let mut f = Fields::read(attrs)?;
        if f.be32(3)? != CT_TIMEOUT {
            return Ok(None);
        }
        let mut data = Fields::read(f.need(4)?.nested())?;
        if data.need(2)?.u8()? != UDP {
            return Ok(None);
        }
        let mut seconds = Fields::read(data.need(3)?.nested())?;
        Ok(Some(Self {
            table: f.text(1)?,
            name: f.text(2)?,
            family: data.get(1).map(|a| a.be16()).transpose()?,
            unreplied: seconds.be32(1)?,
            replied: seconds.be32(2)?,
        }))
    }

    /// Writes what names it: for DEL_OBJECT.
    pub fn name(w: &mut Writer<'_>, table: &str, name: &str) {
        w.text(1, table);
        w.text(2, name);
        w.be32(3, CT_TIMEOUT);
    }

    /// Writes what selects the timeout policies of a table in a GET_OBJECT dump.
    pub fn select(w: &mut Writer<'_>, table: &str) {
        w.text(1, table);
        w.be32(3, CT_TIMEOUT);
    }
}
