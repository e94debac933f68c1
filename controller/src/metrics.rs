//! Prometheus metrics, made from the status: `GET /metrics` on `--metrics-addr`.
//!
//! The families are ours; those of the field (`nftables_*`) are the exporter's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fw_edge::pages::{Door, Page, WhenFull, page};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::cluster::Api;
use crate::control::Server;
use crate::problems::Problems;
use crate::reconcile::View;
use families::Families;

mod controller;
mod families;
mod ids;
mod names;

/// For a connection, whatever it does.
const LIFETIME: Duration = Duration::from_secs(60);
/// Policies, by direction, and Services that have series of their own.
const MAX_OBJECTS: usize = 2000;
/// See [`crate::names::followers`].
const MAX_FOLLOWERS: u64 = crate::names::followers::MAX_FOLLOWERS as u64;
/// Between two attempts to listen.
const PAUSE: Duration = Duration::from_secs(10);

/// Serves until dropped; what is in the way is a problem in the status.
pub async fn serve(address: SocketAddr, server: Arc<Server>, problems: Problems) {
    let door = Door::new(WhenFull::TurnAway, LIFETIME);
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                problems.clear("metrics");
                let server = Arc::clone(&server);
                door.serve(&listener, move |request| answer(request, Arc::clone(&server))).await;
            }
            Err(error) => {
                problems.set("metrics", vec![format!("no metrics on {address}: {error}")]);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(request: Request<Incoming>, server: Arc<Server>) -> Page {
    let (status, text) = match request.uri().path() {
        "/metrics" => match server.metrics().await {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error),
        },
        _ => (StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    };
    page(status, text)
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
