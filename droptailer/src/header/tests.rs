use proptest::prelude::*;

use super::*;

/// What a pipeline makes of the kernel's line: blanks separate, the last of equal keys counts.
fn fields_of_line(line: &str) -> BTreeMap<String, String> {
    let pair = |word: &str| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        (key.to_owned(), value.to_owned())
    };
    line.split_whitespace().map(pair).collect()
}

fn v4(protocol: u8, fragment: [u8; 2], rest: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + rest.len()).unwrap().to_be_bytes();
    let mut packet =
        vec![0x45, 0xb9, total[0], total[1], 0xb5, 0x8a, fragment[0], fragment[1], 238, protocol, 0, 0];
    packet.extend([203, 0, 113, 9, 10, 0, 16, 2]);
    packet.extend(rest);
    packet
}

fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x61, 0x23, 0x45, 0x67, length[0], length[1], next, 57];
    packet.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend("2001:db8:10:16::2".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(rest);
    packet
}

/// SYN with ECE and CWR, two reserved bits, window 1024, urgent pointer 7.
const TCP_HEADER: [u8; 20] = [0xe7, 0x81, 0x01, 0xbd, 0, 0, 0, 1, 0, 0, 0, 0, 0x53, 0xc2, 4, 0, 0, 0, 0, 7];
const UDP_HEADER: [u8; 8] = [0xe7, 0x81, 0, 53, 0, 8, 0, 0];
const V4_START: &str = "SRC=203.0.113.9 DST=10.0.16.2 LEN={} TOS=0x18 PREC=0xA0 TTL=238 ID=46474";
const V6_START: &str = "SRC=2001:0db8:0000:0000:0000:0000:0000:0001 DST=2001:0db8:0010:0016:0000:0000:0000:0002 \
                        LEN={} TC=18 HOPLIMIT=57 FLOWLBL=214375";

fn check(packet: &[u8], start: &str, rest: &str, transport: Option<Transport>) {
    let header = Header::read(packet);
    let line = format!("{} {rest}", start.replace("{}", &packet.len().to_string()));
    assert_eq!(header.fields, fields_of_line(&line), "{line}");
    assert_eq!(header.transport, transport, "{line}");
}

#[test]
fn tcp_and_udp_read_as_the_kernel_logs_them() {
    let tcp = Some(Transport::Tcp { source: 59_265, destination: 445 });
    let line = "PROTO=TCP SPT=59265 DPT=445 WINDOW=1024 RES=0x0C CWR ECE SYN URGP=7";
    check(&v4(6, [0x40, 0], &TCP_HEADER), V4_START, &format!("DF {line}"), tcp);
    check(&v6(6, &TCP_HEADER), V6_START, line, tcp);
    let udp = Some(Transport::Udp { source: 59_265, destination: 53 });
    let line = "PROTO=UDP SPT=59265 DPT=53 LEN=8";
    check(&v4(17, [0, 0], &UDP_HEADER), V4_START, line, udp);
    check(&v6(17, &UDP_HEADER), V6_START, line, udp);
}

#[test]
fn icmp_and_other_protocols_read_as_the_kernel_logs_them() {
    let icmp = |kind, code| Some(Transport::Icmp { kind, code });
    check(
        &v4(1, [0, 0], &[8, 0, 0, 0, 0x12, 0x34, 0, 5]),
        V4_START,
        "PROTO=ICMP TYPE=8 CODE=0 ID=4660 SEQ=5",
        icmp(8, 0),
    );
    let echo = [128, 0, 0, 0, 0x12, 0x34, 0, 5];
    check(&v6(58, &echo), V6_START, "PROTO=ICMPv6 TYPE=128 CODE=0 ID=4660 SEQ=5", icmp(128, 0));
    check(
        &v4(1, [0, 0], &[3, 4, 0, 0, 0, 0, 5, 0xdc]),
        V4_START,
        "PROTO=ICMP TYPE=3 CODE=4 MTU=1500",
        icmp(3, 4),
    );
    check(
        &v4(1, [0, 0], &[5, 1, 0, 0, 10, 0, 16, 1]),
        V4_START,
        "PROTO=ICMP TYPE=5 CODE=1 GATEWAY=10.0.16.1",
        icmp(5, 1),
    );
    check(&v6(58, &[2, 0, 0, 0, 0, 0, 5, 0]), V6_START, "PROTO=ICMPv6 TYPE=2 CODE=0 MTU=1280", icmp(2, 0));
    check(&v4(47, [0, 0], &[]), V4_START, "PROTO=47", Some(Transport::Other(47)));
    check(&v4(50, [0, 0], &[0, 0, 1, 2]), V4_START, "PROTO=ESP SPI=0x102", Some(Transport::Other(50)));
    // Each ICMP is one only in its own family.
    check(&v4(58, [0, 0], &echo), V4_START, "PROTO=58", Some(Transport::Other(58)));
    check(&v6(1, &echo), V6_START, "PROTO=1", Some(Transport::Other(1)));
}

