//! What a rule asks of a packet, from its expressions: of any program's rules, in any family.
//!
//! Rules are programs for registers. [`RuleReader`] follows which field of the packet lies in which register, and gives
//! back comparisons of fields ([`Match`]) and what the rule does with the packet ([`Action`]). What it does not follow
//! (a hash, a map's value, an expression of a newer kernel) is nothing it makes a match of: it forgets the registers
//! that such an expression may have written.

mod fields;
mod registers;
#[cfg(test)]
mod tests;

pub use fields::{AddressKind, Field};
use fields::{Layers, Source};
use registers::{Load, Registers};

use super::data::Verdict;
use super::expr::Expr;
use super::matching::{Bitwise, Byteorder, Cmp, CmpOp, Lookup, Meta, Range};
use crate::attr::Attrs;

/// What a rule does with the packet: its last statement that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Accepts it.
    Accept,
    /// Drops it.
    Drop,
    /// Drops it and answers.
    Reject,
    /// Goes on in another chain and comes back.
    Jump,
    /// Goes on in another chain.
    Goto,
    /// Ends the chain.
    Return,
    /// Goes on with the next rule.
    Continue,
    /// A verdict map decides.
    Vmap,
    /// Translates the source.
    Snat,
    /// Translates the destination.
    Dnat,
    /// Translates the source to the address of the interface.
    Masquerade,
    /// Translates the destination to this machine.
    Redirect,
    /// Hands it to a local socket.
    Tproxy,
    /// Hands it to a program.
    Queue,
    /// Sends it out of another interface.
    Fwd,
    /// Answers the handshake in the server's place.
    Synproxy,
}

impl Action {
    /// nft's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::Jump => "jump",
            Self::Goto => "goto",
            Self::Return => "return",
            Self::Continue => "continue",
            Self::Vmap => "vmap",
            Self::Snat => "snat",
            Self::Dnat => "dnat",
            Self::Masquerade => "masquerade",
            Self::Redirect => "redirect",
            Self::Tproxy => "tproxy",
            Self::Queue => "queue",
            Self::Fwd => "fwd",
            Self::Synproxy => "synproxy",
        }
    }

    fn of_verdict(verdict: &Verdict) -> Option<Self> {
        /// NFT_CONTINUE
        const CONTINUE: u32 = u32::MAX;
        /// NF_QUEUE, in the lower byte: NF_VERDICT_MASK is 0xff and the number of the queue stands above it.
        const QUEUE: u32 = 3;
        match verdict {
            Verdict::Accept => Some(Self::Accept),
            Verdict::Drop => Some(Self::Drop),
            Verdict::Return => Some(Self::Return),
            Verdict::Jump(_) => Some(Self::Jump),
            Verdict::Goto(_) => Some(Self::Goto),
            Verdict::Other(CONTINUE) => Some(Self::Continue),
            Verdict::Other(code) if code & 0xff == QUEUE => Some(Self::Queue),
            Verdict::Other(_) => None,
        }
    }

    /// Of expressions that this crate keeps as they came.
    fn of_unknown(name: &str, data: &[u8]) -> Option<Self> {
        match name {
            "queue" => Some(Self::Queue),
            "fwd" => Some(Self::Fwd),
            "synproxy" => Some(Self::Synproxy),
            "target" => Self::of_target(data),
            _ => None,
        }
    }

    /// Targets of xtables, as iptables-nft writes them: NFTA_TARGET_NAME.
    fn of_target(data: &[u8]) -> Option<Self> {
        let name = Attrs::new(data).flatten().find(|attr| attr.kind == 1)?;
        match name.name() {
            b"MASQUERADE" => Some(Self::Masquerade),
            b"SNAT" => Some(Self::Snat),
            b"DNAT" => Some(Self::Dnat),
            b"REDIRECT" => Some(Self::Redirect),
            b"REJECT" => Some(Self::Reject),
            b"TPROXY" => Some(Self::Tproxy),
            b"NFQUEUE" => Some(Self::Queue),
            _ => None,
        }
    }
}

