//! The client's own socket: what can be asked of it, and followed.
//!
//! ```text
//! {"request": "follow"}     {"result": null}, then {"record": {…}} and {"lost": n} lines until either side ends it
//! {"request": "metrics"}    {"result": "<exposition text>"}
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fw_edge::socket::Listening;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::figures::{Figures, add, exposition};
use super::worker::Shared;
use crate::loss::Ledger;

/// Connections at one time.
const MAX_CONNECTIONS: usize = 16;
/// Longest request.
const MAX_REQUEST: u64 = 4096;
/// For a request to come and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be asked.
#[derive(Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
enum Request {
    Follow,
    Metrics,
}

/// What answers are made of.
pub(crate) struct Server {
    pub(crate) subscribers: broadcast::Sender<Arc<str>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) ledger: Arc<Ledger>,
}

impl Server {
    /// All families.
    pub(crate) fn exposition(&self) -> String {
        exposition(&self.figures, &self.ledger, &self.shared.lock())
    }

    /// Binds, and serves until dropped; a client without a socket still is one.
    pub(crate) async fn serve(self: Arc<Self>, path: PathBuf) {
        loop {
            match Listening::bind(&path) {
                Ok(listening) => self.accept(&listening).await,
                Err(error) => {
                    warn!("the socket {} cannot be bound: {error}", path.display());
                    sleep(PATIENCE).await;
                }
            }
        }
    }

    async fn accept(self: &Arc<Self>, listening: &Listening) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(stream) = listening.accept().await else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                add(&self.figures.refused_subscribers, 1);
                continue;
            };
            let server = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = server.converse(stream).await {
                    debug!("socket: {error}");
                }
                drop(place);
            });
        }
    }

    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        loop {
            let mut line = Vec::new();
            let mut request = (&mut reader).take(MAX_REQUEST);
            if timeout(PATIENCE, request.read_until(b'\n', &mut line)).await?? == 0 {
                return Ok(());
            }
            match serde_json::from_slice(&line) {
                Ok(Request::Metrics) => {
                    write(&mut writer, &serde_json::json!({ "result": self.exposition() })).await?;
                }
                Ok(Request::Follow) => {
                    // Before the answer: whoever has read it misses nothing from then on.
                    let records = self.subscribers.subscribe();
                    write(&mut writer, &serde_json::json!({ "result": null })).await?;
                    self.figures.subscribers.fetch_add(1, Ordering::Relaxed);
                    let followed = self.follow(records, reader, &mut writer).await;
                    self.figures.subscribers.fetch_sub(1, Ordering::Relaxed);
                    return followed;
                }
                Err(error) => {
                    let text = format!("the request was not understood: {error}");
                    write(&mut writer, &serde_json::json!({ "error": text })).await?;
                }
            }
            if !line.ends_with(b"\n") {
                return Ok(());
            }
        }
    }

    async fn follow(
        &self,
        mut records: broadcast::Receiver<Arc<str>>,
        mut reader: BufReader<OwnedReadHalf>,
        writer: &mut OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut ignored = [0; 64];
        loop {
            tokio::select! {
                received = records.recv() => match received {
                    Ok(line) => timeout(PATIENCE, writer.write_all(line.as_bytes())).await??,
                    Err(RecvError::Lagged(count)) => {
                        add(&self.figures.subscriber_losses, count);
                        write(writer, &serde_json::json!({ "lost": count })).await?;
                    }
                    Err(RecvError::Closed) => return Ok(()),
                },
                read = reader.read(&mut ignored) => if read? == 0 { return Ok(()) },
            }
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, value: &serde_json::Value) -> io::Result<()> {
    let line = value.to_string() + "\n";
    timeout(PATIENCE, writer.write_all(line.as_bytes())).await?
}
