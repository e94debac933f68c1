//! Listeners for DNS over TLS (RFC 7858) and over HTTPS (RFC 8484).
//!
//! They run on any runtime, best not the proxy's: a handshake takes a thousand times as long as a question. A question
//! goes to the proxy's thread by its bounded queue of orders, as it came, and passes the same decision; so does its
//! answer. Connections are accepted here and not by hickory-server, which takes any number of them
//! (hickory-server 0.26.3, `handle_tls` and `handle_h2_with_acceptor`).

mod https;
mod papers;
mod places;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig, crypto::ring};

use crate::handle::{Handle, Order};
use crate::metrics::{Bound, Transport};
use crate::sockets::tcp_listener;
use crate::wire::{self, rcode};
pub use papers::Papers;
use places::{Place, Places};

/// How long `accept` rests when the kernel has no descriptor left.
const REST: Duration = Duration::from_millis(50);

/// Where to listen, and as whom.
#[derive(Clone, Debug)]
pub struct EncryptedConfig {
    /// Addresses to listen on.
    pub addresses: Vec<IpAddr>,
    /// Port for DNS over TLS, usually 853. `None`: not served.
    pub tls_port: Option<u16>,
    /// Port for DNS over HTTPS (HTTP/2), usually 443. `None`: not served.
    pub https_port: Option<u16>,
    /// PEM file with the certificate and those between it and the root.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// Bounds.
    pub limits: EncryptedLimits,
}

/// Bounds; [`crate::metrics::Bound`] counts how often they are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncryptedLimits {
    /// Connections of both kinds, those in their handshake too; more are closed at once. Each takes up to some 100 KiB.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_client: usize,
    /// Questions of one connection that are not answered yet; more are read later.
    pub questions_per_connection: usize,
    /// Bytes of answers that wait for connections to take them, in all; past it answers are dropped.
    pub answer_bytes: usize,
    /// A TLS handshake takes at most this long.
    pub handshake: Duration,
    /// A connection that asks and is answered nothing is closed after this, whatever else it sends; no question may
    /// take longer to arrive, and no answer to be taken.
    pub idle: Duration,
}

impl Default for EncryptedLimits {
    fn default() -> Self {
        Self {
            connections: 512,
            connections_per_client: 64,
            questions_per_connection: 64,
            answer_bytes: 16 << 20,
            handshake: Duration::from_secs(5),
            idle: Duration::from_secs(10),
        }
    }
}

/// Why the listeners cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum EncryptedError {
    /// No PEM, or no such file.
    #[error("cannot read {path}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not fit.
    #[error("cannot use the certificate")]
    Certificate(#[source] rustls::Error),
    /// The port is taken, for example.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Open listeners that do not answer yet.
#[derive(Debug)]
pub struct Encrypted {
    tls: Vec<TcpListener>,
    https: Vec<TcpListener>,
    config: ServerConfig,
    papers: Papers,
    limits: EncryptedLimits,
}

impl Encrypted {
    /// Opens the sockets and reads certificate and key.
    ///
    /// # Errors
    /// See [`EncryptedError`].
    pub fn bind(config: &EncryptedConfig) -> Result<Self, EncryptedError> {
        let papers = Papers::read(&config.certificate, &config.key)?;
        let server = server_config(&papers)?;
        let listen =
            |port: Option<u16>| port.map_or(Ok(Vec::new()), |port| listeners(&config.addresses, port));
        let (tls, https) = (listen(config.tls_port)?, listen(config.https_port)?);
        Ok(Self { tls, https, config: server, papers, limits: config.limits })
    }

    /// The certificate clients are shown, to be replaced while it is served.
    pub fn papers(&self) -> Papers {
        self.papers.clone()
    }

    /// Where DNS over TLS is served.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.tls.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Where DNS over HTTPS is served.
    pub fn https_addresses(&self) -> Vec<SocketAddr> {
        self.https.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Answers through the proxy until the future is dropped; everything it started ends with it.
    ///
    /// # Errors
    /// A socket that cannot be registered with the runtime, or that fails for good.
    pub async fn run(self, handle: Handle) -> io::Result<()> {
        let Self { tls, https, config, limits, .. } = self;
        let bytes = Arc::new(Semaphore::new(limits.answer_bytes.min(Semaphore::MAX_PERMITS)));
        let front = Arc::new(Front { places: Places::new(limits, &handle), handle, limits, bytes });
        let mut listening = JoinSet::new();
        let listeners = tls.into_iter().map(|listener| (listener, Way::Tls));
        for (listener, way) in listeners.chain(https.into_iter().map(|listener| (listener, Way::Https))) {
            let acceptor = TlsAcceptor::from(with_protocol(&config, way.protocol()));
            let listener = tokio::net::TcpListener::from_std(listener)?;
            listening.spawn(listen(listener, acceptor, way, Arc::clone(&front)));
        }
        match listening.join_next().await {
            Some(result) => result.map_err(io::Error::other),
            None => std::future::pending().await,
        }
    }
}

fn listeners(addresses: &[IpAddr], port: u16) -> Result<Vec<TcpListener>, EncryptedError> {
    let listen = |ip: &IpAddr| {
        let address = SocketAddr::new(*ip, port);
        tcp_listener(address).map_err(|source| EncryptedError::Listen { address, source })
    };
    addresses.iter().map(listen).collect()
}

fn server_config(papers: &Papers) -> Result<ServerConfig, EncryptedError> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(EncryptedError::Certificate)?;
    Ok(builder.with_no_client_auth().with_cert_resolver(Arc::new(papers.clone())))
}

fn with_protocol(config: &ServerConfig, protocol: &[u8]) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

/// What is spoken inside of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tls,
    Https,
}

