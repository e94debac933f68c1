//! nftables over netlink: what the kernel documents in include/uapi/linux/netfilter/nf_tables.h.
//!
//! Every type here is a value: `encode` writes its attributes, `decode` reads them, and `decode(encode(x)) == x`.
//! What a kernel dumps of something we wrote decodes to the value we wrote, counters and time left excepted;
//! where the kernel adds defaults (the level of a log, NF_NAT_RANGE_MAP_IPS), `decode` takes them away again.

mod action;
mod chain;
mod data;
mod element;
mod expr;
mod fields;
mod listing;
mod matching;
mod object;
pub mod reading;
mod rule;
mod set;
pub mod steady;
mod table;
pub mod udata;

pub use action::{
    Counter, Dynset, Limit, LimitUnit, Log, LogTarget, Masquerade, Nat, Quota, Redirect, Reject, Tproxy,
};
pub use chain::{BaseChain, Chain};
pub use data::{Register, Verdict, register_at};
pub use element::{
    Element, ElementChunk, ElementData, chunk_elements, decode_elements, elements_request, encode_elements,
};
pub use expr::Expr;
pub use listing::{ChainView, CounterView, RuleView, SetView, TableView};
pub use matching::{Bitwise, Byteorder, Cmp, CmpOp, Ct, Fib, Hash, Lookup, Meta, Numgen, Payload, Range};
pub use object::{CtHelper, NamedCounter, UdpTimeout};
pub use rule::{Rule, RuleTally};
pub use set::{Set, SetData};
pub use table::{Generation, Table, table_flag};

/// NFPROTO_INET.
pub const INET: u8 = 1;
/// Netlink multicast group of nftables' notifications.
pub const NFNLGRP_NFTABLES: u32 = 7;

/// Message numbers (enum nf_tables_msg_types).
pub mod message {
    /// Create or change a table.
    pub const NEW_TABLE: u8 = 0;
    /// Read tables.
    pub const GET_TABLE: u8 = 1;
    /// Delete a table with all it holds.
    pub const DEL_TABLE: u8 = 2;
    /// Create or change a chain.
    pub const NEW_CHAIN: u8 = 3;
    /// Read chains.
    pub const GET_CHAIN: u8 = 4;
    /// Delete an empty chain.
    pub const DEL_CHAIN: u8 = 5;
    /// Add a rule.
    pub const NEW_RULE: u8 = 6;
    /// Read rules.
    pub const GET_RULE: u8 = 7;
    /// Delete rules: all of a chain when no handle is given.
    pub const DEL_RULE: u8 = 8;
    /// Create a set.
    pub const NEW_SET: u8 = 9;
    /// Read sets.
    pub const GET_SET: u8 = 10;
    /// Delete a set.
    pub const DEL_SET: u8 = 11;
    /// Add elements.
    pub const NEW_ELEMENTS: u8 = 12;
    /// Read elements.
    pub const GET_ELEMENTS: u8 = 13;
    /// Delete elements.
    pub const DEL_ELEMENTS: u8 = 14;
    /// The generation: answer to GET_GENERATION and last notification of every commit.
    pub const NEW_GENERATION: u8 = 15;
    /// Read the generation.
    pub const GET_GENERATION: u8 = 16;
    /// Create an object.
    pub const NEW_OBJECT: u8 = 18;
    /// Read objects.
    pub const GET_OBJECT: u8 = 19;
    /// Delete an object.
    pub const DEL_OBJECT: u8 = 20;
    /// Delete those elements that are there (Linux 6.3).
    pub const DESTROY_ELEMENTS: u8 = 30;
}
