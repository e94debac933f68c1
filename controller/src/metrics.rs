//! Prometheus metrics, made from the status: `GET /metrics` on `--metrics-addr`.
//!
//! The families are ours; those of the field (`nftables_*`) are the exporter's.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fw_dns::metrics::Histogram;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramValue, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder, TextEncoder};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::debug;

use crate::control::Server;
use crate::problems::Problems;

mod ids;

/// Scrapes at one time.
const MAX_CONNECTIONS: usize = 16;
/// For a request's head to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
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
        "/metrics" => match text(&server.status().await) {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
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

/// All families of a status.
pub fn text(status: &Value) -> prometheus::Result<String> {
    TextEncoder::new().encode_to_string(&families(status))
}

fn families(status: &Value) -> Vec<MetricFamily> {
    let body = &status["status"];
    let (controller, names) = (&body["controller"], &body["controller"]["names"]);
    let mut all = Families::default();
    all.gauge(
        "firewall_enforcing",
        "1 while a table of ours is in force.",
        &[],
        u64::from(controller["enforcing"] == true),
    );
    for (reason, places) in object(&body["stats"]["drops"]) {
        for (place, count) in object(places) {
            all.counter(
                "firewall_dropped_packets_total",
                "Dropped packets by reason and place; their sum is all that was dropped.",
                &[("reason", reason), ("where", place)],
                number(&count["packets"]),
            );
        }
    }
    all.counter(
        "firewall_transactions_total",
        "Transactions committed.",
        &[],
        number(&controller["transactions"]["commits"]),
    );
    all.source(&controller["source"]);
    all.gauge(
        "firewall_problems",
        "What the controller itself could not do.",
        &[],
        length(&controller["problems"]),
    );
    all.gauge("firewall_findings", "Findings about objects.", &[], length(&controller["findings"]));
    all.proxy(&names["proxy"]);
    all.learned(names);
    all.ids(&controller["ids"]);
    for (map, size) in object(&names["maps"]) {
        all.gauge(
            "firewall_ebpf_map_entries",
            "Entries of an eBPF map.",
            &[("map", map)],
            number(&size["used"]),
        );
        all.gauge(
            "firewall_ebpf_map_bound",
            "Entries an eBPF map can have.",
            &[("map", map)],
            number(&size["bound"]),
        );
        all.gauge(
            "firewall_ebpf_map_bytes",
            "Memory of an eBPF map.",
            &[("map", map)],
            number(&size["bytes"]),
        );
    }
    all.0.into_values().collect()
}

/// Families by name, in order.
#[derive(Default)]
struct Families(BTreeMap<&'static str, MetricFamily>);

impl Families {
    /// Of an API server listings are whole lists, and events are its watches'.
    fn source(&mut self, source: &Value) {
        let counters = [
            ("firewall_source_listings_total", "Listings of objects.", "scans"),
            (
                "firewall_source_events_total",
                "Changes of objects that an API server told, one by one.",
                "events",
            ),
            ("firewall_source_errors_total", "Reads, or requests to watch, that failed.", "readErrors"),
        ];
        for (name, help, key) in counters {
            self.counter(name, help, &[], number(&source[key]));
        }
    }

    fn proxy(&mut self, proxy: &Value) {
        self.by_label(
            "firewall_dns_queries_total",
            "DNS questions by outcome.",
            "outcome",
            &proxy["queries"],
        );
        self.by_label(
            "firewall_dns_transport_queries_total",
            "DNS questions by transport.",
            "transport",
            &proxy["transports"],
        );
        self.by_label(
            "firewall_dns_spoofed_total",
            "What came from upstreams and was no answer.",
            "what",
            &proxy["spoofs"],
        );
        self.by_label(
            "firewall_dns_bound_total",
            "Times a bound of the proxy was met.",
            "bound",
            &proxy["bounds"],
        );
        self.histogram(
            "firewall_dns_upstream_seconds",
            "From asking an upstream to its answer.",
            &proxy["upstreamLatency"],
        );
        self.histogram("firewall_dns_hold_seconds", "From an answer to its release.", &proxy["holdLatency"]);
        let cache = &proxy["cache"];
        self.gauge("firewall_dns_cache_entries", "Answers in the cache.", &[], number(&cache["entries"]));
        self.gauge(
            "firewall_dns_cache_bytes",
            "Bytes of answers in the cache.",
            &[],
            number(&cache["bytes"]),
        );
        self.counter(
            "firewall_dns_cache_misses_total",
            "Questions the cache could not answer.",
            &[],
            number(&cache["misses"]),
        );
        for (kind, open, bound) in
            [("tcp", "connections", "maxConnections"), ("tls", "tlsConnections", "maxTlsConnections")]
        {
            let labels = [("kind", kind)];
            self.gauge("firewall_dns_connections", "Connections of clients.", &labels, number(&proxy[open]));
            self.gauge(
                "firewall_dns_connections_bound",
                "Connections of clients that there may be.",
                &labels,
                number(&proxy[bound]),
            );
        }
        self.gauge(
            "firewall_dns_in_flight",
            "Questions asked upstream now.",
            &[],
            number(&proxy["inFlight"]),
        );
    }

    fn learned(&mut self, names: &Value) {
        let learned = &names["learned"];
        let sizes = [
            ("names", "names", "maxNames"),
            ("names of the fullest pattern", "fullestPattern", "maxNamesPerPattern"),
            ("addresses", "addresses", "maxAddresses"),
            ("addresses of the longest name", "longestName", "maxAddressesPerName"),
            ("classes", "classes", "maxClasses"),
        ];
        for (what, size, bound) in sizes {
            self.gauge(
                "firewall_names_learned",
                "What was learned from answers.",
                &[("what", what)],
                number(&learned[size]),
            );
            self.gauge(
                "firewall_names_bound",
                "How much may be learned.",
                &[("what", what)],
                number(&learned[bound]),
            );
        }
        let counters = &names["counters"];
        self.by_label(
            "firewall_names_refused_total",
            "Addresses that were not learned.",
            "reason",
            &counters["refused"],
        );
        self.by_label(
            "firewall_names_evicted_total",
            "Forgotten before their time.",
            "bound",
            &counters["evicted"],
        );
        self.by_label(
            "firewall_names_held_total",
            "Answers kept back at a bound.",
            "bound",
            &counters["held"],
        );
        for (event, key) in
            [("learned", "learned"), ("renewed", "renewed"), ("expired", "expired"), ("extended", "extended")]
        {
            self.counter(
                "firewall_names_events_total",
                "What became of addresses.",
                &[("event", event)],
                number(&counters[key]),
            );
        }
        self.counter(
            "firewall_names_collections_total",
            "Times that what is over was forgotten.",
            &[],
            number(&counters["collections"]),
        );
        self.counter(
            "firewall_names_collection_microseconds_total",
            "Time that took.",
            &[],
            number(&counters["collectionMicros"]),
        );
        self.counter(
            "firewall_names_failed_pushes_total",
            "Lists of changes the data path did not take.",
            &[],
            number(&counters["failedPushes"]),
        );
    }

    fn family(&mut self, name: &'static str, help: &str, kind: MetricType) -> &mut MetricFamily {
        self.0.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        })
    }

    fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: u64) {
        let mut gauge = Gauge::default();
        gauge.set_value(float(value));
        let mut metric = labelled(labels);
        metric.set_gauge(gauge);
        self.family(name, help, MetricType::GAUGE).mut_metric().push(metric);
    }

    fn counter(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: u64) {
        let mut counter = Counter::default();
        counter.set_value(float(value));
        let mut metric = labelled(labels);
        metric.set_counter(counter);
        self.family(name, help, MetricType::COUNTER).mut_metric().push(metric);
    }

    fn by_label(&mut self, name: &'static str, help: &str, label: &str, values: &Value) {
        for (key, value) in object(values) {
            self.counter(name, help, &[(label, key)], number(value));
        }
    }

    fn histogram(&mut self, name: &'static str, help: &str, value: &Value) {
        let mut histogram = HistogramValue::default();
        histogram.set_sample_count(number(&value["count"]));
        histogram.set_sample_sum(float(number(&value["sumMicros"])) / 1e6);
        let mut so_far = 0;
        let buckets = Histogram::BOUNDS.iter().map(|bound| {
            so_far += number(&value["buckets"][format!("le{bound}us")]);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(float(*bound) / 1e6);
            bucket.set_cumulative_count(so_far);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.family(name, help, MetricType::HISTOGRAM).mut_metric().push(metric);
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn length(list: &Value) -> u64 {
    list.as_array().map_or(0, |list| u64::try_from(list.len()).unwrap_or(u64::MAX))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing but f64; it is exact to 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_becomes_families_that_prometheus_reads() {
        let status = json!({"status": {
            "stats": {"drops": {"policy": {"nftables": {"packets": 3}, "tcx": {"packets": 4}}}},
            "controller": {"enforcing": true, "problems": ["disk full"], "source": {"scans": 2, "events": 9}, "names": {
                "proxy": {
                    "queries": {"forwarded": 7},
                    "holdLatency": {"count": 3, "sumMicros": 60, "buckets": {"le10us": 1, "le25us": 1, "more": 1}},
                },
                "learned": {"names": 5, "maxNames": 10},
                "maps": {"ALLOW4": {"used": 2, "bound": 8, "bytes": 64}},
            }},
        }});
        let text = text(&status).unwrap();
        for line in [
            "firewall_enforcing 1",
            "firewall_problems 1",
            "firewall_findings 0",
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
