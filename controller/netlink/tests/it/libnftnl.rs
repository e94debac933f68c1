//! Byte for byte what libnftnl 1.2.4, the library beneath nft, writes for the same thing.

use std::ffi::{CString, c_char, c_void};

use fw_netlink::nft::{
    Chain, Dynset, Element, ElementData, Expr, INET, LogTarget, NamedCounter, Rule, Set, SetData, Table,
    UdpTimeout, Verdict, encode_elements,
};
use nftnl::nftnl_sys as sys;
use proptest::prelude::*;

use crate::roundtrip::written;
use crate::strategy::{chain, counter_object, element, expr, rule, set, table, udp_timeout};

/// Netlink header and nfgenmsg, which both sides are not compared in.
const HEADERS: usize = 20;

/// The attributes that `build` appends to a message.
fn payload(build: impl FnOnce(*mut sys::libc::nlmsghdr)) -> Vec<u8> {
    let mut buffer = vec![0_u8; 256 * 1024];
    // SAFETY: the buffer is larger than any message built here (all values are bounded to far less than 64 KiB), and
    // libnftnl writes the header and then attributes behind it.
    let header =
        unsafe { sys::nftnl_nlmsg_build_hdr(buffer.as_mut_ptr().cast::<c_char>(), 0, u16::from(INET), 0, 0) };
    build(header);
    let length = u32::from_ne_bytes(buffer[..4].try_into().unwrap()) as usize;
    buffer[HEADERS..length].to_vec()
}

fn text(value: &str) -> CString {
    CString::new(value).unwrap()
}

/// libnftnl's expression, by its setters.
struct Theirs(*mut sys::nftnl_expr);

impl Theirs {
    fn new(name: &str) -> Self {
        // SAFETY: the name is a C string; null is checked.
        let expr = unsafe { sys::nftnl_expr_alloc(text(name).as_ptr()) };
        assert!(!expr.is_null(), "libnftnl does not know {name}");
        Self(expr)
    }

    fn u8(self, attribute: u32, value: u8) -> Self {
        // SAFETY: the expression is alive and owned by us.
        unsafe { sys::nftnl_expr_set_u8(self.0, attribute as u16, value) };
        self
    }

    fn u16(self, attribute: u32, value: u16) -> Self {
        // SAFETY: as above.
        unsafe { sys::nftnl_expr_set_u16(self.0, attribute as u16, value) };
        self
    }

    fn u32(self, attribute: u32, value: u32) -> Self {
        // SAFETY: as above.
        unsafe { sys::nftnl_expr_set_u32(self.0, attribute as u16, value) };
        self
    }

    fn u64(self, attribute: u32, value: u64) -> Self {
        // SAFETY: as above.
        unsafe { sys::nftnl_expr_set_u64(self.0, attribute as u16, value) };
        self
    }

    fn text(self, attribute: u32, value: &str) -> Self {
        // SAFETY: as above; libnftnl copies the string.
        unsafe { sys::nftnl_expr_set_str(self.0, attribute as u16, text(value).as_ptr()) };
        self
    }

    fn data(self, attribute: u32, value: &[u8]) -> Self {
        // SAFETY: as above; libnftnl copies `len` bytes.
        unsafe {
            sys::nftnl_expr_set(self.0, attribute as u16, value.as_ptr().cast::<c_void>(), value.len() as u32)
        };
        self
    }

    fn some(self, attribute: u32, value: Option<u32>) -> Self {
        match value {
            Some(value) => self.u32(attribute, value),
            None => self,
        }
    }

    /// First and last register; the last only when it differs, as nft does.
    fn span(self, attribute: u32, span: Option<(u32, u32)>) -> Self {
        let last = span.filter(|(first, last)| first != last).map(|(_, last)| last);
        self.some(attribute, span.map(|(first, _)| first)).some(attribute + 1, last)
    }

    fn flags(self, attribute: u32, flags: u32) -> Self {
        self.some(attribute, (flags != 0).then_some(flags))
    }
}

