//! Chains.

use super::fields::Fields;
use crate::attr::{Attrs, DecodeError, Writer};

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Chain {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Set for base chains.
    pub base: Option<BaseChain>,
    /// Its user data.
    pub userdata: Vec<u8>,
}

/// Where a base chain hangs.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BaseChain {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// NF_INET_*: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub hook: u32,
    /// Lower runs first.
    pub priority: i32,
    /// NF_DROP (0) or NF_ACCEPT (1).
    pub policy: u32,
}

impl Chain {
    /// Writes NEW_CHAIN.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.text(1, &self.table);
        w.text(3, &self.name);
        if let Some(base) = &self.base {
            w.nested(4, |w| {
                w.be32(1, base.hook);
                w.be32(2, base.priority.cast_unsigned());
            });
            w.be32(5, base.policy);
            w.text(7, &base.kind);
        }
        if !self.userdata.is_empty() {
            w.bytes(12, &self.userdata);
        }
    }

    /// Reads NEW_CHAIN.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let mut f = Fields::read(attrs)?;
        let base = match f.get(4) {
            None => None,
            Some(hook) => {
                let mut hook = Fields::read(hook.nested())?;
                Some(BaseChain {
                    kind: f.text(7)?,
                    hook: hook.be32(1)?,
                    priority: hook.be32(2)?.cast_signed(),
                    policy: f.be32_or(5, 1)?,
                })
            }
        };
        Ok(Self {
            table: f.text(1)?,
            name: f.text(3)?,
            base,
            userdata: f.get(12).map(|a| a.value.to_vec()).unwrap_or_default(),
        })
    }

    /// Writes table and name only: for DEL_CHAIN.
    pub fn name(w: &mut Writer<'_>, table: &str, name: &str) {
        w.text(1, table);
        w.text(3, name);
    }

    /// Writes what selects the chains of a table in a GET_CHAIN dump. Kernels that do not filter send all.
    pub fn select(w: &mut Writer<'_>, table: &str) {
        w.text(1, table);
    }
}
