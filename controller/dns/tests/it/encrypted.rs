//! Bounds and patience of the encrypted listeners, met by real TLS clients.

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use fw_dns::encrypted::{Encrypted, EncryptedConfig, EncryptedLimits};
use fw_dns::metrics::{Bound, Outcome, Transport};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::message::{A, TXT, a, answer, id, query, rcode, record};
use crate::running::{Manner, PATIENCE, Running, framed, wait_until};
use crate::servers::{Papers, papers};
use crate::upstream::Upstream;

type Tls = StreamOwned<ClientConnection, TcpStream>;

const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const QUICK: Duration = Duration::from_millis(300);

struct Listening {
    proxy: Running,
    _upstream: Upstream,
    tls: SocketAddr,
    https: SocketAddr,
    papers: Papers,
    runtime: tokio::runtime::Runtime,
}

impl Listening {
    fn new(label: &str, limits: EncryptedLimits) -> Self {
        Self::before(label, limits, Upstream::answering(|query| a(query, 300, [192, 0, 2, 7])))
    }

    fn before(label: &str, limits: EncryptedLimits, upstream: Upstream) -> Self {
        let papers = papers(label);
        let proxy = Running::new(upstream.address, Manner::Open);
        let config = EncryptedConfig {
            addresses: vec![HOST.into()],
            tls_port: Some(0),
            https_port: Some(0),
            certificate: papers.certificate.clone(),
            key: papers.key.clone(),
            limits,
        };
        let encrypted = Encrypted::bind(&config).unwrap();
        let (tls, https) = (encrypted.tls_addresses()[0], encrypted.https_addresses()[0]);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.spawn(encrypted.run(proxy.handle.clone()));
        Self { proxy, _upstream: upstream, tls, https, papers, runtime }
    }

    fn config(&self, protocol: &[u8]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let pem = tokio_rustls::rustls::pki_types::CertificateDer::from_pem_file(&self.papers.authority);
        roots.add(pem.unwrap()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }

    /// A client that speaks DNS over TLS from this address.
    fn client(&self, from: Ipv4Addr) -> Tls {
        let stream = from_address(from, self.tls);
        let name = ServerName::try_from("resolver.test").unwrap();
        StreamOwned::new(ClientConnection::new(self.config(b"dot"), name).unwrap(), stream)
    }

    fn open(&self) -> u64 {
        self.proxy.metrics.tls_connections.get()
    }

    fn met(&self, bound: Bound) -> u64 {
        self.proxy.metrics.bound(bound)
    }

    fn wait_open(&self, wanted: u64) {
        wait_until(|| self.open() == wanted, || format!("{} are open instead of {wanted}", self.open()));
    }
}

fn from_address(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(std::net::SocketAddrV4::new(from, 0)))
        .unwrap();
    let SocketAddr::V4(to) = to else { panic!("IPv4 alone") };
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(to)).unwrap();
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Asks and takes one answer.
fn ask(client: &mut Tls, number: u16) -> std::io::Result<Vec<u8>> {
    client.write_all(&framed(&query(number, "www.example", A)))?;
    client.flush()?;
    read_one(client)
}

fn read_one(client: &mut Tls) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    client.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    client.read_exact(&mut message)?;
    Ok(message)
}

/// True when the other side closes: not when nothing comes until the patience is over.
fn is_closed(stream: &mut impl std::io::Read) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    match stream.read(&mut [0; 64]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(error.kind(), TimedOut | WouldBlock),
    }
}

