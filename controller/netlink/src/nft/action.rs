//! Expressions that do something.

use super::data::{Register, Verdict, encode_value};
use super::expr::Expr;
use super::fields::Fields;
use crate::attr::{Attrs, DecodeError, Writer};

/// Constants and verdicts; a helper, since [`Expr`] has them as variants of their own.
pub(super) struct Immediate;

impl Immediate {
    pub(super) fn encode_value(w: &mut Writer<'_>, dreg: Register, data: &[u8]) {
        w.be32(1, dreg);
        encode_value(w, 2, data);
    }

    pub(super) fn encode_verdict(w: &mut Writer<'_>, verdict: &Verdict) {
        w.be32(1, 0);
        verdict.encode(w, 2);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Expr, DecodeError> {
        let dreg = f.be32(1)?;
        let mut data = Fields::read(f.need(2)?.nested())?;
        match (dreg, data.get(1), data.get(2)) {
            (0, None, Some(verdict)) => Ok(Expr::Verdict(Verdict::decode(verdict)?)),
            (1.., Some(value), None) => Ok(Expr::Immediate { dreg, data: value.value.to_vec() }),
            _ => Err(DecodeError::Value(2)),
        }
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the network header on.
    pub bytes: u64,
}

impl Counter {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be64(1, self.bytes);
        w.be64(2, self.packets);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        f.ignore(3);
        Ok(Self { bytes: f.be64_or(1, 0)?, packets: f.be64_or(2, 0)? })
    }
}

/// Reference to a named object; a helper as above.
pub(super) struct ObjRef;

impl ObjRef {
    pub(super) fn encode(w: &mut Writer<'_>, kind: u32, name: &str) {
        w.be32(1, kind);
        // As libnftnl: without a NUL. The kernel takes both and dumps one.
        w.bytes(2, name.as_bytes());
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Expr, DecodeError> {
        Ok(Expr::ObjRef { kind: f.be32(1)?, name: f.text(2)? })
    }
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitUnit {
    /// NFT_LIMIT_PKTS
    Packets,
    /// NFT_LIMIT_PKT_BYTES
    Bytes,
}

/// Token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Tokens per period.
    pub rate: u64,
    /// Length of the period in seconds.
    pub seconds: u64,
    /// Tokens on top.
    pub burst: u32,
    /// Packets or bytes.
    pub unit: LimitUnit,
    /// True: matches what is over the rate.
    pub over: bool,
}

impl Limit {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be64(1, self.rate);
        w.be64(2, self.seconds);
        w.be32(3, self.burst);
        w.be32(4, u32::from(self.unit == LimitUnit::Bytes));
        w.be32(5, u32::from(self.over));
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        f.ignore(6);
        let unit = match f.be32_or(4, 0)? {
            0 => LimitUnit::Packets,
            1 => LimitUnit::Bytes,
            _ => return Err(DecodeError::Value(4)),
        };
        let over = match f.be32_or(5, 0)? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Value(5)),
        };
        Ok(Self { rate: f.be64(1)?, seconds: f.be64(2)?, burst: f.be32_or(3, 0)?, unit, over })
    }
}

/// Where a log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// To userspace by NFLOG.
    Nflog {
        /// Group.
        group: u16,
        /// Bytes of the packet copied; `None` = as the listener asked.
        snaplen: Option<u32>,
        /// Packets queued before they are sent; 0 = as the listener asked.
        threshold: u16,
    },
    /// To the kernel's message log.
    Kernel {
        /// syslog level; 4 = warning is the default.
        level: u32,
        /// NF_LOG_*.
        flags: u32,
    },
}

/// Logs a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Text before it; the kernel takes 127 bytes.
    pub prefix: Option<String>,
    /// Where to.
    pub target: LogTarget,
}

/// LOGLEVEL_WARNING, what the kernel takes when no level is sent and then dumps.
const WARNING: u32 = 4;

