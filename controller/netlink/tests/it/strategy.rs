//! Random values of everything the crate can write.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_netlink::ctnetlink::{Entry, TcpState, Transport, Tuple};
use fw_netlink::nft::{
    BaseChain, Bitwise, Byteorder, Chain, Cmp, CmpOp, Counter, Ct, Dynset, Element, ElementData, Expr, Fib,
    Hash, Limit, LimitUnit, Log, LogTarget, Lookup, Masquerade, Meta, NamedCounter, Nat, Numgen, Payload,
    Quota, Range, Redirect, Register, Reject, Rule, Set, SetData, Table, Tproxy, UdpTimeout, Verdict,
};
use proptest::option;
use proptest::prelude::*;

pub(crate) fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z][a-zA-Z0-9_/-]{0,30}"
}

fn register() -> impl Strategy<Value = Register> {
    prop_oneof![1..=4_u32, 8..=23_u32]
}

/// Bytes of a value in a register; libnftnl takes at most 64.
fn data() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..=64)
}

/// A verdict; of the other codes only NFT_BREAK, which libnftnl writes too.
pub(crate) fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        name().prop_map(Verdict::Jump),
        name().prop_map(Verdict::Goto),
        Just(Verdict::Other(0xffff_fffe)),
    ]
}

fn span() -> impl Strategy<Value = Option<(Register, Register)>> {
    option::of((register(), register()))
}

/// NF_NAT_RANGE_* without the two that are implied.
fn nat_flags() -> impl Strategy<Value = u32> {
    (0..32_u32).prop_map(|bits| bits << 2)
}

fn counter() -> impl Strategy<Value = Counter> {
    any::<(u64, u64)>().prop_map(|(packets, bytes)| Counter { packets, bytes })
}

fn limit() -> impl Strategy<Value = Limit> {
    (any::<(u64, u64, u32, bool)>(), any::<bool>()).prop_map(|((rate, seconds, burst, over), bytes)| Limit {
        rate,
        seconds,
        burst,
        unit: if bytes { LimitUnit::Bytes } else { LimitUnit::Packets },
        over,
    })
}

fn matching() -> impl Strategy<Value = Expr> {
    let op = prop::sample::select(&[CmpOp::Eq, CmpOp::Neq, CmpOp::Lt, CmpOp::Lte, CmpOp::Gt, CmpOp::Gte][..]);
    prop_oneof![
        (0..30_u32, any::<bool>(), register()).prop_map(|(key, load, register)| Expr::Meta(Meta {
            key,
            load,
            register
        })),
        (0..3_u32, any::<u32>(), 1..=64_u32, register())
            .prop_map(|(base, offset, len, dreg)| Expr::Payload(Payload { base, offset, len, dreg })),
        (register(), op, data()).prop_map(|(sreg, op, data)| Expr::Cmp(Cmp { sreg, op, data })),
        (register(), register(), prop::collection::vec(any::<(u8, u8)>(), 1..=64)).prop_map(
            |(sreg, dreg, bytes)| {
                let (mask, xor) = bytes.into_iter().unzip();
                Expr::Bitwise(Bitwise { sreg, dreg, mask, xor })
            }
        ),
        (register(), any::<bool>(), data(), data())
            .prop_map(|(sreg, inverted, from, to)| Expr::Range(Range { sreg, inverted, from, to })),
        (name(), register(), option::of(0..5_u32), any::<bool>())
            .prop_map(|(set, sreg, dreg, inverted)| Expr::Lookup(Lookup { set, sreg, dreg, inverted })),
        (0..20_u32, option::of(0..2_u8), any::<bool>(), register())
            .prop_map(|(key, direction, load, register)| Expr::Ct(Ct { key, direction, load, register })),
        (option::of((register(), any::<u32>())), register(), any::<(u32, Option<u32>, u32)>()).prop_map(
            |(source, dreg, (modulus, seed, offset))| Expr::Hash(Hash {
                source,
                dreg,
                modulus,
                seed,
                offset
            })
        ),
        (register(), any::<(u32, bool, u32)>()).prop_map(|(dreg, (modulus, random, offset))| Expr::Numgen(
            Numgen { dreg, modulus, random, offset }
        )),
        (register(), register(), 0..2_u32, any::<(u32, u32)>()).prop_map(|(sreg, dreg, op, (len, size))| {
            Expr::Byteorder(Byteorder { sreg, dreg, op, len, size })
        }),
        (register(), 1..4_u32, any::<u32>()).prop_map(|(dreg, result, flags)| Expr::Fib(Fib {
            dreg,
            result,
            flags
        })),
    ]
}