fn verdict_code(verdict: &Verdict) -> (i32, Option<&str>) {
    match verdict {
        Verdict::Accept => (1, None),
        Verdict::Drop => (0, None),
        Verdict::Return => (-5, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Other(code) => (code.cast_signed(), None),
    }
}

fn theirs(expr: &Expr) -> Theirs {
    let new = || Theirs::new(expr.name());
    match expr {
        Expr::Meta(e) => {
            let register = if e.load { sys::NFTNL_EXPR_META_DREG } else { sys::NFTNL_EXPR_META_SREG };
            new().u32(sys::NFTNL_EXPR_META_KEY, e.key).u32(register, e.register)
        }
        Expr::Payload(e) => new()
            .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, e.dreg)
            .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, e.base)
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, e.offset)
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, e.len),
        Expr::Cmp(e) => new()
            .u32(sys::NFTNL_EXPR_CMP_SREG, e.sreg)
            .u32(sys::NFTNL_EXPR_CMP_OP, e.op as u32)
            .data(sys::NFTNL_EXPR_CMP_DATA, &e.data),
        Expr::Bitwise(e) => new()
            .u32(sys::NFTNL_EXPR_BITWISE_SREG, e.sreg)
            .u32(sys::NFTNL_EXPR_BITWISE_DREG, e.dreg)
            .u32(sys::NFTNL_EXPR_BITWISE_OP, 0)
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, e.mask.len() as u32)
            .data(sys::NFTNL_EXPR_BITWISE_MASK, &e.mask)
            .data(sys::NFTNL_EXPR_BITWISE_XOR, &e.xor),
        Expr::Range(e) => new()
            .u32(sys::NFTNL_EXPR_RANGE_SREG, e.sreg)
            .u32(sys::NFTNL_EXPR_RANGE_OP, u32::from(e.inverted))
            .data(sys::NFTNL_EXPR_RANGE_FROM_DATA, &e.from)
            .data(sys::NFTNL_EXPR_RANGE_TO_DATA, &e.to),
        Expr::Lookup(e) => new()
            .u32(sys::NFTNL_EXPR_LOOKUP_SREG, e.sreg)
            .some(sys::NFTNL_EXPR_LOOKUP_DREG, e.dreg)
            .text(sys::NFTNL_EXPR_LOOKUP_SET, &e.set)
            .flags(sys::NFTNL_EXPR_LOOKUP_FLAGS, u32::from(e.inverted)),
        Expr::Immediate { dreg, data } => {
            new().u32(sys::NFTNL_EXPR_IMM_DREG, *dreg).data(sys::NFTNL_EXPR_IMM_DATA, data)
        }
        Expr::Verdict(verdict) => {
            let (code, chain) = verdict_code(verdict);
            let expr = new().u32(sys::NFTNL_EXPR_IMM_DREG, 0);
            let expr = match chain {
                Some(chain) => expr.text(sys::NFTNL_EXPR_IMM_CHAIN, chain),
                None => expr,
            };
            expr.u32(sys::NFTNL_EXPR_IMM_VERDICT, code.cast_unsigned())
        }
        Expr::Counter(e) => {
            new().u64(sys::NFTNL_EXPR_CTR_BYTES, e.bytes).u64(sys::NFTNL_EXPR_CTR_PACKETS, e.packets)
        }
        Expr::ObjRef { kind, name } => {
            new().u32(sys::NFTNL_EXPR_OBJREF_IMM_TYPE, *kind).text(sys::NFTNL_EXPR_OBJREF_IMM_NAME, name)
        }
        Expr::Limit(e) => new()
            .u64(sys::NFTNL_EXPR_LIMIT_RATE, e.rate)
            .u64(sys::NFTNL_EXPR_LIMIT_UNIT, e.seconds)
            .u32(sys::NFTNL_EXPR_LIMIT_BURST, e.burst)
            .u32(sys::NFTNL_EXPR_LIMIT_TYPE, e.unit as u32)
            .u32(sys::NFTNL_EXPR_LIMIT_FLAGS, u32::from(e.over)),
        Expr::Log(e) => {
            let expr = match &e.prefix {
                Some(prefix) => new().text(sys::NFTNL_EXPR_LOG_PREFIX, prefix),
                None => new(),
            };
            match e.target {
                LogTarget::Nflog { group, snaplen, threshold } => {
                    let expr =
                        expr.u16(sys::NFTNL_EXPR_LOG_GROUP, group).some(sys::NFTNL_EXPR_LOG_SNAPLEN, snaplen);
                    if threshold == 0 { expr } else { expr.u16(sys::NFTNL_EXPR_LOG_QTHRESHOLD, threshold) }
                }
                LogTarget::Kernel { level, flags } => {
                    expr.u32(sys::NFTNL_EXPR_LOG_LEVEL, level).flags(sys::NFTNL_EXPR_LOG_FLAGS, flags)
                }
            }
        }
        Expr::Ct(e) => {
            let register = if e.load { sys::NFTNL_EXPR_CT_DREG } else { sys::NFTNL_EXPR_CT_SREG };
            let expr = new().u32(sys::NFTNL_EXPR_CT_KEY, e.key).u32(register, e.register);
            match e.direction {
                Some(direction) => expr.u8(sys::NFTNL_EXPR_CT_DIR, direction),
                None => expr,
            }
        }
        Expr::Nat(e) => new()
            .u32(sys::NFTNL_EXPR_NAT_TYPE, u32::from(e.destination))
            .u32(sys::NFTNL_EXPR_NAT_FAMILY, e.family)
            .span(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, e.address)
            .span(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, e.port)
            .flags(sys::NFTNL_EXPR_NAT_FLAGS, e.flags),
        Expr::Masquerade(e) => {
            new().flags(sys::NFTNL_EXPR_MASQ_FLAGS, e.flags).span(sys::NFTNL_EXPR_MASQ_REG_PROTO_MIN, e.port)
        }
        Expr::Redirect(e) => new()
            .span(sys::NFTNL_EXPR_REDIR_REG_PROTO_MIN, e.port)
            // NF_NAT_RANGE_PROTO_SPECIFIED, as nft sends it.
            .flags(sys::NFTNL_EXPR_REDIR_FLAGS, e.flags | if e.port.is_some() { 2 } else { 0 }),
        Expr::Tproxy(e) => new()
            .u32(sys::NFTNL_EXPR_TPROXY_FAMILY, e.family)
            .some(sys::NFTNL_EXPR_TPROXY_REG_ADDR, e.address)
            .some(sys::NFTNL_EXPR_TPROXY_REG_PORT, e.port),
        Expr::Hash(e) => {
            let expr = match e.source {
                Some((sreg, len)) => {
                    new().u32(sys::NFTNL_EXPR_HASH_SREG, sreg).u32(sys::NFTNL_EXPR_HASH_LEN, len)
                }
                None => new(),
            };
            expr.u32(sys::NFTNL_EXPR_HASH_DREG, e.dreg)
                .u32(sys::NFTNL_EXPR_HASH_MODULUS, e.modulus)
                .some(sys::NFTNL_EXPR_HASH_SEED, e.seed)
                .flags(sys::NFTNL_EXPR_HASH_OFFSET, e.offset)
                .u32(sys::NFTNL_EXPR_HASH_TYPE, u32::from(e.source.is_none()))
        }
        Expr::Numgen(e) => new()
            .u32(sys::NFTNL_EXPR_NG_DREG, e.dreg)
            .u32(sys::NFTNL_EXPR_NG_MODULUS, e.modulus)
            .u32(sys::NFTNL_EXPR_NG_TYPE, u32::from(e.random))
            .u32(sys::NFTNL_EXPR_NG_OFFSET, e.offset),
        Expr::Dynset(e) => dynset(e),
        Expr::Byteorder(e) => new()
            .u32(sys::NFTNL_EXPR_BYTEORDER_SREG, e.sreg)
            .u32(sys::NFTNL_EXPR_BYTEORDER_DREG, e.dreg)
            .u32(sys::NFTNL_EXPR_BYTEORDER_OP, e.op)
            .u32(sys::NFTNL_EXPR_BYTEORDER_LEN, e.len)
            .u32(sys::NFTNL_EXPR_BYTEORDER_SIZE, e.size),
        Expr::Reject(e) => {
            let expr = new().u32(sys::NFTNL_EXPR_REJECT_TYPE, e.kind);
            match e.code {
                Some(code) => expr.u8(sys::NFTNL_EXPR_REJECT_CODE, code),
                None => expr,
            }
        }
        Expr::Fib(e) => new()
            .u32(sys::NFTNL_EXPR_FIB_DREG, e.dreg)
            .u32(sys::NFTNL_EXPR_FIB_RESULT, e.result)
            .u32(sys::NFTNL_EXPR_FIB_FLAGS, e.flags),
        Expr::Quota(e) => new()
            .u64(sys::NFTNL_EXPR_QUOTA_BYTES, e.bytes)
            .u64(sys::NFTNL_EXPR_QUOTA_CONSUMED, e.consumed)
            .u32(sys::NFTNL_EXPR_QUOTA_FLAGS, e.flags),
        Expr::Notrack | Expr::Unknown { .. } => new(),
    }
}

