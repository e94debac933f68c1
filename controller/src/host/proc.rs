//! TCP sockets of this machine, from /proc/net/tcp and tcp6.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Sessions that are handed on.
const MAX_SESSIONS: usize = 4_096;
/// Lines that are read.
const MAX_LINES: usize = 1_000_000;

/// Socket states of include/net/tcp_states.h.
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Socket {
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
    state: u8,
    inode: u64,
}

/// Established sessions with other machines: (remote address, remote port, local address, local port).
pub(super) fn tcp_sessions() -> BTreeSet<(IpAddr, u16, IpAddr, u16)> {
    sockets()
        .filter(|socket| socket.state == ESTABLISHED && !socket.remote.0.is_loopback())
        .map(|socket| (socket.remote.0, socket.remote.1, socket.local.0, socket.local.1))
        .take(MAX_SESSIONS)
        .collect()
}

/// Ports on which sshd listens: those of processes called sshd and, where systemd or a missing privilege hides them,
/// those that sshd's configuration names and somebody listens on.
pub(super) fn sshd_ports() -> BTreeSet<u16> {
    let listening: Vec<Socket> = sockets().filter(|socket| socket.state == LISTEN).collect();
    if listening.is_empty() {
        return BTreeSet::new();
    }
    let inodes = sshd_inodes(Path::new("/proc"));
    let ports = |wanted: &dyn Fn(&Socket) -> bool| -> BTreeSet<u16> {
        listening.iter().filter(|socket| wanted(socket)).map(|socket| socket.local.1).collect()
    };
    let by_process = ports(&|socket| inodes.contains(&socket.inode));
    if !by_process.is_empty() {
        return by_process;
    }
    let configured = configured_ports(Path::new("/etc/ssh"));
    ports(&|socket| configured.contains(&socket.local.1))
}

fn sockets() -> impl Iterator<Item = Socket> {
    ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(|path| {
        let lines = fs::File::open(path).ok().map(|file| BufReader::new(file).lines());
        lines
            .into_iter()
            .flatten()
            .map_while(Result::ok)
            .take(MAX_LINES)
            .filter_map(|line| read_socket(&line))
    })
}

/// `  0: 0100007F:0016 00000000:0000 0A …`: addresses are 32-bit words in the machine's byte order, in hex.
fn read_socket(line: &str) -> Option<Socket> {
    let mut words = line.split_whitespace().skip(1);
    let local = read_endpoint(words.next()?)?;
    let remote = read_endpoint(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let inode = words.nth(5)?.parse().ok()?;
    Some(Socket { local, remote, state, inode })
}

fn read_endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some((address, port))
}

/// Inodes of the sockets of every process called sshd. Needs CAP_SYS_PTRACE for processes with more privileges.
fn sshd_inodes(proc: &Path) -> BTreeSet<u64> {
    let mut inodes = BTreeSet::new();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        if fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim() == "sshd") {
            let descriptors = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
            inodes.extend(descriptors.filter_map(|descriptor| {
                let target = fs::read_link(descriptor.path()).ok()?;
                let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
                inode.parse::<u64>().ok()
            }));
        }
    }
    inodes
}

/// `Port` lines of sshd_config and its drop-ins; 22 where there is none.
fn configured_ports(directory: &Path) -> BTreeSet<u16> {
    let mut files = vec![directory.join("sshd_config")];
    let more = fs::read_dir(directory.join("sshd_config.d")).into_iter().flatten().flatten();
    files.extend(more.map(|entry| entry.path()));
    let texts = files.into_iter().filter_map(|path| fs::read_to_string(path).ok());
    let ports: BTreeSet<u16> = texts.flat_map(|text| read_ports(&text)).collect();
    if ports.is_empty() { BTreeSet::from([22]) } else { ports }
}

fn read_ports(config: &str) -> Vec<u16> {
    let port = |line: &str| {
        let mut words = line.split(|c: char| c.is_whitespace() || c == '=').filter(|word| !word.is_empty());
        let keyword = words.next()?;
        if keyword.eq_ignore_ascii_case("port") { words.next()?.parse().ok() } else { None }
    };
    config.lines().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn lines_of_proc_are_read_in_both_families() {
        let line = "   1: 0100007F:0016 05DB0A0A:D431 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 x";
        let socket = read_socket(line).unwrap();
        assert_eq!((socket.local.1, socket.remote.1, socket.state, socket.inode), (22, 54_321, 1, 4711));
        if cfg!(target_endian = "little") {
            assert_eq!(socket.local.0, IpAddr::from([127, 0, 0, 1]));
            assert_eq!(socket.remote.0, IpAddr::from([10, 10, 219, 5]));
            let (address, port) = read_endpoint("B80D0120000000000000000001000000:01BB").unwrap();
            assert_eq!((address, port), ("2001:db8::1".parse().unwrap(), 443));
            let (mapped, _) = read_endpoint("0000000000000000FFFF00000100000A:0016").unwrap();
            assert_eq!(mapped, IpAddr::from([10, 0, 0, 1]));
        }
        assert_eq!(read_socket("  sl  local_address rem_address   st"), None);
        assert_eq!(read_endpoint("0100007F"), None);
    }

    #[test]
    fn an_open_listener_and_its_sessions_are_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let sockets: Vec<Socket> = sockets().filter(|socket| socket.local.1 == port).collect();
        assert!(sockets.iter().any(|socket| socket.state == LISTEN), "{sockets:?}");
        assert!(sockets.iter().any(|socket| socket.state == ESTABLISHED), "{sockets:?}");
    }

    #[test]
    fn port_lines_are_read_as_sshd_reads_them() {
        assert_eq!(read_ports("#Port 1\nPort 22\n  port=2222\nPortable 3\nPort\nPort x\n"), [22, 2222]);
    }
}
