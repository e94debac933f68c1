//! IR to expressions, in the order and registers that nft itself uses, so that `nft list` reads well.
//!
//! Each arm was compared with `nft --debug=netlink` 1.0.6 for the text in the statement's documentation.

use std::net::IpAddr;

use fw_netlink::nft::{
    Bitwise, Byteorder, Cmp, CmpOp, Counter, Ct, Dynset, Expr, Hash, LimitUnit, Log, LogTarget, Lookup,
    Masquerade, Meta, NamedCounter, Nat, Payload, Redirect, Register, UdpTimeout, register_at, udata,
};
use fw_policy::ConntrackState;
use fw_ruleset::Count;
use fw_ruleset::ir::{self, Family, Rule, Selector, Side, Statement, Test, Value, Verdict};

/// Why a rule or key has no form in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// A selector is compared with a value of another kind.
    #[error("{selector} is compared with {value}")]
    Kind {
        /// What is read.
        selector: String,
        /// What it is compared with.
        value: String,
    },
    /// A key is longer than the kernel's 64 bytes of registers.
    #[error("a key of {0} bytes does not fit into the kernel's registers")]
    KeyTooLong(u32),
    /// More leading bits than the address has.
    #[error("a mask of {0} bits is longer than the address")]
    Prefix(u8),
    /// Longer than nft's limit.
    #[error("a comment of {0} bytes is longer than 128")]
    Comment(usize),
    /// Longer than NF_LOG_PREFIXLEN.
    #[error("a log prefix of {0} bytes is longer than 127")]
    LogPrefix(usize),
    /// The rule asks for two families or two protocols at once.
    #[error("the rule asks for both {0} and {1}")]
    Conflict(String, String),
    /// A key does not have the fields of its set.
    #[error("key {0} does not fit its set")]
    Key(String),
    /// A kind of set that cannot have keys of these fields.
    #[error("a set of this kind cannot have keys of type {0}")]
    KeyType(String),
}

/// Data registers hold 64 bytes.
const REGISTERS: u32 = 64;
/// nft hashes from the second 16-byte register and puts the result into the first.
const HASH_SOURCE: u32 = 16;

/// The expressions of a rule. Its anonymous counter starts at `count`.
pub fn lower(rule: &Rule, count: Count) -> Result<Vec<Expr>, LowerError> {
    if let Some(comment) = &rule.comment
        && comment.len() > udata::COMMENT_MAX
    {
        return Err(LowerError::Comment(comment.len()));
    }
    let mut lowering =
        Lowering { exprs: Vec::with_capacity(8), family: None, protocol: None, count, network_order: false };
    for statement in &rule.body {
        lowering.statement(statement)?;
    }
    Ok(lowering.exprs)
}

/// The user data of a rule: its comment.
pub(crate) fn rule_userdata(rule: &Rule) -> Vec<u8> {
    rule.comment.as_deref().map(udata::comment).unwrap_or_default()
}

pub(crate) fn verdict(verdict: &Verdict) -> fw_netlink::nft::Verdict {
    use fw_netlink::nft::Verdict as Out;
    match verdict {
        Verdict::Accept => Out::Accept,
        Verdict::Drop => Out::Drop,
        Verdict::Return => Out::Return,
        Verdict::Jump(chain) => Out::Jump(chain.clone()),
        Verdict::Goto(chain) => Out::Goto(chain.clone()),
    }
}

/// Bytes of a value as it lies in a register, without padding.
pub(crate) fn value_bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::Ipv4(address) => address.octets().to_vec(),
        Value::Ipv6(address) => address.octets().to_vec(),
        Value::Protocol(number) | Value::IcmpType(number) => vec![*number],
        Value::Port(port) => port.to_be_bytes().to_vec(),
        Value::IfName(name) => {
            let mut bytes = name.as_str().as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        }
        Value::Mark(mark) => mark.to_ne_bytes().to_vec(),
    }
}

/// Bytes of a value where the kernel compares for more and less: marks too have their highest byte first.
pub(crate) fn ordered_bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::Mark(mark) => mark.to_be_bytes().to_vec(),
        value => value_bytes(value),
    }
}

struct Lowering {
    exprs: Vec<Expr>,
    /// What the rule so far is known to match only.
    family: Option<Family>,
    protocol: Option<u8>,
    count: Count,
    /// True while marks are loaded with their highest byte first.
    network_order: bool,
}