#[test]
fn connections_past_the_bound_are_refused_and_counted_and_the_others_go_on() {
    let other = Ipv4Addr::new(127, 0, 0, 2);
    for (limits, third_may_be) in [
        (EncryptedLimits { connections: 2, ..EncryptedLimits::default() }, None),
        (EncryptedLimits { connections_per_client: 2, ..EncryptedLimits::default() }, Some(other)),
    ] {
        let listening = Listening::new("dot-bounds", limits);
        let mut clients = [listening.client(HOST), listening.client(HOST)];
        for client in &mut clients {
            assert_eq!(rcode(&ask(client, 1).unwrap()), 0);
        }
        // Those in their handshake, and those of the other listener, count too.
        assert!(is_closed(&mut from_address(HOST, listening.https)));
        assert!(ask(&mut listening.client(HOST), 2).is_err());
        assert_eq!((listening.met(Bound::TlsConnections), listening.open()), (2, 2));
        assert_eq!(listening.proxy.metrics.tls_connections_max.get(), limits.connections as u64);
        let mut third = listening.client(other);
        assert_eq!(ask(&mut third, 3).is_ok(), third_may_be.is_some());
        drop(third);
        let [mut stays, goes] = clients;
        assert_eq!(id(&ask(&mut stays, 4).unwrap()), 4, "who is in goes on");
        drop(goes);
        listening.wait_open(1);
        assert_eq!(id(&ask(&mut listening.client(HOST), 5).unwrap()), 5, "and there is room again");
    }
}

#[test]
fn a_client_that_never_finishes_its_handshake_is_closed() {
    let limits = EncryptedLimits { handshake: QUICK, ..EncryptedLimits::default() };
    let listening = Listening::new("dot-handshake", limits);
    let mut silent = from_address(HOST, listening.tls);
    let mut slow = from_address(HOST, listening.https);
    let mut wrong = from_address(HOST, listening.tls);
    wrong.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    // The first bytes of a ClientHello, one after the other.
    for byte in [22, 3, 1, 2, 0, 1] {
        if slow.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(QUICK / 5);
    }
    assert!(is_closed(&mut silent) && is_closed(&mut slow));
    listening.wait_open(0);
    assert_eq!(listening.met(Bound::TlsHandshake), 3);
    assert_eq!(rcode(&ask(&mut listening.client(HOST), 1).unwrap()), 0);
}

#[test]
fn silence_and_half_a_question_over_tls_end_the_connection() {
    let limits = EncryptedLimits { idle: QUICK, ..EncryptedLimits::default() };
    let listening = Listening::new("dot-idle", limits);
    for begun in [&[][..], &[0][..], &[0, 40, 1, 2, 3][..]] {
        let mut client = listening.client(HOST);
        assert_eq!(rcode(&ask(&mut client, 1).unwrap()), 0);
        // Bytes that complete no question do not keep it open.
        for byte in begun {
            client.write_all(&[*byte]).unwrap();
            client.flush().unwrap();
            std::thread::sleep(QUICK / 10);
        }
        assert!(is_closed(&mut client), "after {begun:?}");
    }
    listening.wait_open(0);
}

#[test]
fn many_questions_on_one_tls_connection_are_answered_and_the_bytes_that_wait_are_bounded() {
    let long = |query: &[u8]| {
        let text = [&[255][..], &[b'y'; 255]].concat();
        answer(query, &vec![record(TXT, 60, &text.repeat(30)); 8])
    };
    let upstream = Upstream::new(move |asked, _| {
        if asked.message[13] == b'w' {
            return vec![a(&asked.message, 0, [192, 0, 2, 1])];
        }
        let mut cut = crate::message::empty(&asked.message, 0);
        cut[2] |= 2;
        vec![if asked.tcp { long(&asked.message) } else { cut }]
    });
    let limits = EncryptedLimits {
        questions_per_connection: 8,
        answer_bytes: 200_000,
        idle: QUICK,
        ..EncryptedLimits::default()
    };
    let listening = Listening::before("dot-many", limits, upstream);
    let mut client = listening.client(HOST);
    let questions: Vec<u8> = (0..200).flat_map(|number| framed(&query(number, "www.example", A))).collect();
    client.write_all(&questions).unwrap();
    let mut ids: Vec<u16> = (0..200).map(|_| id(&read_one(&mut client).unwrap())).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..200));
    // Who takes nothing is closed, and what waited for it is given back.
    let mut greedy: Vec<Tls> = (0..4).map(|_| listening.client(HOST)).collect();
    for client in &mut greedy {
        for number in 0..300 {
            if client.write_all(&framed(&query(number, "huge.example", TXT))).is_err() {
                break;
            }
        }
    }
    wait_until(|| listening.met(Bound::ConnectionBytes) > 0, || "the bound is not met".to_owned());
    listening.wait_open(0);
    assert_eq!(id(&ask(&mut listening.client(HOST), 9).unwrap()), 9);
}

