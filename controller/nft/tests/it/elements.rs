//! Elements that user space puts into sets outside of plans.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fw_nft::{ElementChange, Error, Features, Kernel, NetlinkKernel, Table, TimedElement, recognise};
use fw_ruleset::Ruleset;
use fw_ruleset::ir::{
    ChainKind, Family, Field, HookPoint, Key, Selector, SetKind, Side, Statement, Value, Verdict,
};
use fw_testkit::{Netns, nft};

use crate::apply::{go_on, install, observed};
use crate::sample::{address, base, chain, exact, policy_chain, port, rule, sample, set, v4};

const HOUR: u64 = 3_600_000;

/// Takes features away.
type Older = fn(&mut Features);

/// What replaces features of newer kernels on older ones: all as here, before 6.12, before 6.3.
const KERNELS: [(&str, Older); 3] = [
    ("this kernel", |_| {}),
    ("6.11", |features| features.expiration_update = false),
    ("6.1", |features| {
        features.expiration_update = false;
        features.destroy = false;
    }),
];

pub(crate) fn put(set: &str, key: Key, mark: Option<u32>, expires_in_ms: Option<u64>) -> ElementChange {
    ElementChange::Put(set.to_owned(), TimedElement { key, mark, expires_in_ms })
}

pub(crate) fn remove(set: &str, key: Key) -> ElementChange {
    ElementChange::Remove(set.to_owned(), key)
}

fn ip(last: u32) -> Key {
    exact(&[Value::Ipv4((0x0a00_0000 + last).into())])
}

fn udp() -> Key {
    exact(&[Value::Protocol(17)])
}

fn cell(class: u32, protocol: u8, first: u16, last: u16) -> Key {
    let corner = |port| vec![Value::Mark(class), Value::Protocol(protocol), Value::Port(port)];
    Key::Box(corner(first), corner(last))
}

/// Keys and marks.
fn marks(kernel: &mut NetlinkKernel, set: &str) -> Vec<(Key, Option<u32>)> {
    kernel.timed_elements(set).unwrap().into_iter().map(|element| (element.key, element.mark)).collect()
}

/// A kernel with the sample in force, once for each kind of kernel.
fn on_every_kernel(test: impl Fn(&str, &Netns, &mut NetlinkKernel) + Sync) {
    for (name, older) in KERNELS {
        let ns = Netns::new("fwnft").unwrap();
        ns.run(|| {
            let mut kernel = NetlinkKernel::open_as(older).unwrap();
            install(&mut kernel, &sample());
            test(name, &ns, &mut kernel);
        })
        .unwrap();
    }
}

/// Lists a set all the time while `work` runs, and gives every listing to `check`; gives their number.
fn watch(ns: &Netns, set: &str, check: impl Fn(Vec<TimedElement>) + Sync, work: impl FnOnce()) -> usize {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let lister = scope.spawn(|| {
            ns.run(|| {
                let mut reader = NetlinkKernel::open().unwrap();
                let mut listings = 0;
                while !done.load(Ordering::SeqCst) {
                    check(reader.timed_elements(set).unwrap());
                    listings += 1;
                }
                listings
            })
            .unwrap()
        });
        work();
        done.store(true, Ordering::SeqCst);
        lister.join().unwrap()
    })
}

#[test]
fn a_renewed_element_is_there_at_every_moment() {
    on_every_kernel(|name, ns, kernel| {
        // As the controller does, but renewed sooner: on a busy machine a thread may wait long for its turn.
        let renew = [put("dns_armed", udp(), None, Some(2000))];
        kernel.update_elements(&renew).unwrap();
        let there = |list: Vec<TimedElement>| {
            assert!(list.iter().any(|element| element.key == udp()), "{name}: not there: {list:?}");
        };
        let listings = watch(ns, "dns_armed", there, || {
            let end = Instant::now() + Duration::from_secs(4);
            while Instant::now() < end {
                std::thread::sleep(Duration::from_millis(25));
                kernel.update_elements(&renew).unwrap();
                let listing = ns.output("nft", &["list", "set", "inet", "firewall", "dns_armed"]).unwrap();
                assert!(listing.contains("udp timeout 2s expires"), "{name}: {listing}");
            }
        });
        println!("{name}: listed {listings} times");
        assert!(listings > 100, "{name}: only {listings} listings prove little");
    });
}

