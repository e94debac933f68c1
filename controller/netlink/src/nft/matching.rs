//! Expressions that read and compare.

use super::data::{Register, encode_value};
use super::fields::Fields;
use crate::attr::{DecodeError, Writer};

/// Packet metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// One of the constants below, or any other NFT_META_*.
    pub key: u32,
    /// The register it is loaded into (`true`) or set from.
    pub load: bool,
    /// The register.
    pub register: Register,
}

impl Meta {
    /// NFT_META_MARK
    pub const MARK: u32 = 3;
    /// NFT_META_IIFNAME: 16 bytes, padded with NUL.
    pub const IIFNAME: u32 = 6;
    /// NFT_META_OIFNAME
    pub const OIFNAME: u32 = 7;
    /// NFT_META_NFPROTO: one byte, 2 = IPv4, 10 = IPv6.
    pub const NFPROTO: u32 = 15;
    /// NFT_META_L4PROTO: one byte.
    pub const L4PROTO: u32 = 16;

    /// Loads `key` into `register`.
    pub fn load(key: u32, register: Register) -> Self {
        Self { key, load: true, register }
    }

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(2, self.key);
        w.be32(if self.load { 1 } else { 3 }, self.register);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let (load, register) = load_or_set(f, 1, 3)?;
        Ok(Self { key: f.be32(2)?, load, register })
    }
}

fn load_or_set(f: &mut Fields<'_>, dreg: u16, sreg: u16) -> Result<(bool, Register), DecodeError> {
    match (f.be32_opt(dreg)?, f.be32_opt(sreg)?) {
        (Some(register), None) => Ok((true, register)),
        (None, Some(register)) => Ok((false, register)),
        _ => Err(DecodeError::Value(dreg)),
    }
}

/// Bytes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// NFT_PAYLOAD_*: where `offset` counts from.
    pub base: u32,
    /// Bytes from there.
    pub offset: u32,
    /// Bytes loaded.
    pub len: u32,
    /// Register written.
    pub dreg: Register,
}

impl Payload {
    /// NFT_PAYLOAD_NETWORK_HEADER
    pub const NETWORK: u32 = 1;
    /// NFT_PAYLOAD_TRANSPORT_HEADER
    pub const TRANSPORT: u32 = 2;

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(1, self.dreg);
        w.be32(2, self.base);
        w.be32(3, self.offset);
        w.be32(4, self.len);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { dreg: f.be32(1)?, base: f.be32(2)?, offset: f.be32(3)?, len: f.be32(4)? })
    }
}

/// Comparison operators (enum nft_cmp_ops).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmpOp {
    /// `==`
    Eq,
    /// `!=`
    Neq,
    /// `<`
    Lt,
    /// `<=`
    Lte,
    /// `>`
    Gt,
    /// `>=`
    Gte,
}

impl CmpOp {
    const ALL: [Self; 6] = [Self::Eq, Self::Neq, Self::Lt, Self::Lte, Self::Gt, Self::Gte];

    fn decode(code: u32) -> Result<Self, DecodeError> {
        let index = usize::try_from(code).unwrap_or(usize::MAX);
        Self::ALL.get(index).copied().ok_or(DecodeError::Value(2))
    }
}

/// Compares a register with a constant, byte by byte from the left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmp {
    /// Register read.
    pub sreg: Register,
    /// How.
    pub op: CmpOp,
    /// The constant.
    pub data: Vec<u8>,
}

impl Cmp {
    /// `register == data`
    pub fn eq(sreg: Register, data: impl Into<Vec<u8>>) -> Self {
        Self { sreg, op: CmpOp::Eq, data: data.into() }
    }

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(1, self.sreg);
        w.be32(2, self.op as u32);
        encode_value(w, 3, &self.data);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { sreg: f.be32(1)?, op: CmpOp::decode(f.be32(2)?)?, data: f.value(3)? })
    }
}

/// `dreg = (sreg & mask) ^ xor`; the shifts of newer kernels are kept as unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitwise {
    /// Register read.
    pub sreg: Register,
    /// Register written.
    pub dreg: Register,
    /// As long as the value.
    pub mask: Vec<u8>,
    /// As long as the mask.
    pub xor: Vec<u8>,
}

impl Bitwise {
    /// Keeps the bits of `mask`.
    pub fn and(register: Register, mask: impl Into<Vec<u8>>) -> Self {
        let mask = mask.into();
        Self { sreg: register, dreg: register, xor: vec![0; mask.len()], mask }
    }

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(1, self.sreg);
        w.be32(2, self.dreg);
        w.be32(6, 0);
        w.be32(3, u32::try_from(self.mask.len()).unwrap_or(u32::MAX));
        encode_value(w, 4, &self.mask);
        encode_value(w, 5, &self.xor);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let operation = f.be32_or(6, 0)?;
        let value = Self { sreg: f.be32(1)?, dreg: f.be32(2)?, mask: f.value(4)?, xor: f.value(5)? };
        let len = usize::try_from(f.be32(3)?).unwrap_or(usize::MAX);
        let sound = operation == 0 && len == value.mask.len() && len == value.xor.len();
        if sound { Ok(value) } else { Err(DecodeError::Value(6)) }
    }
}

/// Compares a register with a range, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Register read.
    pub sreg: Register,
    /// True: matches outside the range.
    pub inverted: bool,
    /// Lowest value.
    pub from: Vec<u8>,
    /// Highest value.
    pub to: Vec<u8>,
}