fn dynset(e: &Dynset) -> Theirs {
    // NFT_DYNSET_F_INV, and NFT_DYNSET_F_EXPR for more than one expression.
    let flags = u32::from(e.inverted) | if e.exprs.len() > 1 { 2 } else { 0 };
    let expr = Theirs::new("dynset")
        .u32(sys::NFTNL_EXPR_DYNSET_SREG_KEY, e.key)
        .some(sys::NFTNL_EXPR_DYNSET_SREG_DATA, e.value)
        .u32(sys::NFTNL_EXPR_DYNSET_OP, e.op)
        .text(sys::NFTNL_EXPR_DYNSET_SET_NAME, &e.set)
        .flags(sys::NFTNL_EXPR_DYNSET_FLAGS, flags);
    let expr = if e.timeout_ms == 0 { expr } else { expr.u64(sys::NFTNL_EXPR_DYNSET_TIMEOUT, e.timeout_ms) };
    for inner in &e.exprs {
        // SAFETY: both expressions are alive; the outer one takes the inner one over.
        unsafe { sys::nftnl_expr_add_expr(expr.0, sys::NFTNL_EXPR_DYNSET_EXPRESSIONS, theirs(inner).0) };
    }
    expr
}

fn their_rule(rule: &Rule) -> Vec<u8> {
    // SAFETY: every pointer comes from the matching alloc call and is freed once; strings and user data are
    // copied; the rule takes its expressions over.
    unsafe {
        let theirs_rule = sys::nftnl_rule_alloc();
        sys::nftnl_rule_set_str(theirs_rule, sys::NFTNL_RULE_TABLE as u16, text(&rule.table).as_ptr());
        sys::nftnl_rule_set_str(theirs_rule, sys::NFTNL_RULE_CHAIN as u16, text(&rule.chain).as_ptr());
        for expr in &rule.exprs {
            sys::nftnl_rule_add_expr(theirs_rule, theirs(expr).0);
        }
        if !rule.userdata.is_empty() {
            let (data, length) = (rule.userdata.as_ptr().cast::<c_void>(), rule.userdata.len() as u32);
            sys::nftnl_rule_set_data(theirs_rule, sys::NFTNL_RULE_USERDATA as u16, data, length);
        }
        let bytes = payload(|header| sys::nftnl_rule_nlmsg_build_payload(header, theirs_rule));
        sys::nftnl_rule_free(theirs_rule);
        bytes
    }
}

