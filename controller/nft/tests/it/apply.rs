//! Apply, read back, edit.

use fw_nft::{Kernel, NetlinkKernel, Observed, Receipt, Table, recognise};
use fw_policy::{Block, Inside, InsideBasis, Peers, Policy, PolicySet, PortRange, Ports, Protocol, Rule};
use fw_ruleset::ir::{Key, Verdict};
use fw_ruleset::{Count, Counts, DEFAULT_CELL_LIMIT, Op, Plan, Ruleset, compile, plan};
use fw_testkit::{Netns, nft};

use crate::sample::{policy_chain, sample, v4};

/// Applies a ruleset to a namespace without one of ours.
pub(crate) fn install(kernel: &mut NetlinkKernel, wanted: &Ruleset) -> Receipt {
    assert_eq!(kernel.read().unwrap(), Table::Absent);
    kernel.commit(&plan(None, wanted, &Counts::default()), wanted).unwrap()
}

pub(crate) fn observed(kernel: &mut NetlinkKernel) -> Observed {
    match kernel.read().unwrap() {
        Table::Ours(observed) => observed,
        other => panic!("not ours: {other:?}"),
    }
}

/// Goes from what the kernel holds to `wanted`.
pub(crate) fn go_on(kernel: &mut NetlinkKernel, wanted: &Ruleset) -> Receipt {
    let observed = observed(kernel);
    let current = recognise(&observed, wanted);
    kernel.commit(&plan(Some(&current), wanted, &observed.counts()), wanted).unwrap()
}

#[test]
fn what_is_applied_is_recognised_when_it_is_read_back() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let wanted = sample();
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &wanted);
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
        assert!(plan(Some(&wanted), &wanted, &Counts::default()).is_empty());
    })
    .unwrap();
}

#[test]
fn nft_lists_it_as_an_operator_would_have_written_it() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| install(&mut NetlinkKernel::open().unwrap(), &sample())).unwrap();
    let listing = nft::list_ruleset(&ns).unwrap();
    // The first line names the program that owns the table.
    let listing: Vec<&str> = listing.lines().filter(|line| !line.contains("progname")).collect();
    let listing = listing.join("\n").replace("\tflags owner\n", "") + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/sample.listing");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &listing).unwrap();
    }
    assert_eq!(listing, std::fs::read_to_string(path).unwrap(), "BLESS=1 rewrites {path}");
}

/// What nft lists of a namespace, without what only our own table has.
fn listing(ns: &Netns) -> Vec<String> {
    // An orphan's only flag is one that nft 1.0.6 does not know.
    let ours = |line: &str| line == "flags" || line.contains("managed by");
    let listing = nft::list_ruleset(ns).unwrap();
    let lines = listing.lines().map(str::trim).filter(|line| !line.is_empty() && !ours(line));
    lines.filter(|line| !line.starts_with("table ")).map(str::to_owned).collect()
}

#[test]
fn nft_lists_what_we_apply_as_it_lists_what_it_loads_from_our_text() {
    let whole = compile(&policies(5, 4), DEFAULT_CELL_LIMIT).ruleset;
    for wanted in [sample(), whole] {
        let (by_netlink, by_text) = (Netns::new("fwnft").unwrap(), Netns::new("fwnft").unwrap());
        by_netlink.run(|| install(&mut NetlinkKernel::open().unwrap(), &wanted)).unwrap();
        nft::load(&by_text, &fw_ruleset::render(&wanted)).unwrap();
        assert_eq!(listing(&by_netlink), listing(&by_text));
    }
}

#[test]
fn a_check_leaves_nothing_behind() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let wanted = sample();
        let mut kernel = NetlinkKernel::open().unwrap();
        let before = kernel.generation().unwrap();
        kernel.check(&plan(None, &wanted, &Counts::default()), &wanted).unwrap();
        assert_eq!(kernel.read().unwrap(), Table::Absent);
        assert_eq!(kernel.generation().unwrap(), before);
        install(&mut kernel, &wanted);
        kernel.check(&Plan { ops: vec![Op::DeleteTable] }, &wanted).unwrap();
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
    })
    .unwrap();
}

#[test]
fn counters_start_where_they_are_told_to_and_survive_edits() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut wanted = sample();
        let mut kernel = NetlinkKernel::open().unwrap();
        let big = Count { packets: u64::from(u32::MAX) + 7, bytes: u64::MAX / 2 };
        let start = Counts {
            named: [("drop_total".to_owned(), big)].into(),
            rules: [
                (("egress-web-tcp".to_owned(), 0), Count { packets: 3, bytes: 99 }),
                (("forward".to_owned(), 1), big),
            ]
            .into(),
        };
        kernel.read().unwrap();
        kernel.commit(&plan(None, &wanted, &start), &wanted).unwrap();
        let check = |kernel: &mut NetlinkKernel| {
            let counts = kernel.counts().unwrap();
            assert_eq!(counts.named["drop_total"], big);
            assert_eq!(counts.named["internal_in"], Count::default());
            assert_eq!(counts.rules[&("egress-web-tcp".to_owned(), 0)], Count { packets: 3, bytes: 99 });
            assert_eq!(counts.rules[&("forward".to_owned(), 1)], big);
            assert!(!counts.rules.contains_key(&("forward".to_owned(), 0)), "no anonymous counter there");
            assert_eq!(counts, observed(kernel).counts());
        };
        check(&mut kernel);
        wanted.chains.insert("egress-new-tcp".to_owned(), policy_chain("new"));
        let map = wanted.sets.get_mut("egress4-24").unwrap();
        map.elements
            .insert(Key::Exact(vec![v4("7.7.7.0")]), Some(Verdict::Jump("egress-new-tcp".to_owned())));
        let receipt = go_on(&mut kernel, &wanted);
        assert_eq!(receipt.messages, 3, "a chain, its rule, an element: {receipt:?}");
        check(&mut kernel);
        wanted.chains.remove("egress-new-tcp");
        wanted.sets.get_mut("egress4-24").unwrap().elements.remove(&Key::Exact(vec![v4("7.7.7.0")]));
        go_on(&mut kernel, &wanted);
        check(&mut kernel);
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
    })
    .unwrap();
}

