//! Tables and the generation.

use super::fields::Fields;
use crate::attr::{Attrs, DecodeError, Writer};

/// Table flags (enum nft_table_flags).
pub mod table_flag {
    /// Only the socket that set it may change the table (5.12).
    pub const OWNER: u32 = 0x2;
    /// The table outlives its owner and may be adopted (6.9).
    pub const PERSIST: u32 = 0x4;
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Flags of [`table_flag`].
    pub flags: u32,
    /// Its user data (see [`super::udata`]); the kernel stores it only at creation.
    pub userdata: Vec<u8>,
    /// Netlink port of the owner, when it has one. Not written.
    pub owner: Option<u32>,
    /// Number that no other table ever had. Not written.
    pub handle: Option<u64>,
    /// Chains, sets and objects in it; sets without a name that were there and are gone stay counted. Not written.
    pub uses: u32,
}

impl Table {
    /// Writes NEW_TABLE.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.text(1, &self.name);
        w.be32(2, self.flags);
        if !self.userdata.is_empty() {
            w.bytes(6, &self.userdata);
        }
    }

    /// Reads NEW_TABLE.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let mut f = Fields::read(attrs)?;
        Ok(Self {
            name: f.text(1)?,
            flags: f.be32_or(2, 0)?,
            userdata: f.get(6).map(|a| a.value.to_vec()).unwrap_or_default(),
            owner: f.be32_opt(7)?,
            handle: f.get(4).map(|a| a.be64()).transpose()?,
            uses: f.be32_or(3, 0)?,
        })
    }

    /// Writes the name only: for DEL_TABLE and GET_TABLE.
    pub fn name(w: &mut Writer<'_>, name: &str) {
        w.text(1, name);
    }
}

/// Answer to GET_GENERATION.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Counts commits of the network namespace, by anybody; wraps and is never 0.
    pub id: u32,
    /// Process that made the last one, in notifications.
    pub process: Option<u32>,
    /// Its name.
    pub process_name: Option<String>,
}

impl Generation {
    /// Reads NEW_GENERATION.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let mut f = Fields::read(attrs)?;
        Ok(Self {
            id: f.be32(1)?,
            process: f.be32_opt(2)?,
            process_name: f.get(3).and_then(|a| a.text().ok()),
        })
    }
}
