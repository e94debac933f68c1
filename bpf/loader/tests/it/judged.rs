//! The programs judge as the host does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fw_bpf::{Datapath, Options, Program};
use fw_bpf_common::{Allow, Config, Reason, Step, TCP, UDP, Verdict, flag, judge, parse};
use ipnet::IpNet;

use crate::model::{ACK, Model, Random, SYN, Spec, frame};
use crate::support::{Pins, SMALL, cell, forever, now_ns};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const SHOT: u32 = 2;
const NEXT: u32 = u32::MAX;
const FOREIGN: u32 = 0x5a00_0000;
const HERE: [u8; 4] = [10, 0, 0, 1];

/// Makes the maps hold what the model says.
fn fill(datapath: &mut Datapath, model: &Model) {
    let present: Vec<IpAddr> = datapath.allows().unwrap().into_keys().collect();
    datapath.remove_all(&present).unwrap();
    for id in datapath.classes().unwrap().into_keys() {
        datapath.drop_class(id).unwrap();
    }
    for (&id, cells) in &model.classes {
        datapath.put_class(id, cells).unwrap();
    }
    let allows: Vec<(IpAddr, Allow)> =
        model.allows.iter().map(|(&address, &allow)| (address, allow)).collect();
    datapath.put_all(&allows).unwrap();
    let prefixes: BTreeMap<IpNet, _> = model
        .prefixes
        .iter()
        .map(|(&(address, length), cells)| (IpNet::new(address, length).unwrap(), cells.clone()))
        .collect();
    datapath.set_prefixes(&prefixes).unwrap();
    datapath.set_config(model.config).unwrap();
    assert_eq!(datapath.classes().unwrap(), model.classes);
    assert_eq!(datapath.allows().unwrap(), model.allows);
}

/// What every program must do with a verdict.
fn check(datapath: &Datapath, frame: &[u8], verdict: Verdict, about: &str) {
    let (xdp, tcx, index) = match verdict {
        Verdict::Pass => (XDP_PASS, NEXT, 0),
        Verdict::Stamp(index) => (XDP_PASS, NEXT, index),
        Verdict::Bounce(_) => (XDP_DROP, SHOT, 0),
    };
    let run = |program| datapath.test_run(program, frame, FOREIGN | 0x1234, 1).unwrap();
    for program in [Program::Xdp, Program::XdpFrags] {
        assert_eq!(run(program).result, xdp, "{program:?}, {verdict:?}, {frame:02x?}, {about}");
    }
    // Of some runts, which lack the IP header that their type promises, the kernel makes no skb for a test.
    let header = match frame[12..14] {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => 1,
    };
    if frame.len() < 14 + header && datapath.test_run(Program::Tcx, frame, 0, 1).is_err() {
        return;
    }
    for (program, result) in [(Program::Tcx, tcx), (Program::Stamp, NEXT)] {
        let run = run(program);
        let expected = (result, FOREIGN | index);
        assert_eq!((run.result, run.mark), expected, "{program:?}, {verdict:?}, {frame:02x?}, {about}");
    }
}

#[test]
fn random_packets_are_judged_by_the_kernel_as_on_the_host() {
    judges_random_packets(true);
}

#[test]
fn random_packets_are_judged_as_on_the_host_where_conntrack_is_not_asked() {
    judges_random_packets(false);
}

fn judges_random_packets(asks: bool) {
    let pins = Pins::new();
    let mut datapath = Datapath::open(&Options { conntrack: asks, ..pins.options(SMALL) }).unwrap();
    assert_eq!(datapath.unasked().is_none(), asks, "{:?}", datapath.unasked());
    let first = now_ns();
    let (mut passed, mut stamped) = (0_u64, 0_u64);
    let mut bounced = [0_u64; 2];
    let before = datapath.drops().unwrap();
    for seed in first..first + 40 {
        let about = format!("seed {seed}");
        let mut random = Random(seed);
        // Conntrack of this namespace knows none of them.
        let model = Model { asks, connections: BTreeSet::new(), ..Model::random(&mut random, now_ns()) };
        fill(&mut datapath, &model);
        for _ in 0..150 {
            let frame = frame(&mut random);
            let verdict = judge(&frame[..], 2, &model, &model);
            check(&datapath, &frame, verdict, &about);
            if let Some(packet) = parse(&frame[..], 2) {
                assert_eq!(datapath.verdict(&packet, model.now).unwrap(), verdict, "{packet:?}, {about}");
            }
            passed += u64::from(verdict == Verdict::Pass);
            stamped += u64::from(matches!(verdict, Verdict::Stamp(_)));
            if let Verdict::Bounce(reason) = verdict {
                bounced[reason as usize] += 1;
            }
        }
    }
    assert!(passed > 0 && stamped > 0, "random packets reach every verdict: {passed}, {stamped}");
    assert!(bounced.iter().all(|&count| count > 0), "and every reason: {bounced:?}");
    let drops = datapath.drops().unwrap();
    assert_eq!(before.total(), 0);
    assert_eq!(drops.xdp, bounced.map(|count| count * 2), "two XDP programs saw each");
    assert_eq!(drops.tcx, bounced);
}

