//! What this kernel can do, asked once at start by dry runs: nothing is ever committed.

use fw_netlink::batch::{Batch, Finish};
use fw_netlink::message::{flag, subsystem};
use fw_netlink::nft::{
    Chain, Element, Expr, Fib, Hash, INET, Log, LogTarget, Meta, Redirect, Rule, Set, Table, Tproxy,
    UdpTimeout, encode_elements, message, register_at, table_flag,
};
use fw_netlink::socket::{Outcome, Socket, SocketError};

use crate::error::libc_errno::{EPERM, ERANGE};

/// One thing a kernel may lack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Whether this kernel has it.
    pub available: bool,
    /// The kernel that brought it.
    pub since: &'static str,
    /// What happens without it.
    pub otherwise: &'static str,
}

/// What this kernel can do.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Features {
    /// Tables with owner that outlive it.
    pub owner_persist: bool,
    /// The end of a transaction is acknowledged.
    pub batch_end_ack: bool,
    /// The time left of an element can be set anew.
    pub expiration_update: bool,
    /// Elements can be deleted whether they are there or not.
    pub destroy: bool,
    /// Conntrack timeout policies (NF_CONNTRACK_TIMEOUT).
    pub ct_timeout: bool,
    /// Redirection to this machine (NFT_REDIR).
    pub redirect: bool,
    /// Hashes in rules (NFT_HASH).
    pub hash: bool,
    /// NFLOG from rules (NFT_LOG).
    pub log: bool,
    /// Routing lookups in rules (NFT_FIB_INET).
    pub fib: bool,
    /// Transparent proxy (NFT_TPROXY).
    pub tproxy: bool,
}

impl Features {
    /// As a table for the status.
    pub fn table(&self) -> Vec<Feature> {
        let feature = |name, available, since, otherwise| Feature { name, available, since, otherwise };
        vec![
            feature(
                "nftables owner and persist",
                self.owner_persist,
                "6.9",
                "others can change our table; changes are noticed and repaired",
            ),
            feature("nftables batch-end ack", self.batch_end_ack, "6.10", "the last message's ack is used"),
            feature(
                "nftables element expiration update",
                self.expiration_update,
                "6.12",
                "elements are renewed by delete and add in one transaction",
            ),
            feature(
                "nftables destroy",
                self.destroy,
                "6.3",
                "elements are deleted, and what has expired meanwhile is noticed and tried again",
            ),
            feature(
                "conntrack timeout policies",
                self.ct_timeout,
                "4.19 (CONFIG_NF_CONNTRACK_TIMEOUT)",
                "DNS cannot be redirected to the proxy",
            ),
            feature(
                "nftables redirect",
                self.redirect,
                "3.19 (CONFIG_NFT_REDIR)",
                "DNS cannot be redirected to the proxy",
            ),
            feature(
                "nftables hash",
                self.hash,
                "4.10 (CONFIG_NFT_HASH)",
                "only one SNAT address per network works",
            ),
            feature("nftables log", self.log, "3.14 (CONFIG_NFT_LOG)", "drops cannot be logged"),
            feature("nftables fib", self.fib, "4.10 (CONFIG_NFT_FIB_INET)", "not needed"),
            feature("nftables tproxy", self.tproxy, "4.19 (CONFIG_NFT_TPROXY)", "not needed"),
        ]
    }

    /// Asks the kernel. `Err(None)` without the privilege to ask.
    pub(crate) fn probe(socket: &mut Socket) -> Result<Self, ProbeError> {
        let owner_persist = Probe::new(socket, table_flag::OWNER | table_flag::PERSIST).run()? == 0;
        let mut expr = |exprs: Vec<Expr>, hook| -> Result<bool, ProbeError> {
            Ok(Probe::new(socket, 0).rule(exprs, hook).run()? == 0)
        };
        let dreg = register_at(0);
        let load_mark = Expr::Meta(Meta::load(Meta::MARK, register_at(16)));
        let source = Some((register_at(16), 4));
        let hash = Expr::Hash(Hash { source, dreg, modulus: 2, seed: Some(0), offset: 0 });
        let nflog = LogTarget::Nflog { group: 0, snaplen: None, threshold: 0 };
        let log = Expr::Log(Log { prefix: None, target: nflog });
        // NFT_FIB_RESULT_ADDRTYPE of the destination; tproxy takes its address from the packet's own.
        let fib = Expr::Fib(Fib { dreg, result: 3, flags: 2 });
        let port = Expr::Immediate { dreg, data: vec![0, 53] };
        let tproxy = Expr::Tproxy(Tproxy { family: 2, address: None, port: Some(dreg) });
        Ok(Self {
            owner_persist,
            hash: expr(vec![load_mark, hash], FORWARD)?,
            log: expr(vec![log], FORWARD)?,
            fib: expr(vec![fib], FORWARD)?,
            tproxy: expr(vec![port, tproxy], PREROUTING)?,
            expiration_update: Probe::new(socket, 0).late_expiration().run()? == ERANGE,
            destroy: Probe::new(socket, 0).destroy().run()? == 0,
            ct_timeout: Probe::new(socket, 0).ct_timeout().run()? == 0,
            redirect: Probe::new(socket, 0).redirect().run()? == 0,
            batch_end_ack: socket.empty_transaction(subsystem::NFTABLES)?,
        })
    }
}

