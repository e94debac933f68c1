//! HTTP: the metrics on their path, `/healthz`, and nothing else.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use fw_edge::pages::{Door, TEXT_FORMAT, WhenFull};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;

use crate::config::{Config, ConfigError};
use crate::families::Pieces;
use crate::scrape::Scraper;

/// Longest life of a connection: whoever reads that slowly begins again.
const LIFETIME: Duration = Duration::from_secs(300);

/// What all connections share.
#[derive(Debug)]
pub struct Exporter {
    config: RwLock<Arc<Config>>,
    scraper: Scraper,
    door: Door,
}

impl Exporter {
    /// With a configuration.
    pub fn new(config: Config) -> Self {
        let door = Door::new(WhenFull::TurnAway, LIFETIME);
        Self { config: RwLock::new(Arc::new(config)), scraper: Scraper::default(), door }
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
            let page = self.scraper.scrape(&config, self.door.turned_away()).await;
            let mut response = Response::new(Answer::Pieces(page.pieces()));
            response.headers_mut().insert(CONTENT_TYPE, TEXT_FORMAT);
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

/// Serves until dropped. Connections that are open then go on, and count for the next listener's bound.
pub async fn serve(listener: &TcpListener, exporter: &Arc<Exporter>) {
    let answering = Arc::clone(exporter);
    let answer = move |request| {
        let exporter = Arc::clone(&answering);
        async move { exporter.answer(&request).await }
    };
    exporter.door.serve(listener, answer).await;
}
