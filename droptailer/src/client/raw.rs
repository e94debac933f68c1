//! A logged packet as it is copied on the reader's thread, and which log prefixes count.

use std::collections::BTreeMap;

use fw_netlink::nflog::Packet;
use nix::net::if_::if_indextoname;

use crate::record::{Action, DropRecord, Logged};

/// A packet, copied and nothing more: the reader has no time for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raw {
    action: Action,
    time: Option<(u64, u64)>,
    input: u32,
    output: u32,
    mark: u32,
    /// Bytes of link-layer header at the beginning of `bytes`.
    header: usize,
    bytes: Box<[u8]>,
}

impl Raw {
    pub(crate) fn copy(packet: &Packet<'_>, action: Action) -> Self {
        let header = packet.hardware_header;
        let mut bytes = Vec::with_capacity(header.len() + packet.payload.len());
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(packet.payload);
        Self {
            action,
            time: packet.timestamp,
            input: packet.input.unwrap_or(0),
            output: packet.output.unwrap_or(0),
            mark: packet.mark,
            header: header.len(),
            bytes: bytes.into(),
        }
    }

    /// From the network header on.
    pub(crate) fn packet(&self) -> &[u8] {
        self.bytes.get(self.header..).unwrap_or_default()
    }

    /// What became of it, and the interfaces and mark it had.
    pub(crate) fn place(&self) -> [u8; 13] {
        let mut place = [0; 13];
        place[0] = u8::from(self.action == Action::Accept);
        for (part, value) in place[1..].chunks_mut(4).zip([self.input, self.output, self.mark]) {
            part.copy_from_slice(&value.to_be_bytes());
        }
        place
    }

    /// The record. `now`: for packets without a time of their own.
    pub(crate) fn record(&self, now: (u64, u32), names: &mut Interfaces) -> DropRecord {
        let (input, output) = (names.name(self.input), names.name(self.output));
        let (link_header, packet) = self.bytes.split_at(self.header.min(self.bytes.len()));
        DropRecord::new(&Logged {
            action: self.action,
            time: self.time.map_or(now, |(seconds, rest)| (seconds, u32::try_from(rest).unwrap_or(999_999))),
            input: &input,
            output: &output,
            link_header,
            mark: self.mark,
            packet,
        })
    }
}

/// Names of interfaces, looked up once per batch: an index can be given to another interface at any time.
#[derive(Debug, Default)]
pub(crate) struct Interfaces {
    names: BTreeMap<u32, String>,
}

impl Interfaces {
    /// The interface's name; `#7` when it is gone again.
    fn name(&mut self, index: u32) -> String {
        if index == 0 {
            return String::new();
        }
        let look_up = || match if_indextoname(index) {
            Ok(name) => name.to_string_lossy().into_owned(),
            Err(_) => format!("#{index}"),
        };
        self.names.entry(index).or_insert_with(look_up).clone()
    }

    pub(crate) fn forget(&mut self) {
        self.names.clear();
    }
}

/// Which log prefixes mean a drop and which an accept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefixes {
    drops: Option<Vec<String>>,
    accepts: Option<Vec<String>>,
}

impl Prefixes {
    /// From `DROPTAILER_PREFIXES_OF_DROPS` and `DROPTAILER_PREFIXES_OF_ACCEPTS`: separated by commas; blanks at the end
    /// do not count. One that is missing or empty: what a prefix says itself, as [`Action::of_prefix`] reads it.
    pub(crate) fn new(drops: Option<&str>, accepts: Option<&str>) -> Self {
        let list = |text: Option<&str>| {
            let parts = text?.split(',').map(|part| part.trim().to_owned());
            let list: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
            Some(list).filter(|list| !list.is_empty())
        };
        Self { drops: list(drops), accepts: list(accepts) }
    }

    pub(crate) fn action(&self, prefix: &str) -> Option<Action> {
        let word = prefix.trim();
        for (list, action) in [(&self.drops, Action::Drop), (&self.accepts, Action::Accept)] {
            let meant = match list {
                Some(list) => list.iter().any(|one| one == word),
                None => Action::of_prefix(prefix) == Some(action),
            };
            if meant {
                return Some(action);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_the_environment_replace_those_of_the_field() {
        let ours = Prefixes::new(None, Some(" "));
        assert_eq!(ours.action("nftables-firewall-dropped: "), Some(Action::Drop));
        assert_eq!(ours.action("nftables-metal-dropped: "), Some(Action::Drop));
        assert_eq!(ours.action("nftables-firewall-accepted: "), Some(Action::Accept));
        assert_eq!(ours.action("somebody else: "), None);
        let others = Prefixes::new(Some("weg: ,fort"), Some("rein: "));
        assert_eq!(others.action("weg: "), Some(Action::Drop));
        assert_eq!(others.action("fort"), Some(Action::Drop));
        assert_eq!(others.action("rein: "), Some(Action::Accept));
        assert_eq!(others.action("nftables-firewall-dropped: "), None);
    }

    #[test]
    fn a_copied_packet_gives_the_record_of_the_packet() {
        let payload =
            [0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 5, 192, 0, 2, 1, 0, 7, 0, 9, 0, 8, 0, 0];
        let packet = Packet {
            input: Some(1),
            mark: 0x2a,
            hardware_header: &[1, 2],
            payload: &payload,
            ..Packet::default()
        };
        let record = Raw::copy(&packet, Action::Drop).record((5, 6), &mut Interfaces::default());
        let expected = DropRecord::new(&Logged {
            action: Action::Drop,
            time: (5, 6),
            input: "lo",
            output: "",
            link_header: &[1, 2],
            mark: 0x2a,
            packet: &payload,
        });
        assert_eq!(record, expected);
    }
}
