//! Expressions: what rules are made of.

use super::action::{
    Counter, Dynset, Immediate, Limit, Log, Masquerade, Nat, ObjRef, Quota, Redirect, Reject, Tproxy,
};
use super::data::{Register, Verdict};
use super::fields::Fields;
use super::matching::{Bitwise, Byteorder, Cmp, Ct, Fib, Hash, Lookup, Meta, Numgen, Payload, Range};
use crate::attr::{Attr, Attrs, DecodeError, Writer};

/// Dynset expressions hold expressions; the kernel allows two of them and none inside those.
const MAX_DEPTH: u8 = 2;

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads packet metadata, or sets it.
    Meta(Meta),
    /// Loads bytes of the packet.
    Payload(Payload),
    /// Compares; a mismatch ends the rule.
    Cmp(Cmp),
    /// `(register & mask) ^ xor`
    Bitwise(Bitwise),
    /// Compares with a range.
    Range(Range),
    /// Looks up in a set or map.
    Lookup(Lookup),
    /// Loads a constant.
    Immediate {
        /// Register written.
        dreg: Register,
        /// The constant.
        data: Vec<u8>,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Counts packets and bytes. When written: start values.
    Counter(Counter),
    /// Refers to a named object.
    ObjRef {
        /// NFT_OBJECT_*; 1 is a counter.
        kind: u32,
        /// Its name.
        name: String,
    },
    /// Token bucket.
    Limit(Limit),
    /// Logs.
    Log(Log),
    /// Loads conntrack data, or sets it.
    Ct(Ct),
    /// Translates addresses.
    Nat(Nat),
    /// Translates the source to the address of the outgoing interface.
    Masquerade(Masquerade),
    /// Redirects to this machine.
    Redirect(Redirect),
    /// Hands to a local socket.
    Tproxy(Tproxy),
    /// Jenkins or symmetric hash.
    Hash(Hash),
    /// Number generator.
    Numgen(Numgen),
    /// Adds to a set from the packet path.
    Dynset(Dynset),
    /// Swaps bytes.
    Byteorder(Byteorder),
    /// Answers with an error.
    Reject(Reject),
    /// Asks the routing table.
    Fib(Fib),
    /// Byte quota.
    Quota(Quota),
    /// Exempts from connection tracking.
    Notrack,
    /// An expression, or a form of one, that this crate does not know; kept as it came.
    Unknown {
        /// Its name.
        name: String,
        /// The bytes of NFTA_EXPR_DATA.
        data: Vec<u8>,
    },
}

impl Expr {
    /// The kernel's name for it, as in its error messages.
    pub fn name(&self) -> &str {
        match self {
            Self::Meta(_) => "meta",
            Self::Payload(_) => "payload",
            Self::Cmp(_) => "cmp",
            Self::Bitwise(_) => "bitwise",
            Self::Range(_) => "range",
            Self::Lookup(_) => "lookup",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Counter(_) => "counter",
            Self::ObjRef { .. } => "objref",
            Self::Limit(_) => "limit",
            Self::Log(_) => "log",
            Self::Ct(_) => "ct",
            Self::Nat(_) => "nat",
            Self::Masquerade(_) => "masq",
            Self::Redirect(_) => "redir",
            Self::Tproxy(_) => "tproxy",
            Self::Hash(_) => "hash",
            Self::Numgen(_) => "numgen",
            Self::Dynset(_) => "dynset",
            Self::Byteorder(_) => "byteorder",
            Self::Reject(_) => "reject",
            Self::Fib(_) => "fib",
            Self::Quota(_) => "quota",
            Self::Notrack => "notrack",
            Self::Unknown { name, .. } => name,
        }
    }

    /// Writes `kind { NFTA_EXPR_NAME, NFTA_EXPR_DATA }`.
    pub fn encode(&self, w: &mut Writer<'_>, kind: u16) {
        w.nested(kind, |w| {
            w.text(1, self.name());
            if let Self::Unknown { data, .. } = self {
                w.nested_raw(2, data);
            } else if !matches!(self, Self::Notrack) {
                w.nested(2, |w| self.encode_data(w));
            }
        });
    }