#[test]
fn fragments_and_extension_headers_are_followed() {
    let tcp = Some(Transport::Tcp { source: 59_265, destination: 445 });
    let tcp_line = "PROTO=TCP SPT=59265 DPT=445 WINDOW=1024 RES=0x0C CWR ECE SYN URGP=7";
    check(&v4(6, [0x20, 0], &TCP_HEADER), V4_START, &format!("MF {tcp_line}"), tcp);
    check(&v4(6, [0x20, 185], &TCP_HEADER), V4_START, "MF FRAG:185 PROTO=TCP", None);
    let with = |extension: &[u8]| [extension, &TCP_HEADER].concat();
    check(&v6(0, &with(&[6, 0, 1, 4, 0, 0, 0, 0])), V6_START, tcp_line, tcp);
    let first = with(&[6, 0, 0, 1, 0, 0, 0, 9]);
    check(&v6(44, &first), V6_START, &format!("FRAG:0 INCOMPLETE ID:00000009 {tcp_line}"), tcp);
    let second = with(&[6, 0, 5, 0xc8, 0, 0, 0, 9]);
    check(&v6(44, &second), V6_START, "FRAG:1480 ID:00000009 PROTO=TCP", None);
    // Extension headers without end: nothing is guessed.
    let many = [[60, 0, 1, 4, 0, 0, 0, 0]; 20].concat();
    check(&v6(60, &many), V6_START, "PROTO=60", Some(Transport::Other(60)));
}

#[test]
fn what_is_cut_is_said_and_nothing_is_guessed() {
    assert_eq!(Header::read(&[]).fields, fields_of_line("TRUNCATED"));
    assert_eq!(Header::read(&[0x45; 19]).fields, fields_of_line("TRUNCATED"));
    assert_eq!(Header::read(&[0x60; 39]).fields, fields_of_line("TRUNCATED"));
    assert_eq!(Header::read(&[0x35; 60]).fields, fields_of_line("TRUNCATED"));
    let cut = &v4(6, [0, 0], &TCP_HEADER)[..24];
    let header = Header::read(cut);
    assert_eq!(header.transport, Some(Transport::Tcp { source: 59_265, destination: 445 }));
    assert!(header.fields.contains_key("INCOMPLETE") && !header.fields.contains_key("WINDOW"));
    // A header length below 20 bytes is a lie.
    let mut lie = v4(6, [0, 0], &TCP_HEADER);
    lie[0] = 0x44;
    let header = Header::read(&lie);
    assert!(header.fields.contains_key("TRUNCATED") && header.transport.is_none());
}

/// Packets that are well-formed at first sight.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let protocol =
        prop_oneof![Just(1_u8), Just(6), Just(17), Just(44), Just(58), Just(0), Just(43), any::<u8>()];
    (any::<bool>(), protocol, any::<[u8; 2]>(), proptest::collection::vec(any::<u8>(), 0..80)).prop_map(
        |(is_v4, protocol, fragment, rest)| {
            if is_v4 { v4(protocol, fragment, &rest) } else { v6(protocol, &rest) }
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let header = Header::read(&bytes);
        prop_assert!(header.addresses.is_some() || header.fields.contains_key("TRUNCATED"));
    }

    #[test]
    fn every_truncation_is_read_and_never_says_more_than_the_whole(packet in packet()) {
        let whole = Header::read(&packet);
        for length in 0..packet.len() {
            let cut = Header::read(&packet[..length]);
            for (key, value) in &cut.fields {
                let known = ["TRUNCATED", "INCOMPLETE"].contains(&key.as_str());
                // Of a key that the LOG line has twice, a cut packet shows the first.
                let twice = ["LEN", "ID", "PROTO"].contains(&key.as_str());
                prop_assert!(known || twice || whole.fields.get(key) == Some(value), "{key}={value} at {length}");
            }
            prop_assert!(cut.addresses.is_none() || cut.addresses == whole.addresses);
        }
    }
}
