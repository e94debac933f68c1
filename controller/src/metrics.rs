//! Prometheus metrics, made from the status: `GET /metrics` on `--metrics-addr`.
//!
//! The families are ours; those of the field (`nftables_*`) are the exporter's.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, TextEncoder};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::debug;

use crate::cluster::Api;
use crate::control::Server;
use crate::problems::Problems;
use crate::reconcile::View;
use families::Families;

mod controller;
mod families;
mod ids;
mod names;

/// Scrapes at one time.
const MAX_CONNECTIONS: usize = 16;
/// For a request's head to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// Policies, by direction, and Services that have series of their own.
const MAX_OBJECTS: usize = 2000;
/// See [`crate::names::followers`].
const MAX_FOLLOWERS: u64 = crate::names::followers::MAX_FOLLOWERS as u64;
/// Between two attempts to listen.
const PAUSE: Duration = Duration::from_secs(10);

/// Serves until dropped; what is in the way is a problem in the status.
pub async fn serve(address: SocketAddr, server: Arc<Server>, problems: Problems) {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                problems.clear("metrics");
                accept(listener, Arc::clone(&server)).await;
            }
            Err(error) => {
                problems.set("metrics", vec![format!("no metrics on {address}: {error}")]);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn accept(listener: TcpListener, server: Arc<Server>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, Arc::clone(&server)));
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

async fn answer(
    request: Request<Incoming>,
    server: Arc<Server>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match request.uri().path() {
        "/metrics" => match server.metrics().await {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error),
        },
        _ => (StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    if let Ok(kind) = TextEncoder::new().format_type().parse() {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    Ok(response)
}

/// What the families are made from.
#[derive(Clone, Copy)]
pub struct Figures<'a> {
    /// The status of this moment.
    pub status: &'a Value,
    /// The reconciler's state.
    pub view: &'a View,
    /// Problems of other parts than the reconciler.
    pub problems: &'a Problems,
    /// See [`crate::enrich::Enricher::figures`].
    pub enricher: &'a Value,
    /// Where objects come from an API server.
    pub api: Option<&'a Api>,
}

/// All families.
pub fn text(figures: &Figures<'_>) -> prometheus::Result<String> {
    let controller = &figures.status["status"]["controller"];
    let names = &controller["names"];
    let mut all = Families::default();
    all.enforcement(figures);
    all.reconciler(figures.view);
    all.ruleset(figures.view);
    all.drops(figures.status);
    all.source(&controller["source"]);
    if let Some(api) = figures.api {
        all.api(api);
    }
    all.control_socket(&controller["controlSocket"], figures.enricher);
    all.proxy(&names["proxy"]);
    all.learned(names);
    all.ids(&controller["ids"]);
    all.programs(names);
    all.text()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_becomes_families_that_prometheus_reads() {
        let status = json!({"status": {
            "stats": {"drops": {"policy": {"nftables": {"packets": 3}, "tcx": {"packets": 4}}}},
            "controller": {"enforcing": true, "source": {"scans": 2, "events": 9}, "names": {
                "proxy": {
                    "queries": {"forwarded": 7},
                    "holdLatency": {"count": 3, "sumMicros": 60, "buckets": {"le10us": 1, "le25us": 1, "more": 1}},
                },
                "learned": {"names": 5, "maxNames": 10},
                "maps": {"ALLOW4": {"used": 2, "bound": 8, "bytes": 64}},
            }},
        }});
        let (view, problems) = (View::default(), Problems::default());
        problems.set("disk", vec!["disk full".to_owned()]);
        let figures =
            Figures { status: &status, view: &view, problems: &problems, enricher: &Value::Null, api: None };
        let text = text(&figures).unwrap();
        for line in [
            "firewall_enforcing 1",
            "firewall_problems{part=\"disk\"} 1",
            "# TYPE firewall_findings gauge",
            "firewall_source_listings_total 2",
            "firewall_source_events_total 9",
            "firewall_dropped_packets_total{reason=\"policy\",where=\"nftables\"} 3",
            "firewall_dropped_packets_total{reason=\"policy\",where=\"tcx\"} 4",
            "firewall_dns_queries_total{outcome=\"forwarded\"} 7",
            "firewall_dns_hold_seconds_bucket{le=\"0.000025\"} 2",
            "firewall_dns_hold_seconds_bucket{le=\"+Inf\"} 3",
            "firewall_dns_hold_seconds_sum 0.00006",
            "firewall_names_learned{what=\"names\"} 5",
            "firewall_names_bound{what=\"names\"} 10",
            "firewall_ebpf_map_bound{map=\"ALLOW4\"} 8",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }
}