fn their_table(table: &Table) -> Vec<u8> {
    // SAFETY: as in `their_rule`.
    unsafe {
        let theirs = sys::nftnl_table_alloc();
        sys::nftnl_table_set_str(theirs, sys::NFTNL_TABLE_NAME as u16, text(&table.name).as_ptr());
        sys::nftnl_table_set_u32(theirs, sys::NFTNL_TABLE_FLAGS as u16, table.flags);
        if !table.userdata.is_empty() {
            let (data, length) = (table.userdata.as_ptr().cast::<c_void>(), table.userdata.len() as u32);
            sys::nftnl_table_set_data(theirs, sys::NFTNL_TABLE_USERDATA as u16, data, length);
        }
        let bytes = payload(|header| sys::nftnl_table_nlmsg_build_payload(header, theirs));
        sys::nftnl_table_free(theirs);
        bytes
    }
}

fn their_chain(chain: &Chain) -> Vec<u8> {
    // SAFETY: as in `their_rule`.
    unsafe {
        let theirs = sys::nftnl_chain_alloc();
        sys::nftnl_chain_set_str(theirs, sys::NFTNL_CHAIN_TABLE as u16, text(&chain.table).as_ptr());
        sys::nftnl_chain_set_str(theirs, sys::NFTNL_CHAIN_NAME as u16, text(&chain.name).as_ptr());
        if let Some(base) = &chain.base {
            sys::nftnl_chain_set_u32(theirs, sys::NFTNL_CHAIN_HOOKNUM as u16, base.hook);
            sys::nftnl_chain_set_s32(theirs, sys::NFTNL_CHAIN_PRIO as u16, base.priority);
            sys::nftnl_chain_set_u32(theirs, sys::NFTNL_CHAIN_POLICY as u16, base.policy);
            sys::nftnl_chain_set_str(theirs, sys::NFTNL_CHAIN_TYPE as u16, text(&base.kind).as_ptr());
        }
        if !chain.userdata.is_empty() {
            let (data, length) = (chain.userdata.as_ptr().cast::<c_void>(), chain.userdata.len() as u32);
            sys::nftnl_chain_set_data(theirs, sys::NFTNL_CHAIN_USERDATA as u16, data, length);
        }
        let bytes = payload(|header| sys::nftnl_chain_nlmsg_build_payload(header, theirs));
        sys::nftnl_chain_free(theirs);
        bytes
    }
}

