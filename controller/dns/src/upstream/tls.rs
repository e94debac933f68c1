//! Questions by DNS over TLS (RFC 7858): one connection per upstream, with any number of questions on it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use crate::config::Roots;
use crate::flight::Key;
use crate::upstream::tcp::{frame, read_frame};

/// A connection on which nothing is asked is closed after this (RFC 7858 section 3.4 leaves it to us).
const IDLE: Duration = Duration::from_secs(10);
/// Connecting and shaking hands.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// One connection, from before it is made.
#[derive(Debug, Default)]
pub(crate) struct Link {
    asked: RefCell<BTreeMap<u16, Key>>,
    outgoing: RefCell<VecDeque<Vec<u8>>>,
    to_write: Notify,
    closed: Cell<bool>,
}

impl Link {
    pub(crate) fn closed(&self) -> bool {
        self.closed.get()
    }

    pub(crate) fn uses_id(&self, id: u16) -> bool {
        self.asked.borrow().contains_key(&id)
    }

    /// Queues a question.
    pub(crate) fn ask(&self, id: u16, key: Key, query: &[u8]) -> io::Result<()> {
        self.outgoing.borrow_mut().push_back(frame(query)?);
        self.asked.borrow_mut().insert(id, key);
        self.to_write.notify_one();
        Ok(())
    }

    /// What was asked with this id.
    pub(crate) fn find(&self, id: u16) -> Option<Key> {
        self.asked.borrow().get(&id).copied()
    }

    pub(crate) fn remove(&self, id: u16) {
        self.asked.borrow_mut().remove(&id);
    }

    /// Marks it as gone; what it asked.
    pub(crate) fn close(&self) -> Vec<Key> {
        self.closed.set(true);
        std::mem::take(&mut *self.asked.borrow_mut()).into_values().collect()
    }

    /// Connects and carries questions and answers until either side has enough; hands each message to `take`.
    pub(crate) async fn carry(
        &self,
        (server, name): (SocketAddr, &str),
        config: Arc<ClientConfig>,
        take: impl FnMut(Vec<u8>),
    ) -> io::Result<()> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let connect = async {
            let stream = TcpStream::connect(server).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(config).connect(name, stream).await
        };
        let stream = timeout(HANDSHAKE, connect).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let (reader, writer) = tokio::io::split(stream);
        tokio::try_join!(self.read(reader, take), self.write(writer)).map(drop)
    }

    async fn read(
        &self,
        mut stream: ReadHalf<TlsStream<TcpStream>>,
        mut take: impl FnMut(Vec<u8>),
    ) -> io::Result<()> {
        loop {
            take(read_frame(&mut stream).await?);
        }
    }

    async fn write(&self, mut stream: WriteHalf<TlsStream<TcpStream>>) -> io::Result<()> {
        loop {
            let next = self.outgoing.borrow_mut().pop_front();
            if let Some(frame) = next {
                stream.write_all(&frame).await?;
                stream.flush().await?;
            } else if timeout(IDLE, self.to_write.notified()).await.is_err() && self.asked.borrow().is_empty()
            {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// What upstreams' certificates are checked against.
pub(crate) fn client_config(roots: &Roots) -> io::Result<Arc<ClientConfig>> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::System => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Roots::File(path) => {
            let certificates = CertificateDer::pem_file_iter(path).map_err(io::Error::other)?;
            for certificate in certificates {
                let certificate = certificate.map_err(io::Error::other)?;
                store.add(certificate).map_err(io::Error::other)?;
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
