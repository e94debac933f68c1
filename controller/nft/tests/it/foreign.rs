//! A table of our name that is not ours.

use fw_nft::{Foreign, Kernel, NetlinkKernel, Table, recognise};
use fw_ruleset::{Count, Counts, Op, plan};
use fw_testkit::{Netns, nft};

use crate::apply::{install, observed};
use crate::sample::sample;

const GO_SHAPED: &str = r#"
table inet firewall {
    set internal_prefixes { type ipv4_addr; flags interval; auto-merge; elements = { 10.0.0.0/8 }; }
    counter drop_total { packets 5000000000 bytes 6000000000000; }
    counter internal_in { packets 1 bytes 2; }
    quota theirs { over 10 mbytes; }
    chain forward {
        type filter hook forward priority 1; policy drop;
        ct state established,related counter packets 10 bytes 20 accept comment "accept established connections"
        ip saddr { 10.0.0.0/8 } ip daddr != @internal_prefixes tcp dport { 443, 8443-8450 } counter packets 1 bytes 1 accept comment "accept traffic for np web tcp"
        ip6 daddr ::/0 tcp dport 1-65535 counter packets 2 bytes 3 accept comment "accept traffic for np web tcp"
        meta mark set 7 ct mark set meta mark counter name drop_total
        quota name theirs rt classid 7 reject with icmpx type admin-prohibited
        counter packets 9 bytes 9
    }
}
"#;

#[test]
fn a_go_shaped_table_gives_its_figures_and_is_replaced_in_one_transaction() {
    let ns = Netns::new("fwnft").unwrap();
    nft::load(&ns, GO_SHAPED).unwrap();
    ns.run(|| {
        let wanted = sample();
        let mut kernel = NetlinkKernel::open().unwrap();
        let Table::Foreign(foreign) = kernel.read().unwrap() else { panic!("taken for ours") };
        let count = |packets, bytes| Count { packets, bytes };
        let named = [("drop_total", count(5_000_000_000, 6_000_000_000_000)), ("internal_in", count(1, 2))];
        let comments = [
            ("accept established connections", count(10, 20)),
            ("accept traffic for np web tcp", count(3, 4)),
        ];
        let owned =
            |list: &[(&str, Count)]| list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        assert_eq!(foreign, Foreign { named: owned(&named), comments: owned(&comments) });

        let mut takeover = plan(None, &wanted, &Counts { named: foreign.named.clone(), ..Counts::default() });
        takeover.ops.insert(0, Op::DeleteTable);
        kernel.check(&takeover, &wanted).unwrap();
        kernel.commit(&takeover, &wanted).unwrap();
        assert!(kernel.owned());
        let observed = observed(&mut kernel);
        assert_eq!(recognise(&observed, &wanted), wanted);
        assert_eq!(observed.counters["drop_total"], named[0].1);
    })
    .unwrap();
}

#[test]
fn our_own_table_restored_from_text_is_not_taken_for_ours() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        install(&mut NetlinkKernel::open().unwrap(), &sample());
        let text = nft::list_ruleset(&ns).unwrap();
        ns.output("nft", &["flush ruleset"]).unwrap();
        // nft 1.0.6 prints a hash without the == that it wants to read, and flags it does not know as nothing.
        let readable = |line: &&str| !line.contains("jhash") && line.trim() != "flags";
        let text: String = text.lines().filter(readable).map(|line| format!("{line}\n")).collect();
        nft::load(&ns, &text).unwrap();
        let table = NetlinkKernel::open().unwrap().read().unwrap();
        assert!(matches!(table, Table::Foreign(_)), "{table:?}");
    })
    .unwrap();
}
