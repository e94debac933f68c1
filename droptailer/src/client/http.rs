//! `GET /metrics` on `--metrics-addr`.

use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fw_edge::pages::{Door, Page, WhenFull, page};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::warn;

use super::socket::Server;

/// Between two attempts to listen.
const AGAIN: Duration = Duration::from_secs(5);
/// For a connection, whatever it does.
const LIFETIME: Duration = Duration::from_secs(60);

/// Serves until dropped.
pub(crate) async fn serve(address: SocketAddr, server: Arc<Server>) {
    let door = Door::new(WhenFull::TurnAway, LIFETIME);
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let server = Arc::clone(&server);
                door.serve(&listener, move |request| ready(answer(&request, &server))).await;
            }
            Err(error) => {
                warn!("no metrics on {address}: {error}");
                sleep(AGAIN).await;
            }
        }
    }
}

fn answer(request: &Request<Incoming>, server: &Server) -> Page {
    match request.uri().path() {
        "/metrics" => page(StatusCode::OK, server.exposition()),
        _ => page(StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    }
}