#[test]
fn an_element_that_is_not_renewed_goes_by_itself() {
    on_every_kernel(|name, _, kernel| {
        kernel
            .update_elements(&[
                put("dns_armed", udp(), None, Some(150)),
                put("fqdn4-0", ip(1), Some(5), Some(HOUR)),
            ])
            .unwrap();
        let left = kernel.timed_elements("fqdn4-0").unwrap()[0].expires_in_ms.unwrap();
        assert!((HOUR - 60_000..=HOUR).contains(&left), "{name}: {left}");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !kernel.timed_elements("dns_armed").unwrap().is_empty() {
            assert!(Instant::now() < deadline, "{name}: still there");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(marks(kernel, "fqdn4-0"), [(ip(1), Some(5))]);
        // What expired can come again, also before the kernel has swept it up.
        kernel.update_elements(&[put("dns_armed", udp(), None, Some(HOUR))]).unwrap();
        assert_eq!(marks(kernel, "dns_armed"), [(udp(), None)]);
    });
}

#[test]
fn a_mark_changes_at_one_moment() {
    on_every_kernel(|name, ns, kernel| {
        kernel.update_elements(&[put("fqdn4-0", ip(1), Some(1), Some(HOUR))]).unwrap();
        let one = |list: Vec<TimedElement>| {
            let good = matches!(list.as_slice(), [one] if one.mark == Some(1) || one.mark == Some(2));
            assert!(good, "{name}: {list:?}");
        };
        let listings = watch(ns, "fqdn4-0", one, || {
            let end = Instant::now() + Duration::from_secs(2);
            let mut mark = 1;
            while Instant::now() < end {
                mark = 3 - mark;
                // A listing needs a moment without commits.
                std::thread::sleep(Duration::from_micros(300));
                kernel.update_elements(&[put("fqdn4-0", ip(1), Some(mark), Some(HOUR))]).unwrap();
            }
        });
        println!("{name}: listed {listings} times");
        assert!(listings > 20, "{name}: only {listings} listings prove little");
    });
}

#[test]
fn whatever_is_there_is_replaced_and_what_is_not_there_is_no_error() {
    on_every_kernel(|name, _, kernel| {
        let mut after = |changes: &[ElementChange]| {
            kernel.update_elements(changes).unwrap();
            let list = kernel.timed_elements("fqdn4-0").unwrap();
            list.into_iter()
                .map(|e| (e.key, e.mark.unwrap(), e.expires_in_ms.map(|left| (left - 1) / 600_000)))
                .collect::<Vec<_>>()
        };
        let set = "fqdn4-0";
        // Whole times of 10 min: of one hour and of three, less what has passed.
        let short = Some(5);
        let long = Some(17);
        assert_eq!(after(&[remove(set, ip(1))]), [], "{name}");
        assert_eq!(after(&[put(set, ip(1), Some(1), None)]), [(ip(1), 1, None)], "{name}");
        assert_eq!(after(&[put(set, ip(1), Some(1), Some(HOUR))]), [(ip(1), 1, short)], "{name}");
        assert_eq!(after(&[put(set, ip(1), Some(1), Some(3 * HOUR))]), [(ip(1), 1, long)], "{name}");
        assert_eq!(after(&[put(set, ip(1), Some(1), Some(HOUR))]), [(ip(1), 1, short)], "{name}");
        assert_eq!(after(&[put(set, ip(1), Some(2), Some(3 * HOUR))]), [(ip(1), 2, long)], "{name}");
        assert_eq!(after(&[put(set, ip(1), Some(2), None)]), [(ip(1), 2, None)], "{name}");
        let both = [put(set, ip(1), Some(3), Some(HOUR)), put(set, ip(1), Some(4), Some(3 * HOUR))];
        assert_eq!(after(&both), [(ip(1), 4, long)], "{name}");
        let back = [remove(set, ip(1)), put(set, ip(1), Some(9), None), remove(set, ip(2))];
        assert_eq!(after(&back), [(ip(1), 9, None)], "{name}");
        assert_eq!(after(&[put(set, ip(1), Some(9), Some(0))]), [], "{name}: no time left is no element");
        assert_eq!(after(&[]), []);
    });
}

#[test]
fn a_full_set_is_told_apart_and_nothing_of_the_update_is_applied() {
    on_every_kernel(|name, _, kernel| {
        let key = |port| exact(&[v4("192.0.2.1"), Value::Port(port)]);
        let add = |port| put("learned_pairs", key(port), None, Some(HOUR));
        kernel.update_elements(&[add(1), add(2), add(3)]).unwrap();
        let error = kernel.update_elements(&[add(4), add(5)]).unwrap_err();
        assert!(matches!(&error, Error::Full { set } if set == "learned_pairs"), "{name}: {error}");
        let keys = |kernel: &mut NetlinkKernel| -> Vec<Key> {
            kernel.timed_elements("learned_pairs").unwrap().into_iter().map(|e| e.key).collect()
        };
        assert_eq!(keys(kernel), [key(1), key(2), key(3)], "{name}");
        kernel.update_elements(&[add(4)]).unwrap();
        // In a full set all can be renewed and any be exchanged.
        kernel.update_elements(&[add(1), add(2), add(3), add(4)]).unwrap();
        kernel.update_elements(&[remove("learned_pairs", key(2)), add(5)]).unwrap();
        assert_eq!(keys(kernel), [key(1), key(3), key(4), key(5)], "{name}");
    });
}

#[test]
fn without_the_set_or_the_table_an_update_is_stale_and_without_the_ownership_it_is_taken() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        for (name, older) in KERNELS {
            let mut kernel = NetlinkKernel::open_as(older).unwrap();
            let stale = |kernel: &mut NetlinkKernel, set: &str| {
                let changes = [put(set, ip(1), Some(1), Some(HOUR)), remove(set, ip(1))];
                for change in changes {
                    let error = kernel.update_elements(&[change]).unwrap_err();
                    assert!(matches!(error, Error::Stale), "{name}: {error}");
                }
                assert!(matches!(kernel.timed_elements(set), Err(Error::Stale)), "{name}");
            };
            stale(&mut kernel, "fqdn4-0");
            install(&mut kernel, &sample());
            stale(&mut kernel, "fqdn4-9");
            assert!(matches!(kernel.timed_elements("fqdn"), Err(Error::Stale)), "not one of user space");
            let mut other = NetlinkKernel::open_as(older).unwrap();
            let error = other.update_elements(&[put("fqdn4-0", ip(1), Some(1), None)]).unwrap_err();
            assert!(matches!(error, Error::Taken { port } if port == kernel.port()), "{name}: {error}");
            kernel.delete_table().unwrap();
        }
    })
    .unwrap();
}

