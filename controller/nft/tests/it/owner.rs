//! Whose the table is, and what others can do to it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fw_nft::{Drift, Error, Kernel, Monitor, NetlinkKernel, Step, Table, recognise};
use fw_ruleset::{Counts, Op, Plan, plan};
use fw_testkit::{Netns, nft};

use crate::apply::{go_on, install, observed};
use crate::sample::{policy_chain, sample};

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a notification that is already queued.
const QUIET: Duration = Duration::from_millis(100);

#[test]
fn others_can_neither_edit_nor_flush_a_table_with_an_owner() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let wanted = sample();
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &wanted);
        assert!(kernel.owned());
        for edit in [
            "add rule inet firewall forward accept",
            "flush chain inet firewall forward",
            "delete table inet firewall",
            "add element inet firewall inside { \"eth9\" }",
        ] {
            let error = format!("{:#}", ns.output("nft", &[edit]).unwrap_err());
            assert!(error.contains("Operation not permitted"), "{edit}: {error}");
        }
        ns.output("nft", &["flush ruleset"]).unwrap();
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
    })
    .unwrap();
}

#[test]
fn a_second_controller_is_told_that_the_table_is_taken() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let wanted = sample();
        let mut first = NetlinkKernel::open().unwrap();
        install(&mut first, &wanted);
        let mut second = NetlinkKernel::open().unwrap();
        assert_eq!(second.read().unwrap(), Table::Taken { port: first.port() });
        let error = second.commit(&Plan { ops: vec![Op::DeleteTable] }, &wanted).unwrap_err();
        assert!(matches!(error, Error::Taken { port } if port == first.port()), "{error}");
    })
    .unwrap();
}

#[test]
fn an_orphan_is_adopted_with_its_counters_and_is_protected_again() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut wanted = sample();
        let mut first = NetlinkKernel::open().unwrap();
        install(&mut first, &wanted);
        drop(first);
        let listing = nft::list_ruleset(&ns).unwrap();
        assert!(
            listing.contains("managed by firewall-controller") && !listing.contains("flags owner"),
            "{listing}"
        );
        let mut second = NetlinkKernel::open().unwrap();
        assert_eq!(recognise(&observed(&mut second), &wanted), wanted);
        assert!(second.owned());
        assert!(ns.output("nft", &["delete table inet firewall"]).is_err());
        wanted.chains.insert("egress-more-tcp".to_owned(), policy_chain("more"));
        assert_eq!(go_on(&mut second, &wanted).messages, 2);
    })
    .unwrap();
}

#[test]
fn while_orphaned_the_table_can_be_flushed_and_is_then_absent() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        install(&mut NetlinkKernel::open().unwrap(), &sample());
        ns.output("nft", &["flush ruleset"]).unwrap();
        assert_eq!(NetlinkKernel::open().unwrap().read().unwrap(), Table::Absent);
    })
    .unwrap();
}

#[test]
fn deleting_the_table_works_with_and_without_an_owner() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        assert!(!kernel.delete_table().unwrap());
        install(&mut kernel, &sample());
        assert!(kernel.delete_table().unwrap());
        install(&mut kernel, &sample());
        drop(kernel);
        assert!(NetlinkKernel::open().unwrap().delete_table().unwrap());
        assert_eq!(nft::list_ruleset(&ns).unwrap(), "");
    })
    .unwrap();
}

/// Commits something of others between the moment our transaction is written and the moment it is sent.
fn intrude(ns: &Netns, kernel: &mut NetlinkKernel, times: u32, command: &'static str) {
    let name = ns.name().to_owned();
    let mut left = times;
    kernel.set_hook(move |step| {
        if step == Step::Send && left > 0 {
            left -= 1;
            let output =
                std::process::Command::new("ip").args(["netns", "exec", &name, "nft", command]).output();
            assert!(output.unwrap().status.success(), "{command}");
        }
    });
}

#[test]
fn a_stale_generation_is_retried_while_only_others_tables_change() {
    let ns = Netns::new("fwnft").unwrap();
    for owned in [true, false] {
        ns.run(|| {
            let mut wanted = sample();
            let mut kernel =
                if owned { NetlinkKernel::open() } else { NetlinkKernel::open_without_owner() }.unwrap();
            install(&mut kernel, &wanted);
            intrude(&ns, &mut kernel, 3, "add table ip elsewhere; add chain ip elsewhere c");
            wanted.chains.insert("egress-more-tcp".to_owned(), policy_chain("more"));
            assert_eq!(go_on(&mut kernel, &wanted).retries, 3, "owned: {owned}");
            assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
            intrude(&ns, &mut kernel, 1000, "add table ip elsewhere; add chain ip elsewhere c");
            wanted.chains.remove("egress-more-tcp");
            let current = recognise(&observed(&mut kernel), &wanted);
            let plan = plan(Some(&current), &wanted, &Counts::default());
            let error = kernel.commit(&plan, &wanted).unwrap_err();
            assert!(matches!(error, Error::Busy(16)), "{error}");
            kernel.set_hook(|_| {});
            kernel.delete_table().unwrap();
        })
        .unwrap();
    }
}

