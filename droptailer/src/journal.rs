//! The kernel's log line, for pipelines that read it in the journal: written to it, and read from it.

mod source;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

pub(crate) use source::Source;

/// Where journald takes datagrams of its native protocol.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// Prefixes of our rules.
const DROPPED: &str = "nftables-firewall-dropped: ";
const ACCEPTED: &str = "nftables-firewall-accepted: ";

/// Keys in the order of the kernel's line (nf_log_syslog.c); those of other packets' headers are not there.
const ORDER: [&str; 41] = [
    "IN",
    "OUT",
    "MAC",
    "SRC",
    "DST",
    "LEN",
    "TOS",
    "PREC",
    "TTL",
    "ID",
    "CE",
    "DF",
    "MF",
    "TC",
    "HOPLIMIT",
    "FLOWLBL",
    "OPT",
    "PROTO",
    "INCOMPLETE",
    "TRUNCATED",
    "SPT",
    "DPT",
    "WINDOW",
    "RES",
    "CWR",
    "ECE",
    "URG",
    "ACK",
    "PSH",
    "RST",
    "SYN",
    "FIN",
    "URGP",
    "TYPE",
    "CODE",
    "SEQ",
    "PARAMETER",
    "GATEWAY",
    "MTU",
    "SPI",
    "MARK",
];
/// Keys that are words of their own in it.
const FLAGS: [&str; 13] =
    ["CE", "DF", "MF", "CWR", "ECE", "URG", "ACK", "PSH", "RST", "SYN", "FIN", "INCOMPLETE", "TRUNCATED"];

/// The line as the kernel would have logged it. `None`: the record is none of a packet.
pub(crate) fn line(fields: &BTreeMap<String, String>) -> Option<String> {
    let mut line = match fields.get("ACTION")?.as_str() {
        "drop" => DROPPED.to_owned(),
        "accept" => ACCEPTED.to_owned(),
        _ => return None,
    };
    let mut words = Vec::new();
    for key in ORDER {
        match fields.get(key) {
            Some(_) if FLAGS.contains(&key) => words.push(key.to_owned()),
            // A blank ends a word, so none may come in by a value.
            Some(value) if !value.contains(char::is_whitespace) => words.push(format!("{key}={value}")),
            _ => {}
        }
        if key == "MF" {
            words.extend(fields.keys().filter(|key| key.starts_with("FRAG:")).cloned());
        }
    }
    // Under pressure a record stands for packets of one flow; the kernel would have logged each.
    words.extend(fields.get("COUNT").map(|count| format!("COUNT={count}")));
    line.push_str(&words.join(" "));
    Some(line)
}

/// What the kernel's line says: what became of the packet's fields. `None`: no line of a log rule of ours.
pub(crate) fn parse(
    message: &str,
    action: impl Fn(&str) -> Option<crate::record::Action>,
) -> Option<BTreeMap<String, String>> {
    // The kernel writes prefix and line without anything between: the prefix ends where IN= begins.
    let (prefix, rest) = message.split_at(message.find("IN=")?);
    let action = action(prefix)?;
    let mut fields = BTreeMap::new();
    // What an ICMP error quotes stands in brackets and is somebody else's packet.
    let rest = rest.split('[').next().unwrap_or(rest);
    for word in rest.split_whitespace().take(64) {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        fields.insert(key.to_owned(), value.to_owned());
    }
    fields.insert("ACTION".to_owned(), action.name().to_owned());
    Some(fields)
}

/// Writes lines to the journal, as the kernel's; never waits for it.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// By the native socket at `path`.
    pub fn new(path: PathBuf) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path })
    }

    /// Writes the line of a record; records of no packet have none. An error: the journal did not take it.
    pub fn write(&mut self, fields: &BTreeMap<String, String>) -> io::Result<()> {
        let Some(line) = line(fields) else { return Ok(()) };
        // systemd's native protocol: KEY=value lines; there is no line feed in a value of ours. Readers of drops look
        // for the identifier of the kernel, whose own entries have priority 4 for these lines.
        let datagram = format!("PRIORITY=4\nSYSLOG_FACILITY=0\nSYSLOG_IDENTIFIER=kernel\nMESSAGE={line}\n");
        self.socket.send_to(datagram.as_bytes(), &self.path).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Action, DropRecord, Logged};

    fn fields() -> BTreeMap<String, String> {
        let packet = [
            0x45, 0, 0, 40, 0, 1, 0x40, 0, 63, 6, 0, 0, 10, 0, 16, 2, 1, 2, 3, 4, 0x9c, 0x40, 1, 0xbb, 0, 0,
            0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
        ];
        let mut record = DropRecord::new(&Logged {
            action: Action::Drop,
            time: (5, 6),
            input: "vrf1",
            output: "vlan2",
            link_header: &[2, 0],
            mark: 9,
            packet: &packet,
        });
        record.add("POLICY", "two words\n");
        record.fields().into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    #[test]
    fn the_line_is_the_kernels_in_its_order() {
        let expected = "nftables-firewall-dropped: IN=vrf1 OUT=vlan2 MAC=02:00 SRC=10.0.16.2 DST=1.2.3.4 LEN=40 TOS=0x00 \
                        PREC=0x00 TTL=63 ID=1 DF PROTO=TCP SPT=40000 DPT=443 WINDOW=65535 RES=0x00 SYN URGP=0 MARK=0x9";
        assert_eq!(line(&fields()).as_deref(), Some(expected));
    }

    #[test]
    fn what_was_written_is_read_again_and_other_lines_are_not() {
        let fields = fields();
        let read = parse(&line(&fields).unwrap(), Action::of_prefix).unwrap();
        let mut expected = fields;
        expected.retain(|key, _| !["POLICY", "TS_US", "timestamp"].contains(&key.as_str()));
        assert_eq!(read, expected);
        assert_eq!(parse("eth0: link becomes ready", Action::of_prefix), None);
        assert_eq!(parse("somebody else: IN=eth0 OUT=", Action::of_prefix), None);
        assert_eq!(line(&BTreeMap::from([("ACTION".to_owned(), "lost".to_owned())])), None);
    }
}