impl Range {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(1, self.sreg);
        w.be32(2, u32::from(self.inverted));
        encode_value(w, 3, &self.from);
        encode_value(w, 4, &self.to);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { sreg: f.be32(1)?, inverted: boolean(f, 2)?, from: f.value(3)?, to: f.value(4)? })
    }
}

fn boolean(f: &mut Fields<'_>, kind: u16) -> Result<bool, DecodeError> {
    match f.be32_or(kind, 0)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Value(kind)),
    }
}

/// Looks a key up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Name of the set or map.
    pub set: String,
    /// Register with the key.
    pub sreg: Register,
    /// For maps: where the value goes; 0, the verdict register, for verdict maps.
    pub dreg: Option<Register>,
    /// True: matches when the key is not there.
    pub inverted: bool,
}

impl Lookup {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(2, self.sreg);
        if let Some(dreg) = self.dreg {
            w.be32(3, dreg);
        }
        w.text(1, &self.set);
        if self.inverted {
            w.be32(5, 1);
        }
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let inverted = boolean(f, 5)?;
        // The id names a set of the same transaction; the kernel never dumps it.
        f.ignore(4);
        Ok(Self { set: f.text(1)?, sreg: f.be32(2)?, dreg: f.be32_opt(3)?, inverted })
    }
}

/// Conntrack data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ct {
    /// NFT_CT_*.
    pub key: u32,
    /// Original (0) or reply (1) direction, for keys that have one.
    pub direction: Option<u8>,
    /// True: loads into the register, false: sets from it.
    pub load: bool,
    /// The register.
    pub register: Register,
}

impl Ct {
    /// NFT_CT_STATE: a bit mask in host byte order; invalid 1, established 2, related 4, new 8.
    pub const STATE: u32 = 0;
    /// NFT_CT_ZONE
    pub const ZONE: u32 = 17;

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(2, self.key);
        if self.load {
            w.be32(1, self.register);
        }
        if let Some(direction) = self.direction {
            w.u8(3, direction);
        }
        if !self.load {
            w.be32(4, self.register);
        }
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let (load, register) = load_or_set(f, 1, 4)?;
        let direction = f.get(3).map(|a| a.u8()).transpose()?;
        Ok(Self { key: f.be32(2)?, direction, load, register })
    }
}

/// Changes between network and host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Byteorder {
    /// Register read.
    pub sreg: Register,
    /// Register written.
    pub dreg: Register,
    /// NFT_BYTEORDER_NTOH (0) or _HTON (1).
    pub op: u32,
    /// Bytes in all.
    pub len: u32,
    /// Bytes of one number: 2, 4 or 8.
    pub size: u32,
}

impl Byteorder {
    /// Turns one number of `len` bytes in `register` from host to network order.
    pub fn to_network(register: Register, len: u32) -> Self {
        Self { sreg: register, dreg: register, op: 1, len, size: len }
    }

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(1, self.sreg);
        w.be32(2, self.dreg);
        w.be32(3, self.op);
        w.be32(4, self.len);
        w.be32(5, self.size);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { sreg: f.be32(1)?, dreg: f.be32(2)?, op: f.be32(3)?, len: f.be32(4)?, size: f.be32(5)? })
    }
}

/// Hash of registers, or of the packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// What is hashed: first register and bytes; `None` for the symmetric flow hash.
    pub source: Option<(Register, u32)>,
    /// Register written, a 32-bit number in host byte order.
    pub dreg: Register,
    /// Number of values.
    pub modulus: u32,
    /// Jenkins only; without one the kernel makes up its own, and hashes change with every load.
    pub seed: Option<u32>,
    /// Added to the value.
    pub offset: u32,
}

impl Hash {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        if let Some((sreg, _)) = self.source {
            w.be32(1, sreg);
        }
        w.be32(2, self.dreg);
        if let Some((_, len)) = self.source {
            w.be32(3, len);
        }
        w.be32(4, self.modulus);
        if let Some(seed) = self.seed {
            w.be32(5, seed);
        }
        if self.offset != 0 {
            w.be32(6, self.offset);
        }
        w.be32(7, u32::from(self.source.is_none()));
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let source = match f.be32_or(7, 0)? {
            0 => Some((f.be32(1)?, f.be32(3)?)),
            1 => None,
            _ => return Err(DecodeError::Value(7)),
        };
        Ok(Self {
            source,
            dreg: f.be32(2)?,
            modulus: f.be32(4)?,
            seed: f.be32_opt(5)?,
            offset: f.be32_or(6, 0)?,
        })
    }
}

/// Number generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numgen {
    /// Register written.
    pub dreg: Register,
    /// Number of values.
    pub modulus: u32,
    /// True: random, false: counts up.
    pub random: bool,
    /// Added to the value.
    pub offset: u32,
}

impl Numgen {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(1, self.dreg);
        w.be32(2, self.modulus);
        w.be32(3, u32::from(self.random));
        w.be32(4, self.offset);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { dreg: f.be32(1)?, modulus: f.be32(2)?, random: boolean(f, 3)?, offset: f.be32_or(4, 0)? })
    }
}

/// Asks the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fib {
    /// Register written.
    pub dreg: Register,
    /// NFT_FIB_RESULT_*.
    pub result: u32,
    /// NFTA_FIB_F_*.
    pub flags: u32,
}

impl Fib {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(3, self.flags);
        w.be32(2, self.result);
        w.be32(1, self.dreg);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { dreg: f.be32(1)?, result: f.be32(2)?, flags: f.be32(3)? })
    }
}