impl Lowering {
    fn statement(&mut self, statement: &Statement) -> Result<(), LowerError> {
        match statement {
            Statement::State(states) => self.state(states.iter()),
            Statement::Family(family) => self.require_family(*family)?,
            Statement::Match(selector, test) => self.test(selector, test)?,
            Statement::ConcatInSet { key, set } => {
                self.load_key(key, 0)?;
                let lookup = Lookup { set: set.clone(), sreg: register_at(0), dreg: None, inverted: false };
                self.exprs.push(Expr::Lookup(lookup));
            }
            Statement::VerdictMap { key, map } => {
                self.load_key(key, 0)?;
                let lookup =
                    Lookup { set: map.clone(), sreg: register_at(0), dreg: Some(0), inverted: false };
                self.exprs.push(Expr::Lookup(lookup));
            }
            Statement::Limit(bucket) => self.exprs.push(limit(bucket)),
            Statement::LimitPerKey { set, key, limit: bucket } => {
                self.load_key(key, 0)?;
                self.exprs.push(Expr::Dynset(Dynset {
                    set: set.clone(),
                    op: Dynset::UPDATE,
                    key: register_at(0),
                    value: None,
                    timeout_ms: 0,
                    inverted: false,
                    exprs: vec![limit(bucket)],
                }));
            }
            Statement::HashEquals { key, modulus, equals } => self.hash(key, *modulus, *equals)?,
            Statement::Counter => {
                let Count { packets, bytes } = self.count;
                self.exprs.push(Expr::Counter(Counter { packets, bytes }));
            }
            Statement::NamedCounter(name) => {
                self.exprs.push(Expr::ObjRef { kind: NamedCounter::KIND, name: name.clone() });
            }
            Statement::Log { prefix, target } => self.exprs.push(log(prefix, target)?),
            Statement::Snat(address) => self.snat(*address),
            Statement::Masquerade => self.exprs.push(Expr::Masquerade(Masquerade::default())),
            Statement::Redirect(port) => {
                let register = register_at(0);
                self.exprs.push(Expr::Immediate { dreg: register, data: port.to_be_bytes().to_vec() });
                self.exprs.push(Expr::Redirect(Redirect { port: Some((register, register)), flags: 0 }));
            }
            Statement::SetMarkByMap { key, map } => self.set_mark(key, map)?,
            Statement::CtTimeout(name) => {
                self.exprs.push(Expr::ObjRef { kind: UdpTimeout::KIND, name: name.clone() });
            }
            Statement::Verdict(v) => self.exprs.push(Expr::Verdict(verdict(v))),
        }
        Ok(())
    }

    /// A concatenated key is one of boxes ([`crate::set::check`] sees to it), in which marks are compared for more
    /// and less.
    fn set_mark(&mut self, key: &[Selector], map: &str) -> Result<(), LowerError> {
        let register = register_at(0);
        self.network_order = key.len() > 1;
        let loaded = self.load_key(key, 0);
        self.network_order = false;
        loaded?;
        let lookup = Lookup { set: map.to_owned(), sreg: register, dreg: Some(register), inverted: false };
        self.exprs.push(Expr::Lookup(lookup));
        self.exprs.push(Expr::Meta(Meta { key: Meta::MARK, load: false, register }));
        Ok(())
    }

