//! Listeners for DNS over TLS (RFC 7858) and over HTTPS (RFC 8484), served by hickory-server.
//!
//! They run on any runtime, best not the proxy's: a handshake takes a thousand times as long as a question. The whole
//! question goes to the proxy's thread by its bounded queue of orders and passes the same decision. hickory-server sends
//! records, not bytes, so the answer is decoded and written anew here: unknown types stay as they are, compression and
//! the order of sections may differ. It takes the questions of one TLS connection one after another.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use hickory_net::runtime::Time;
use hickory_net::xfer::Protocol;
use hickory_proto::op::{Header, HeaderCounts, Message, MessageType, Metadata, ResponseCode};
use hickory_server::Server;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::sync::oneshot;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig, crypto::ring};

use crate::handle::{Handle, Order};
use crate::metrics::{Bound, Transport};
use crate::sockets::tcp_listener;

/// A handshake, and silence between questions.
const PATIENCE: Duration = Duration::from_secs(10);
/// The path of RFC 8484's examples, which clients use unless told otherwise.
const HTTPS_PATH: &str = "/dns-query";

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
        Ok(Self { tls: listen(config.tls_port)?, https: listen(config.https_port)?, config: server, papers })
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

    /// Answers through the proxy until the future is dropped.
    ///
    /// # Errors
    /// A socket that cannot be registered with the runtime, or that fails for good.
    pub async fn run(self, handle: Handle) -> io::Result<()> {
        let mut server = Server::new(Front { handle });
        for listener in self.tls {
            let config = with_protocol(&self.config, b"dot");
            let listener = tokio::net::TcpListener::from_std(listener)?;
            server.register_tls_listener_with_tls_config(listener, PATIENCE, config)?;
        }
        for listener in self.https {
            let config = with_protocol(&self.config, b"h2");
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let path = HTTPS_PATH.to_owned();
            server.register_https_listener_with_tls_config(listener, PATIENCE, config, None, path)?;
        }
        server.block_until_done().await.map_err(io::Error::other)
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

/// The certificate and the key in use; all clones are the same.
#[derive(Clone, Debug)]
pub struct Papers(Arc<RwLock<Arc<CertifiedKey>>>);

impl Papers {
    fn read(certificate: &Path, key: &Path) -> Result<Self, EncryptedError> {
        Ok(Self(Arc::new(RwLock::new(certified_key(certificate, key)?))))
    }

    /// Reads certificate and key again; handshakes from now on use them, connections that stand go on.
    ///
    /// # Errors
    /// See [`EncryptedError`]; those in use stay.
    pub fn replace(&self, certificate: &Path, key: &Path) -> Result<(), EncryptedError> {
        let new = certified_key(certificate, key)?;
        // Nothing can panic while it is held.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}

impl ResolvesServerCert for Papers {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn certified_key(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, EncryptedError> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|source| EncryptedError::Pem { path: certificate.to_owned(), source })?;
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|source| EncryptedError::Pem { path: key.to_owned(), source })?;
    CertifiedKey::from_der(chain, private, &ring::default_provider())
        .map(Arc::new)
        .map_err(EncryptedError::Certificate)
}

fn with_protocol(config: &ServerConfig, protocol: &[u8]) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

/// Hands questions to the proxy.
struct Front {
    handle: Handle,
}

impl Front {
    /// The proxy's answer. `None`: it has no room, or does not answer this.
    async fn ask(&self, request: &Request) -> Option<Message> {
        let transport = if request.protocol() == Protocol::Tls { Transport::Tls } else { Transport::Https };
        let (reply, answer) = oneshot::channel();
        let message = request.as_slice().to_vec();
        let order = Order::Ask { message, transport, client: request.src(), reply };
        if self.handle.orders.try_send(order).is_err() {
            self.handle.metrics.bound_met(Bound::Queue);
            return None;
        }
        Message::from_vec(&answer.await.ok()?).ok()
    }
}

#[async_trait]
impl RequestHandler for Front {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut client: R,
    ) -> ResponseInfo {
        let builder = MessageResponseBuilder::from_message_request(request);
        let sent = match self.ask(request).await {
            Some(answer) => {
                let mut builder = builder;
                if let Some(edns) = &answer.edns {
                    builder.edns(edns);
                }
                let mut metadata = answer.metadata;
                metadata.id = request.metadata.id;
                let (answers, authorities) = (&answer.answers, &answer.authorities);
                let response = builder.build(metadata, answers, authorities, [], &answer.additionals);
                client.send_response(response).await
            }
            None => {
                let response = builder.error_msg(&request.metadata, ResponseCode::ServFail);
                client.send_response(response).await
            }
        };
        sent.unwrap_or_else(|_| unsent(request))
    }
}

/// For hickory-server's own books.
fn unsent(request: &Request) -> ResponseInfo {
    let mut metadata = Metadata::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    metadata.response_code = ResponseCode::ServFail;
    Header { metadata, counts: HeaderCounts::default() }.into()
}
