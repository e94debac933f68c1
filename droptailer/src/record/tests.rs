use std::net::SocketAddr;

use super::*;

fn logged(packet: &[u8]) -> Logged<'_> {
    Logged {
        action: Action::Drop,
        time: (1_592_400_207, 4_711),
        input: "vrf104009",
        output: "vlan179",
        link_header: &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0],
        mark: 0,
        packet,
    }
}

fn syn() -> Vec<u8> {
    use fw_testkit::traffic::craft::{Crafted, Tag};
    let (from, to): (SocketAddr, SocketAddr) =
        ("10.0.16.2:40000".parse().unwrap(), "1.2.3.4:4000".parse().unwrap());
    Crafted::syn(from, to).encode(Tag { run: 0, id: 7 }).unwrap().remove(0)
}

#[test]
fn the_line_is_the_one_that_pipelines_know() {
    let line = DropRecord::new(&logged(&syn())).line();
    assert_eq!(
        line,
        "2020-06-17 13:23:27 +0000 UTC {\"ACTION\":\"drop\",\"DF\":\"\",\"DPT\":\"4000\",\"DST\":\"1.2.3.4\",\
         \"ID\":\"7\",\"IN\":\"vrf104009\",\"LEN\":\"52\",\"MAC\":\"02:00:00:00:00:01:02:00:00:00:00:02:08:00\",\
         \"OUT\":\"vlan179\",\"PREC\":\"0x00\",\"PROTO\":\"TCP\",\"RES\":\"0x00\",\"SPT\":\"40000\",\
         \"SRC\":\"10.0.16.2\",\"SYN\":\"\",\"TOS\":\"0x00\",\"TS_US\":\"1592400207004711\",\"TTL\":\"64\",\
         \"URGP\":\"0\",\"WINDOW\":\"65535\",\"timestamp\":\"2020-06-17 13:23:27 +0000 UTC\"}"
    );
}

#[test]
fn a_packet_of_the_box_itself_has_no_mac_and_a_mark_shows() {
    let packet = syn();
    let record = DropRecord::new(&Logged { input: "", link_header: &[], mark: 0x1f, ..logged(&packet) });
    let fields = record.fields();
    assert_eq!((fields["IN"].as_str(), fields["MARK"].as_str()), ("", "0x1f"));
    assert!(!fields.contains_key("MAC"));
}

#[test]
fn added_keys_never_shadow_those_of_the_kernel_or_our_own() {
    let mut record = DropRecord::new(&logged(&[]));
    for key in
        ["SRC", "DPT", "MARK", "IN", "OUT", "MAC", "ACTION", "timestamp", "TS_US", "FRAG:1", "TRUNCATED"]
    {
        assert!(!record.add(key, "forged"), "{key}");
    }
    for key in ["RULE", "POLICY", "FQDN", "HINT", "COUNT"] {
        assert!(record.add(key, "a \"value\"\n"), "{key}");
    }
    let line = record.line();
    assert!(!line.contains("forged") && !line.contains('\n'), "{line}");
    assert!(line.contains(r#""HINT":"a \"value\"\n""#), "{line}");
}

#[test]
fn the_prefix_tells_drops_from_accepts_and_from_strangers() {
    for (prefix, action) in [
        ("nftables-firewall-dropped: ", Some(Action::Drop)),
        ("nftables-metal-dropped: ", Some(Action::Drop)),
        ("nftables-firewall-accepted: ", Some(Action::Accept)),
        ("dropped", None),
        ("somebody else: ", None),
        ("", None),
    ] {
        assert_eq!(Action::of_prefix(prefix), action, "{prefix:?}");
    }
}