fn their_timeout(policy: &UdpTimeout) -> Vec<u8> {
    // libnftnl copies its NFTNL_CTTIMEOUT_ARRAY_MAX numbers, of which UDP has two.
    let mut seconds = [0_u32; 32];
    seconds[..2].copy_from_slice(&[policy.unreplied, policy.replied]);
    // SAFETY: as in `their_rule`; the array is longer than what is copied from it.
    unsafe {
        let theirs = sys::nftnl_obj_alloc();
        sys::nftnl_obj_set_str(theirs, sys::NFTNL_OBJ_TABLE as u16, text(&policy.table).as_ptr());
        sys::nftnl_obj_set_str(theirs, sys::NFTNL_OBJ_NAME as u16, text(&policy.name).as_ptr());
        sys::nftnl_obj_set_u32(theirs, sys::NFTNL_OBJ_TYPE as u16, UdpTimeout::KIND);
        if let Some(family) = policy.family {
            sys::nftnl_obj_set_u16(theirs, sys::NFTNL_OBJ_CT_TIMEOUT_L3PROTO as u16, family);
        }
        sys::nftnl_obj_set_u8(theirs, sys::NFTNL_OBJ_CT_TIMEOUT_L4PROTO as u16, 17);
        let array = seconds.as_ptr().cast::<c_void>();
        sys::nftnl_obj_set(theirs, sys::NFTNL_OBJ_CT_TIMEOUT_ARRAY as u16, array);
        let bytes = payload(|header| sys::nftnl_obj_nlmsg_build_payload(header, theirs));
        sys::nftnl_obj_free(theirs);
        bytes
    }
}