async fn https(
    listening: &Listening,
) -> (h2::client::SendRequest<bytes::Bytes>, tokio::task::JoinHandle<()>, h2::PingPong) {
    let stream = tokio::net::TcpStream::connect(listening.https).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(listening.config(b"h2"));
    let stream = connector.connect(ServerName::try_from("resolver.test").unwrap(), stream).await.unwrap();
    let (requests, mut connection) = h2::client::handshake(stream).await.unwrap();
    let pings = connection.ping_pong().unwrap();
    let ended = tokio::spawn(async move { drop(connection.await) });
    (requests, ended, pings)
}

fn request(method: &str, path: &str, kind: &str) -> http::Request<()> {
    let uri = format!("https://resolver.test{path}");
    http::Request::builder().method(method).uri(uri).header("content-type", kind).body(()).unwrap()
}

/// Status and body of the answer to one request; `body` `None`: it is never finished.
async fn exchange(
    requests: &mut h2::client::SendRequest<bytes::Bytes>,
    request: http::Request<()>,
    body: Option<Vec<u8>>,
) -> Result<(u16, Vec<u8>), h2::Error> {
    let is_post = request.method() == "POST";
    poll_fn(|cx| requests.poll_ready(cx)).await?;
    let (response, mut sender) = requests.send_request(request, !is_post)?;
    if is_post {
        let is_whole = body.is_some();
        sender.send_data(body.unwrap_or_else(|| vec![0; 5]).into(), is_whole)?;
    }
    let (head, mut stream) = response.await?.into_parts();
    let mut message = Vec::new();
    while let Some(part) = stream.data().await {
        message.extend_from_slice(&part?);
    }
    Ok((head.status.as_u16(), message))
}

#[test]
fn https_takes_post_and_get_says_what_is_wrong_and_closes_who_asks_nothing() {
    let limits = EncryptedLimits { idle: QUICK, ..EncryptedLimits::default() };
    let listening = Listening::new("doh", limits);
    const MESSAGE: &str = "application/dns-message";
    listening.runtime.block_on(async {
        let (mut requests, ended, mut pings) = https(&listening).await;
        let message = query(7, "www.example", A);
        let post = request("POST", "/dns-query", MESSAGE);
        let (status, reply) = exchange(&mut requests, post, Some(message.clone())).await.unwrap();
        assert_eq!((status, id(&reply), rcode(&reply)), (200, 7, 0));
        // RFC 8484 section 4.1.1: www.example.com, A.
        let get = request("GET", "/dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB", MESSAGE);
        let (status, reply) = exchange(&mut requests, get, None).await.unwrap();
        assert_eq!((status, id(&reply), rcode(&reply)), (200, 0, 0));
        for (method, path, kind, body, wanted) in [
            ("POST", "/", MESSAGE, message.clone(), 404),
            ("POST", "/dns-query", "text/plain", message.clone(), 415),
            ("POST", "/dns-query", MESSAGE, vec![0; 5000], 413),
            ("POST", "/dns-query", MESSAGE, vec![0; 3], 400),
            ("GET", "/dns-query?dns=%", MESSAGE, Vec::new(), 400),
            ("PUT", "/dns-query", MESSAGE, Vec::new(), 405),
        ] {
            let result = exchange(&mut requests, request(method, path, kind), Some(body)).await;
            assert_eq!(result.unwrap().0, wanted, "{method} {path} {kind}");
        }
        let unfinished = exchange(&mut requests, request("POST", "/dns-query", MESSAGE), None).await;
        assert!(unfinished.is_err(), "a question that never ends is given up");
        // Pings do not keep a connection open.
        let pinging = async {
            while pings.ping(h2::Ping::opaque()).await.is_ok() {
                tokio::time::sleep(QUICK / 10).await;
            }
        };
        tokio::time::timeout(PATIENCE, async { tokio::join!(pinging, ended).1 }).await.unwrap().unwrap();
    });
    listening.wait_open(0);
    let https: u64 = Outcome::ALL.iter().map(|o| listening.proxy.metrics.queries(Transport::Https, *o)).sum();
    assert_eq!(https, 3);
}