#[test]
fn without_an_owner_a_change_of_our_table_before_or_during_a_commit_is_stale() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut wanted = sample();
        let mut kernel = NetlinkKernel::open_without_owner().unwrap();
        install(&mut kernel, &wanted);
        wanted.chains.insert("egress-more-tcp".to_owned(), policy_chain("more"));
        for during in [true, false] {
            let current = recognise(&observed(&mut kernel), &wanted);
            if during {
                intrude(&ns, &mut kernel, 1, "flush chain inet firewall forward");
            } else {
                ns.output("nft", &["flush chain inet firewall forward"]).unwrap();
            }
            let change = plan(Some(&current), &wanted, &Counts::default());
            let error = kernel.commit(&change, &wanted).unwrap_err();
            assert!(matches!(error, Error::Stale), "{error}");
            go_on(&mut kernel, &wanted);
            assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
            wanted.chains.insert(format!("egress-{during}-tcp"), policy_chain("more"));
        }
    })
    .unwrap();
}

#[test]
fn tampering_without_an_owner_is_noticed_with_its_author_and_repaired_exactly() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let wanted = sample();
        let mut kernel = NetlinkKernel::open_without_owner().unwrap();
        let mut monitor = Monitor::open(kernel.port()).unwrap();
        install(&mut kernel, &wanted);
        assert_eq!(monitor.next(QUIET).unwrap(), None, "our own commits are no drift");
        ns.output("nft", &["add table ip elsewhere"]).unwrap();
        assert_eq!(monitor.next(QUIET).unwrap(), None, "others' tables are no drift");
        for edit in [
            "insert rule inet firewall forward accept",
            "add rule inet firewall egress-web-tcp drop",
            "flush chain inet firewall forward",
            "flush chain inet firewall egress-web-tcp; \
             add rule inet firewall egress-web-tcp counter accept comment \"another\"",
            "flush chain inet firewall egress-web-tcp; \
             add rule inet firewall egress-web-tcp counter drop comment \"accept traffic for np web tcp\"",
            "add chain inet firewall more; add rule inet firewall more accept",
            "add chain inet firewall hooked { type route hook output priority 0; }; add rule inet firewall hooked accept",
            "add element inet firewall egress4-24 { 8.8.8.0 : accept }",
            "delete element inet firewall ports { 80-90 }",
            "add element inet firewall cluster_prefixes { 12.0.0.0/8 }",
            "add set inet firewall theirs { type ether_addr; elements = { 00:11:22:33:44:55 }; }",
            "add counter inet firewall theirs",
            "flush set inet firewall inside",
            "chain inet firewall forward { policy accept; }",
        ] {
            ns.output("nft", &[edit]).unwrap();
            let drift = monitor.next(SOON).unwrap().unwrap_or_else(|| panic!("not noticed: {edit}"));
            let process = drift.process.as_deref().unwrap();
            assert!(process.starts_with("nft ("), "{edit}: {drift:?}");
            assert_eq!(drift, Drift { generation: drift.generation, process: drift.process.clone(), ..Drift::default() });
            assert_ne!(recognise(&observed(&mut kernel), &wanted), wanted, "{edit}");
            go_on(&mut kernel, &wanted);
            assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted, "{edit}");
        }
        ns.output("nft", &["delete table inet firewall"]).unwrap();
        assert!(monitor.next(SOON).unwrap().is_some_and(|drift| drift.deleted));
        install(&mut kernel, &wanted);
        assert_eq!(monitor.next(QUIET).unwrap(), None);
    })
    .unwrap();
}

#[test]
fn lost_notifications_are_a_drift_of_their_own() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut wanted = sample();
        let mut kernel = NetlinkKernel::open_without_owner().unwrap();
        install(&mut kernel, &wanted);
        let mut monitor = Monitor::with_buffer(kernel.port(), 4096).unwrap();
        let before = recognise(&observed(&mut kernel), &wanted);
        let list: String = (0..5000).map(|n| format!("10.1.{}.{}, ", n / 256, n % 256)).collect();
        let text = format!(
            "add set inet firewall big {{ type ipv4_addr; }}; add element inet firewall big {{ {list} }}"
        );
        ns.output_with_input("nft", &["-f", "-"], &text).unwrap();
        let drift = monitor.next(SOON).unwrap();
        assert_eq!(drift, Some(Drift { lost: true, ..Drift::default() }));
        wanted.chains.insert("egress-more-tcp".to_owned(), policy_chain("more"));
        let stale = kernel.commit(&plan(Some(&before), &wanted, &Counts::default()), &wanted);
        assert!(matches!(stale, Err(Error::Stale)), "{stale:?}");
        go_on(&mut kernel, &wanted);
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
    })
    .unwrap();
}

#[test]
fn tables_and_counters_are_read_while_others_commit_all_the_time() {
    let ns = Netns::new("fwnft").unwrap();
    let set = crate::apply::policies(500, 4);
    let wanted = fw_ruleset::compile(&set, fw_ruleset::DEFAULT_CELL_LIMIT).ruleset;
    let (stop, commits) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut reads = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                ns.output("nft", &["add table ip busy; delete table ip busy"]).unwrap();
                commits.fetch_add(1, Ordering::Relaxed);
            }
        });
        ns.run(|| {
            let mut kernel = NetlinkKernel::open().unwrap();
            install(&mut kernel, &wanted);
            let deadline = Instant::now() + Duration::from_secs(120);
            while reads < 5 || commits.load(Ordering::Relaxed) < 20 {
                assert!(Instant::now() < deadline, "{reads} reads beside {commits:?} commits of others");
                assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
                assert!(kernel.counts().unwrap().rules.len() >= 1000);
                reads += 1;
            }
        })
        .unwrap();
        stop.store(true, Ordering::Relaxed);
    });
    println!("{reads} reads beside {commits:?} commits of others");
}
