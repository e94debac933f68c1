//! The two calls.

use std::sync::Arc;
use std::time::SystemTime;

use prost::Message;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::metrics::Metrics;
use super::printer::{Ended, Handle, Lines, Session};
use crate::line;
use crate::wire::{Ack, Batch, Drop, Droptailer, MOST_RECORD_BYTES, Void};

/// Acknowledgements that wait for a client to read them; with more the server reads no more of its records.
const MOST_ACKS: usize = 8;
/// Calls of Stream of one connection; a client has use for one.
pub(super) const MOST_STREAMS: usize = 4;

/// Answers the calls of one connection.
pub(super) struct Service {
    pub(super) metrics: Arc<Metrics>,
    pub(super) printer: Handle,
    pub(super) closing: watch::Receiver<u64>,
    pub(super) streams: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Droptailer for Service {
    async fn push(&self, request: Request<Drop>) -> Result<Response<Void>, Status> {
        if request.get_ref().encoded_len() > MOST_RECORD_BYTES {
            return Err(Status::out_of_range(format!("a record has at most {MOST_RECORD_BYTES} bytes")));
        }
        let turn = self.printer.turn().await.map_err(unavailable)?;
        let mut lines = Lines::default();
        lines.push(&format(request.get_ref(), &self.metrics));
        self.printer.print(lines, turn).await.map_err(unavailable)?;
        Ok(Response::new(Void {}))
    }

    type StreamStream = ReceiverStream<Result<Ack, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<Batch>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let place = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("more than {MOST_STREAMS} streams of one connection"))
        })?;
        let (acks, answer) = mpsc::channel(MOST_ACKS);
        let metrics = Arc::clone(&self.metrics);
        let stream = Stream { metrics: Arc::clone(&metrics), printer: self.printer.clone(), acks };
        let closing = self.closing.clone();
        // A task of its own, so that a batch that is being printed is counted as printed when the client goes away.
        tokio::spawn(async move {
            metrics.streams.inc();
            stream.serve(request.into_inner(), closing).await;
            metrics.streams.dec();
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(answer)))
    }
}

/// One call of Stream.
struct Stream {
    metrics: Arc<Metrics>,
    printer: Handle,
    acks: mpsc::Sender<Result<Ack, Status>>,
}

impl Stream {
    async fn serve(self, mut batches: Streaming<Batch>, mut closing: watch::Receiver<u64>) {
        let mut session = None;
        loop {
            // Between two batches: what was read is printed and acknowledged first.
            let batch = tokio::select! {
                biased;
                _ = closing.changed() => return,
                batch = batches.message() => batch,
            };
            let taken = match batch {
                Ok(Some(batch)) => self.take(batch, &mut session).await,
                Ok(None) => return,
                // The client is gone, or what it sends is no Batch.
                Err(status) => {
                    super::connection::count(&status, &self.metrics);
                    Err(status)
                }
            };
            if let Err(status) = taken {
                debug!("a stream ends: {}", status.message());
                let _ = self.acks.send(Err(status)).await;
                return;
            }
        }
    }

    async fn take(&self, batch: Batch, session: &mut Option<Session>) -> Result<(), Status> {
        let wrong = |text: &str| {
            self.metrics.refused.with_label_values(&["session"]).inc();
            Err(Status::invalid_argument(text))
        };
        let Ok(named) = Session::try_from(batch.session.as_slice()) else {
            return wrong("a session has 16 bytes");
        };
        if batch.first.checked_add(batch.drops.len() as u64).is_none() {
            return wrong("numbers end at 2^64");
        }
        if session.is_some_and(|before| before != named) {
            return wrong("a stream has one session");
        }
        if session.replace(named).is_none() {
            let turn = self.printer.turn().await.map_err(unavailable)?;
            let next =
                self.printer.print_numbered(named, 0, Lines::default(), turn).await.map_err(unavailable)?;
            self.ack(next).await?;
        }
        if batch.drops.is_empty() {
            return Ok(());
        }
        let turn = self.printer.turn().await.map_err(unavailable)?;
        let mut lines = Lines::default();
        for drop in &batch.drops {
            lines.push(&self.line(drop));
        }
        let next = self.printer.print_numbered(named, batch.first, lines, turn).await.map_err(unavailable)?;
        self.ack(next).await
    }

    /// A record that is too large has a line that says so: nothing is lost in silence, and the ones after it go on.
    fn line(&self, drop: &Drop) -> String {
        if drop.encoded_len() <= MOST_RECORD_BYTES {
            return format(drop, &self.metrics);
        }
        self.metrics.refused.with_label_values(&["size"]).inc();
        let fields = [("ACTION", "lost"), ("CAUSE", "refused"), ("COUNT", "1")];
        line::line(time(drop, &self.metrics), fields)
    }

    async fn ack(&self, next: u64) -> Result<(), Status> {
        self.acks.send(Ok(Ack { next })).await.map_err(|_| Status::cancelled("the client is gone"))
    }
}

fn format(drop: &Drop, metrics: &Metrics) -> String {
    line::line(time(drop, metrics), drop.fields.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}

/// The record's own time; where it has none that a line can show, now.
fn time(drop: &Drop, metrics: &Metrics) -> u64 {
    drop.timestamp.as_ref().and_then(line::seconds).unwrap_or_else(|| {
        metrics.untimed.inc();
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    })
}

/// Worth another try, with the server that comes next.
fn unavailable(ended: Ended) -> Status {
    Status::unavailable(ended.to_string())
}