const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
/// Never seen by anybody, since it is never committed.
const TABLE: &str = "firewall-controller-probe";

#[derive(Debug)]
pub(crate) enum ProbeError {
    Privilege,
    Socket(SocketError),
}

impl From<SocketError> for ProbeError {
    fn from(error: SocketError) -> Self {
        Self::Socket(error)
    }
}

/// A transaction that is only tried.
struct Probe<'a> {
    socket: &'a mut Socket,
    batch: Batch,
}

impl<'a> Probe<'a> {
    fn new(socket: &'a mut Socket, table_flags: u32) -> Self {
        let mut batch = Batch::new(subsystem::NFTABLES, None, socket.reserve(8));
        let table = Table { name: TABLE.to_owned(), flags: table_flags, ..Table::default() };
        batch.push(message::NEW_TABLE, flag::CREATE, INET, |w| table.encode(w));
        Self { socket, batch }
    }

    fn rule(self, exprs: Vec<Expr>, hook: u32) -> Self {
        self.rule_in("filter", exprs, hook)
    }

    fn rule_in(mut self, kind: &str, exprs: Vec<Expr>, hook: u32) -> Self {
        let base = fw_netlink::nft::BaseChain { kind: kind.to_owned(), hook, priority: 0, policy: 1 };
        let chain = Chain {
            table: TABLE.to_owned(),
            name: "probe".to_owned(),
            base: Some(base),
            userdata: Vec::new(),
        };
        let rule = Rule { table: TABLE.to_owned(), chain: chain.name.clone(), exprs, userdata: Vec::new() };
        self.batch.push(message::NEW_CHAIN, flag::CREATE, INET, |w| chain.encode(w));
        self.batch.push(message::NEW_RULE, flag::CREATE | flag::APPEND, INET, |w| rule.encode(w));
        self
    }

    fn redirect(self) -> Self {
        let dreg = register_at(0);
        let port = Expr::Immediate { dreg, data: vec![0, 53] };
        let redirect = Expr::Redirect(Redirect { port: Some((dreg, dreg)), flags: 0 });
        self.rule_in("nat", vec![port, redirect], PREROUTING)
    }

    fn ct_timeout(mut self) -> Self {
        let policy = UdpTimeout {
            table: TABLE.to_owned(),
            name: "probe".to_owned(),
            family: None,
            unreplied: 3,
            replied: 3,
        };
        self.batch.push(message::NEW_OBJECT, flag::CREATE, INET, |w| policy.encode(w));
        self
    }

    /// Destroys an element that is not there.
    fn destroy(mut self) -> Self {
        let element = self.timed_set();
        self.batch.push(message::DESTROY_ELEMENTS, 0, INET, |w| {
            encode_elements(w, TABLE, "probe", &[element]);
        });
        self
    }

    /// An element that is to live longer than its timeout: kernels that read the time left refuse it (ERANGE).
    fn late_expiration(mut self) -> Self {
        let element = Element { timeout_ms: Some(1000), expiration_ms: Some(2000), ..self.timed_set() };
        self.batch.push(message::NEW_ELEMENTS, flag::CREATE, INET, |w| {
            encode_elements(w, TABLE, "probe", &[element]);
        });
        self
    }

    /// Makes a set whose elements expire, and gives one of its keys.
    fn timed_set(&mut self) -> Element {
        let set = Set {
            table: TABLE.to_owned(),
            name: "probe".to_owned(),
            flags: Set::TIMEOUT,
            key_type: 7,
            key_len: 4,
            id: 1,
            ..Set::default()
        };
        self.batch.push(message::NEW_SET, flag::CREATE, INET, |w| set.encode(w));
        Element { key: Some(vec![192, 0, 2, 1]), ..Element::default() }
    }

    /// 0 or the errno of the first refused message.
    fn run(self) -> Result<i32, ProbeError> {
        // The probes are far below 64 KiB.
        let Ok(batch) = self.batch.finish(Finish::DryRun) else { return Ok(0) };
        self.socket.send_batch(&batch)?;
        match self.socket.finish_batch(&batch)? {
            Outcome::Done => Ok(0),
            Outcome::Whole(ack) if ack.errno == EPERM => Err(ProbeError::Privilege),
            Outcome::Whole(ack) => Ok(ack.errno),
            Outcome::Messages(refused) => Ok(refused.first().map_or(0, |(_, ack)| ack.errno)),
        }
    }
}
