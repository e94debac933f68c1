//! The rules' own counters of what they logged, read by netlink.

use std::io;

use fw_netlink::message::{Head, subsystem};
use fw_netlink::nft::NamedCounter;
use fw_netlink::nft::{INET, message};
use fw_netlink::socket::{Socket, SocketError};

const TABLE: &str = "firewall";
/// What the log rules count beside each line.
const NAMES: [&str; 2] = ["drop_logged", "accept_logged"];

/// Reads `drop_logged` and `accept_logged` of `table inet firewall`.
#[derive(Debug)]
pub(crate) struct Counters {
    socket: Socket,
}

impl Counters {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, SocketError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Their sum; what is not there counts 0. Two requests under RCU (nf_tables_getobj()): no transaction waits.
    pub(crate) fn read(&mut self) -> Result<u64, SocketError> {
        let mut sum = 0_u64;
        for name in NAMES {
            let head = Head {
                subsystem: subsystem::NFTABLES,
                message: message::GET_OBJECT,
                family: INET,
                ..Head::default()
            };
            let asked = self.socket.ask(
                head,
                |writer| NamedCounter::name(writer, TABLE, name),
                |answer| {
                    if let Some(counter) = NamedCounter::decode(answer.attrs())? {
                        sum = sum.saturating_add(counter.counter.packets);
                    }
                    Ok(())
                },
            );
            match asked {
                Err(SocketError::Refused(ack)) if ack.errno == nix::errno::Errno::ENOENT as i32 => {}
                other => other?,
            }
        }
        Ok(sum)
    }
}

/// Who listens to a group: its netlink port, and the process where it can be seen.
pub(crate) fn holder(group: u16) -> String {
    let Some(port) = port_of(group) else { return "somebody".to_owned() };
    match process_of(port) {
        Ok(Some(process)) => process,
        _ => format!("netlink port {port}"),
    }
}

/// Lines of /proc/net/netfilter/nfnetlink_log: group, port, … (seq_show() in net/netfilter/nfnetlink_log.c).
fn port_of(group: u16) -> Option<u32> {
    let table = std::fs::read_to_string("/proc/net/netfilter/nfnetlink_log").ok()?;
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()?.parse() == Ok(group)).then(|| words.next()?.parse().ok())?
    })
}

/// The socket's inode from /proc/net/netlink, and who has it open.
fn process_of(port: u32) -> io::Result<Option<String>> {
    let sockets = std::fs::read_to_string("/proc/net/netlink")?;
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode; 12 is NETLINK_NETFILTER.
    let inode = sockets.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ours = words.get(1) == Some(&"12") && words.get(2)?.parse() == Ok(port);
        ours.then(|| words.get(9).map(ToString::to_string))?
    });
    let Some(inode) = inode else { return Ok(None) };
    let wanted = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc")?.flatten() {
        let path = process.path();
        let Ok(open) = std::fs::read_dir(path.join("fd")) else { continue };
        let has = open.flatten().any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        });
        if has {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            return Ok(Some(format!("{} (pid {})", name.trim(), process.file_name().to_string_lossy())));
        }
    }
    Ok(None)
}