fn their_counter(counter: &NamedCounter) -> Vec<u8> {
    // SAFETY: as in `their_rule`.
    unsafe {
        let theirs = sys::nftnl_obj_alloc();
        sys::nftnl_obj_set_str(theirs, sys::NFTNL_OBJ_TABLE as u16, text(&counter.table).as_ptr());
        sys::nftnl_obj_set_str(theirs, sys::NFTNL_OBJ_NAME as u16, text(&counter.name).as_ptr());
        sys::nftnl_obj_set_u32(theirs, sys::NFTNL_OBJ_TYPE as u16, NamedCounter::KIND);
        sys::nftnl_obj_set_u64(theirs, sys::NFTNL_OBJ_CTR_BYTES as u16, counter.counter.bytes);
        sys::nftnl_obj_set_u64(theirs, sys::NFTNL_OBJ_CTR_PKTS as u16, counter.counter.packets);
        let bytes = payload(|header| sys::nftnl_obj_nlmsg_build_payload(header, theirs));
        sys::nftnl_obj_free(theirs);
        bytes
    }
}

/// A set of theirs; `extra` may add elements before it is written by `build`.
fn their_set(
    set: &Set,
    extra: impl FnOnce(*mut sys::nftnl_set),
    build: unsafe extern "C" fn(*mut sys::libc::nlmsghdr, *mut sys::nftnl_set),
) -> Vec<u8> {
    // SAFETY: as in `their_rule`.
    unsafe {
        let theirs = sys::nftnl_set_alloc();
        let number = |attribute: u32, value| sys::nftnl_set_set_u32(theirs, attribute as u16, value);
        sys::nftnl_set_set_str(theirs, sys::NFTNL_SET_TABLE as u16, text(&set.table).as_ptr());
        sys::nftnl_set_set_str(theirs, sys::NFTNL_SET_NAME as u16, text(&set.name).as_ptr());
        number(sys::NFTNL_SET_FLAGS, set.flags);
        number(sys::NFTNL_SET_KEY_TYPE, set.key_type);
        number(sys::NFTNL_SET_KEY_LEN, set.key_len);
        match set.data {
            Some(SetData::Verdict) => {
                number(sys::NFTNL_SET_DATA_TYPE, 0xffff_ff00);
                number(sys::NFTNL_SET_DATA_LEN, 0);
            }
            Some(SetData::Value { kind, len }) => {
                number(sys::NFTNL_SET_DATA_TYPE, kind);
                number(sys::NFTNL_SET_DATA_LEN, len);
            }
            None => {}
        }
        if set.id != 0 {
            number(sys::NFTNL_SET_ID, set.id);
        }
        if let Some(size) = set.size {
            number(sys::NFTNL_SET_DESC_SIZE, size);
        }
        if !set.fields.is_empty() {
            let lengths: Vec<u8> = set.fields.iter().map(|len| *len as u8).collect();
            let data = lengths.as_ptr().cast::<c_void>();
            sys::nftnl_set_set_data(theirs, sys::NFTNL_SET_DESC_CONCAT as u16, data, lengths.len() as u32);
        }
        if set.timeout_ms != 0 {
            sys::nftnl_set_set_u64(theirs, sys::NFTNL_SET_TIMEOUT as u16, set.timeout_ms);
        }
        if !set.userdata.is_empty() {
            let (data, length) = (set.userdata.as_ptr().cast::<c_void>(), set.userdata.len() as u32);
            sys::nftnl_set_set_data(theirs, sys::NFTNL_SET_USERDATA as u16, data, length);
        }
        extra(theirs);
        let bytes = payload(|header| build(header, theirs));
        sys::nftnl_set_free(theirs);
        bytes
    }
}

