//! Conntrack of a network namespace of the test's own, with the tool `conntrack` as the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use fw_netlink::ctnetlink::{Conntrack, Direction, Entry, TcpState, Transport, Tuple, status};
use fw_testkit::{Netns, nft};

/// Tracks all connections, marks some, and turns DNS to port 5353.
const TRACKING: &str = r"
table inet tracking {
    chain output {
        type filter hook output priority 0;
        ct state new udp dport 4242 ct mark set 0x01020304
    }
    chain to_proxy {
        type nat hook output priority -100;
        meta l4proto { tcp, udp } th dport 53 redirect to :5353
    }
}
";

fn tracked(test: impl FnOnce(&Netns) + Send) {
    let ns = Netns::new("fwct").unwrap();
    ns.ip("link set lo up").unwrap();
    nft::load(&ns, TRACKING).unwrap();
    ns.run(|| test(&ns)).unwrap();
}

fn list(table: &mut Conntrack) -> Vec<Entry> {
    let mut entries = Vec::new();
    let count = table.dump(|entry| entries.push(*entry)).unwrap();
    assert_eq!(count, entries.len());
    entries
}

/// An entry as `conntrack -L` prints it: protocol, state, both tuples, flags, mark.
fn as_printed(entry: &Entry) -> String {
    let protocol = match entry.original.protocol {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "icmpv6",
        other => panic!("no test sends protocol {other}"),
    };
    let state = entry.tcp_state.map(|TcpState(number)| {
        let names = [
            "NONE",
            "SYN_SENT",
            "SYN_RECV",
            "ESTABLISHED",
            "FIN_WAIT",
            "CLOSE_WAIT",
            "LAST_ACK",
            "TIME_WAIT",
        ];
        format!(" {}", names.get(usize::from(number)).unwrap_or(&"CLOSE"))
    });
    let tuple = |tuple: &Tuple| {
        let rest = match tuple.transport {
            Transport::Ports { source, destination } => format!("sport={source} dport={destination}"),
            Transport::Icmp { id, kind, code } => format!("type={kind} code={code} id={id}"),
            Transport::None => String::new(),
        };
        format!("src={} dst={} {rest}", tuple.source, tuple.destination)
    };
    let unreplied = if entry.status & status::SEEN_REPLY == 0 { " [UNREPLIED]" } else { "" };
    let assured = if entry.status & status::ASSURED == 0 { "" } else { " [ASSURED]" };
    format!(
        "{protocol}{} {}{unreplied} {}{assured} mark={}",
        state.unwrap_or_default(),
        tuple(&entry.original),
        tuple(&entry.reply),
        entry.mark
    )
}

/// What the tool prints, without the protocol's number, the time left and the count of users.
fn printed(ns: &Netns) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for family in ["ipv4", "ipv6"] {
        let text = ns.output("conntrack", &["-L", "-f", family]).unwrap();
        for line in text.lines() {
            let mut words: Vec<&str> =
                line.split_whitespace().filter(|word| !word.starts_with("use=")).collect();
            words.drain(1..3);
            lines.insert(words.join(" "));
        }
    }
    lines
}

/// Connections of every kind, open until they are dropped.
struct Traffic {
    _open: (TcpStream, TcpStream),
    _sockets: Vec<UdpSocket>,
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().unwrap().0
}

impl Traffic {
    fn new(ns: &Netns) -> Self {
        let listener = TcpListener::bind("127.0.0.1:8080").unwrap();
        let client = TcpStream::connect("127.0.0.1:8080").unwrap();
        let open = (client, accept(&listener));
        // One that its client has closed, and one that both have.
        let half = TcpStream::connect("127.0.0.1:8080").unwrap();
        let mut server = accept(&listener);
        drop(half);
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
        drop(server);
        let v6 = TcpListener::bind("[::1]:8081").unwrap();
        let mut client6 = TcpStream::connect("[::1]:8081").unwrap();
        client6.write_all(b"x").unwrap();
        drop((accept(&v6), client6));
        let mut sockets = Vec::new();
        for (server, target) in [("127.0.0.1:4242", "127.0.0.1:4242"), ("[::1]:4242", "[::1]:4242")] {
            let (server, client) =
                (UdpSocket::bind(server).unwrap(), UdpSocket::bind(local(target)).unwrap());
            client.send_to(b"?", target).unwrap();
            let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
            server.send_to(b"!", peer).unwrap();
            client.recv_from(&mut [0; 8]).unwrap();
            sockets.extend([server, client]);
        }
        // Nobody answers this one but with an ICMP error.
        let lonely = UdpSocket::bind("127.0.0.1:0").unwrap();
        lonely.send_to(b"?", "127.0.0.9:9").unwrap();
        sockets.push(lonely);
        ns.output("ping", &["-c1", "127.0.0.5"]).unwrap();
        ns.output("ping", &["-c1", "::1"]).unwrap();
        Self { _open: open, _sockets: sockets }
    }
}