#[test]
fn a_key_or_mark_that_does_not_fit_is_refused_by_name() {
    on_every_kernel(|name, _, kernel| {
        let wrong = [
            put("fqdn4-0", exact(&[Value::Port(1)]), Some(1), Some(HOUR)),
            put("fqdn4-0", ip(1), None, Some(HOUR)),
            put("dns_armed", udp(), Some(1), Some(HOUR)),
            put("fqdn_cells", cell(1, 6, 80, 90), Some(1), Some(HOUR)),
        ];
        for change in wrong {
            let good = put("fqdn4-0", ip(2), Some(1), Some(HOUR));
            let error = kernel.update_elements(&[good, change.clone()]).unwrap_err();
            let Error::Refused(refusal) = &error else { panic!("{name}: {change:?}: {error}") };
            assert_eq!(refusal.op, 1, "{name}: {error}");
            assert!(error.to_string().contains("element"), "{name}: {error}");
        }
        let backwards = put("fqdn_cells", cell(1, 6, 90, 80), Some(1), None);
        assert!(matches!(kernel.update_elements(&[backwards]), Err(Error::Lower { .. })));
        assert_eq!(marks(kernel, "fqdn4-0"), [], "{name}");
        kernel.update_elements(&[put("fqdn_cells", cell(1, 6, 80, 90), Some(1), None)]).unwrap();
        let error = kernel
            .update_elements(&[put("fqdn_cells", cell(1, 6, 85, 99), Some(2), None)])
            .unwrap_err()
            .to_string();
        assert!(error.contains("0x00000001 . tcp . 85-99") && error.contains("File exists"), "{error}");
    });
}

