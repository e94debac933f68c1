//! Alerts in lines of EVE JSON; all other kinds of events are passed over.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Deserialize;

/// Bytes of a signature's text that are kept. Suricata takes rules of 8 KiB.
const MAX_SIGNATURE: usize = 256;
/// Bytes of a category, an interface, a protocol, an action.
const MAX_CATEGORY: usize = 96;
const MAX_WORD: usize = 32;

/// What a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An alert.
    Alert(Box<Alert>),
    /// Another kind of event.
    Other,
    /// Not what suricata writes.
    Malformed,
}

/// An alert. Its texts are bounded and plain: no control characters, nothing that turns the direction of what follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alert {
    /// Generator, signature and its revision, as rules number them: `gid:sid:rev`.
    pub id: (u32, u32, u32),
    /// What the rule says it found.
    pub signature: String,
    /// Category of the rule, possibly empty.
    pub category: String,
    /// From 1, the worst, to 255.
    pub severity: u8,
    /// `allowed`, or `blocked` where suricata itself is in the way of packets.
    pub action: String,
    /// Where the packet was seen, possibly empty.
    pub interface: String,
    /// `TCP`, `UDP`, `ICMP`; possibly empty.
    pub protocol: String,
    /// From where; packets that were too broken to tell have none.
    pub source: Option<IpAddr>,
    /// Its port, where the protocol has one.
    pub source_port: Option<u16>,
    /// To where.
    pub destination: Option<IpAddr>,
    /// Its port.
    pub destination_port: Option<u16>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow, default)]
    in_iface: Cow<'a, str>,
    #[serde(borrow, default)]
    proto: Cow<'a, str>,
    #[serde(default)]
    src_ip: Option<IpAddr>,
    #[serde(default)]
    src_port: Option<u16>,
    #[serde(default)]
    dest_ip: Option<IpAddr>,
    #[serde(default)]
    dest_port: Option<u16>,
    #[serde(borrow)]
    alert: Option<Detail<'a>>,
}

#[derive(Deserialize)]
struct Detail<'a> {
    #[serde(borrow, default)]
    action: Cow<'a, str>,
    #[serde(default = "first")]
    gid: u32,
    signature_id: u32,
    #[serde(default)]
    rev: u32,
    #[serde(borrow, default)]
    signature: Cow<'a, str>,
    #[serde(borrow, default)]
    category: Cow<'a, str>,
    #[serde(default)]
    severity: u8,
}

/// The generator of rules that name none.
fn first() -> u32 {
    1
}

/// Reads a line, without its newline. What does not speak of alerts at all is not looked at closer: in a busy network nearly
/// all lines are flows and requests.
#[must_use]
pub fn parse(line: &[u8]) -> Event {
    if memchr::memmem::find(line, b"\"alert\"").is_none() {
        let is_object = line.first() == Some(&b'{') && line.trim_ascii_end().last() == Some(&b'}');
        return if is_object { Event::Other } else { Event::Malformed };
    }
    // Unknown fields are skipped without recursion, known ones are flat.
    let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else { return Event::Malformed };
    if line.event_type != "alert" {
        return Event::Other;
    }
    let Some(detail) = line.alert else { return Event::Malformed };
    Event::Alert(Box::new(Alert {
        id: (detail.gid, detail.signature_id, detail.rev),
        signature: plain(&detail.signature, MAX_SIGNATURE),
        category: plain(&detail.category, MAX_CATEGORY),
        severity: detail.severity,
        action: plain(&detail.action, MAX_WORD),
        interface: plain(&line.in_iface, MAX_WORD),
        protocol: plain(&line.proto, MAX_WORD),
        source: line.src_ip,
        source_port: line.src_port,
        destination: line.dest_ip,
        destination_port: line.dest_port,
    }))
}

impl Alert {
    /// `1:1000002:2 "udp to discard" (misc), severity 1: UDP 10.9.0.2:40610 -> 10.9.0.1:9 on vlan179, allowed`
    #[must_use]
    pub fn text(&self) -> String {
        let (gid, sid, rev) = self.id;
        let mut text = format!("{gid}:{sid}:{rev} \"{}\"", self.signature);
        if !self.category.is_empty() {
            text.push_str(&format!(" ({})", self.category));
        }
        let source = end(self.source, self.source_port);
        let destination = end(self.destination, self.destination_port);
        let protocol = if self.protocol.is_empty() { "packet" } else { &self.protocol };
        text.push_str(&format!(", severity {}: {protocol} {source} -> {destination}", self.severity));
        for (before, word) in [(" on ", &self.interface), (", ", &self.action)] {
            if !word.is_empty() {
                text.push_str(before);
                text.push_str(word);
            }
        }
        text
    }
}