fn log() -> impl Strategy<Value = Log> {
    let nflog = (any::<u16>(), option::of(any::<u32>()), any::<u16>())
        .prop_map(|(group, snaplen, threshold)| LogTarget::Nflog { group, snaplen, threshold });
    let kernel = (0..8_u32, 0..32_u32).prop_map(|(level, flags)| LogTarget::Kernel { level, flags });
    (option::of("[ -~]{1,100}"), prop_oneof![nflog, kernel])
        .prop_map(|(prefix, target)| Log { prefix, target })
}

fn acting() -> impl Strategy<Value = Expr> {
    prop_oneof![
        (register(), data()).prop_map(|(dreg, data)| Expr::Immediate { dreg, data }),
        verdict().prop_map(Expr::Verdict),
        counter().prop_map(Expr::Counter),
        (1..9_u32, name()).prop_map(|(kind, name)| Expr::ObjRef { kind, name }),
        limit().prop_map(Expr::Limit),
        log().prop_map(Expr::Log),
        (any::<bool>(), prop_oneof![Just(2_u32), Just(10)], span(), span(), nat_flags()).prop_map(
            |(destination, family, address, port, flags)| Expr::Nat(Nat {
                destination,
                family,
                address,
                port,
                flags
            })
        ),
        (nat_flags(), span()).prop_map(|(flags, port)| Expr::Masquerade(Masquerade { flags, port })),
        (nat_flags(), span()).prop_map(|(flags, port)| Expr::Redirect(Redirect { flags, port })),
        (0..11_u32, option::of(register()), option::of(register()))
            .prop_map(|(family, address, port)| Expr::Tproxy(Tproxy { family, address, port })),
        (0..3_u32, option::of(any::<u8>())).prop_map(|(kind, code)| Expr::Reject(Reject { kind, code })),
        (any::<(u64, u64)>(), 0..4_u32).prop_map(|((bytes, consumed), flags)| Expr::Quota(Quota {
            bytes,
            consumed,
            flags
        })),
        Just(Expr::Notrack),
    ]
}

fn dynset() -> impl Strategy<Value = Expr> {
    let inner = prop_oneof![limit().prop_map(Expr::Limit), counter().prop_map(Expr::Counter)];
    let exprs = prop::collection::vec(inner, 0..=2);
    (name(), 0..3_u32, register(), option::of(register()), any::<u64>(), any::<bool>(), exprs).prop_map(
        |(set, op, key, value, timeout_ms, inverted, exprs)| {
            Expr::Dynset(Dynset { set, op, key, value, timeout_ms, inverted, exprs })
        },
    )
}

pub(crate) fn expr() -> impl Strategy<Value = Expr> {
    prop_oneof![10 => matching(), 10 => acting(), 2 => dynset()]
}

fn userdata() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=64)
}

pub(crate) fn rule() -> impl Strategy<Value = Rule> {
    (name(), name(), prop::collection::vec(expr(), 0..8), userdata())
        .prop_map(|(table, chain, exprs, userdata)| Rule { table, chain, exprs, userdata })
}

pub(crate) fn table() -> impl Strategy<Value = Table> {
    (name(), 0..8_u32, userdata()).prop_map(|(name, flags, userdata)| Table {
        name,
        flags,
        userdata,
        ..Table::default()
    })
}