#[test]
fn boxes_come_back_as_they_were_put_and_can_change_their_mark() {
    on_every_kernel(|name, ns, kernel| {
        let set = "fqdn_cells";
        let mut wanted = vec![
            (cell(1, 6, 0, 65535), Some(7)),
            (cell(1, 17, 53, 53), Some(8)),
            (cell(0x0102_0304, 6, 80, 90), Some(9)),
            (cell(0x0403_0201, 6, 80, 90), Some(10)),
            (cell(u32::MAX, 255, 1, 2), Some(u32::MAX)),
        ];
        let changes: Vec<_> = wanted.iter().map(|(key, mark)| put(set, key.clone(), *mark, None)).collect();
        kernel.update_elements(&changes).unwrap();
        kernel.update_elements(&changes).unwrap();
        wanted.sort();
        assert_eq!(marks(kernel, set), wanted, "{name}");
        let listing = nft::list_ruleset(ns).unwrap();
        assert!(listing.contains("0x01020304 . tcp . 80-90 : 0x00000009"), "{listing}");
        kernel
            .update_elements(&[
                put(set, cell(1, 17, 53, 53), Some(11), None),
                remove(set, cell(1, 6, 0, 65535)),
            ])
            .unwrap();
        wanted.retain(|(key, _)| *key != cell(1, 6, 0, 65535));
        wanted.iter_mut().find(|(key, _)| *key == cell(1, 17, 53, 53)).unwrap().1 = Some(11);
        assert_eq!(marks(kernel, set), wanted, "{name}");
    });
}

#[test]
fn plans_neither_see_nor_touch_elements_of_user_space() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut wanted = sample();
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &wanted);
        let elements = [
            put("fqdn4-0", ip(1), Some(5), Some(HOUR)),
            put("fqdn_cells", cell(5, 6, 80, 90), Some(7), None),
        ];
        kernel.update_elements(&elements).unwrap();
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
        wanted.chains.insert("egress-new-tcp".to_owned(), policy_chain("new"));
        assert_eq!(go_on(&mut kernel, &wanted).messages, 2);
        assert_eq!(marks(&mut kernel, "fqdn4-0"), [(ip(1), Some(5))]);
        assert_eq!(marks(&mut kernel, "fqdn_cells"), [(cell(5, 6, 80, 90), Some(7))]);
        // Elements outlive this process, as the table does.
        drop(kernel);
        let mut kernel = NetlinkKernel::open().unwrap();
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
        assert_eq!(marks(&mut kernel, "fqdn4-0"), [(ip(1), Some(5))]);
        // A set that is no longer wanted goes with its elements.
        wanted.chains.get_mut("fqdn").unwrap().rules.remove(0);
        wanted.sets.remove("fqdn4-0");
        go_on(&mut kernel, &wanted);
        assert!(matches!(kernel.timed_elements("fqdn4-0"), Err(Error::Stale)));
        assert_eq!(recognise(&observed(&mut kernel), &wanted), wanted);
    })
    .unwrap();
}