    /// `ct state a,b` is a bit test: NF_CT_STATE_BIT in include/uapi/linux/netfilter/nf_conntrack_common.h.
    fn state<'a>(&mut self, states: impl Iterator<Item = &'a ConntrackState>) {
        let mask: u32 = states
            .map(|state| match state {
                ConntrackState::Invalid => 1,
                ConntrackState::Established => 2,
                ConntrackState::Related => 4,
                ConntrackState::New => 8,
            })
            .fold(0, |mask, bit| mask | bit);
        let register = register_at(0);
        self.exprs.push(Expr::Ct(Ct { key: Ct::STATE, direction: None, load: true, register }));
        self.exprs.push(Expr::Bitwise(Bitwise::and(register, mask.to_ne_bytes())));
        self.exprs.push(Expr::Cmp(Cmp { sreg: register, op: CmpOp::Neq, data: vec![0; 4] }));
    }

    fn test(&mut self, selector: &Selector, test: &Test) -> Result<(), LowerError> {
        self.depend(selector)?;
        let values: &[&Value] = match test {
            Test::Equal(value) | Test::NotEqual(value) => &[value],
            Test::Range(first, last) => &[first, last],
            Test::InSet(_) | Test::NotInSet(_) => &[],
        };
        values.iter().try_for_each(|value| fits(selector, value))?;
        let sreg = register_at(0);
        self.network_order = matches!(test, Test::Range(..));
        let loaded = self.load(selector, sreg);
        self.network_order = false;
        loaded?;
        let cmp = |op, value| Expr::Cmp(Cmp { sreg, op, data: value_bytes(value) });
        let bound = |op, value| Expr::Cmp(Cmp { sreg, op, data: ordered_bytes(value) });
        let lookup =
            |set: &String, inverted| Expr::Lookup(Lookup { set: set.clone(), sreg, dreg: None, inverted });
        match test {
            Test::Equal(value) => {
                self.exprs.push(cmp(CmpOp::Eq, value));
                self.learn(selector, value)?;
            }
            Test::NotEqual(value) => self.exprs.push(cmp(CmpOp::Neq, value)),
            Test::Range(first, last) => {
                self.exprs.extend([bound(CmpOp::Gte, first), bound(CmpOp::Lte, last)]);
            }
            Test::InSet(set) => self.exprs.push(lookup(set, false)),
            Test::NotInSet(set) => self.exprs.push(lookup(set, true)),
        }
        Ok(())
    }

    /// `meta l4proto tcp` makes a later `tcp dport` free of its own check.
    fn learn(&mut self, selector: &Selector, value: &Value) -> Result<(), LowerError> {
        if let (Selector::L4Protocol, Value::Protocol(number)) = (selector, value) {
            if let Some(known) = self.protocol.filter(|known| known != number) {
                return Err(LowerError::Conflict(format!("protocol {known}"), format!("protocol {number}")));
            }
            self.protocol = Some(*number);
        }
        Ok(())
    }

    /// Loads a concatenation from `offset` on; gives its length in bytes.
    fn load_key(&mut self, key: &[Selector], offset: u32) -> Result<u32, LowerError> {
        key.iter().try_for_each(|selector| self.depend(selector))?;
        let mut at = offset;
        for selector in key {
            self.load(selector, register_at(at))?;
            at += width(selector).next_multiple_of(4);
            if at > REGISTERS {
                return Err(LowerError::KeyTooLong(at));
            }
        }
        Ok(at - offset)
    }

    /// What must hold before a selector may be read.
    fn depend(&mut self, selector: &Selector) -> Result<(), LowerError> {
        match selector {
            Selector::InputInterface
            | Selector::OutputInterface
            | Selector::L4Protocol
            | Selector::Mark(_) => Ok(()),
            Selector::Address { family, .. } => self.require_family(*family),
            Selector::Port { protocol: None, .. } => Ok(()),
            Selector::Port { protocol: Some(protocol), .. } => self.require_protocol(protocol.number()),
            Selector::IcmpType(family) => {
                self.require_family(*family)?;
                self.require_protocol(match family {
                    Family::V4 => 1,
                    Family::V6 => 58,
                })
            }
        }
    }

    fn require_family(&mut self, family: Family) -> Result<(), LowerError> {
        if let Some(known) = self.family {
            let conflict = || LowerError::Conflict(format!("{known:?}"), format!("{family:?}"));
            return if known == family { Ok(()) } else { Err(conflict()) };
        }
        self.family = Some(family);
        self.exprs.push(Expr::Meta(Meta::load(Meta::NFPROTO, register_at(0))));
        self.exprs.push(Expr::Cmp(Cmp::eq(register_at(0), [nfproto(family)])));
        Ok(())
    }

    fn require_protocol(&mut self, number: u8) -> Result<(), LowerError> {
        if let Some(known) = self.protocol {
            let conflict = || LowerError::Conflict(format!("protocol {known}"), format!("protocol {number}"));
            return if known == number { Ok(()) } else { Err(conflict()) };
        }
        self.protocol = Some(number);
        self.exprs.push(Expr::Meta(Meta::load(Meta::L4PROTO, register_at(0))));
        self.exprs.push(Expr::Cmp(Cmp::eq(register_at(0), [number])));
        Ok(())
    }

    fn load(&mut self, selector: &Selector, dreg: Register) -> Result<(), LowerError> {
        let payload = |base, offset| Expr::Payload(Payload { base, offset, len: width(selector), dreg });
        let expr = match selector {
            Selector::InputInterface => Expr::Meta(Meta::load(Meta::IIFNAME, dreg)),
            Selector::OutputInterface => Expr::Meta(Meta::load(Meta::OIFNAME, dreg)),
            Selector::L4Protocol => Expr::Meta(Meta::load(Meta::L4PROTO, dreg)),
            Selector::Mark(_) => Expr::Meta(Meta::load(Meta::MARK, dreg)),
            // Offsets of saddr and daddr in struct iphdr and struct ipv6hdr.
            Selector::Address { side, family, .. } => payload(
                Payload::NETWORK,
                match (family, side) {
                    (Family::V4, Side::Source) => 12,
                    (Family::V4, Side::Destination) => 16,
                    (Family::V6, Side::Source) => 8,
                    (Family::V6, Side::Destination) => 24,
                },
            ),
            Selector::Port { side: Side::Source, .. } | Selector::IcmpType(_) => {
                payload(Payload::TRANSPORT, 0)
            }
            Selector::Port { side: Side::Destination, .. } => payload(Payload::TRANSPORT, 2),
        };
        self.exprs.push(expr);
        if let Selector::Address { family, prefix, .. } = selector {
            if *prefix > family.bits() {
                return Err(LowerError::Prefix(*prefix));
            }
            if *prefix < family.bits() {
                self.exprs.push(Expr::Bitwise(Bitwise::and(dreg, mask(*family, *prefix))));
            }
        }
        if let Selector::Mark(mask) = selector {
            if *mask != u32::MAX {
                self.exprs.push(Expr::Bitwise(Bitwise::and(dreg, mask.to_ne_bytes())));
            }
            if self.network_order {
                self.exprs.push(Expr::Byteorder(Byteorder::to_network(dreg, 4)));
            }
        }
        Ok(())
    }

    fn hash(&mut self, key: &[Selector], modulus: u32, equals: u32) -> Result<(), LowerError> {
        let len = self.load_key(key, HASH_SOURCE)?;
        let dreg = register_at(0);
        // nft sends the exact seed only when one is written; without it the kernel would draw one.
        let hash =
            Hash { source: Some((register_at(HASH_SOURCE), len)), dreg, modulus, seed: Some(0), offset: 0 };
        self.exprs.push(Expr::Hash(hash));
        self.exprs.push(Expr::Cmp(Cmp::eq(dreg, equals.to_ne_bytes())));
        Ok(())
    }

    fn snat(&mut self, address: IpAddr) {
        let data = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let register = register_at(0);
        self.exprs.push(Expr::Immediate { dreg: register, data });
        self.exprs.push(Expr::Nat(Nat {
            destination: false,
            family: u32::from(nfproto(Family::of(address))),
            address: Some((register, register)),
            port: None,
            flags: 0,
        }));
    }
}