pub(crate) fn chain() -> impl Strategy<Value = Chain> {
    let kind = prop::sample::select(&["filter", "nat", "route"][..]).prop_map(str::to_owned);
    let base = (kind, 0..5_u32, any::<i32>(), 0..2_u32)
        .prop_map(|(kind, hook, priority, policy)| BaseChain { kind, hook, priority, policy });
    (name(), name(), option::of(base), userdata()).prop_map(|(table, name, base, userdata)| Chain {
        table,
        name,
        base,
        userdata,
    })
}

pub(crate) fn counter_object() -> impl Strategy<Value = NamedCounter> {
    (name(), name(), counter()).prop_map(|(table, name, counter)| NamedCounter { table, name, counter })
}

pub(crate) fn set() -> impl Strategy<Value = Set> {
    let data = prop_oneof![
        Just(SetData::Verdict),
        (1..100_u32, 1..64_u32).prop_map(|(kind, len)| SetData::Value { kind, len }),
    ];
    let fields = prop::collection::vec(1..16_u32, 0..5);
    let numbers = (any::<u32>(), 1..64_u32, option::of(data), 1..1000_u32);
    (name(), name(), any::<u32>(), numbers, option::of(any::<u32>()), fields, any::<u64>(), userdata())
        .prop_map(
            |(table, name, flags, (key_type, key_len, data, id), size, fields, timeout_ms, userdata)| Set {
                table,
                name,
                // libnftnl writes the fields of a concatenation only under its flag, and data only under the map's.
                flags: (flags & !(Set::CONCAT | Set::MAP))
                    | if fields.is_empty() { 0 } else { Set::CONCAT }
                    | if data.is_some() { Set::MAP } else { 0 },
                key_type,
                key_len,
                data,
                id,
                size,
                fields,
                timeout_ms,
                userdata,
            },
        )
}

pub(crate) fn element() -> impl Strategy<Value = Element> {
    let value = prop_oneof![verdict().prop_map(ElementData::Verdict), data().prop_map(ElementData::Value)];
    let times = (option::of(any::<u64>()), option::of(any::<u64>()));
    (data(), option::of(data()), any::<bool>(), option::of(value), times, userdata()).prop_map(
        |(key, key_end, interval_end, data, (timeout_ms, expiration_ms), userdata)| Element {
            key: Some(key),
            key_end,
            interval_end,
            data,
            timeout_ms,
            expiration_ms,
            userdata,
        },
    )
}

pub(crate) fn udp_timeout() -> impl Strategy<Value = UdpTimeout> {
    let numbers = (option::of(any::<u16>()), any::<u32>(), any::<u32>());
    (name(), name(), numbers).prop_map(|(table, name, (family, unreplied, replied))| UdpTimeout {
        table,
        name,
        family,
        unreplied,
        replied,
    })
}

fn tuple() -> impl Strategy<Value = Tuple> {
    let v4 = any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(a, b)| (IpAddr::V4(a), IpAddr::V4(b)));
    let v6 = any::<(Ipv6Addr, Ipv6Addr)>().prop_map(|(a, b)| (IpAddr::V6(a), IpAddr::V6(b)));
    let ports =
        any::<(u16, u16)>().prop_map(|(source, destination)| Transport::Ports { source, destination });
    let icmp = any::<(u16, u8, u8)>().prop_map(|(id, kind, code)| Transport::Icmp { id, kind, code });
    let protocol = prop_oneof![
        (prop::sample::select(&[6_u8, 17, 132, 47][..]), ports),
        (prop::sample::select(&[1_u8, 58][..]), icmp),
        (any::<u8>(), Just(Transport::None)),
    ];
    (prop_oneof![v4, v6], protocol).prop_map(|((source, destination), (protocol, transport))| Tuple {
        source,
        destination,
        protocol,
        transport,
    })
}

pub(crate) fn entry() -> impl Strategy<Value = Entry> {
    let numbers = (any::<u32>(), option::of(any::<u8>()), option::of(any::<u32>()), any::<u32>());
    (tuple(), tuple(), numbers, any::<u16>(), option::of(any::<u32>())).prop_map(
        |(original, reply, (status, state, timeout, mark), zone, id)| Entry {
            original,
            reply,
            status,
            tcp_state: state.map(TcpState),
            timeout,
            mark,
            zone,
            id,
        },
    )
}