impl Log {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        if let Some(prefix) = &self.prefix {
            w.text(2, prefix);
        }
        match self.target {
            LogTarget::Nflog { group, snaplen, threshold } => {
                w.be16(1, group);
                if let Some(snaplen) = snaplen {
                    w.be32(3, snaplen);
                }
                if threshold != 0 {
                    w.be16(4, threshold);
                }
            }
            LogTarget::Kernel { level, flags } => {
                w.be32(5, level);
                if flags != 0 {
                    w.be32(6, flags);
                }
            }
        }
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let prefix = f.get(2).map(|a| a.text()).transpose()?;
        let target = match f.get(1) {
            Some(group) => LogTarget::Nflog {
                group: group.be16()?,
                snaplen: f.be32_opt(3)?,
                threshold: f.be16_or(4, 0)?,
            },
            None => LogTarget::Kernel { level: f.be32_or(5, WARNING)?, flags: f.be32_or(6, 0)? },
        };
        Ok(Self { prefix, target })
    }
}

/// First and last register of an address or port; the last is the first when no range is meant.
type Span = (Register, Register);

fn encode_span(w: &mut Writer<'_>, kind: u16, span: Option<Span>) {
    if let Some((first, last)) = span {
        w.be32(kind, first);
        if last != first {
            w.be32(kind + 1, last);
        }
    }
}

fn decode_span(f: &mut Fields<'_>, kind: u16) -> Result<Option<Span>, DecodeError> {
    let last = f.be32_opt(kind + 1)?;
    Ok(f.be32_opt(kind)?.map(|first| (first, last.unwrap_or(first))))
}

/// NF_NAT_RANGE_MAP_IPS and _PROTO_SPECIFIED: the kernel sets them from what is given and dumps them.
const IMPLIED_NAT_FLAGS: u32 = 0x3;
const PROTO_SPECIFIED: u32 = 0x2;

fn encode_nat_flags(w: &mut Writer<'_>, kind: u16, flags: u32) {
    if flags & !IMPLIED_NAT_FLAGS != 0 {
        w.be32(kind, flags & !IMPLIED_NAT_FLAGS);
    }
}

fn decode_nat_flags(f: &mut Fields<'_>, kind: u16) -> Result<u32, DecodeError> {
    Ok(f.be32_or(kind, 0)? & !IMPLIED_NAT_FLAGS)
}

/// Address translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat {
    /// True: destination (dnat), false: source (snat).
    pub destination: bool,
    /// NFPROTO_IPV4 (2) or _IPV6 (10).
    pub family: u32,
    /// Registers of the new address.
    pub address: Option<(Register, Register)>,
    /// Registers of the new port.
    pub port: Option<(Register, Register)>,
    /// NF_NAT_RANGE_* without the two implied ones; 4 = random, 8 = persistent.
    pub flags: u32,
}

impl Nat {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(1, u32::from(self.destination));
        w.be32(2, self.family);
        encode_span(w, 3, self.address);
        encode_span(w, 5, self.port);
        encode_nat_flags(w, 7, self.flags);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let destination = match f.be32(1)? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Value(1)),
        };
        Ok(Self {
            destination,
            family: f.be32(2)?,
            address: decode_span(f, 3)?,
            port: decode_span(f, 5)?,
            flags: decode_nat_flags(f, 7)?,
        })
    }
}

/// Source translation to the address of the outgoing interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Masquerade {
    /// NF_NAT_RANGE_* without the two implied ones.
    pub flags: u32,
    /// Registers of the new port.
    pub port: Option<(Register, Register)>,
}

impl Masquerade {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        encode_nat_flags(w, 1, self.flags);
        encode_span(w, 2, self.port);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { flags: decode_nat_flags(f, 1)?, port: decode_span(f, 2)? })
    }
}

/// Destination translation to this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Redirect {
    /// Registers of the new port.
    pub port: Option<(Register, Register)>,
    /// NF_NAT_RANGE_* without the two implied ones.
    pub flags: u32,
}

impl Redirect {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        encode_span(w, 1, self.port);
        // As nft: this expression's eval takes the flag only from here in older kernels.
        let implied = if self.port.is_some() { PROTO_SPECIFIED } else { 0 };
        let flags = (self.flags & !IMPLIED_NAT_FLAGS) | implied;
        if flags != 0 {
            w.be32(3, flags);
        }
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { port: decode_span(f, 1)?, flags: decode_nat_flags(f, 3)? })
    }
}

