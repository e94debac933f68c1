//! `/metrics` and `/healthz`.

use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fw_edge::pages::{Door, Page, WhenFull, page};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::net::TcpListener;

use super::metrics::Metrics;

/// For a connection, whatever it does.
const LIFETIME: Duration = Duration::from_secs(60);

pub(super) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot serve metrics on {address}"))
}

pub(super) async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    // Probes come here: one that is turned away would end the container.
    let door = Door::new(WhenFull::Wait, LIFETIME);
    door.serve(&listener, move |request| ready(answer(&request, &metrics))).await;
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Page {
    let (status, text) = match request.uri().path() {
        "/metrics" => match metrics.text() {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/healthz" => match metrics.problem() {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
        },
        _ => (StatusCode::NOT_FOUND, "see /metrics and /healthz\n".to_owned()),
    };
    page(status, text)
}