#[test]
fn a_corpus_of_awkward_packets_is_judged_as_on_the_host() {
    let pins = Pins::new();
    let mut datapath = pins.open();
    let six = "2001:db8::1".parse::<IpAddr>().unwrap();
    let mut model = Model {
        config: Config { flags: flag::BOUNCE, mark_mask: 0xffff, ..Config::default() },
        now: now_ns(),
        asks: true,
        ..Model::default()
    };
    model.classes.insert(2, vec![cell(TCP, 443, 443, 7), cell(UDP, 443, 443, 8)]);
    model.allows.extend([(HERE.into(), forever(2)), (six, forever(2))]);
    model.arrange();
    fill(&mut datapath, &model);
    let mut stamped = 0;
    let mut corpus = Vec::new();
    for destination in [HERE.into(), six, "10.0.0.2".parse().unwrap(), "2001:db8::2".parse().unwrap()] {
        for (protocol, flags) in [(TCP, SYN), (TCP, ACK), (UDP, 0), (1, 0)] {
            let plain = Spec::to(destination, protocol, 443, flags);
            corpus.push(plain.clone());
            corpus.push(Spec { port: 80, ..plain.clone() });
            corpus.extend([4, 20, 40].map(|options| Spec { options, tcp_options: options, ..plain.clone() }));
            let tags = [vec![0x8100], vec![0x88a8, 0x8100], vec![0x88a8, 0x8100, 0x8100], vec![0x9100]];
            corpus.extend(tags.map(|tags| Spec { tags, ..plain.clone() }));
            let fragments = [(0, true), (0, false), (1, true), (185, false)];
            corpus.extend(fragments.map(|part| Spec { fragment: Some(part), ..plain.clone() }));
            let extensions =
                [vec![(0, 0), (60, 3)], vec![(60, 0); 6], vec![(60, 0); 7], vec![(43, 2)], vec![(51, 1)]];
            corpus.extend(extensions.map(|extensions| Spec { extensions, ..plain.clone() }));
            corpus.push(Spec { extensions: vec![(43, 2)], segments_left: 1, ..plain.clone() });
            corpus.push(Spec { group: true, ..plain });
        }
    }
    for spec in &corpus {
        let frame = spec.encode();
        for length in [frame.len(), frame.len() - 1, 34, 14] {
            let frame = &frame[..length.min(frame.len())];
            let verdict = judge(frame, 2, &model, &model);
            stamped += u32::from(matches!(verdict, Verdict::Stamp(_)));
            check(&datapath, frame, verdict, &format!("{spec:?}"));
        }
    }
    assert!(stamped > 40, "{stamped} of the corpus reach the stamp");
}

