//! What brings records to the server: in order, until it says that it has printed them.
//!
//! By stream: batches go out ahead of the acknowledgements, a bounded number of them. A server that does not know the
//! call gets one record at a time. Whatever fails, the connection is given up and made again, with the address looked up
//! anew; records wait in the spool meanwhile.

mod backoff;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fw_edge::chain;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::service_fn;
use tracing::{info, warn};

pub(crate) use backoff::Backoff;

use super::figures::{Figures, add, put};
use super::worker::Shared;
use crate::loss::{Cause, Ledger};
use crate::tls::{Files, Look, Reloading, TlsError};
use crate::wire::{Ack, Batch, Drop, DroptailerClient, MOST_BATCH_BYTES, SERVER_NAME};

/// For connection, handshake and the first answer together.
const CONNECT: Duration = Duration::from_secs(10);
/// For an acknowledgement or an answer, while something is under way.
const ANSWER: Duration = Duration::from_secs(15);
/// Records of a batch, and batches under way.
const BATCH: usize = 128;
const WINDOW: usize = 8;
/// How often the files of certificates are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// For the last records, when the client ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("no connection to {address}")]
    Connect { address: String, source: tonic::transport::Error },
    #[error("the server refused")]
    Status(#[from] Status),
    #[error("the server says nothing")]
    Silent,
    #[error("the server ended the stream")]
    Ended,
    #[error(transparent)]
    Certificates(#[from] TlsError),
    #[error("certificates were renewed")]
    Renewed,
}

/// What the task needs.
pub(crate) struct Sender {
    pub(crate) address: String,
    pub(crate) files: Files,
    pub(crate) shared: Arc<Shared>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) ledger: Arc<Ledger>,
    /// Set when the worker has ended: what is in the spool is all there is.
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) backoff: Backoff,
}