fn local(target: &str) -> SocketAddr {
    SocketAddr::new(target.parse::<SocketAddr>().unwrap().ip(), 0)
}

#[test]
fn a_dump_has_what_the_tool_lists() {
    tracked(|ns| {
        let _traffic = Traffic::new(ns);
        let mut table = Conntrack::open().unwrap();
        let entries = list(&mut table);
        let ours: BTreeSet<String> = entries.iter().map(as_printed).collect();
        assert_eq!(ours, printed(ns));
        assert!(ours.iter().any(|line| line.contains("mark=16909060")), "{ours:#?}");
        let kinds: BTreeSet<(u8, bool)> =
            entries.iter().map(|entry| (entry.original.protocol, entry.original.source.is_ipv4())).collect();
        assert_eq!(kinds, [(1, true), (6, true), (6, false), (17, true), (17, false), (58, false)].into());
        assert!(entries.iter().all(|entry| entry.timeout.is_some() && entry.id.is_some()));
    });
}

#[test]
fn live_destinations_are_those_of_open_or_answered_connections() {
    tracked(|_| {
        let listener = TcpListener::bind("127.0.0.0:0");
        drop(listener);
        let (open, over) =
            (TcpListener::bind("127.0.0.2:1").unwrap(), TcpListener::bind("127.0.0.3:1").unwrap());
        let client = TcpStream::connect("127.0.0.2:1").unwrap();
        let _open = (accept(&open), client);
        let client = TcpStream::connect("127.0.0.3:1").unwrap();
        let mut server = accept(&over);
        drop(client);
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
        drop(server);
        let answering = UdpSocket::bind("127.0.0.4:1").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"?", "127.0.0.4:1").unwrap();
        let (_, peer) = answering.recv_from(&mut [0; 8]).unwrap();
        answering.send_to(b"!", peer).unwrap();
        let _silent = UdpSocket::bind("127.0.0.5:1").unwrap();
        client.send_to(b"?", "127.0.0.5:1").unwrap();
        let refused = TcpStream::connect("127.0.0.6:1");
        assert!(refused.is_err());
        let live = Conntrack::open().unwrap().live_destinations().unwrap();
        let expected: [IpAddr; 2] = [Ipv4Addr::new(127, 0, 0, 2).into(), Ipv4Addr::new(127, 0, 0, 4).into()];
        assert_eq!(live, expected.into());
    });
}

#[test]
fn a_redirected_client_is_asked_where_it_wanted_to_go() {
    tracked(|_| {
        let mut table = Conntrack::open().unwrap();
        for (proxy, wanted, from) in
            [("127.0.0.1:5353", "127.0.0.53:53", "127.0.0.1:0"), ("[::1]:5353", "[::1]:53", "[::1]:0")]
        {
            let wanted: SocketAddr = wanted.parse().unwrap();
            let (server, client) = (UdpSocket::bind(proxy).unwrap(), UdpSocket::bind(from).unwrap());
            client.send_to(b"?", wanted).unwrap();
            let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
            let local = server.local_addr().unwrap();
            assert_eq!(table.original_destination(17, local, peer).unwrap(), Some(wanted));
            assert_eq!(table.original_destination(6, local, peer).unwrap(), None);
            let stranger = SocketAddr::new(peer.ip(), peer.port() ^ 1);
            assert_eq!(table.original_destination(17, local, stranger).unwrap(), None);
            let listener = TcpListener::bind(proxy).unwrap();
            let _client = TcpStream::connect(wanted).unwrap();
            let (stream, peer) = listener.accept().unwrap();
            let local = stream.local_addr().unwrap();
            assert_eq!(table.original_destination(6, local, peer).unwrap(), Some(wanted));
            // A tuple of the other direction is not taken for an answer.
            assert_eq!(table.original_destination(6, peer, wanted).unwrap(), None);
            let mut times: Vec<_> = (0..1000)
                .map(|_| {
                    let started = Instant::now();
                    assert!(table.original_destination(6, local, peer).unwrap().is_some());
                    started.elapsed()
                })
                .collect();
            times.sort();
            println!("{proxy}: original destination: median {:?}, 99 % {:?}", times[500], times[990]);
        }
    });
}

