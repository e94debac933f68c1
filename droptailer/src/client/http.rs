//! `GET /metrics` on `--metrics-addr`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::socket::Server;

/// Scrapes at one time.
const MAX_CONNECTIONS: usize = 16;
/// For a request's head to arrive.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until dropped.
pub(crate) async fn serve(address: SocketAddr, server: Arc<Server>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => {
                warn!("no metrics on {address}: {error}");
                sleep(PATIENCE).await;
                continue;
            }
        };
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let answer = service_fn(|request| std::future::ready(answer(&request, &server)));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .serve_connection(TokioIo::new(stream), answer);
                if let Err(error) = connection.await {
                    debug!("metrics: {error}");
                }
                drop(place);
            });
        }
    }
}

fn answer(request: &Request<Incoming>, server: &Server) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, server.exposition()),
        _ => (StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}
