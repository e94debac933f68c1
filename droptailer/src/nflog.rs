//! Records from an NFLOG group.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, SystemTime};

use fw_netlink::nflog::{Loss, NflogError, Options, Packet, Reader};
use nix::net::if_::if_indextoname;

use crate::record::{Action, DropRecord, Logged};

/// Why a group cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The group cannot be listened to, or its socket failed.
    #[error("cannot read dropped packets from NFLOG")]
    Nflog(#[from] NflogError),
}

/// The one listener of an NFLOG group of a network namespace. Open it and read it on threads of that namespace:
/// interfaces are named by the kernel of the thread that reads.
#[derive(Debug)]
pub struct Source {
    reader: Reader,
    strangers: u64,
}

impl Source {
    /// Becomes the listener of a group.
    pub fn open(group: u16) -> Result<Self, SourceError> {
        Ok(Self { reader: Reader::open(Options::group(group))?, strangers: 0 })
    }

    /// Waits up to `timeout` for packets and gives each as a record; gives their number. `now` is the time of
    /// packets that have none of their own.
    pub fn read(
        &mut self,
        timeout: Duration,
        now: impl Fn() -> SystemTime,
        mut take: impl FnMut(DropRecord),
    ) -> Result<usize, SourceError> {
        // Looked up once per read: an index can be given to another interface at any time.
        let mut names = BTreeMap::new();
        let strangers = &mut self.strangers;
        let mut count = 0;
        self.reader.read(timeout, |packet| match record(packet, &now, &mut names) {
            Some(record) => {
                count += 1;
                take(record);
            }
            None => *strangers += 1,
        })?;
        Ok(count)
    }

    /// What was lost since the group was opened.
    pub fn loss(&self) -> Loss {
        self.reader.loss()
    }

    /// Packets with a prefix that neither says dropped nor accepted: somebody else logs to the group.
    pub fn strangers(&self) -> u64 {
        self.strangers
    }
}

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }
}

fn record(
    packet: &Packet<'_>,
    now: &impl Fn() -> SystemTime,
    names: &mut BTreeMap<u32, String>,
) -> Option<DropRecord> {
    let action = Action::of_prefix(packet.prefix)?;
    let (input, output) = (name(packet.input, names), name(packet.output, names));
    let time = packet.timestamp.unwrap_or_else(|| {
        let now = now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (now.as_secs(), u64::from(now.subsec_micros()))
    });
    Some(DropRecord::new(&Logged {
        action,
        time: (time.0, u32::try_from(time.1).unwrap_or(999_999)),
        input: &input,
        output: &output,
        link_header: packet.hardware_header,
        mark: packet.mark,
        packet: packet.payload,
    }))
}

/// The interface's name; `#7` when it is gone again.
fn name(index: Option<u32>, names: &mut BTreeMap<u32, String>) -> String {
    let Some(index) = index.filter(|index| *index != 0) else { return String::new() };
    let look_up = || match if_indextoname(index) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("#{index}"),
    };
    names.entry(index).or_insert_with(look_up).clone()
}