    fn encode_data(&self, w: &mut Writer<'_>) {
        match self {
            Self::Meta(e) => e.encode(w),
            Self::Payload(e) => e.encode(w),
            Self::Cmp(e) => e.encode(w),
            Self::Bitwise(e) => e.encode(w),
            Self::Range(e) => e.encode(w),
            Self::Lookup(e) => e.encode(w),
            Self::Immediate { dreg, data } => Immediate::encode_value(w, *dreg, data),
            Self::Verdict(verdict) => Immediate::encode_verdict(w, verdict),
            Self::Counter(e) => e.encode(w),
            Self::ObjRef { kind, name } => ObjRef::encode(w, *kind, name),
            Self::Limit(e) => e.encode(w),
            Self::Log(e) => e.encode(w),
            Self::Ct(e) => e.encode(w),
            Self::Nat(e) => e.encode(w),
            Self::Masquerade(e) => e.encode(w),
            Self::Redirect(e) => e.encode(w),
            Self::Tproxy(e) => e.encode(w),
            Self::Hash(e) => e.encode(w),
            Self::Numgen(e) => e.encode(w),
            Self::Dynset(e) => e.encode(w),
            Self::Byteorder(e) => e.encode(w),
            Self::Reject(e) => e.encode(w),
            Self::Fib(e) => e.encode(w),
            Self::Quota(e) => e.encode(w),
            Self::Notrack | Self::Unknown { .. } => {}
        }
    }

    /// Reads one NFTA_LIST_ELEM. Fails only on broken framing; what is merely not understood is `Unknown`.
    pub fn decode(attr: Attr<'_>) -> Result<Self, DecodeError> {
        Self::decode_at(attr, 0)
    }

    /// Reads the list in NFTA_RULE_EXPRESSIONS.
    pub fn decode_list(attrs: Attrs<'_>) -> Result<Vec<Self>, DecodeError> {
        attrs.map(|attr| Self::decode(attr?)).collect()
    }

    pub(super) fn decode_at(attr: Attr<'_>, depth: u8) -> Result<Self, DecodeError> {
        if depth >= MAX_DEPTH {
            return Err(DecodeError::Depth);
        }
        let mut outer = Fields::read(attr.nested())?;
        let name = outer.need(1)?.str()?;
        let data = outer.get(2).map(|a| a.value).unwrap_or_default();
        let known = Fields::read(Attrs::new(data)).and_then(|mut fields| {
            let expr = Self::decode_data(name, &mut fields, depth)?;
            Ok(expr.filter(|_| fields.complete()))
        });
        Ok(known
            .ok()
            .flatten()
            .unwrap_or_else(|| Self::Unknown { name: name.to_owned(), data: data.to_vec() }))
    }

    fn decode_data(name: &str, fields: &mut Fields<'_>, depth: u8) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match name {
            "meta" => Self::Meta(Meta::decode(fields)?),
            "payload" => Self::Payload(Payload::decode(fields)?),
            "cmp" => Self::Cmp(Cmp::decode(fields)?),
            "bitwise" => Self::Bitwise(Bitwise::decode(fields)?),
            "range" => Self::Range(Range::decode(fields)?),
            "lookup" => Self::Lookup(Lookup::decode(fields)?),
            "immediate" => Immediate::decode(fields)?,
            "counter" => Self::Counter(Counter::decode(fields)?),
            "objref" => ObjRef::decode(fields)?,
            "limit" => Self::Limit(Limit::decode(fields)?),
            "log" => Self::Log(Log::decode(fields)?),
            "ct" => Self::Ct(Ct::decode(fields)?),
            "nat" => Self::Nat(Nat::decode(fields)?),
            "masq" => Self::Masquerade(Masquerade::decode(fields)?),
            "redir" => Self::Redirect(Redirect::decode(fields)?),
            "tproxy" => Self::Tproxy(Tproxy::decode(fields)?),
            "hash" => Self::Hash(Hash::decode(fields)?),
            "numgen" => Self::Numgen(Numgen::decode(fields)?),
            "dynset" => Self::Dynset(Dynset::decode(fields, depth)?),
            "byteorder" => Self::Byteorder(Byteorder::decode(fields)?),
            "reject" => Self::Reject(Reject::decode(fields)?),
            "fib" => Self::Fib(Fib::decode(fields)?),
            "quota" => Self::Quota(Quota::decode(fields)?),
            "notrack" => Self::Notrack,
            _ => return Ok(None),
        }))
    }
}
