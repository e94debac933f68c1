//! Sets and maps.

use super::fields::Fields;
use crate::attr::{Attrs, DecodeError, Writer};

/// NFT_DATA_VERDICT
const VERDICT: u32 = 0xffff_ff00;

/// A set or map, without its elements.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Set {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// NFT_SET_* as below; the map flag is part of it.
    pub flags: u32,
    /// nft's number for the type of the key; the kernel only keeps it.
    pub key_type: u32,
    /// Bytes of a key.
    pub key_len: u32,
    /// Set for maps.
    pub data: Option<SetData>,
    /// Number by which messages of the same transaction may name it; the kernel demands one and forgets it.
    pub id: u32,
    /// Elements at most; `None` = no limit.
    pub size: Option<u32>,
    /// Bytes of each field of a concatenated key with intervals (NFTA_SET_DESC_CONCAT); else empty.
    pub fields: Vec<u32>,
    /// Lifetime of elements in milliseconds; 0 = unlimited.
    pub timeout_ms: u64,
    /// Its user data, by which nft knows the byte order of the key.
    pub userdata: Vec<u8>,
}

/// What a map gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetData {
    /// A verdict.
    Verdict,
    /// A value.
    Value {
        /// nft's number for its type.
        kind: u32,
        /// Its bytes.
        len: u32,
    },
}

impl Set {
    /// NFT_SET_ANONYMOUS
    pub const ANONYMOUS: u32 = 0x1;
    /// NFT_SET_INTERVAL
    pub const INTERVAL: u32 = 0x4;
    /// NFT_SET_MAP
    pub const MAP: u32 = 0x8;
    /// NFT_SET_TIMEOUT
    pub const TIMEOUT: u32 = 0x10;
    /// NFT_SET_EVAL: rules may add to it; `flags dynamic` in nft.
    pub const EVAL: u32 = 0x20;
    /// NFT_SET_CONCAT
    pub const CONCAT: u32 = 0x80;

    /// Writes NEW_SET.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.text(1, &self.table);
        w.text(2, &self.name);
        w.be32(3, self.flags);
        w.be32(4, self.key_type);
        w.be32(5, self.key_len);
        match self.data {
            Some(SetData::Verdict) => {
                w.be32(6, VERDICT);
                w.be32(7, 0);
            }
            Some(SetData::Value { kind, len }) => {
                w.be32(6, kind);
                w.be32(7, len);
            }
            None => {}
        }
        w.be32(10, self.id);
        if self.size.is_some() || !self.fields.is_empty() {
            w.nested(9, |w| self.encode_description(w));
        }
        if self.timeout_ms != 0 {
            w.be64(11, self.timeout_ms);
        }
        if !self.userdata.is_empty() {
            w.bytes(13, &self.userdata);
        }
    }

    fn encode_description(&self, w: &mut Writer<'_>) {
        if let Some(size) = self.size {
            w.be32(1, size);
        }
        if !self.fields.is_empty() {
            w.nested(2, |w| {
                for len in &self.fields {
                    w.nested(1, |w| w.be32(1, *len));
                }
            });
        }
    }

    /// Reads NEW_SET.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let mut f = Fields::read(attrs)?;
        let (size, fields) =
            f.get(9).map(|a| decode_description(a.nested())).transpose()?.unwrap_or_default();
        let data = match f.be32_opt(6)? {
            None => None,
            Some(VERDICT) => Some(SetData::Verdict),
            Some(kind) => Some(SetData::Value { kind, len: f.be32(7)? }),
        };
        Ok(Self {
            table: f.text(1)?,
            name: f.text(2)?,
            flags: f.be32_or(3, 0)?,
            key_type: f.be32_or(4, 0)?,
            key_len: f.be32(5)?,
            data,
            id: f.be32_or(10, 0)?,
            size,
            fields,
            timeout_ms: f.be64_or(11, 0)?,
            userdata: f.get(13).map(|a| a.value.to_vec()).unwrap_or_default(),
        })
    }

    /// Writes table and name only: for DEL_SET.
    pub fn name(w: &mut Writer<'_>, table: &str, name: &str) {
        w.text(1, table);
        w.text(2, name);
    }

    /// Writes what selects the sets of a table in a GET_SET dump.
    pub fn select(w: &mut Writer<'_>, table: &str) {
        w.text(1, table);
    }
}

type Description = (Option<u32>, Vec<u32>);

fn decode_description(attrs: Attrs<'_>) -> Result<Description, DecodeError> {
    let mut f = Fields::read(attrs)?;
    let size = f.be32_opt(1)?;
    let mut lengths = Vec::new();
    if let Some(list) = f.get(2) {
        for field in list.nested() {
            lengths.push(Fields::read(field?.nested())?.be32(1)?);
        }
    }
    Ok((size, lengths))
}
