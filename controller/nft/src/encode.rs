//! A plan as one netlink transaction, and the way back from a refused message to the step it came from.

use fw_netlink::attr::Attrs;
use fw_netlink::batch::Batch;
use fw_netlink::message::{Ack, flag, subsystem};
use fw_netlink::nft::{
    self, BaseChain, Chain as KernelChain, Counter, Element, INET, NamedCounter, Rule as KernelRule,
    Set as KernelSet, Table as KernelTable, UdpTimeout, chunk_elements, encode_elements, message, udata,
};
use fw_policy::Origin;
use fw_ruleset::ir::{Chain, ChainKind, CtTimeout, Hook, HookPoint, Key, Set, TABLE, Verdict};
use fw_ruleset::{Op, Plan, Ruleset};

use crate::error::{Error, Refusal};
use crate::lower::{lower, rule_userdata};
use crate::set::{check, definition, describe_key, elements};

/// Our mark in the table's user data: type, and `fw` with the version of the layout. nft ignores types it does not know
/// and does not write them back, so a table restored from text is not taken for ours.
pub const MARK: (u8, &[u8]) = (0x66, b"fw1");
/// What people see in `nft list table inet firewall`.
const TABLE_COMMENT: &str = "managed by firewall-controller";

/// The transaction of a plan, not yet finished. `table_flags` are those a new table gets; `generation` the guard.
pub fn encode_plan(
    plan: &Plan,
    table_flags: u32,
    generation: Option<u32>,
    sequence: u32,
) -> Result<Transaction, Error> {
    let batch = Batch::new(subsystem::NFTABLES, generation, sequence);
    let mut transaction = Transaction { batch, sources: Vec::with_capacity(plan.ops.len()) };
    for (index, op) in plan.ops.iter().enumerate() {
        transaction.op(index, op, table_flags)?;
    }
    Ok(transaction)
}

/// Sequence numbers a plan may need: begin, end and its messages. Elements take one message per 64 KiB.
pub(crate) fn sequence_numbers(plan: &Plan) -> usize {
    let per_op = |op: &Op| match op {
        // No element takes more than 512 bytes (two 64-byte keys and a 255-byte name).
        Op::AddElements(_, list) => 1 + list.len() / 64,
        Op::DeleteElements(_, list) => 1 + list.len() / 64,
        _ => 1,
    };
    2 + plan.ops.iter().map(per_op).sum::<usize>()
}

/// A plan in the form of messages.
#[derive(Debug)]
pub struct Transaction {
    batch: Batch,
    /// Where each message comes from.
    sources: Vec<Source>,
}

/// Step of the plan, and for elements the index of the message's first element.
#[derive(Clone, Copy, Debug)]
struct Source {
    op: usize,
    first_element: usize,
}

/// The user data of our table.
pub(crate) fn table_userdata() -> Vec<u8> {
    let mut bytes = udata::comment(TABLE_COMMENT);
    bytes.extend(udata::entry(MARK.0, MARK.1));
    bytes
}

pub(crate) fn base_chain(hook: &Hook) -> BaseChain {
    let kind = match hook.kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    };
    // NF_INET_PRE_ROUTING, _LOCAL_IN, _FORWARD and _POST_ROUTING (include/uapi/linux/netfilter.h).
    let point = match hook.point {
        HookPoint::Prerouting => 0,
        HookPoint::Input => 1,
        HookPoint::Forward => 2,
        HookPoint::Postrouting => 4,
    };
    BaseChain {
        kind: kind.to_owned(),
        hook: point,
        priority: hook.priority,
        policy: u32::from(!hook.policy_drop),
    }
}

fn timeout_object(name: &str, timeout: CtTimeout) -> UdpTimeout {
    UdpTimeout {
        table: TABLE.to_owned(),
        name: name.to_owned(),
        family: None,
        unreplied: timeout.seconds,
        replied: timeout.seconds,
    }
}

