//! A proxy on a thread of its own, and clients of it.

use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fw_dns::config::{OriginalDestination, Settings};
use fw_dns::metrics::{Outcome, Transport};
use fw_dns::{Ask, Config, Decision, Handle, Metrics, Proxy, Question, Release};
use fw_policy::Upstream;
use tokio::sync::oneshot;

use crate::message::{id, with_id};

/// Nothing here takes as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What the decision does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Manner {
    /// Every answer leaves as it is.
    Open,
    /// No answer is ever released.
    Never,
    /// Answers are held back.
    Hold,
    /// Answers leave after a while.
    Late(Duration),
    /// TTLs are lowered.
    Lower(u32),
    /// Every question is refused with this code.
    Refuse(u8),
}

/// What the decision was shown: message and age.
pub(crate) type Seen = Arc<Mutex<Vec<(Vec<u8>, u32)>>>;

struct Scripted {
    manner: Manner,
    seen: Seen,
}

impl Decision for Scripted {
    fn ask(&self, _: &Question<'_>) -> Ask {
        match self.manner {
            Manner::Refuse(rcode) => Ask::Refuse(rcode),
            _ => Ask::Forward,
        }
    }

    async fn release(&self, message: &[u8], age: u32) -> Release {
        self.seen.lock().unwrap().push((message.to_vec(), age));
        match self.manner {
            Manner::Never => std::future::pending().await,
            Manner::Hold => Release::Hold,
            Manner::Late(while_) => {
                tokio::time::sleep(while_).await;
                Release::Send { ttl_max: None }
            }
            Manner::Lower(ttl) => Release::Send { ttl_max: Some(ttl) },
            Manner::Open | Manner::Refuse(_) => Release::Send { ttl_max: None },
        }
    }
}

/// Says that clients asked these resolvers, in turn.
struct Chosen {
    resolvers: Vec<SocketAddr>,
    next: Cell<usize>,
}

impl OriginalDestination for Chosen {
    fn of(&self, _: Transport, _: SocketAddr, _: SocketAddr) -> Option<SocketAddr> {
        let next = self.next.get();
        self.next.set(next + 1);
        self.resolvers.get(next % self.resolvers.len().max(1)).copied()
    }
}

/// A running proxy; ends with this value.
pub(crate) struct Running {
    pub(crate) port: u16,
    pub(crate) handle: Handle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) seen: Seen,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Settings with these upstreams.
pub(crate) fn asking(upstreams: &[SocketAddr]) -> Settings {
    let upstream = |address: &SocketAddr| Upstream { address: *address, tls_name: None };
    Settings { upstreams: upstreams.iter().map(upstream).collect(), ..Settings::default() }
}

impl Running {
    pub(crate) fn new(upstream: SocketAddr, manner: Manner) -> Self {
        Self::start(asking(&[upstream]), manner, None)
    }

    pub(crate) fn with(settings: Settings) -> Self {
        Self::start(settings, Manner::Open, None)
    }

    /// Without upstreams: clients ask these in turn.
    pub(crate) fn choosing(resolvers: &[SocketAddr]) -> Self {
        Self::launch(Settings::default(), Manner::Open, resolvers.to_vec())
    }

    pub(crate) fn start(settings: Settings, manner: Manner, chosen: Option<SocketAddr>) -> Self {
        Self::launch(settings, manner, chosen.into_iter().collect())
    }

    /// Bound to the wildcard addresses; only for network namespaces of a test.
    pub(crate) fn everywhere(settings: Settings, manner: Manner) -> Self {
        Self::bind(&Config { port: 0, settings, ..Config::default() }, manner, Vec::new())
    }

    fn launch(settings: Settings, manner: Manner, resolvers: Vec<SocketAddr>) -> Self {
        let addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        Self::bind(&Config { port: 0, addresses, settings }, manner, resolvers)
    }

    fn bind(config: &Config, manner: Manner, resolvers: Vec<SocketAddr>) -> Self {
        let proxy = Proxy::bind(config).unwrap();
        let (port, handle, metrics) = (proxy.port(), proxy.handle(), proxy.metrics());
        let (stop, stopped) = oneshot::channel();
        let seen = Seen::default();
        let scripted = Scripted { manner, seen: Arc::clone(&seen) };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let chosen = Rc::new(Chosen { resolvers, next: Cell::new(0) });
            runtime.block_on(async {
                tokio::select! {
                    result = proxy.run(Rc::new(scripted), chosen) => result.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { port, handle, metrics, seen, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port)
    }

    /// A client socket connected to the proxy, so that it takes answers from the asked address only.
    pub(crate) fn client(&self) -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(self.address()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// One question by UDP and its answer.
    pub(crate) fn udp(&self, query: &[u8]) -> Vec<u8> {
        let client = self.client();
        client.send(query).unwrap();
        let answer = receive(&client);
        assert_eq!(id(&answer), id(query));
        answer
    }

    /// One question by TCP and its answer.
    pub(crate) fn tcp(&self, query: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        stream.write_all(&framed(query)).unwrap();
        let answer = read_framed(&mut stream);
        assert_eq!(id(&answer), id(query));
        answer
    }

    /// Waits until questions have had this outcome this many times.
    pub(crate) fn wait_for(&self, outcome: Outcome, count: u64) {
        wait_until(
            || self.metrics.outcome(outcome) >= count,
            || format!("{outcome:?} is {} instead of {count}", self.metrics.outcome(outcome)),
        );
    }

    /// How many questions have had an outcome.
    pub(crate) fn outcomes(&self) -> u64 {
        Outcome::ALL.iter().map(|outcome| self.metrics.outcome(*outcome)).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(result.is_ok() || std::thread::panicking(), "the proxy's thread panicked");
        }
    }
}

pub(crate) fn wait_until(mut done: impl FnMut() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{}", what());
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).expect("an answer by UDP");
    buffer.truncate(length);
    buffer
}

pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

pub(crate) fn read_framed(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("an answer by TCP");
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    message
}

/// Two answers but for their ids.
pub(crate) fn same_but_id(left: &[u8], right: &[u8]) -> bool {
    with_id(left.to_vec(), 0) == with_id(right.to_vec(), 0)
}
