//! What happens when there is too much.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::Duration;

use fw_dns::Settings;
use fw_dns::config::{Interfaces, Limits};
use fw_dns::metrics::{Bound, Outcome, Transport};

use crate::message::{A, a, query, rcode};
use crate::running::{Manner, Running, asking, receive, wait_until};
use crate::upstream::Upstream;

#[test]
fn questions_beyond_the_bound_in_flight_get_servfail_at_once() {
    let upstream = Upstream::silent();
    let limits = Limits { in_flight: 10, ..Limits::default() };
    let proxy = Running::with(Settings { limits, ..asking(&[upstream.address]) });
    let client = proxy.client();
    for number in 0..25 {
        client.send(&query(number, &format!("n{number}.example"), A)).unwrap();
    }
    for _ in 0..15 {
        assert_eq!(rcode(&receive(&client)), 2);
    }
    assert_eq!(proxy.metrics.outcome(Outcome::Full), 15);
    assert_eq!(proxy.metrics.in_flight.get(), 10);
}

#[test]
fn clients_beyond_the_bound_of_those_that_wait_get_servfail_at_once() {
    let upstream = Upstream::silent();
    let limits = Limits { waiting: 5, ..Limits::default() };
    let proxy = Running::with(Settings { limits, ..asking(&[upstream.address]) });
    let client = proxy.client();
    for number in 0..8 {
        client.send(&query(number, "same.example", A)).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(rcode(&receive(&client)), 2);
    }
    assert_eq!(proxy.metrics.waiting.get(), 5);
    assert_eq!(proxy.metrics.in_flight.get(), 1);
}

#[test]
fn room_is_free_again_after_timeouts() {
    let upstream = Upstream::silent();
    let limits = Limits { in_flight: 3, waiting: 3, ..Limits::default() };
    let settings = Settings { limits, timeout: Duration::from_millis(150), ..asking(&[upstream.address]) };
    let proxy = Running::with(settings);
    for round in 0..5 {
        let client = proxy.client();
        for number in 0..3 {
            client.send(&query(number, &format!("r{round}n{number}.example"), A)).unwrap();
        }
        (0..3).for_each(|_| assert_eq!(rcode(&receive(&client)), 2));
    }
    assert_eq!(proxy.metrics.outcome(Outcome::Upstream), 15);
    assert_eq!(proxy.metrics.waiting.get(), 0);
}

#[test]
fn sockets_are_closed_again() {
    let upstream = Upstream::answering(|query| a(query, 0, [192, 0, 2, 1]));
    let proxy = Running::new(upstream.address, Manner::Open);
    let sockets = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        links.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).count()
    };
    let client = proxy.client();
    for number in 0..3000_u16 {
        client.send(&query(number, &format!("n{number}.example"), A)).unwrap();
        assert_eq!(rcode(&receive(&client)), 0);
    }
    let ports: std::collections::BTreeSet<_> =
        upstream.asked().iter().map(|asked| asked.from.port()).collect();
    assert!(ports.len() >= 20, "{} ports for 3000 questions", ports.len());
    // Other tests run in this process, so only an excess as large as a leak would be is told from theirs.
    assert!(sockets() < 1500, "{} descriptors are open", sockets());
}

#[test]
fn connections_beyond_the_bounds_are_closed_at_once() {
    let upstream = Upstream::answering(|query| a(query, 60, [192, 0, 2, 1]));
    for limits in [
        Limits { connections: 3, ..Limits::default() },
        Limits { connections_per_client: 3, ..Limits::default() },
    ] {
        let proxy = Running::with(Settings { limits, ..asking(&[upstream.address]) });
        let open: Vec<TcpStream> = (0..3).map(|_| proxy.connect()).collect();
        wait_until(|| proxy.metrics.connections.get() == 3, || "not open".to_owned());
        let mut refused = proxy.connect();
        assert!(matches!(refused.read(&mut [0; 1]), Ok(0) | Err(_)));
        assert_eq!(proxy.metrics.bound(Bound::Connections), 1);
        drop(open);
        wait_until(|| proxy.metrics.connections.get() == 0, || "not closed".to_owned());
        assert_eq!(rcode(&proxy.tcp(&query(1, "www.example", A))), 0);
    }
}

#[test]
fn an_idle_connection_is_closed() {
    let upstream = Upstream::silent();
    let limits = Limits { idle: Duration::from_millis(100), ..Limits::default() };
    let proxy = Running::with(Settings { limits, ..asking(&[upstream.address]) });
    let mut idle = proxy.connect();
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0);
    let mut slow = proxy.connect();
    std::io::Write::write_all(&mut slow, &[0, 40, 1]).unwrap();
    assert!(matches!(slow.read(&mut [0; 1]), Ok(0) | Err(_)), "half a question does not keep it open");
}

#[test]
fn questions_by_foreign_interfaces_are_dropped() {
    let upstream = Upstream::answering(|query| a(query, 60, [192, 0, 2, 1]));
    let settings = Settings { interfaces: Some(Interfaces::default()), ..asking(&[upstream.address]) };
    let (server, client) =
        (fw_testkit::Netns::new("dns-if-s").unwrap(), fw_testkit::Netns::new("dns-if-c").unwrap());
    server
        .ip(&format!("link set lo up\nlink add dnsif0 type veth peer name dnsif1 netns {}", client.name()))
        .unwrap();
    server.ip("address add 198.51.100.1/24 dev dnsif0\nlink set dnsif0 up").unwrap();
    client.ip("address add 198.51.100.2/24 dev dnsif1\nlink set dnsif1 up\nlink set lo up").unwrap();
    let index: u32 = server
        .output("ip", &["-o", "link", "show", "dnsif0"])
        .unwrap()
        .split(':')
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap();
    let proxy = server.run(|| Running::everywhere(settings.clone(), Manner::Refuse(5))).unwrap();
    let ask = |address: &str| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((address, proxy.port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket.send(&query(1, "www.example", A)).unwrap();
        let mut buffer = [0; 512];
        socket.recv(&mut buffer).ok()
    };
    assert_eq!(client.run(|| ask("198.51.100.1")).unwrap(), None);
    assert_eq!(proxy.metrics.queries(Transport::Udp, Outcome::DroppedInterface), 1);
    assert!(server.run(|| ask("127.0.0.1")).unwrap().is_some(), "lo is always inside");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let inside = Interfaces([(index, fw_dns::config::Interface::default())].into());
    runtime.block_on(proxy.handle.update(Settings { interfaces: Some(inside), ..settings })).unwrap();
    wait_until(|| client.run(|| ask("198.51.100.1")).unwrap().is_some(), || "not answered".to_owned());
}