#[test]
fn a_name_is_over_when_its_time_is() {
    let pins = Pins::new();
    let mut datapath = pins.open();
    datapath.set_config(Config { flags: flag::BOUNCE, mark_mask: 0xffff, ..Config::default() }).unwrap();
    datapath.put_class(2, &[cell(TCP, 80, 80, 5), cell(TCP, 443, 443, 6)]).unwrap();
    datapath.put_class(3, &[cell(TCP, 443, 443, 6)]).unwrap();
    let start = now_ns();
    let mut allow = Allow::default();
    allow.steps[0] = Step { until_ns: start + 300_000_000, class: 2, reserved: 0 };
    allow.steps[1] = Step { until_ns: start + 900_000_000, class: 3, reserved: 0 };
    datapath.put(HERE.into(), allow).unwrap();
    let mark = |port| {
        let run = datapath.test_run(Program::Tcx, &Spec::to(HERE, TCP, port, SYN).encode(), 0, 1).unwrap();
        (run.result, run.mark)
    };
    let (mut states, mut last) = (vec![], None);
    while now_ns() < start + 1_200_000_000 {
        let state = (mark(80), mark(443));
        if last != Some(state) {
            states.push(state);
            last = Some(state);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (open, shut) = ((NEXT, 6), (SHOT, 0));
    assert_eq!(states, [((NEXT, 5), open), (shut, open), (shut, shut)]);
    assert!(datapath.drops().unwrap().tcx[Reason::Expired as usize] > 0);
    assert_eq!(datapath.drops().unwrap().tcx[Reason::Policy as usize], 0);
}

/// The mark a connection to a port has after the stamp.
fn stamped(datapath: &Datapath, port: u16, before: u32) -> u32 {
    let frame = Spec::to(HERE, TCP, port, SYN).encode();
    datapath.test_run(Program::Stamp, &frame, before, 1).unwrap().mark
}

#[test]
fn an_index_that_the_mask_cannot_hold_is_no_mark() {
    let pins = Pins::new();
    let mut datapath = pins.open();
    datapath.set_config(Config { flags: 0, mark_mask: 0xff, ..Config::default() }).unwrap();
    datapath.put_class(2, &[cell(TCP, 80, 80, 0xff), cell(TCP, 81, 81, 0x1ff)]).unwrap();
    datapath.put(HERE.into(), forever(2)).unwrap();
    let mark = |port| stamped(&datapath, port, 0xabcd_ef12);
    assert_eq!(mark(80), 0xabcd_efff);
    assert_eq!(mark(81), 0xabcd_ef00);
    assert_eq!(mark(82), 0xabcd_ef00);
}

#[test]
fn the_index_stands_where_the_mask_is_and_other_bits_stay() {
    let pins = Pins::new();
    let mut datapath = pins.open();
    datapath.set_config(Config { mark_mask: 0x00ff_f000, mark_shift: 12, ..Config::default() }).unwrap();
    datapath.put_class(2, &[cell(TCP, 80, 80, 0x123), cell(TCP, 81, 81, 0x1123)]).unwrap();
    datapath.put(HERE.into(), forever(2)).unwrap();
    let mark = |port| stamped(&datapath, port, 0xabcd_ef12);
    assert_eq!(mark(80), 0xab12_3f12);
    assert_eq!(mark(81), 0xab00_0f12, "an index of 13 bits does not fit");
    assert_eq!(mark(82), 0xab00_0f12);
}

#[test]
fn a_long_class_is_found_to_its_end_and_its_slots_come_back() {
    let pins = Pins::new();
    let mut datapath = pins.open();
    datapath.set_config(Config { flags: 0, mark_mask: 0xffff, ..Config::default() }).unwrap();
    let long: Vec<_> = (0..128).map(|n| cell(TCP, n * 2, n * 2, u32::from(n) + 1)).collect();
    datapath.put(HERE.into(), forever(2)).unwrap();
    // More rounds than there are slots for chains, so they must come back.
    for round in 0..2200 {
        datapath.put_class(2, &long).unwrap();
        if round % 100 == 0 {
            for n in [0, 7, 8, 63, 126, 127] {
                let frame = Spec::to(HERE, TCP, n * 2, SYN).encode();
                let run = datapath.test_run(Program::Stamp, &frame, 0, 1).unwrap();
                assert_eq!(run.mark, u32::from(n) + 1);
            }
        }
        datapath.drop_class(2).unwrap();
    }
    let frame = Spec::to(HERE, TCP, 0, SYN).encode();
    assert_eq!(datapath.test_run(Program::Stamp, &frame, 0, 1).unwrap().mark, 0);
    let mut more = long;
    more.push(cell(TCP, 300, 300, 1));
    assert!(matches!(datapath.put_class(2, &more), Err(fw_bpf::Error::TooManyCells(129))));
    assert!(matches!(datapath.put_class(1, &[]), Err(fw_bpf::Error::ClassId(1))));
    assert!(matches!(datapath.put_class(16_384, &[]), Err(fw_bpf::Error::ClassId(16_384))));
}

#[test]
fn the_prefix_table_becomes_each_table_in_turn() {
    let pins = Pins::new();
    let mut datapath = pins.open();
    datapath.set_config(Config { flags: flag::BOUNCE, ..Config::default() }).unwrap();
    let table = |entries: &[(&str, u16)]| -> BTreeMap<IpNet, Vec<_>> {
        entries.iter().map(|(net, port)| (net.parse().unwrap(), vec![cell(TCP, *port, *port, 0)])).collect()
    };
    let passes = |datapath: &Datapath, address: [u8; 4], port| {
        let frame = Spec::to(address, TCP, port, SYN).encode();
        datapath.test_run(Program::Xdp, &frame, 0, 1).unwrap().result == XDP_PASS
    };
    datapath
        .set_prefixes(&table(&[("10.0.0.0/8", 80), ("10.1.0.0/16", 443), ("2001:db8::/32", 443)]))
        .unwrap();
    assert!(
        passes(&datapath, [10, 1, 0, 1], 80),
        "the longer prefix has the ports of the shorter one as well"
    );
    assert!(passes(&datapath, [10, 1, 0, 1], 443));
    assert!(!passes(&datapath, [10, 2, 0, 1], 443));
    datapath.set_prefixes(&table(&[("10.1.0.0/16", 443)])).unwrap();
    assert!(!passes(&datapath, [10, 1, 0, 1], 80));
    assert!(passes(&datapath, [10, 1, 0, 1], 443));
    assert!(!passes(&datapath, [10, 2, 0, 1], 80));
    let used = |datapath: &Datapath, name: &str| {
        datapath.map_use().unwrap().into_iter().find(|map| map.name == name).unwrap().used
    };
    assert_eq!((used(&datapath, "STATIC4"), used(&datapath, "STATIC6")), (1, 0));
    datapath.set_prefixes(&BTreeMap::new()).unwrap();
    assert!(!passes(&datapath, [10, 1, 0, 1], 443));
    assert_eq!(used(&datapath, "CLASSES"), 1, "classes without prefixes go");
}