#[test]
fn elements_added_by_packets_survive_edits_of_other_things() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut wanted = sample();
        let mut kernel = NetlinkKernel::open_without_owner().unwrap();
        install(&mut kernel, &wanted);
        ns.output("nft", &["add element inet firewall ping6 { 2001:db8::7 . 53 timeout 1h }"]).unwrap();
        wanted.sets.get_mut("egress4-24").unwrap().elements.remove(&Key::Exact(vec![v4("1.2.4.0")]));
        go_on(&mut kernel, &wanted);
        let listing = ns.output("nft", &["list set inet firewall ping6"]).unwrap();
        assert!(listing.contains("2001:db8::7 . 53 timeout 1h expires"), "{listing}");
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
    })
    .unwrap();
}

#[test]
fn elements_can_change_their_verdict_and_intervals_their_ends_in_one_transaction() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut wanted = sample();
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &wanted);
        let map = wanted.sets.get_mut("egress4-24").unwrap();
        map.elements.insert(Key::Exact(vec![v4("1.2.3.0")]), Some(Verdict::Drop));
        let ports = wanted.sets.get_mut("ports").unwrap();
        let port = fw_ruleset::ir::Value::Port;
        ports.elements.remove(&Key::Range(port(80), port(90)));
        ports.elements.insert(Key::Range(port(0), port(90)), Some(Verdict::Accept));
        ports.elements.remove(&Key::Range(port(60000), port(65535)));
        ports.elements.insert(Key::Range(port(60000), port(60000)), Some(Verdict::Drop));
        ports.elements.insert(Key::Range(port(60001), port(65535)), Some(Verdict::Accept));
        go_on(&mut kernel, &wanted);
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
        let listing = nft::list_ruleset(&ns).unwrap();
        assert!(
            listing.contains(
                "{ 0-90 : accept, 91-100 : drop, 443 : accept, 60000 : drop, 60001-65535 : accept }"
            ),
            "{listing}"
        );
    })
    .unwrap();
}

#[test]
fn the_whole_way_from_policies_to_the_kernel_and_back_loses_nothing() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut set = policies(20, 4);
        let mut kernel = NetlinkKernel::open().unwrap();
        let wanted = compile(&set, DEFAULT_CELL_LIMIT).ruleset;
        install(&mut kernel, &wanted);
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
        set.policies.pop_first();
        let wanted = compile(&set, DEFAULT_CELL_LIMIT).ruleset;
        go_on(&mut kernel, &wanted);
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
    })
    .unwrap();
}

/// Policies with blocks of their own, IPv4 and IPv6, TCP and UDP.
pub(crate) fn policies(count: u32, peers: u32) -> PolicySet {
    let mut set = PolicySet::default();
    set.firewall.inside = Inside {
        interfaces: ["vrf104009".parse().unwrap()].into(),
        basis: InsideBasis::Explicit,
        ..set.firewall.inside
    };
    for number in 0..count {
        let block = |peer: u32| {
            let index = number * peers + peer;
            let v4 = std::net::Ipv4Addr::from(0x1400_0000 + index * 256);
            let v6 = std::net::Ipv6Addr::from((0x2001_0db8_u128 << 96) + (u128::from(index) << 64));
            let net = if peer % 4 == 3 { format!("{v6}/64") } else { format!("{v4}/24") };
            Block { index: peer as usize, net: net.parse().unwrap(), except: Vec::new() }
        };
        let port = |index, protocol, first: u16| PortRange { index, protocol, first, last: first + 9 };
        let rule = Rule {
            index: 0,
            peers: Peers::Blocks((0..peers).map(block).collect()),
            ports: Ports::Ranges(vec![port(0, Protocol::Tcp, 8000), port(1, Protocol::Udp, 53)]),
        };
        let policy = Policy { ingress: Vec::new(), egress: vec![rule] };
        set.policies.insert(format!("policy-{number:05}"), policy);
    }
    set
}

#[test]
fn creating_what_is_there_already_is_refused_or_rules_would_join_chains_of_unknown_content() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let wanted = sample();
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &wanted);
        for op in [
            Op::CreateTable,
            Op::CreateChain("empty".to_owned(), wanted.chains["empty"].clone()),
            Op::CreateSet("inside".to_owned(), wanted.sets["inside"].clone()),
            Op::CreateCounter("drop_total".to_owned(), Count::default()),
        ] {
            let error = kernel.commit(&Plan { ops: vec![op] }, &wanted).unwrap_err().to_string();
            assert!(error.contains("File exists"), "{error}");
        }
    })
    .unwrap();
}