impl Sender {
    /// Until it is stopped, and a little longer if something waits.
    pub(crate) async fn run(mut self) {
        let mut certificates = None;
        let mut complained = String::new();
        loop {
            let begin = Instant::now();
            let error = match self.connect_and_send(&mut certificates).await {
                Ok(()) => return,
                Err(error) => error,
            };
            put(&self.figures.connected, 0);
            put(&self.figures.streaming, 0);
            if matches!(error, SendError::Renewed) {
                info!("connecting again: {error}");
                continue;
            }
            add(&self.figures.failed_connections, 1);
            let text = chain(&error);
            if text != complained {
                warn!("{} records wait for the server: {text}", self.shared.lock().waiting());
                complained = text;
            }
            // A connection that held for a while is no reason to be slow.
            if begin.elapsed() > ANSWER {
                self.backoff.reset();
            }
            let mut random = [0; 4];
            // Without random numbers all clients come at the same time, which is no reason not to come.
            getrandom::fill(&mut random).ok();
            let pause = self.backoff.next(u32::from_ne_bytes(random));
            let until = tokio::time::Instant::now() + pause;
            while tokio::time::Instant::now() < until {
                if self.is_stopped() {
                    return;
                }
                sleep(Duration::from_millis(50).min(pause)).await;
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// `Ok`: stopped, and nothing waits.
    async fn connect_and_send(
        &mut self,
        certificates: &mut Option<Reloading<ClientConfig>>,
    ) -> Result<(), SendError> {
        let reloading = match certificates.take() {
            Some(reloading) => reloading,
            None => Reloading::open(self.files.clone(), Files::client)?,
        };
        // What is new is used now.
        self.look(&reloading);
        let current = reloading.current();
        let reloading = certificates.insert(reloading);
        let connecting = connect(&self.address, current);
        let channel = timeout(CONNECT, connecting).await.map_err(|_| SendError::Silent)?;
        let channel =
            channel.map_err(|source| SendError::Connect { address: self.address.clone(), source })?;
        add(&self.figures.connections, 1);
        put(&self.figures.connected, 1);
        info!("connected to {}", self.address);
        let mut client = DroptailerClient::new(channel);
        match self.stream(&mut client, reloading).await {
            Err(SendError::Status(status)) if status.code() == Code::Unimplemented => {
                info!("the server takes one record at a time");
                self.push(&mut client, reloading).await
            }
            other => other,
        }
    }

    async fn stream(
        &mut self,
        client: &mut DroptailerClient<Channel>,
        certificates: &Reloading<ClientConfig>,
    ) -> Result<(), SendError> {
        let (batches, outgoing) = mpsc::channel(WINDOW);
        let session = self.shared.lock().session().to_vec();
        let hello = Batch { session: session.clone(), first: 0, drops: Vec::new() };
        batches.send(hello).await.map_err(|_| SendError::Ended)?;
        let opening = client.stream(ReceiverStream::new(outgoing));
        let mut acks = timeout(CONNECT, opening).await.map_err(|_| SendError::Silent)??.into_inner();
        let first = timeout(CONNECT, acks.message()).await.map_err(|_| SendError::Silent)??;
        self.acknowledged(first.ok_or(SendError::Ended)?);
        self.backoff.reset();
        put(&self.figures.streaming, 1);
        let mut cursor = self.shared.lock().oldest();
        let mut under_way = 0;
        let (mut heard, mut looked) = (Instant::now(), Instant::now());
        let mut stopped = None;
        loop {
            while under_way < WINDOW {
                let Some(batch) = self.next_batch(&session, &mut cursor) else { break };
                if under_way == 0 {
                    heard = Instant::now();
                }
                let sending = timeout(ANSWER, batches.send(batch)).await;
                sending.map_err(|_| SendError::Silent)?.map_err(|_| SendError::Ended)?;
                under_way += 1;
            }
            if self.is_over(under_way == 0, &mut stopped) {
                return Ok(());
            }
            tokio::select! {
                ack = acks.message() => {
                    self.acknowledged(ack?.ok_or(SendError::Ended)?);
                    under_way = under_way.saturating_sub(1);
                    heard = Instant::now();
                }
                () = self.shared.filled.notified(), if under_way < WINDOW => {}
                () = sleep(self.pause()) => {}
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if self.look(certificates) {
                    return Err(SendError::Renewed);
                }
            }
            if under_way > 0 && heard.elapsed() > ANSWER {
                return Err(SendError::Silent);
            }
        }
    }

    /// Records from `cursor` on, which moves behind them.
    fn next_batch(&self, session: &[u8], cursor: &mut u64) -> Option<Batch> {
        let read = self.shared.lock().read(*cursor, BATCH, MOST_BATCH_BYTES / 2);
        let first = read.first()?.number;
        let mut drops = Vec::with_capacity(read.len());
        for stored in read {
            // A batch has no gaps: what the disk did not give back begins the next one.
            if stored.number != first + u64::try_from(drops.len()).unwrap_or(0) {
                break;
            }
            *cursor = stored.number + 1;
            // Bytes of ours with a right checksum always decode; an empty record keeps the numbers in step.
            drops.push(Drop::decode(stored.bytes.as_slice()).unwrap_or_default());
        }
        Some(Batch { session: session.to_vec(), first, drops })
    }

    async fn push(
        &mut self,
        client: &mut DroptailerClient<Channel>,
        certificates: &Reloading<ClientConfig>,
    ) -> Result<(), SendError> {
        self.backoff.reset();
        let mut stopped = None;
        loop {
            let (oldest, read) = {
                let mut spool = self.shared.lock();
                let oldest = spool.oldest();
                (oldest, spool.read(oldest, BATCH, MOST_BATCH_BYTES))
            };
            if self.is_over(read.is_empty(), &mut stopped) {
                return Ok(());
            }
            if read.is_empty() {
                let waiting = self.shared.filled.notified();
                timeout(self.pause(), waiting).await.ok();
            }
            if self.look(certificates) {
                return Err(SendError::Renewed);
            }
            debug_assert!(read.first().is_none_or(|stored| stored.number >= oldest));
            for stored in read {
                let record = Drop::decode(stored.bytes.as_slice()).unwrap_or_default();
                let count = packets(&record);
                match timeout(ANSWER, client.push(record)).await.map_err(|_| SendError::Silent)? {
                    Ok(_) => {}
                    // As wrong the next time (droptailer.proto).
                    Err(status)
                        if matches!(
                            status.code(),
                            Code::OutOfRange | Code::InvalidArgument | Code::Internal
                        ) =>
                    {
                        self.ledger.lose(Cause::Refused, count);
                    }
                    Err(status) => return Err(status.into()),
                }
                self.acknowledged(Ack { next: stored.number + 1 });
            }
        }
    }

    fn acknowledged(&self, ack: Ack) {
        let mut spool = self.shared.lock();
        let before = spool.oldest();
        spool.acknowledge(ack.next);
        add(&self.figures.acknowledged, spool.oldest() - before);
    }

    /// True: certificates were renewed.
    fn look(&self, certificates: &Reloading<ClientConfig>) -> bool {
        match certificates.check() {
            Look::Same => false,
            Look::Loaded => {
                add(&self.figures.certificates_loaded, 1);
                true
            }
            Look::Failed(error) => {
                add(&self.figures.certificates_failed, 1);
                warn!("certificates stay as they are: {}", chain(&error));
                false
            }
        }
    }

    /// Between two looks at everything else.
    fn pause(&self) -> Duration {
        if self.is_stopped() { Duration::from_millis(50) } else { Duration::from_millis(500) }
    }

    /// True when the client is to end, and nothing waits or it has waited long enough.
    fn is_over(&self, nothing_under_way: bool, stopped: &mut Option<Instant>) -> bool {
        if !self.is_stopped() {
            return false;
        }
        let since = stopped.get_or_insert_with(Instant::now);
        (nothing_under_way && self.shared.lock().waiting() == 0) || since.elapsed() > FAREWELL
    }
}

/// Packets that a record stands for.
fn packets(record: &Drop) -> u64 {
    record.fields.get("COUNT").and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// One connection; the name is looked up now.
async fn connect(address: &str, config: Arc<ClientConfig>) -> Result<Channel, tonic::transport::Error> {
    let origin = Uri::from_static("https://droptailer");
    let endpoint = Endpoint::from_static("http://droptailer")
        .origin(origin)
        // No pings: a server written in Go takes more than one in five minutes for an attack (its keepalive policy), and
        // what is under way has a deadline of its own.
        .initial_stream_window_size(1 << 20);
    let address = address.to_owned();
    let connector = service_fn(move |_: Uri| {
        let (address, connector) = (address.clone(), TlsConnector::from(Arc::clone(&config)));
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    endpoint.connect_with_connector(connector).await
}
