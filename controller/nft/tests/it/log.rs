//! Logged packets arrive.

use std::net::UdpSocket;
use std::time::Duration;

use fw_netlink::nflog::{NflogError, Options, Reader};
use fw_nft::NetlinkKernel;
use fw_ruleset::ir::{ChainKind, Family, HookPoint, LogTarget, Statement, Verdict};
use fw_testkit::Netns;

use crate::apply::install;
use crate::sample::{base, rule, sample};

#[test]
fn every_logged_packet_arrives_with_its_prefix_and_a_second_listener_is_told_why_it_cannot() {
    let ns = Netns::new("fwnft").unwrap();
    ns.ip("link set lo up").unwrap();
    ns.run(|| {
        let mut wanted = sample();
        let target = LogTarget::Nflog { group: 5, snaplen: 40 };
        let log = Statement::Log { prefix: "seen: ".to_owned(), target };
        let only_v4 = Statement::Family(Family::V4);
        let rules = vec![rule(vec![only_v4, log, Statement::Verdict(Verdict::Drop)], "")];
        wanted.chains.insert("input".to_owned(), base(ChainKind::Filter, HookPoint::Input, -5, false, rules));
        let mut reader = Reader::open(Options::group(5)).unwrap();
        let second = Reader::open(Options::group(5)).unwrap_err();
        assert!(matches!(second, NflogError::Busy(5)), "{second}");
        install(&mut NetlinkKernel::open().unwrap(), &wanted);
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
