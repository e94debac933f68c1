//! Records of packets that a real kernel dropped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use fw_droptailer::{DropRecord, Source};
use fw_testkit::nft;
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::{Body, Crafted};
use fw_testkit::traffic::range::{Range, Shot};

const RULES: &str = "table inet t {
chain forward {
type filter hook forward priority 0; policy drop;
tcp dport 80 log prefix \"nftables-firewall-accepted: \" group 9 snaplen 128 accept
tcp dport 81 log prefix \"nftables-firewall-dropped: \" group 9 snaplen 30 drop
ip6 nexthdr udp meta mark set 0x2a log prefix \"somebody else: \" group 9
log prefix \"nftables-firewall-dropped: \" group 9 snaplen 128 drop
}
}
";

/// Reads until there are so many records.
fn read(source: &mut Source, enough: usize) -> Vec<DropRecord> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut records = Vec::new();
    while records.len() < enough {
        assert!(Instant::now() < deadline, "only {records:?}");
        source.read(Duration::from_secs(1), SystemTime::now, |record| records.push(record)).unwrap();
    }
    records
}

#[test]
fn dropped_and_accepted_packets_become_records_with_the_names_of_interfaces() {
    let lab = Lab::standard("droptailer").unwrap();
    nft::load(&lab.firewall, RULES).unwrap();
    let mut range = Range::new(&lab).unwrap();
    range.silence_machines().unwrap();
    let at = |text: &str| text.parse().unwrap();
    let udp = Crafted::udp(at("[2001:db8:10:16::2]:1000"), at("[2001:db8:5::1]:53"));
    let other = Body::Other { protocol: 47 };
    let packets = [
        Crafted::syn(at("10.0.16.2:1000"), at("1.2.3.4:80")),
        Crafted::syn(at("10.0.16.2:1001"), at("1.2.3.4:81")),
        udp,
        Crafted::new("10.0.16.2".parse().unwrap(), "1.2.3.4".parse().unwrap(), other),
    ];
    let shots: Vec<Shot> = packets.into_iter().map(|packet| Shot { from: 0, packet }).collect();
    let (records, strangers, loss) = lab
        .firewall
        .run(|| {
            let mut source = Source::open(9).unwrap();
            let arrived: Vec<usize> = range.fire(&shots).unwrap().iter().map(Vec::len).collect();
            assert_eq!(arrived, [1, 0, 0, 0]);
            (read(&mut source, 4), source.strangers(), source.loss())
        })
        .unwrap();
    assert_eq!((strangers, loss.packets, loss.malformed), (1, 0, 0));
    let fields: Vec<BTreeMap<&str, String>> = records.iter().map(DropRecord::fields).collect();
    let of = |key: &str| -> Vec<&str> {
        fields.iter().map(|fields| fields.get(key).map_or("-", String::as_str)).collect()
    };
    assert_eq!(of("ACTION"), ["accept", "drop", "drop", "drop"]);
    assert_eq!(of("IN"), ["vrf104009"; 4]);
    assert_eq!(of("OUT"), ["vlan179"; 4]);
    assert_eq!(of("MAC")[0], "02:00:00:00:00:01:02:00:00:00:00:02:08:00");
    assert_eq!(of("MAC")[2], "02:00:00:00:00:01:02:00:00:00:00:02:86:dd");
    assert_eq!(of("PROTO"), ["TCP", "TCP", "UDP", "47"]);
    assert_eq!(of("SPT"), ["1000", "1001", "1000", "-"]);
    assert_eq!(of("DPT"), ["80", "81", "53", "-"]);
    // The packet has passed the forwarding code already.
    assert_eq!(of("TTL"), ["63", "63", "-", "63"]);
    assert_eq!(of("HOPLIMIT"), ["-", "-", "63", "-"]);
    assert_eq!(of("INCOMPLETE"), ["-", "", "-", "-"], "30 bytes are less than IP and TCP headers");
    assert_eq!(of("MARK"), ["-", "-", "0x2a", "-"]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(records.iter().all(|record| record.time.0.abs_diff(now) < 60), "{records:?}");
}

#[test]
fn a_second_listener_of_a_group_is_told_so() {
    let ns = fw_testkit::Netns::new("listeners").unwrap();
    ns.run(|| {
        let _first = Source::open(9).unwrap();
        let error = Source::open(9).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("another listener"), "{error}: {cause}");
    })
    .unwrap();
}
