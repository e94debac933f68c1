//! Bounds, counters, samples.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_bpf::{Error, Program, Sizes};
use fw_bpf_common::{Allow, Config, TCP, flag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::model::{SYN, Spec};
use crate::support::{Pins, SMALL, cell, forever};

/// What all maps of default size may take, full.
const MEMORY: u64 = 64 << 20;

#[test]
fn default_maps_hold_what_they_promise_within_their_memory() {
    let pins = Pins::new();
    let sizes = Sizes::default();
    let mut datapath = pins.open_with(sizes);
    datapath.put_class(2, &[cell(TCP, 443, 443, 7)]).unwrap();
    let empty: u64 = datapath.map_use().unwrap().iter().map(|map| map.memory).sum();
    let four = (0..sizes.ipv4).map(|n| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)));
    let six = (0..sizes.ipv6).map(|n| IpAddr::V6(Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(n))));
    let allows: Vec<(IpAddr, Allow)> = four.chain(six).map(|address| (address, forever(2))).collect();
    datapath.put_all(&allows).unwrap();
    let prefixes = (0..sizes.prefixes).map(|n| {
        (ipnet::IpNet::new(Ipv4Addr::from(n << 8).into(), 24).unwrap(), vec![cell(TCP, 443, 443, 0)])
    });
    datapath.set_prefixes(&prefixes.collect()).unwrap();
    let uses = datapath.map_use().unwrap();
    let full: u64 = uses.iter().map(|map| map.memory).sum();
    println!("maps of default size: {} KiB empty, {} KiB full", empty >> 10, full >> 10);
    for map in &uses {
        println!("{:8} {:7} of {:7}, {:6} KiB", map.name, map.used, map.bound, map.memory >> 10);
    }
    assert!(full <= MEMORY, "{full}: {uses:?}");
    for name in ["ALLOW4", "ALLOW6", "STATIC4"] {
        let map = uses.iter().find(|map| map.name == name).unwrap();
        assert_eq!(map.used, map.bound, "{name}");
    }
    let one_more = datapath.put(Ipv4Addr::new(192, 0, 2, 1).into(), forever(2));
    assert!(
        matches!(one_more, Err(Error::Full { map: "ALLOW4", bound }) if bound == sizes.ipv4),
        "{one_more:?}"
    );
    // Room for one comes back with one.
    datapath.remove(Ipv4Addr::new(10, 0, 0, 0).into()).unwrap();
    datapath.put(Ipv4Addr::new(192, 0, 2, 1).into(), forever(2)).unwrap();
    // Replacing takes no room.
    datapath.put(Ipv4Addr::new(192, 0, 2, 1).into(), forever(2)).unwrap();
    assert_eq!(datapath.allows().unwrap().len(), allows.len());
}

#[test]
fn a_batch_that_does_not_fit_leaves_the_count_right() {
    let pins = Pins::new();
    let mut datapath = pins.open();
    datapath.put_class(2, &[cell(TCP, 443, 443, 7)]).unwrap();
    let allows: Vec<(IpAddr, Allow)> =
        (0..SMALL.ipv4 + 10).map(|n| (Ipv4Addr::from(0x0a00_0000 + n).into(), forever(2))).collect();
    assert!(matches!(datapath.put_all(&allows), Err(Error::Full { map: "ALLOW4", .. })));
    let used = datapath.map_use().unwrap()[0].used;
    assert_eq!(used, datapath.allows().unwrap().len() as u64);
    let addresses: Vec<IpAddr> = allows.iter().map(|(address, _)| *address).collect();
    datapath.remove_all(&addresses).unwrap();
    assert!(datapath.allows().unwrap().is_empty());
    assert_eq!(datapath.map_use().unwrap()[0].used, 0);
}

#[test]
fn samples_are_bounded_and_those_not_sent_are_counted() {
    let pins = Pins::new();
    let mut datapath = pins.open();
    // The rate is per CPU.
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let frame = Spec { payload: 200, ..Spec::to([192, 0, 2, 9], TCP, 25, SYN) }.encode();
    let mut samples = datapath.samples().unwrap();
    for (rate, packets) in [(0, 20), (5, 20)] {
        datapath
            .set_config(Config { flags: flag::BOUNCE, samples_per_second: rate, ..Config::default() })
            .unwrap();
        let before = datapath.drops().unwrap();
        datapath.test_run(Program::Xdp, &frame, 0, packets).unwrap();
        let after = datapath.drops().unwrap();
        assert_eq!(after.total() - before.total(), u64::from(packets), "drops are exact");
        assert_eq!(after.unsampled - before.unsampled, u64::from(packets - rate));
        let mut readable = [PollFd::new(std::os::fd::AsFd::as_fd(&samples), PollFlags::POLLIN)];
        assert_eq!(poll(&mut readable, PollTimeout::ZERO).unwrap() > 0, rate > 0, "the descriptor says so");
        let mut seen = 0;
        while let Some(sample) = samples.next_sample() {
            seen += 1;
            assert_eq!((sample.filled, sample.length as usize), (144, frame.len()));
            assert_eq!(sample.head[..], frame[..144]);
        }
        assert_eq!(seen, rate);
    }
    // A full ring loses samples, not counts.
    datapath
        .set_config(Config { flags: flag::BOUNCE, samples_per_second: u32::MAX, ..Config::default() })
        .unwrap();
    let before = datapath.drops().unwrap();
    datapath.test_run(Program::Tcx, &frame, 0, 2000).unwrap();
    let after = datapath.drops().unwrap();
    let lost = after.unsampled - before.unsampled;
    let seen = std::iter::from_fn(|| samples.next_sample()).count() as u64;
    assert_eq!(after.ring_full - before.ring_full, lost, "none was above the rate");
    assert_eq!(before.ring_full, 0, "what is above the rate is not lost");
    assert_eq!(samples.drops().unwrap(), after);
    assert_eq!(after.tcx[0] - before.tcx[0], 2000);
    assert_eq!(seen + lost, 2000);
    assert!(lost > 0);
}