#[test]
fn where_others_can_write_too_their_commits_neither_fail_an_update_nor_are_overlooked_because_of_it() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let wanted = sample();
        let mut kernel = NetlinkKernel::open_without_owner().unwrap();
        install(&mut kernel, &wanted);
        let nothing = fw_ruleset::Plan::default();
        let renew = [put("fqdn4-0", ip(1), Some(5), Some(HOUR))];
        ns.output("nft", &["add table ip theirs"]).unwrap();
        kernel.update_elements(&renew).unwrap();
        ns.output("nft", &["add chain ip theirs theirs"]).unwrap();
        kernel.update_elements(&renew).unwrap();
        kernel.commit(&nothing, &wanted).unwrap();
        ns.output("nft", &["flush chain inet firewall forward"]).unwrap();
        kernel.update_elements(&renew).unwrap();
        kernel.update_elements(&renew).unwrap();
        assert!(matches!(kernel.commit(&nothing, &wanted), Err(Error::Stale)));
        assert_ne!(recognise(&observed(&mut kernel), &wanted), wanted);
        kernel.commit(&nothing, &wanted).unwrap();
    })
    .unwrap();
}

#[test]
fn updates_succeed_while_others_commit_all_the_time() {
    for unowned in [false, true] {
        let ns = Netns::new("fwnft").unwrap();
        ns.run(|| {
            let mut kernel = NetlinkKernel::open_as(|features| features.owner_persist &= !unowned).unwrap();
            install(&mut kernel, &sample());
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        ns.output("nft", &["add table ip theirs; delete table ip theirs"]).unwrap();
                    }
                });
                for round in 0..500 {
                    kernel.update_elements(&[put("fqdn4-0", ip(round), Some(5), Some(HOUR))]).unwrap();
                }
                done.store(true, Ordering::SeqCst);
            });
            assert_eq!(kernel.timed_elements("fqdn4-0").unwrap().len(), 500);
        })
        .unwrap();
    }
}

#[test]
fn ten_thousand_elements_come_are_renewed_and_go() {
    on_every_kernel(|name, _, kernel| {
        let all = |mark| (0..10_000).map(move |n| put("fqdn4-0", ip(n), Some(mark), Some(HOUR)));
        let mut timed = |what: &str, changes: Vec<ElementChange>| {
            let started = Instant::now();
            kernel.update_elements(&changes).unwrap();
            println!("{name}: {what}: {:?}", started.elapsed());
            let started = Instant::now();
            let list = kernel.timed_elements("fqdn4-0").unwrap();
            println!("{name}: listed {} in {:?}", list.len(), started.elapsed());
            list
        };
        let list = timed("put", all(1).collect());
        assert!(list.len() == 10_000 && list.iter().all(|element| element.mark == Some(1)));
        assert_eq!(timed("renewed", all(1).collect()).len(), 10_000);
        let list = timed("other marks", all(2).collect());
        assert!(list.len() == 10_000 && list.iter().all(|element| element.mark == Some(2)));
        assert_eq!(timed("removed", (0..10_000).map(|n| remove("fqdn4-0", ip(n))).collect()), []);
        assert_eq!(timed("removed again", (0..10_000).map(|n| remove("fqdn4-0", ip(n))).collect()), []);
        let mut times = Vec::new();
        for n in 0..1000 {
            let started = Instant::now();
            kernel.update_elements(&[put("fqdn4-0", ip(n), Some(1), Some(HOUR))]).unwrap();
            times.push(started.elapsed());
        }
        times.sort();
        println!("{name}: one address: median {:?}, 99 % {:?}", times[500], times[990]);
    });
}

