//! Logged packets arrive.

use std::net::UdpSocket;
use std::time::Duration;

use fw_netlink::nflog::{NflogError, Options, Reader};
use fw_nft::NetlinkKernel;
use fw_ruleset::ir::{ChainKind, Family, HookPoint, LogTarget, Statement, Verdict};
use fw_testkit::Netns;

use crate::apply::install;
use crate::sample::{base, rule, sample};

/// The sample with a rule that logs all IPv4 that comes in to group 5.
fn logging() -> fw_ruleset::Ruleset {
    let mut wanted = sample();
    let target = LogTarget::Nflog { group: 5, snaplen: 40 };
    let log = Statement::Log { prefix: "seen: ".to_owned(), target };
    let rules = vec![rule(vec![Statement::Family(Family::V4), log, Statement::Verdict(Verdict::Drop)], "")];
    wanted.chains.insert("input".to_owned(), base(ChainKind::Filter, HookPoint::Input, -5, false, rules));
    wanted
}

#[test]
fn every_logged_packet_arrives_with_its_prefix_and_a_second_listener_is_told_why_it_cannot() {
    let ns = Netns::new("fwnft").unwrap();
    ns.ip("link set lo up").unwrap();
    ns.run(|| {
        let mut reader = Reader::open(Options::group(5)).unwrap();
        let second = Reader::open(Options::group(5)).unwrap_err();
        assert!(matches!(second, NflogError::Busy(5)), "{second}");
        install(&mut NetlinkKernel::open().unwrap(), &logging());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = socket.local_addr().unwrap();
        for number in 0..100_u8 {
            socket.send_to(&[number; 100], target).unwrap();
        }
        let mut numbers = Vec::new();
        while numbers.len() < 100 {
            let count = reader
                .read(Duration::from_secs(5), |packet| {
                    assert_eq!(
                        (packet.prefix, packet.group, packet.protocol, packet.hook),
                        ("seen: ", 5, 0x0800, 1)
                    );
                    assert_eq!(packet.payload.len(), 40, "cut to the snap length");
                    assert!(packet.input.is_some() && packet.output.is_none());
                    numbers.push((packet.sequence, packet.payload[28]));
                })
                .unwrap();
            assert!(count > 0, "only {} packets came", numbers.len());
        }
        let expected: Vec<_> = (0..100_u8).map(|n| (Some(u32::from(n)), n)).collect();
        assert_eq!(numbers, expected);
        assert_eq!(reader.loss(), fw_netlink::nflog::Loss::default());
    })
    .unwrap();
}

#[test]
fn packets_that_did_not_fit_are_counted_exactly() {
    const SENT: u64 = 20_000;
    let ns = Netns::new("fwnft").unwrap();
    ns.ip("link set lo up").unwrap();
    ns.run(|| {
        let mut reader = Reader::open(Options { receive_buffer: 64 * 1024, ..Options::group(5) }).unwrap();
        install(&mut NetlinkKernel::open().unwrap(), &logging());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = socket.local_addr().unwrap();
        for _ in 0..SENT {
            socket.send_to(&[0; 100], target).unwrap();
        }
        let drain = |reader: &mut Reader| {
            let (mut read, mut last) = (0, None);
            loop {
                let before = reader.loss().overruns;
                let count = reader.read(Duration::from_secs(1), |packet| last = packet.sequence).unwrap();
                read += count;
                if count == 0 && reader.loss().overruns == before {
                    return (read as u64, last);
                }
            }
        };
        let (first, _) = drain(&mut reader);
        // What was lost at the end shows when the next packet comes.
        socket.send_to(&[0; 100], target).unwrap();
        let (second, last) = drain(&mut reader);
        let loss = reader.loss();
        println!("{first} + {second} of {SENT} read, {loss:?}");
        assert!(loss.overruns > 0 && loss.packets > 0, "{loss:?}");
        assert_eq!(first + second + loss.packets, SENT + 1);
        assert_eq!(last.map(u64::from), Some(SENT));
    })
    .unwrap();
}