impl Way {
    /// As ALPN calls it (RFC 7301).
    fn protocol(self) -> &'static [u8] {
        match self {
            Self::Tls => b"dot",
            Self::Https => b"h2",
        }
    }
}

/// What all connections share.
#[derive(Debug)]
struct Front {
    handle: Handle,
    places: Arc<Places>,
    limits: EncryptedLimits,
    bytes: Arc<Semaphore>,
}

/// What became of a question.
enum Answer {
    /// The answer to be sent, and its share of the bytes that may wait.
    Message(Vec<u8>, Option<OwnedSemaphorePermit>),
    /// None: it was no question, or there is no room for its answer.
    Nothing,
}

impl Front {
    /// The proxy's answer; SERVFAIL when it has no room.
    async fn ask(&self, message: Vec<u8>, transport: Transport, client: SocketAddr) -> Answer {
        let (reply, answer) = oneshot::channel();
        let failed = wire::header_answer(&message, rcode::SERVFAIL);
        let order = Order::Ask { message, transport, client, reply };
        if self.handle.orders.try_send(order).is_err() {
            self.handle.metrics.bound_met(Bound::Queue);
            return Answer::Message(failed, None);
        }
        let Ok(message) = answer.await else { return Answer::Nothing };
        let share = u32::try_from(message.len()).unwrap_or(u32::MAX);
        match Arc::clone(&self.bytes).try_acquire_many_owned(share) {
            Ok(share) => Answer::Message(message, Some(share)),
            Err(_) => {
                self.handle.metrics.bound_met(Bound::ConnectionBytes);
                Answer::Nothing
            }
        }
    }
}

/// Accepts connections; those past the bounds are closed at once.
async fn listen(listener: tokio::net::TcpListener, acceptor: TlsAcceptor, way: Way, front: Arc<Front>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    if let Some(place) = front.places.enter(client.ip()) {
                        let (acceptor, front) = (acceptor.clone(), Arc::clone(&front));
                        connections.spawn(converse(stream, client, acceptor, way, front, place));
                    }
                }
                // Errors of the connection among them (accept(2)), after which the next one is taken at once.
                Err(error) if error.raw_os_error().is_none_or(is_of_the_machine) => {
                    tracing::warn!(%error, "cannot accept a connection for DNS over TLS");
                    tokio::time::sleep(REST).await;
                }
                Err(_) => {}
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// No descriptors or no memory: it would fail again at once.
fn is_of_the_machine(errno: i32) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(errno, EMFILE | ENFILE | ENOBUFS | ENOMEM)
}

/// One connection from its handshake to its end, which is the client's business.
async fn converse(
    stream: TcpStream,
    client: SocketAddr,
    acceptor: TlsAcceptor,
    way: Way,
    front: Arc<Front>,
    place: Place,
) {
    stream.set_nodelay(true).ok();
    let stream = match timeout(front.limits.handshake, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%client, %error, "no TLS handshake");
            return front.handle.metrics.bound_met(Bound::TlsHandshake);
        }
        Err(_) => return front.handle.metrics.bound_met(Bound::TlsHandshake),
    };
    match way {
        Way::Tls => drop(tls::serve(stream, client, &front).await),
        Way::Https => drop(https::serve(stream, client, &front).await),
    }
    drop(place);
}
