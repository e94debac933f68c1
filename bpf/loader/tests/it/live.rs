//! What belongs to a connection that conntrack has is never dropped, and what belongs to none is.

use std::net::IpAddr;

use fw_bpf::{Datapath, Options, Program};
use fw_bpf_common::{Config, TCP, UDP, flag};
use fw_testkit::Netns;

use crate::model::{SOURCE, SYN, Spec};
use crate::support::{Pins, SMALL, cell, forever};

const XDP_DROP: u32 = 1;
const SHOT: u32 = 2;
const PORT: u16 = 443;

/// A datapath that bounces whatever nothing allows.
fn bouncer(pins: &Pins, conntrack: bool) -> Datapath {
    let mut datapath = Datapath::open(&Options { conntrack, ..pins.options(SMALL) }).unwrap();
    assert_eq!(datapath.unasked().is_none(), conntrack, "{:?}", datapath.unasked());
    datapath.set_config(Config { flags: flag::BOUNCE, mark_mask: 0xffff, ..Config::default() }).unwrap();
    datapath
}

/// Whether a packet is dropped; all programs must agree, and the stamp drops nothing.
fn drops(datapath: &Datapath, spec: &Spec) -> bool {
    let frame = spec.encode();
    let run = |program| datapath.test_run(program, &frame, 0, 1).unwrap().result;
    let dropped = run(Program::Xdp) == XDP_DROP;
    assert_eq!(run(Program::XdpFrags) == XDP_DROP, dropped);
    assert_eq!(run(Program::Tcx) == SHOT, dropped);
    assert_ne!(run(Program::Stamp), SHOT);
    dropped
}

/// Tells conntrack of a connection: the addresses and ports of its first packet, and those of the answers.
fn connect(ns: &Netns, protocol: u8, first: [(IpAddr, u16); 2], answer: [(IpAddr, u16); 2]) {
    let text = |end: (IpAddr, u16)| (end.0.to_string(), end.1.to_string());
    let [(source, source_port), (destination, port)] = first.map(text);
    let [(back, back_port), (to, to_port)] = answer.map(text);
    let name = if protocol == TCP { "tcp" } else { "udp" };
    let mut arguments = vec!["-I", "-p", name, "-t", "600", "-s", &source, "-d", &destination];
    arguments.extend(["--sport", &source_port, "--dport", &port, "-r", &back, "-q", &to]);
    arguments.extend(["--reply-port-src", &back_port, "--reply-port-dst", &to_port]);
    if protocol == TCP {
        arguments.extend(["--state", "ESTABLISHED"]);
    }
    ns.output("conntrack", &arguments).unwrap();
}

fn ends() -> [[(IpAddr, u16); 2]; 2] {
    let (v4, v6, port) = SOURCE;
    [(v4, "192.0.2.3"), (v6, "2001:db8:2::3")]
        .map(|(here, there)| [(here.parse().unwrap(), port), (there.parse().unwrap(), PORT)])
}

#[test]
fn packets_of_live_connections_pass_in_both_directions_and_others_do_not() {
    let ns = Netns::new("bpf-live").unwrap();
    let pins = Pins::new();
    let datapath = bouncer(&pins, true);
    for protocol in [TCP, UDP] {
        for [here, there] in ends() {
            let frame = |port| Spec::to(there.0, protocol, port, SYN);
            // Of the direction in which it was opened, and of the other one.
            for opened_by_us in [true, false] {
                assert!(
                    ns.run(|| drops(&datapath, &frame(PORT))).unwrap(),
                    "{protocol} {there:?}: no connection"
                );
                let (first, answer) = ([here, there], [there, here]);
                if opened_by_us {
                    connect(&ns, protocol, first, answer);
                } else {
                    connect(&ns, protocol, answer, first);
                }
                assert!(
                    !ns.run(|| drops(&datapath, &frame(PORT))).unwrap(),
                    "{protocol} {there:?}: it lives"
                );
                assert!(ns.run(|| drops(&datapath, &frame(PORT + 1))).unwrap(), "another port");
                // Conntrack of another namespace knows nothing of it.
                assert!(drops(&datapath, &frame(PORT)), "in another namespace");
                ns.output("conntrack", &["-F"]).unwrap();
            }
        }
    }
}

