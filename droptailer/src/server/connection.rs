//! One connection: TLS, HTTP/2 with its bounds, gRPC.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::codegen::Service as _;
use tonic::{Code, Status};
use tracing::debug;

use super::door::Place;
use super::metrics::Metrics;
use super::printer::Handle;
use super::service::{MOST_STREAMS, Service};
use crate::wire::{DroptailerServer, MOST_BATCH_BYTES};

/// Requests of one connection at one time. Today's client has one, and so has ours.
const MOST_REQUESTS: u32 = 32;
/// Bytes of a request's headers.
const MOST_HEADER_BYTES: u32 = 8 << 10;
/// Bytes that a client may send ahead in one request, and in all of a connection.
const WINDOW: (u32, u32) = (256 << 10, 1 << 20);
/// A client that is silent for so long is asked whether it lives.
const ALIVE: Duration = Duration::from_secs(30);
/// A connection ends after so long; clients connect again. What was trusted once is not trusted for ever.
const MOST_AGE: Duration = Duration::from_secs(12 * 3600);
/// For requests to end when a connection is to.
const GRACE: Duration = Duration::from_secs(5);

/// Bytes that every HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: u64 = 24;

/// What all connections use.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) metrics: Arc<Metrics>,
    pub(super) printer: Handle,
    pub(super) patience: Duration,
    /// Changes when connections are to end.
    pub(super) closing: watch::Receiver<u64>,
}

/// Serves one client until it goes away or has to.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Arc<ServerConfig>,
    shared: Shared,
    place: Place,
) {
    let count = |outcome: &str| shared.metrics.connections.with_label_values(&[outcome]).inc();
    // Acknowledgements are small and waited for.
    let _ = stream.set_nodelay(true);
    match timeout(shared.patience, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => {
            count("served");
            speak(stream, &shared).await;
        }
        Ok(Err(error)) => {
            count("tls");
            debug!("{peer} is refused: {error}");
        }
        Err(_) => {
            count("slow");
            debug!("{peer} is too slow");
        }
    }
    drop(place);
}

async fn speak(stream: TlsStream<TcpStream>, shared: &Shared) {
    let mut closing = shared.closing.clone();
    closing.mark_unchanged();
    let service = Service {
        metrics: Arc::clone(&shared.metrics),
        printer: shared.printer.clone(),
        closing: closing.clone(),
        streams: Arc::new(Semaphore::new(MOST_STREAMS)),
    };
    let metrics = Arc::clone(&shared.metrics);
    let patience = shared.patience;
    let service = DroptailerServer::new(service).max_decoding_message_size(MOST_BATCH_BYTES);
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let mut service = service.clone();
        let metrics = Arc::clone(&metrics);
        // A stream is open for as long as its client likes; it is bounded in memory, and its client is asked for life.
        let limit = (!request.uri().path().ends_with("/Stream")).then_some(patience);
        let request = request.map(|body| Timed { body, deadline: limit.map(|limit| Box::pin(sleep(limit))) });
        async move {
            let response = service.call(request).await?;
            if let Some(status) = Status::from_header_map(response.headers()) {
                self::count(&status, &metrics);
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let received = Arc::new(AtomicU64::new(0));
    let io = TokioIo::new(Counted { io: stream, received: Arc::clone(&received) });
    let mut connection = pin!(
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MOST_REQUESTS)
            .max_header_list_size(MOST_HEADER_BYTES)
            .initial_stream_window_size(WINDOW.0)
            .initial_connection_window_size(WINDOW.1)
            .max_send_buf_size(64 << 10)
            .keep_alive_interval(ALIVE)
            .keep_alive_timeout(shared.patience)
            .serve_connection(io, answer)
    );
    let mut deadline = pin!(sleep(shared.patience));
    let mut state = State::Beginning;
    loop {
        tokio::select! {
            // How a client goes away is its own business.
            _ = connection.as_mut() => return,
            _ = closing.changed(), if state != State::Ending => {
                state = State::Ending;
                connection.as_mut().graceful_shutdown();
                deadline.as_mut().reset(Instant::now() + GRACE);
            }
            () = deadline.as_mut() => match state {
                State::Beginning if received.load(Ordering::Relaxed) >= PREFACE => {
                    state = State::Serving;
                    deadline.as_mut().reset(Instant::now() + MOST_AGE);
                }
                State::Serving => {
                    state = State::Ending;
                    connection.as_mut().graceful_shutdown();
                    deadline.as_mut().reset(Instant::now() + GRACE);
                }
                State::Beginning => {
                    shared.metrics.connections.with_label_values(&["slow"]).inc();
                    return;
                }
                State::Ending => return,
            },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was received yet but the handshake.
    Beginning,
    Serving,
    /// Requests that are under way may end.
    Ending,
}

/// Counts what a client did wrong; not that it went away.
pub(super) fn count(status: &Status, metrics: &Metrics) {
    let reason = match status.code() {
        Code::OutOfRange => "size",
        Code::Internal | Code::InvalidArgument => "malformed",
        _ => return,
    };
    metrics.refused.with_label_values(&[reason]).inc();
}

/// A request's body that has to be here in time. Behind it everything may take as long as standard output does.
struct Timed {
    body: Incoming,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| Status::from_error(error.into()))));
        }
        match self.deadline.as_mut().map(|deadline| deadline.as_mut().poll(context)) {
            Some(Poll::Ready(())) => {
                Poll::Ready(Some(Err(Status::deadline_exceeded("the request takes too long"))))
            }
            _ => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Counts what arrives.
struct Counted<T> {
    io: T,
    received: Arc<AtomicU64>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        let count = buffer.filled().len().saturating_sub(before);
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