/// Hands packets to a local transparent socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tproxy {
    /// NFPROTO_*.
    pub family: u32,
    /// Register of the address.
    pub address: Option<Register>,
    /// Register of the port.
    pub port: Option<Register>,
}

impl Tproxy {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(1, self.family);
        for (kind, register) in [(2, self.address), (3, self.port)] {
            if let Some(register) = register {
                w.be32(kind, register);
            }
        }
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { family: f.be32(1)?, address: f.be32_opt(2)?, port: f.be32_opt(3)? })
    }
}

/// Answers with an error and drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// NFT_REJECT_*.
    pub kind: u32,
    /// ICMP code; none for a TCP reset.
    pub code: Option<u8>,
}

impl Reject {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(1, self.kind);
        if let Some(code) = self.code {
            w.u8(2, code);
        }
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { kind: f.be32(1)?, code: f.get(2).map(|a| a.u8()).transpose()? })
    }
}

/// Byte quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bytes allowed.
    pub bytes: u64,
    /// Bytes used; when written: start value.
    pub consumed: u64,
    /// NFT_QUOTA_F_*.
    pub flags: u32,
}

impl Quota {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be64(1, self.bytes);
        w.be64(4, self.consumed);
        w.be32(2, self.flags);
    }

    pub(super) fn decode(f: &mut Fields<'_>) -> Result<Self, DecodeError> {
        f.ignore(3);
        Ok(Self { bytes: f.be64(1)?, consumed: f.be64_or(4, 0)?, flags: f.be32_or(2, 0)? })
    }
}

/// Adds to a set from the packet path, with state per element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dynset {
    /// Name of the set.
    pub set: String,
    /// NFT_DYNSET_OP_*: 0 = add, 1 = update (renews the time left), 2 = delete.
    pub op: u32,
    /// Register of the key.
    pub key: Register,
    /// Register of the value, for maps.
    pub value: Option<Register>,
    /// Lifetime of the element in milliseconds; 0 = the set's.
    pub timeout_ms: u64,
    /// True: matches when the operation failed.
    pub inverted: bool,
    /// Expressions every element runs; the kernel takes at most two.
    pub exprs: Vec<Expr>,
}

/// NFT_DYNSET_F_INV and _EXPR.
const DYNSET_INVERTED: u32 = 1;
const DYNSET_EXPRS: u32 = 2;

impl Dynset {
    /// NFT_DYNSET_OP_UPDATE
    pub const UPDATE: u32 = 1;

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.be32(4, self.key);
        if let Some(value) = self.value {
            w.be32(5, value);
        }
        w.be32(3, self.op);
        if self.timeout_ms != 0 {
            w.be64(6, self.timeout_ms);
        }
        w.text(1, &self.set);
        let mut flags = if self.inverted { DYNSET_INVERTED } else { 0 };
        match self.exprs.as_slice() {
            [] => {}
            [one] => one.encode(w, 7),
            several => {
                flags |= DYNSET_EXPRS;
                w.nested(10, |w| several.iter().for_each(|expr| expr.encode(w, 1)));
            }
        }
        if flags != 0 {
            w.be32(9, flags);
        }
    }

    pub(super) fn decode(f: &mut Fields<'_>, depth: u8) -> Result<Self, DecodeError> {
        f.ignore(8);
        f.ignore(2);
        let exprs = match (f.get(7), f.get(10)) {
            (Some(one), None) => vec![Expr::decode_at(one, depth + 1)?],
            (None, Some(list)) => Attrs::new(list.value)
                .map(|attr| Expr::decode_at(attr?, depth + 1))
                .collect::<Result<_, _>>()?,
            (None, None) => Vec::new(),
            (Some(_), Some(_)) => return Err(DecodeError::Value(10)),
        };
        Ok(Self {
            set: f.text(1)?,
            op: f.be32(3)?,
            key: f.be32(4)?,
            value: f.be32_opt(5)?,
            timeout_ms: f.be64_or(6, 0)?,
            inverted: f.be32_or(9, 0)? & DYNSET_INVERTED != 0,
            exprs,
        })
    }
}