#[test]
fn a_translated_connection_is_found_by_what_stands_in_the_packet() {
    let ns = Netns::new("bpf-nat").unwrap();
    let pins = Pins::new();
    let datapath = bouncer(&pins, true);
    let elsewhere = [("192.0.2.80", 8080), ("203.0.113.1", 1024)];
    let [translated, masked] = elsewhere.map(|(text, port)| (text.parse::<IpAddr>().unwrap(), port));
    let [[here, there], _] = ends();
    let to = |end: (IpAddr, u16)| Spec::to(end.0, UDP, end.1, 0);
    let dropped = |end| ns.run(|| drops(&datapath, &to(end))).unwrap();
    // The destination is translated after the early drop: it sees the first one.
    connect(&ns, UDP, [here, there], [translated, masked]);
    assert!(!dropped(there));
    assert!(dropped(translated), "no packet from inside goes there");
    ns.output("conntrack", &["-F"]).unwrap();
    // From outside to `masked`, which was translated to `here`: our answer goes to the client as it is.
    connect(&ns, UDP, [there, masked], [here, there]);
    assert!(!dropped(there));
    assert!(dropped(masked));
}

#[test]
fn fragments_and_what_is_neither_a_segment_nor_a_datagram_are_never_dropped() {
    let pins = Pins::new();
    let datapath = bouncer(&pins, true);
    for [_, there] in ends() {
        let datagram = Spec::to(there.0, UDP, PORT, 0);
        assert!(drops(&datapath, &datagram));
        for part in [(0, true), (1, true), (185, false)] {
            assert!(!drops(&datapath, &Spec { fragment: Some(part), ..datagram.clone() }), "{part:?}");
        }
        for protocol in [1, 33, 47, 50, 58, 132, 136] {
            assert!(!drops(&datapath, &Spec::to(there.0, protocol, PORT, 0)), "protocol {protocol}");
        }
        assert!(!drops(&datapath, &Spec { group: true, ..datagram.clone() }));
        assert!(!drops(&datapath, &Spec { port: 68, ..datagram }), "an offer of DHCP");
    }
    for to in ["224.0.0.251", "255.255.255.255", "169.254.0.7", "ff02::1:2", "fe80::1"] {
        assert!(!drops(&datapath, &Spec::to(to.parse::<IpAddr>().unwrap(), UDP, PORT, 0)), "{to}");
    }
}

#[test]
fn without_conntrack_no_datagram_is_dropped() {
    let pins = Pins::new();
    let mut datapath = bouncer(&pins, false);
    let [[_, (there, _)], _] = ends();
    assert!(!drops(&datapath, &Spec::to(there, UDP, PORT, 0)));
    assert!(drops(&datapath, &Spec::to(there, TCP, PORT, SYN)));
    // Names are read all the same.
    datapath.put_class(2, &[cell(UDP, PORT, PORT, 7)]).unwrap();
    datapath.put(there, forever(2)).unwrap();
    let frame = Spec::to(there, UDP, PORT, 0).encode();
    assert_eq!(datapath.test_run(Program::Tcx, &frame, 0, 1).unwrap().mark, 7);
}

#[test]
fn programs_that_ask_conntrack_take_the_place_of_those_that_do_not_and_back() {
    let ns = Netns::new("bpf-ask").unwrap();
    ns.ip("link add in0 type veth peer name in1\nlink set in0 up\nlink set in1 up\n").unwrap();
    let pins = Pins::new();
    let [[_, (there, _)], _] = ends();
    let datagram = Spec::to(there, UDP, PORT, 0);
    let mut first = bouncer(&pins, false);
    ns.run(|| first.attach("in0", fw_bpf::Mode::Tcx)).unwrap().unwrap();
    let attached = first.attached().unwrap();
    drop(first);
    for (conntrack, opened) in [
        (true, fw_bpf::Opened::Upgraded),
        (true, fw_bpf::Opened::Adopted),
        (false, fw_bpf::Opened::Upgraded),
        (false, fw_bpf::Opened::Adopted),
    ] {
        let next = Datapath::open(&Options { conntrack, ..pins.options(SMALL) }).unwrap();
        assert_eq!((next.opened(), next.unasked().is_none()), (opened, conntrack));
        assert_eq!(drops(&next, &datagram), conntrack, "by the configuration that was there");
        assert_eq!(ns.run(|| next.attached().unwrap()).unwrap().len(), attached.len(), "it stays attached");
    }
}