impl Transaction {
    fn op(&mut self, index: usize, op: &Op, table_flags: u32) -> Result<(), Error> {
        let create = flag::CREATE | flag::EXCL;
        match op {
            Op::DeleteTable => self.push(index, message::DEL_TABLE, 0, |w| KernelTable::name(w, TABLE)),
            Op::CreateTable => {
                let table = KernelTable {
                    name: TABLE.to_owned(),
                    flags: table_flags,
                    userdata: table_userdata(),
                    ..KernelTable::default()
                };
                self.push(index, message::NEW_TABLE, create, |w| table.encode(w));
            }
            Op::CreateCounter(name, count) => {
                let counter = Counter { packets: count.packets, bytes: count.bytes };
                let object = NamedCounter { table: TABLE.to_owned(), name: name.clone(), counter };
                self.push(index, message::NEW_OBJECT, create, |w| object.encode(w));
            }
            Op::CreateTimeout(name, timeout) => {
                let object = timeout_object(name, *timeout);
                self.push(index, message::NEW_OBJECT, create, |w| object.encode(w));
            }
            Op::CreateSet(name, set) => {
                check(set).map_err(|source| Error::Lower { place: describe_op(op), source })?;
                // Any number will do that is not 0 and not another set's in this transaction.
                let id = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
                let set = definition(name, set, id);
                self.push(index, message::NEW_SET, create, |w| set.encode(w));
            }
            Op::CreateChain(name, chain) => {
                let base = chain.hook.as_ref().map(base_chain);
                let chain =
                    KernelChain { table: TABLE.to_owned(), name: name.clone(), base, userdata: Vec::new() };
                self.push(index, message::NEW_CHAIN, create, |w| chain.encode(w));
            }
            Op::FlushChain(name) => {
                self.push(index, message::DEL_RULE, 0, |w| KernelRule::all_of_chain(w, TABLE, name));
            }
            Op::AppendRule(chain, rule, count) => {
                let exprs = lower(rule, *count).map_err(|source| Error::Lower {
                    place: describe_rule(chain, rule.comment.as_deref()),
                    source,
                })?;
                let rule = KernelRule {
                    table: TABLE.to_owned(),
                    chain: chain.clone(),
                    exprs,
                    userdata: rule_userdata(rule),
                };
                self.push(index, message::NEW_RULE, flag::CREATE | flag::APPEND, |w| rule.encode(w));
            }
            Op::AddElements(name, list) => {
                let keys = list.iter().map(|(key, verdict)| (key, verdict.as_ref()));
                self.elements(index, message::NEW_ELEMENTS, name, keys)?;
            }
            Op::DeleteElements(name, list) => {
                let keys = list.iter().map(|key| (key, None));
                self.elements(index, message::DEL_ELEMENTS, name, keys)?;
            }
            Op::DeleteChain(name) => {
                self.push(index, message::DEL_CHAIN, 0, |w| KernelChain::name(w, TABLE, name));
            }
            Op::DeleteSet(name) => self.push(index, message::DEL_SET, 0, |w| KernelSet::name(w, TABLE, name)),
            Op::DeleteCounter(name) => {
                self.push(index, message::DEL_OBJECT, 0, |w| NamedCounter::name(w, TABLE, name));
            }
            Op::DeleteTimeout(name) => {
                self.push(index, message::DEL_OBJECT, 0, |w| UdpTimeout::name(w, TABLE, name));
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        op: usize,
        message: u8,
        flags: u16,
        fill: impl FnOnce(&mut fw_netlink::attr::Writer<'_>),
    ) {
        self.sources.push(Source { op, first_element: 0 });
        self.batch.push(message, flags, INET, fill);
    }

    fn elements<'a>(
        &mut self,
        op: usize,
        message: u8,
        name: &str,
        keys: impl IntoIterator<Item = (&'a Key, Option<&'a Verdict>)>,
    ) -> Result<(), Error> {
        let list = elements(keys)
            .map_err(|source| Error::Lower { place: format!("an element of set {name}"), source })?;
        let list: Vec<Element> = list.into_iter().map(|(_, element)| element).collect();
        let flags = if message == message::NEW_ELEMENTS { flag::CREATE } else { 0 };
        for chunk in chunk_elements(&list) {
            self.sources.push(Source { op, first_element: chunk.start });
            let part = &list[chunk.start..chunk.end];
            self.batch.push(message, flags, INET, |w| encode_elements(w, TABLE, name, part));
        }
        Ok(())
    }

    /// The messages, to be finished and sent; what stays is needed to explain refusals.
    pub fn take_batch(&mut self) -> Batch {
        std::mem::replace(&mut self.batch, Batch::new(subsystem::NFTABLES, None, 0))
    }

    /// What the kernel objected to, in the names of the plan. `bytes` are the finished transaction's.
    pub fn refusal(
        &self,
        plan: &Plan,
        wanted: &Ruleset,
        at: &Position<'_>,
        ack: Ack,
        others: usize,
    ) -> Refusal {
        let source = self.sources.get(at.message).copied().unwrap_or(Source { op: 0, first_element: 0 });
        let op = plan.ops.get(source.op);
        let detail = op.and_then(|op| detail(op, source.first_element, at, ack.offset));
        Refusal {
            op: source.op,
            place: op.map_or_else(|| "the transaction".to_owned(), describe_op),
            origin: op
                .and_then(|op| op_origin(op, detail.as_ref().and_then(|d| d.target.as_deref()), wanted)),
            detail: detail.map(|detail| detail.text),
            errno: ack.errno,
            text: ack.text,
            others,
        }
    }
}

/// A refused message.
#[derive(Clone, Copy, Debug)]
pub struct Position<'a> {
    /// Its index.
    pub message: usize,
    /// Its attributes.
    pub attributes: &'a [u8],
    /// Where they begin, counted from its header.
    pub start: usize,
}

struct Detail {
    text: String,
    /// The chain an element leads to.
    target: Option<String>,
}

/// NFTA_RULE_EXPRESSIONS and NFTA_SET_ELEM_LIST_ELEMENTS.
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENTS: u16 = 3;

/// The part of a message that the kernel's offset lies in.
fn detail(op: &Op, first_element: usize, at: &Position<'_>, offset: Option<usize>) -> Option<Detail> {
    let offset = offset?.checked_sub(at.start)?;
    match op {
        Op::AppendRule(..) => {
            let (index, list) = entry_at(at.attributes, RULE_EXPRESSIONS, offset)?;
            let expr = nft::Expr::decode(list).ok()?;
            Some(Detail { text: format!("expression {} (number {})", expr.name(), index + 1), target: None })
        }
        Op::AddElements(_, list) => {
            let (index, _) = entry_at(at.attributes, LIST_ELEMENTS, offset)?;
            let keys = list.iter().map(|(key, verdict)| (key, verdict.as_ref()));
            let owner = elements(keys).ok()?.get(first_element + index)?.0;
            let (key, verdict) = list.get(owner)?;
            let target = match verdict {
                Some(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain.clone()),
                _ => None,
            };
            let arrow = verdict.as_ref().map(|verdict| format!(" : {}", describe_verdict(verdict)));
            let text = format!("element {}{}", describe_key(key), arrow.unwrap_or_default());
            Some(Detail { text, target })
        }
        Op::DeleteElements(_, list) => {
            let (index, _) = entry_at(at.attributes, LIST_ELEMENTS, offset)?;
            let owner = elements(list.iter().map(|key| (key, None))).ok()?.get(first_element + index)?.0;
            Some(Detail { text: format!("element {}", describe_key(list.get(owner)?)), target: None })
        }
        _ => None,
    }
}

/// The entry of a list attribute that a byte offset lies in, with its index.
fn entry_at(attributes: &[u8], list: u16, offset: usize) -> Option<(usize, fw_netlink::attr::Attr<'_>)> {
    let mut attrs = Attrs::new(attributes);
    loop {
        let start = attrs.offset() + 4;
        let attr = attrs.next()?.ok()?;
        if attr.kind != list {
            continue;
        }
        let within = offset.checked_sub(start)?;
        let mut entries = attr.nested();
        let mut index = 0;
        loop {
            let entry = entries.next()?.ok()?;
            if within < entries.offset() {
                return Some((index, entry));
            }
            index += 1;
        }
    }
}

/// Whose a step is; `target` is the chain that the refused element leads to.
pub(crate) fn op_origin(op: &Op, target: Option<&str>, wanted: &Ruleset) -> Option<Origin> {
    let chain = |name: &str| wanted.chains.get(name).and_then(|chain: &Chain| chain.origin.clone());
    let set = |name: &String| wanted.sets.get(name).and_then(|set: &Set| set.origin.clone());
    target.and_then(chain).or_else(|| match op {
        Op::CreateChain(name, created) => created.origin.clone().or_else(|| chain(name)),
        Op::CreateSet(name, created) => created.origin.clone().or_else(|| set(name)),
        Op::AppendRule(name, ..) | Op::FlushChain(name) | Op::DeleteChain(name) => chain(name),
        Op::AddElements(name, _) | Op::DeleteElements(name, _) | Op::DeleteSet(name) => set(name),
        Op::DeleteTable
        | Op::CreateTable
        | Op::CreateCounter(..)
        | Op::DeleteCounter(_)
        | Op::CreateTimeout(..)
        | Op::DeleteTimeout(_) => None,
    })
}

pub(crate) fn describe_op(op: &Op) -> String {
    match op {
        Op::DeleteTable => format!("the deletion of table inet {TABLE}"),
        Op::CreateTable => format!("table inet {TABLE}"),
        Op::CreateCounter(name, _) => format!("counter {name}"),
        Op::CreateTimeout(name, _) => format!("conntrack timeout policy {name}"),
        Op::CreateSet(name, set) => format!("{} {name}", if set.map { "map" } else { "set" }),
        Op::CreateChain(name, _) => format!("chain {name}"),
        Op::FlushChain(name) => format!("the flush of chain {name}"),
        Op::AppendRule(chain, rule, _) => describe_rule(chain, rule.comment.as_deref()),
        Op::AddElements(name, list) => format!("{} elements of set {name}", list.len()),
        Op::DeleteElements(name, list) => format!("the deletion of {} elements of set {name}", list.len()),
        Op::DeleteChain(name) => format!("the deletion of chain {name}"),
        Op::DeleteSet(name) => format!("the deletion of set {name}"),
        Op::DeleteCounter(name) => format!("the deletion of counter {name}"),
        Op::DeleteTimeout(name) => format!("the deletion of conntrack timeout policy {name}"),
    }
}

fn describe_rule(chain: &str, comment: Option<&str>) -> String {
    match comment {
        Some(comment) => format!("rule {comment:?} in chain {chain}"),
        None => format!("a rule in chain {chain}"),
    }
}

fn describe_verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}
