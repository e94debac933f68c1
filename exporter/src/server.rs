//! HTTP: the metrics on their path, `/healthz`, and nothing else.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::debug;

use crate::config::{Config, ConfigError};
use crate::families::Pieces;
use crate::scrape::Scraper;

/// Connections at one time.
pub const MAX_CONNECTIONS: usize = 16;
/// For a request's head to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest life of a connection: whoever reads that slowly begins again.
const LIFETIME: Duration = Duration::from_secs(300);
/// Prometheus' text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What all connections share.
#[derive(Debug)]
pub struct Exporter {
    config: RwLock<Arc<Config>>,
    scraper: Scraper,
}

impl Exporter {
    /// With a configuration.
    pub fn new(config: Config) -> Self {
        Self { config: RwLock::new(Arc::new(config)), scraper: Scraper::default() }
    }

    /// The configuration now.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another configuration, from the next request on. Where to listen is the caller's affair.
    pub fn configure(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Answer> {
        let config = self.config();
        let path = request.uri().path();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if path == config.url_path {
            let page = self.scraper.scrape(&config).await;
            let mut response = Response::new(Answer::Pieces(page.pieces()));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
            return response;
        }
        match path {
            "/healthz" => plain(StatusCode::OK, "ok\n".to_owned()),
            "/" => plain(StatusCode::OK, format!("nftables-exporter: see {}\n", config.url_path)),
            _ => plain(StatusCode::NOT_FOUND, format!("see {}\n", config.url_path)),
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Answer> {
    let mut response = Response::new(Answer::Plain(Some(Bytes::from(text))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A body.
enum Answer {
    Plain(Option<Bytes>),
    Pieces(Pieces),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Plain(text) => std::task::Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Pieces(pieces) => std::pin::Pin::new(pieces).poll_frame(context),
        }
    }
}

/// Listens where the configuration says.
pub async fn listen(config: &Config) -> Result<TcpListener, ConfigError> {
    let mut failure = None;
    for address in config.addresses()? {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = Some(error),
        }
    }
    let error = failure.unwrap_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable));
    Err(ConfigError::Value(format!("cannot listen on {:?}: {error}", config.bind_to)))
}

/// Serves until dropped.
pub async fn serve(listener: &TcpListener, exporter: &Arc<Exporter>, places: &Arc<Semaphore>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, say: the next accept would fail as fast.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            exporter.scraper.refuse();
            continue;
        };
        let exporter = Arc::clone(exporter);
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let exporter = Arc::clone(&exporter);
                async move { Ok::<_, Infallible>(exporter.answer(&request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), answer);
            match tokio::time::timeout(LIFETIME, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!("a connection broke: {error}"),
                Err(_) => debug!("a connection was open for too long"),
            }
            drop(place);
        });
    }
}