/// Chains as the compiler makes them where nftables itself stamps, hung into the input hook.
fn stamping() -> Ruleset {
    let mut wanted = Ruleset::default();
    let accept = |name: &str| vec![rule(vec![Statement::Counter, Statement::Verdict(Verdict::Accept)], name)];
    let level = |family: Family, map: &str| {
        let key = vec![address(Side::Destination, family, family.bits())];
        let by_address = Statement::SetMarkByMap { key, map: map.to_owned() };
        rule(vec![by_address, Statement::Verdict(Verdict::Goto("fqdn_ports".to_owned()))], "")
    };
    let key = vec![Selector::Mark(u32::MAX), Selector::L4Protocol, port(Side::Destination, None)];
    let stamp = Statement::SetMarkByMap { key, map: "fqdn_cells".to_owned() };
    let by_index = Statement::VerdictMap { key: vec![Selector::Mark(0x000f_ffff)], map: "fqdn".to_owned() };
    let levels = vec![level(Family::V4, "fqdn4-0"), level(Family::V6, "fqdn6-0")];
    wanted.chains = [
        ("input", base(ChainKind::Filter, HookPoint::Input, 0, false, levels)),
        ("fqdn_ports", chain(vec![rule(vec![stamp, by_index], "")])),
        ("seven", chain(accept("seven"))),
        ("eight", chain(accept("eight"))),
    ]
    .map(|(name, chain)| (name.to_owned(), chain))
    .into();
    let goto = |index, chain: &str| (exact(&[Value::Mark(index)]), Some(Verdict::Goto(chain.to_owned())));
    let timed = SetKind::Learned { size: 100 };
    let boxes = SetKind::LearnedBoxes { size: 100 };
    wanted.sets = [
        ("fqdn4-0", set(&[Field::Ipv4], timed, true, vec![])),
        ("fqdn6-0", set(&[Field::Ipv6], timed, true, vec![])),
        ("fqdn_cells", set(&[Field::Mark, Field::Protocol, Field::Port], boxes, true, vec![])),
        ("fqdn", set(&[Field::Mark], SetKind::Exact, true, vec![goto(7, "seven"), goto(8, "eight")])),
    ]
    .map(|(name, set)| (name.to_owned(), set))
    .into();
    wanted
}

#[test]
fn addresses_and_boxes_decide_what_becomes_of_real_packets() {
    let ns = Netns::new("fwnft").unwrap();
    ns.ip("link set lo up").unwrap();
    ns.run(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &stamping());
        let v6 = exact(&[Value::Ipv6(Ipv6Addr::LOCALHOST)]);
        let class = 0x0001_0203;
        kernel
            .update_elements(&[
                put("fqdn_cells", cell(class, 17, 1000, 1999), Some(7), None),
                put("fqdn_cells", cell(class, 17, 2000, 2000), Some(0x8000_0008), None),
                put("fqdn_cells", cell(class, 6, 3000, 3999), Some(7), None),
                put("fqdn4-0", exact(&[v4("127.0.0.1")]), Some(class), Some(HOUR)),
                put("fqdn6-0", v6, Some(class), Some(HOUR)),
            ])
            .unwrap();
        let mut expected = [0_u64; 2];
        let probes = [
            (999, None),
            (1000, Some(0)),
            (1500, Some(0)),
            (1999, Some(0)),
            (2000, Some(1)),
            (2001, None),
            (3500, None),
        ];
        let targets: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for target in targets {
            let socket = UdpSocket::bind((target, 0)).unwrap();
            for (port, hit) in probes {
                // Answers of closed ports show as errors of later sends.
                while socket.send_to(b"?", (target, port)).is_err() {}
                if let Some(hit) = hit {
                    expected[hit] += 1;
                }
            }
        }
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"?", "127.0.0.2:1000").unwrap();
        let counts = kernel.counts().unwrap();
        let count = |chain: &str| counts.rules[&(chain.to_owned(), 0)].packets;
        assert_eq!([count("seven"), count("eight")], expected);
        kernel.update_elements(&[remove("fqdn4-0", exact(&[v4("127.0.0.1")]))]).unwrap();
        socket.send_to(b"?", "127.0.0.1:1000").unwrap();
        let counts = kernel.counts().unwrap();
        assert_eq!(counts.rules[&("seven".to_owned(), 0)].packets, expected[0]);
        assert!(matches!(kernel.read().unwrap(), Table::Ours(_)));
    })
    .unwrap();
}