/// A part of what is compared: one field, or one component of a concatenation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The field; `None`: none of those that are followed.
    pub field: Option<Field>,
    /// Its bytes; in a concatenated key, which pads each to 4, they come first.
    pub len: usize,
    /// Bits that are looked at, when not all are.
    pub mask: Option<Vec<u8>>,
}

/// What a match compares with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// A constant. Shorter than the field, it is its beginning.
    Compare {
        /// How.
        op: CmpOp,
        /// The constant.
        value: Vec<u8>,
    },
    /// A range, both ends included.
    Range {
        /// True: what is outside matches.
        inverted: bool,
        /// Lowest value.
        from: Vec<u8>,
        /// Highest value.
        to: Vec<u8>,
    },
    /// A set.
    Set {
        /// True: what is not in it matches.
        inverted: bool,
        /// Its name.
        name: String,
    },
}

/// A comparison that a packet must pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// What is compared; several are compared as a whole.
    pub parts: Vec<Part>,
    /// With what.
    pub test: Test,
}

/// What was read of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Reading {
    /// Comparisons of fields that are followed, in the rule's order.
    pub matches: Vec<Match>,
    /// What it does with the packet; `None`: it leaves that to the rules after it, or to the chain's policy.
    pub action: Option<Action>,
    /// Names of expressions that are not understood, as the kernel has them.
    pub unread: Vec<String>,
}

/// Reads a rule, expression by expression.
#[derive(Debug)]
pub struct RuleReader {
    registers: Registers,
    layers: Layers,
    /// The match that a `<=` of the same register would make a range: its place and the register.
    low: Option<(usize, u32)>,
    reading: Reading,
}

impl RuleReader {
    /// For a rule of a table of this family (NFPROTO_*).
    pub fn new(family: u8) -> Self {
        Self {
            registers: Registers::default(),
            layers: Layers::of_family(family),
            low: None,
            reading: Reading::default(),
        }
    }

    /// What was read.
    pub fn finish(self) -> Reading {
        self.reading
    }

    /// Reads the next expression.
    pub fn read(&mut self, expr: &Expr) {
        let low = self.low.take();
        match expr {
            Expr::Meta(Meta { key, load: true, register }) => {
                self.registers.load(*register, meta_length(*key), Source::Meta(*key));
            }
            Expr::Payload(payload) => {
                let len = usize::try_from(payload.len).unwrap_or(usize::MAX);
                let source = Source::Payload { base: payload.base, offset: payload.offset };
                self.registers.load(payload.dreg, len, source);
            }
            Expr::Bitwise(Bitwise { sreg, dreg, mask, xor }) => self.registers.mask(*sreg, *dreg, mask, xor),
            Expr::Byteorder(Byteorder { dreg, .. }) | Expr::Immediate { dreg, .. } => {
                self.registers.forget(*dreg)
            }
            Expr::Ct(ct) if ct.load => self.registers.forget(ct.register),
            Expr::Fib(fib) => self.registers.forget(fib.dreg),
            Expr::Hash(hash) => self.registers.forget(hash.dreg),
            Expr::Numgen(numgen) => self.registers.forget(numgen.dreg),
            Expr::Cmp(cmp) => self.compare(cmp, low),
            Expr::Range(range) => self.range(range),
            Expr::Lookup(lookup) => self.lookup(lookup),
            Expr::Unknown { name, data } => self.unknown(name, data),
            other => self.act(other),
        }
    }

    fn act(&mut self, expr: &Expr) {
        let action = match expr {
            Expr::Verdict(verdict) => Action::of_verdict(verdict),
            Expr::Nat(nat) => Some(if nat.destination { Action::Dnat } else { Action::Snat }),
            Expr::Masquerade(_) => Some(Action::Masquerade),
            Expr::Redirect(_) => Some(Action::Redirect),
            Expr::Tproxy(_) => Some(Action::Tproxy),
            Expr::Reject(_) => Some(Action::Reject),
            _ => None,
        };
        self.reading.action = action.or(self.reading.action);
    }