#[test]
fn entries_are_got_and_deleted_by_either_tuple() {
    tracked(|ns| {
        let _traffic = Traffic::new(ns);
        let mut table = Conntrack::open().unwrap();
        for (index, entry) in list(&mut table).iter().enumerate() {
            let direction = if index % 2 == 0 { Direction::Original } else { Direction::Reply };
            let tuple = if index % 2 == 0 { entry.original } else { entry.reply };
            let found = table.get(direction, &tuple).unwrap().unwrap();
            assert_eq!((found.original, found.reply, found.id), (entry.original, entry.reply, entry.id));
            let another = Entry { id: entry.id.map(|id| id ^ 1), ..*entry };
            assert!(!table.delete(&another).unwrap(), "another entry in its place");
            assert!(table.delete_tuple(direction, &tuple).unwrap());
            assert!(!table.delete_tuple(direction, &tuple).unwrap());
            assert_eq!(table.get(direction, &tuple).unwrap(), None);
            assert_eq!(list(&mut table).iter().map(as_printed).collect::<BTreeSet<_>>(), printed(ns));
        }
        assert_eq!(list(&mut table), []);
    });
}

#[test]
fn a_filter_deletes_the_dns_of_some_sources_and_nothing_else() {
    tracked(|ns| {
        let send = |from: &str, to: &str| {
            let socket = UdpSocket::bind(from).unwrap();
            socket.send_to(b"?", to).unwrap();
        };
        for from in ["127.0.0.1:0", "127.0.0.7:0", "127.0.0.8:0"] {
            send(from, "127.0.0.53:53");
            send(from, "127.0.0.53:54");
        }
        send("[::1]:0", "[::1]:53");
        let _listener = TcpListener::bind("127.0.0.1:5353").unwrap();
        let _tcp = TcpStream::connect("127.0.0.53:53").unwrap();
        let mut table = Conntrack::open().unwrap();
        let before = list(&mut table).len();
        let inside: [IpAddr; 3] = ["127.0.0.1", "127.0.0.7", "::1"].map(|text| text.parse().unwrap());
        let deleted = table.delete_where(|entry| {
            let tuple = &entry.original;
            matches!(tuple.protocol, 6 | 17)
                && tuple.destination_port() == Some(53)
                && inside.contains(&tuple.source)
        });
        assert_eq!(deleted.unwrap(), 4, "two of UDP, one of IPv6, one of TCP");
        let mut left: BTreeMap<(String, Option<u16>), usize> = BTreeMap::new();
        for entry in list(&mut table) {
            let key = (entry.original.source.to_string(), entry.original.destination_port());
            *left.entry(key).or_default() += 1;
        }
        assert_eq!(left[&("127.0.0.8".to_owned(), Some(53))], 1);
        assert_eq!(left.values().sum::<usize>(), before - 4);
        assert_eq!(list(&mut table).iter().map(as_printed).collect::<BTreeSet<_>>(), printed(ns));
    });
}

#[test]
fn ten_thousand_entries_are_read_and_deleted() {
    tracked(|_| {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let _servers: Vec<UdpSocket> =
            (1..=10).map(|n| UdpSocket::bind(format!("127.0.1.{n}:0")).unwrap()).collect();
        for port in 10_000..20_000 {
            // Answers of closed ports show as errors of later sends.
            while client.send_to(b"?", (Ipv4Addr::new(127, 0, 1, 1), port)).is_err() {}
        }
        let mut table = Conntrack::open().unwrap();
        let started = Instant::now();
        let count = table.dump(|_| {}).unwrap();
        println!("{count} entries in {:?}", started.elapsed());
        let started = Instant::now();
        assert!(table.live_destinations().unwrap().is_empty());
        println!("live destinations in {:?}", started.elapsed());
        assert!(count >= 10_000, "{count}");
        let started = Instant::now();
        assert_eq!(table.delete_where(|_| true).unwrap(), count);
        println!("deleted in {:?}", started.elapsed());
        assert_eq!(list(&mut table), []);
    });
}