fn end(address: Option<IpAddr>, port: Option<u16>) -> String {
    match (address, port) {
        (None, _) => "unknown".to_owned(),
        (Some(address), None) => address.to_string(),
        (Some(address), Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
    }
}

/// A text that cannot disturb a terminal or a log, cut to a number of bytes.
pub(crate) fn plain(text: &str, limit: usize) -> String {
    let is_odd = |c: char| {
        // Line and paragraph separators, and what turns the direction of text (UAX #9).
        c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    let mut plain = String::new();
    for c in text.chars().map(|c| if is_odd(c) { '?' } else { c }) {
        if plain.len() + c.len_utf8() > limit {
            break;
        }
        plain.push(c);
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// As suricata 7.0.10 writes it.
    const REAL: &str = r#"{"timestamp":"2026-11-21T14:59:31.407969+0000","flow_id":907789589407941,"in_iface":"vlan179","event_type":"alert","src_ip":"10.9.0.2","src_port":40610,"dest_ip":"10.9.0.1","dest_port":9,"proto":"UDP","pkt_src":"wire/pcap","alert":{"action":"allowed","gid":1,"signature_id":1000002,"rev":2,"signature":"lab: udp to discard","category":"Misc activity","severity":1},"app_proto":"failed","direction":"to_server","flow":{"pkts_toserver":1,"start":"2026-11-21T14:59:31.407969+0000"}}"#;

    fn alert(line: &str) -> Alert {
        match parse(line.as_bytes()) {
            Event::Alert(alert) => *alert,
            other => unreachable!("{other:?}: {line}"),
        }
    }

    #[test]
    fn an_alert_of_suricata_is_read() {
        assert_eq!(
            alert(REAL).text(),
            "1:1000002:2 \"lab: udp to discard\" (Misc activity), severity 1: UDP 10.9.0.2:40610 -> 10.9.0.1:9 on vlan179, \
             allowed"
        );
    }

    #[test]
    fn addresses_ports_and_interface_may_be_missing() {
        let line = r#"{"event_type":"alert","alert":{"signature_id":7,"severity":3}}"#;
        assert_eq!(alert(line).text(), "1:7:0 \"\", severity 3: packet unknown -> unknown");
        let line = r#"{"event_type":"alert","proto":"ICMPv6","src_ip":"2001:db8::1","dest_ip":"2001:db8::2","alert":{"signature_id":7}}"#;
        assert_eq!(alert(line).text(), "1:7:0 \"\", severity 0: ICMPv6 2001:db8::1 -> 2001:db8::2");
    }

    #[test]
    fn other_events_are_passed_over_and_what_is_no_event_is_malformed() {
        let flow = r#"{"event_type":"flow","flow":{"alerted":true},"x":"\"alert\""}"#;
        // In front of packets suricata also says what it dropped, and by which rule.
        let dropped = r#"{"event_type":"drop","alert":{"signature_id":1}}"#;
        for line in [flow, dropped, r#"{"event_type":"stats"}"#, "{}"] {
            assert_eq!(parse(line.as_bytes()), Event::Other, "{line}");
        }
        for line in [
            "",
            "garbage",
            "\0\0\0\0",
            &REAL[..300],
            &REAL[300..],
            r#"{"event_type":"alert","alert":null}"#,
            r#"{"event_type":"alert","alert":{"signature":"x"}}"#,
            r#"{"event_type":"alert","alert":{"signature_id":-1}}"#,
            r#"{"event_type":"alert","alert":{"signature_id":4294967296}}"#,
            r#"{"event_type":"alert","src_port":65536,"alert":{"signature_id":1}}"#,
            r#"{"event_type":"alert","src_ip":"1.2.3","alert":{"signature_id":1}}"#,
            r#"["alert"]"#,
        ] {
            assert_eq!(parse(line.as_bytes()), Event::Malformed, "{line}");
        }
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let deep =
            format!("{{\"event_type\":\"alert\",\"x\":{}1{}}}", "[".repeat(30_000), "]".repeat(30_000));
        assert_eq!(parse(deep.as_bytes()), Event::Malformed);
    }

    #[test]
    fn texts_are_cut_and_plain() {
        let mut event: Value = serde_json::from_str(REAL).unwrap();
        event["alert"]["signature"] = json!(format!("\u{1b}[31m\n\u{202e}{}", "ä".repeat(5000)));
        let alert = alert(&event.to_string());
        assert!(alert.signature.starts_with("?[31m??ä"), "{}", alert.signature);
        assert!(alert.signature.len() <= MAX_SIGNATURE);
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(
            sid: u32, rev: u32, severity: u8, source: IpAddr, port: u16, signature in "[ -~]{0,100}",
        ) {
            let line = json!({
                "event_type": "alert", "src_ip": source, "src_port": port,
                "alert": {"gid": 3, "signature_id": sid, "rev": rev, "severity": severity, "signature": signature},
            });
            let alert = alert(&line.to_string());
            prop_assert_eq!(alert.id, (3, sid, rev));
            prop_assert_eq!((alert.source, alert.source_port), (Some(source), Some(port)));
            prop_assert_eq!((alert.severity, alert.signature), (severity, signature));
        }

        #[test]
        fn changed_bytes_of_an_alert_never_panic_and_stay_bounded(
            changes in proptest::collection::vec((0..REAL.len(), any::<u8>()), 0..8), length in 0..REAL.len(),
        ) {
            let mut line = REAL.as_bytes().to_vec();
            for (at, byte) in changes {
                line[at] = byte;
            }
            line.truncate(length);
            if let Event::Alert(alert) = parse(&line) {
                prop_assert!(alert.text().len() < 700);
                prop_assert!(!alert.text().contains(char::is_control));
            }
        }
    }
}