fn their_element(element: &Element) -> *mut sys::nftnl_set_elem {
    // SAFETY: as in `their_rule`; the element is handed to a set that frees it.
    unsafe {
        let theirs = sys::nftnl_set_elem_alloc();
        let data = |attribute: u32, value: &[u8]| {
            sys::nftnl_set_elem_set(
                theirs,
                attribute as u16,
                value.as_ptr().cast::<c_void>(),
                value.len() as u32,
            );
        };
        if element.interval_end {
            sys::nftnl_set_elem_set_u32(theirs, sys::NFTNL_SET_ELEM_FLAGS as u16, 1);
        }
        if let Some(timeout) = element.timeout_ms {
            sys::nftnl_set_elem_set_u64(theirs, sys::NFTNL_SET_ELEM_TIMEOUT as u16, timeout);
        }
        if let Some(expiration) = element.expiration_ms {
            sys::nftnl_set_elem_set_u64(theirs, sys::NFTNL_SET_ELEM_EXPIRATION as u16, expiration);
        }
        data(sys::NFTNL_SET_ELEM_KEY, element.key.as_deref().unwrap());
        if let Some(key_end) = &element.key_end {
            data(sys::NFTNL_SET_ELEM_KEY_END, key_end);
        }
        match &element.data {
            Some(ElementData::Verdict(verdict)) => {
                let (code, chain) = verdict_code(verdict);
                sys::nftnl_set_elem_set_u32(theirs, sys::NFTNL_SET_ELEM_VERDICT as u16, code.cast_unsigned());
                if let Some(chain) = chain {
                    sys::nftnl_set_elem_set_str(
                        theirs,
                        sys::NFTNL_SET_ELEM_CHAIN as u16,
                        text(chain).as_ptr(),
                    );
                }
            }
            Some(ElementData::Value(value)) => data(sys::NFTNL_SET_ELEM_DATA, value),
            None => {}
        }
        if !element.userdata.is_empty() {
            data(sys::NFTNL_SET_ELEM_USERDATA, &element.userdata);
        }
        theirs
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_expression_has_the_bytes_of_libnftnl(expr in expr()) {
        let rule = Rule { table: "t".to_owned(), chain: "c".to_owned(), exprs: vec![expr], userdata: Vec::new() };
        prop_assert_eq!(written(|w| rule.encode(w)), their_rule(&rule));
    }

    #[test]
    fn rules_have_the_bytes_of_libnftnl(rule in rule()) {
        prop_assert_eq!(written(|w| rule.encode(w)), their_rule(&rule));
    }

    #[test]
    fn tables_chains_and_counters_have_the_bytes_of_libnftnl(table in table(), chain in chain(), counter in counter_object()) {
        prop_assert_eq!(written(|w| table.encode(w)), their_table(&table));
        prop_assert_eq!(written(|w| chain.encode(w)), their_chain(&chain));
        prop_assert_eq!(written(|w| counter.encode(w)), their_counter(&counter));
    }

    #[test]
    fn timeout_policies_have_the_bytes_of_libnftnl(policy in udp_timeout()) {
        prop_assert_eq!(written(|w| policy.encode(w)), their_timeout(&policy));
    }

    #[test]
    fn sets_have_the_bytes_of_libnftnl(set in set()) {
        let theirs = their_set(&set, |_| {}, sys::nftnl_set_nlmsg_build_payload);
        prop_assert_eq!(written(|w| set.encode(w)), theirs);
    }

    #[test]
    fn elements_have_the_bytes_of_libnftnl(list in prop::collection::vec(element(), 1..10)) {
        let set = Set { table: "t".to_owned(), name: "s".to_owned(), ..Set::default() };
        let add = |theirs| list.iter().for_each(|element| {
            // SAFETY: the set is alive and takes the element over.
            unsafe { sys::nftnl_set_elem_add(theirs, their_element(element)) };
        });
        let theirs = their_set(&set, add, sys::nftnl_set_elems_nlmsg_build_payload);
        prop_assert_eq!(written(|w| encode_elements(w, "t", "s", &list)), theirs);
    }
}