    fn unknown(&mut self, name: &str, data: &[u8]) {
        self.registers.forget_all();
        match Action::of_unknown(name, data) {
            Some(action) => self.reading.action = Some(action),
            None => self.reading.unread.push(name.to_owned()),
        }
    }

    fn compare(&mut self, cmp: &Cmp, low: Option<(usize, u32)>) {
        if let Some((index, register)) = low
            && cmp.op == CmpOp::Lte
            && register == cmp.sreg
            && let Some(found) = self.reading.matches.get_mut(index)
            && let Test::Compare { value, .. } = &found.test
        {
            let from = value.clone();
            found.test = Test::Range { inverted: false, from, to: cmp.data.clone() };
            return;
        }
        let Some(load) = self.registers.take(cmp.sreg) else { return };
        if cmp.op == CmpOp::Eq && load.mask.is_none() {
            self.layers.learn(load.source, &cmp.data);
        }
        let before = self.reading.matches.len();
        self.compare_load(&load, cmp);
        if cmp.op == CmpOp::Gte && self.reading.matches.len() == before + 1 {
            self.low = Some((before, cmp.sreg));
        }
    }

    /// nft reads fields that lie side by side with one load: each of them is compared with its part of the constant.
    fn compare_load(&mut self, load: &Load, cmp: &Cmp) {
        let fields = self.layers.fields(load.source, load.len);
        let whole = |part: Part| Match {
            parts: vec![part],
            test: Test::Compare { op: cmp.op, value: cmp.data.clone() },
        };
        if let [one] = fields.as_slice()
            && one.at == 0
            && one.covers(load.len)
        {
            let part = Part { field: Some(one.field), len: one.len, mask: load.mask.clone() };
            self.reading.matches.push(whole(part));
        } else if cmp.op == CmpOp::Eq {
            for span in &fields {
                let slice = |bytes: &[u8]| {
                    bytes.get(span.at..bytes.len().min(span.at + span.len)).map(<[u8]>::to_vec)
                };
                let Some(value) = slice(&cmp.data).filter(|value| !value.is_empty()) else { continue };
                let mask = load.mask.as_deref().and_then(slice);
                let part = Part { field: Some(span.field), len: span.len, mask };
                self.reading
                    .matches
                    .push(Match { parts: vec![part], test: Test::Compare { op: cmp.op, value } });
            }
        } else if !fields.is_empty() {
            let parts = fields.iter().map(|span| Part { field: Some(span.field), len: span.len, mask: None });
            let test = Test::Compare { op: cmp.op, value: cmp.data.clone() };
            self.reading.matches.push(Match { parts: parts.collect(), test });
        }
    }

    fn range(&mut self, range: &Range) {
        let Some(load) = self.registers.take(range.sreg) else { return };
        let part = self.part(&load);
        if part.field.is_some() {
            let test =
                Test::Range { inverted: range.inverted, from: range.from.clone(), to: range.to.clone() };
            self.reading.matches.push(Match { parts: vec![part], test });
        }
    }

    fn lookup(&mut self, lookup: &Lookup) {
        let loads = self.registers.take_all(lookup.sreg);
        match lookup.dreg {
            Some(0) => self.reading.action = Some(Action::Vmap),
            // A map's value, whose length stands in the map: whatever comes after the register may be part of it.
            Some(_) => self.registers.forget_all(),
            None => {
                let parts: Vec<Part> = loads.iter().map(|load| self.part(load)).collect();
                if parts.iter().any(|part| part.field.is_some()) {
                    let test = Test::Set { inverted: lookup.inverted, name: lookup.set.clone() };
                    self.reading.matches.push(Match { parts, test });
                }
            }
        }
    }

    fn part(&self, load: &Load) -> Part {
        let fields = self.layers.fields(load.source, load.len);
        let field = match fields.as_slice() {
            [one] if one.at == 0 && one.covers(load.len) => Some(one.field),
            _ => None,
        };
        Part { field, len: load.len, mask: load.mask.clone() }
    }
}

/// Bytes that a key of the packet's metadata takes in a register.
fn meta_length(key: u32) -> usize {
    match key {
        Meta::IIFNAME | Meta::OIFNAME => 16,
        _ => 4,
    }
}
