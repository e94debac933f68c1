//! A second reader: rustables lists from the kernel what we wrote to it, as far as it knows the expressions. What it
//! cannot read (it refuses a whole rule for one attribute it does not know: the flags of a lookup, the operation of a
//! bitwise, the snap length of a log) is left to libnftnl.

use fw_netlink::batch::{Batch, Finish};
use fw_netlink::message::{flag, subsystem};
use fw_netlink::nft::{self, BaseChain, CmpOp, INET, LogTarget, Verdict, message, register_at};
use fw_netlink::socket::{Outcome, Socket};
use fw_testkit::Netns;
use rustables::expr as their;
use rustables::expr::{ExpressionVariant, Register};
use rustables::{
    Chain, ChainPolicy, ProtocolFamily, Table, list_chains_for_table, list_rules_for_chain, list_tables,
};

/// Pairs of ours and theirs.
fn pairs() -> Vec<(nft::Expr, ExpressionVariant)> {
    let ours = register_at(0);
    let meta = |key, theirs| {
        let expr = their::Meta::default().with_key(theirs).with_dreg(Register::Reg1);
        (nft::Expr::Meta(nft::Meta::load(key, ours)), ExpressionVariant::from(expr))
    };
    let cmp = |op, their_op, data: &[u8]| {
        let expr = nft::Expr::Cmp(nft::Cmp { sreg: ours, op, data: data.to_vec() });
        (expr, ExpressionVariant::from(their::Cmp::new(their_op, data.to_vec())))
    };
    let payload = |base, offset, len| {
        let theirs = their::Payload::default().with_base(base).with_offset(offset).with_len(len);
        let expr = nft::Expr::Payload(nft::Payload { base, offset, len, dreg: ours });
        (expr, ExpressionVariant::from(theirs.with_dreg(Register::Reg1)))
    };
    let name = b"vrf104009\0\0\0\0\0\0\0";
    let ct = their::Conntrack::default().with_key(their::ConntrackKey::State).with_dreg(Register::Reg1);
    let state = nft::Ct { key: nft::Ct::STATE, direction: None, load: true, register: ours };
    let counter = nft::Counter { packets: 1 << 40, bytes: u64::MAX };
    let their_counter = their::Counter::default().with_nb_packets(1_u64 << 40).with_nb_bytes(u64::MAX);
    let target = LogTarget::Nflog { group: 7, snaplen: None, threshold: 0 };
    let log = nft::Log { prefix: Some("dropped: ".to_owned()), target };
    let their_log = their::Log::default().with_group(7_u16).with_prefix("dropped: ");
    let jump = their::Immediate::new_verdict(their::VerdictKind::Jump { chain: "target".to_owned() });
    vec![
        meta(nft::Meta::IIFNAME, their::MetaType::IifName),
        cmp(CmpOp::Eq, their::CmpOp::Eq, name),
        meta(nft::Meta::NFPROTO, their::MetaType::NfProto),
        cmp(CmpOp::Eq, their::CmpOp::Eq, &[2]),
        payload(nft::Payload::NETWORK, 16, 4),
        cmp(CmpOp::Neq, their::CmpOp::Neq, &[192, 0, 2, 1]),
        meta(nft::Meta::L4PROTO, their::MetaType::L4Proto),
        cmp(CmpOp::Eq, their::CmpOp::Eq, &[6]),
        payload(nft::Payload::TRANSPORT, 2, 2),
        cmp(CmpOp::Gte, their::CmpOp::Gte, &[0, 80]),
        cmp(CmpOp::Lte, their::CmpOp::Lte, &[0, 90]),
        (nft::Expr::Ct(state), ExpressionVariant::from(ct)),
        (nft::Expr::Counter(counter), ExpressionVariant::from(their_counter)),
        (nft::Expr::Log(log), ExpressionVariant::from(their_log)),
        (nft::Expr::Verdict(Verdict::Jump("target".to_owned())), ExpressionVariant::from(jump)),
    ]
}

fn send(batch: Batch) {
    let mut socket = Socket::open().unwrap();
    let batch = batch.finish(Finish::Commit).unwrap();
    socket.send_batch(&batch).unwrap();
    assert_eq!(socket.finish_batch(&batch).unwrap(), Outcome::Done);
}

#[test]
fn rustables_reads_from_the_kernel_what_we_wrote_to_it() {
    let ns = Netns::new("fwnl").unwrap();
    let create = flag::CREATE | flag::EXCL;
    ns.run(|| {
        let table = nft::Table { name: "ours".to_owned(), ..nft::Table::default() };
        let target =
            nft::Chain { table: "ours".to_owned(), name: "target".to_owned(), ..nft::Chain::default() };
        let base = BaseChain { kind: "filter".to_owned(), hook: 2, priority: 1, policy: 1 };
        let chain = nft::Chain { name: "forward".to_owned(), base: Some(base), ..target.clone() };
        let exprs = pairs().into_iter().map(|(ours, _)| ours).collect();
        let userdata = nft::udata::comment("a comment");
        let rule = nft::Rule {
            table: "ours".to_owned(),
            chain: "forward".to_owned(),
            exprs,
            userdata: userdata.clone(),
        };
        let mut batch = Batch::new(subsystem::NFTABLES, None, 1);
        batch.push(message::NEW_TABLE, create, INET, |w| table.encode(w));
        batch.push(message::NEW_CHAIN, create, INET, |w| target.encode(w));
        batch.push(message::NEW_CHAIN, create, INET, |w| chain.encode(w));
        batch.push(message::NEW_RULE, flag::CREATE | flag::APPEND, INET, |w| rule.encode(w));
        send(batch);

        let tables = list_tables().unwrap();
        let names: Vec<_> = tables.iter().map(|table| table.get_name().unwrap().as_str()).collect();
        assert_eq!(names, ["ours"]);
        let their_table = Table::new(ProtocolFamily::Inet).with_name("ours");
        let chains = list_chains_for_table(&their_table).unwrap();
        let forward: Vec<&Chain> = chains.iter().filter(|c| c.get_name().unwrap() == "forward").collect();
        assert_eq!((chains.len(), forward.len()), (2, 1));
        let hook = forward[0].get_hook().unwrap();
        assert_eq!((hook.get_class(), hook.get_priority()), (Some(&2), Some(&1)));
        assert_eq!(forward[0].get_policy(), Some(&ChainPolicy::Accept));

        let rules = list_rules_for_chain(forward[0]).unwrap();
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].get_userdata(), Some(&userdata));
        let read: Vec<_> =
            rules[0].get_expressions().unwrap().iter().map(|e| e.get_data().unwrap().clone()).collect();
        let expected: Vec<_> = pairs().into_iter().map(|(_, theirs)| theirs).collect();
        assert_eq!(read, expected);
    })
    .unwrap();
}