/// NFPROTO_IPV4 and NFPROTO_IPV6.
fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Bytes a selector reads.
fn width(selector: &Selector) -> u32 {
    match selector {
        Selector::InputInterface | Selector::OutputInterface => 16,
        Selector::L4Protocol | Selector::IcmpType(_) => 1,
        Selector::Address { family, .. } => u32::from(family.bits() / 8),
        Selector::Port { .. } => 2,
        Selector::Mark(_) => 4,
    }
}

fn mask(family: Family, prefix: u8) -> Vec<u8> {
    let bytes = usize::from(family.bits() / 8);
    (0..bytes)
        .map(|index| {
            let bits = usize::from(prefix).saturating_sub(8 * index).min(8);
            u8::MAX.checked_shl(u32::try_from(8 - bits).unwrap_or(8)).unwrap_or(0)
        })
        .collect()
}

fn fits(selector: &Selector, value: &Value) -> Result<(), LowerError> {
    let right = matches!(
        (selector, value),
        (Selector::InputInterface | Selector::OutputInterface, Value::IfName(_))
            | (Selector::L4Protocol, Value::Protocol(_))
            | (Selector::Address { family: Family::V4, .. }, Value::Ipv4(_))
            | (Selector::Address { family: Family::V6, .. }, Value::Ipv6(_))
            | (Selector::Port { .. }, Value::Port(_))
            | (Selector::IcmpType(_), Value::IcmpType(_))
            | (Selector::Mark(_), Value::Mark(_))
    );
    if right {
        return Ok(());
    }
    Err(LowerError::Kind { selector: format!("{selector:?}"), value: format!("{value:?}") })
}

fn limit(limit: &ir::Limit) -> Expr {
    Expr::Limit(fw_netlink::nft::Limit {
        rate: limit.rate,
        seconds: 1,
        burst: limit.burst,
        unit: match limit.unit {
            ir::LimitUnit::Packets => LimitUnit::Packets,
            ir::LimitUnit::Bytes => LimitUnit::Bytes,
        },
        over: limit.over,
    })
}

fn log(prefix: &str, target: &ir::LogTarget) -> Result<Expr, LowerError> {
    if prefix.len() > 127 {
        return Err(LowerError::LogPrefix(prefix.len()));
    }
    let target = match *target {
        ir::LogTarget::Nflog { group, snaplen } => {
            LogTarget::Nflog { group, snaplen: Some(snaplen), threshold: 0 }
        }
        ir::LogTarget::Kernel => LogTarget::Kernel { level: 4, flags: 0 },
    };
    // An empty prefix is none at all: the kernel drops it and would dump a rule without one.
    let prefix = (!prefix.is_empty()).then(|| prefix.to_owned());
    Ok(Expr::Log(Log { prefix, target }))
}
