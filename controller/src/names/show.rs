//! What was learned and counted, as JSON for the status, `dns` and the metrics.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::SystemTime;

use fw_crds::FqdnAddresses;
use fw_dns::config::Limits;
use fw_dns::metrics::{Bound, Histogram, Metrics, Outcome, Spoof, Transport};
use fw_names::Reverse;
use fw_names::learner::NameView;
use fw_policy::FqdnSelector;
use serde_json::{Map, Value, json};

use super::clock::{as_wall, monotonic};
use super::fastpath::Choice;
use super::site::{DataPath, Site};
use super::thread::Parts;
use super::{Asked, Known, Question, Told};
use crate::timestamp::rfc3339;

/// Addresses of one name and family in a policy's state.
const MAX_STATE_ADDRESSES: usize = 64;
/// Names that one answer lists.
const MAX_NAMES: usize = 1000;

pub(super) fn show(
    site: &Site,
    proxy: Option<Rc<RefCell<Option<Parts>>>>,
    choice: &Choice,
    question: &Question,
) -> Value {
    match question {
        Question::Summary => summary(site, proxy.as_deref(), choice),
        Question::Names(filter) => names(site, filter.as_deref()),
    }
}

fn summary(site: &Site, proxy: Option<&RefCell<Option<Parts>>>, choice: &Choice) -> Value {
    let learner = site.learner.borrow();
    let counters = learner.counters();
    let sizes = learner.sizes();
    let by = |entries: Vec<(String, u64)>| entries.into_iter().collect::<BTreeMap<_, _>>();
    let figures = &site.figures;
    let shared: Vec<String> = learner
        .shared()
        .iter()
        .map(|s| format!("{} is allowed for {} and also answers for {}", s.address, s.allowed, s.other))
        .collect();
    json!({
        "proxy": proxy.map_or(Value::Null, proxy_figures),
        "fastpath": choice.reasons.iter().map(|(name, why)| (name.to_string(), why.clone())).collect::<BTreeMap<_, _>>(),
        "dataPath": match *site.path.borrow() {
            DataPath::None => "none",
            DataPath::Programs => "eBPF",
            DataPath::Sets { .. } => "nftables sets",
        },
        "earlyDrops": site.programs.borrow_mut().drops(),
        "conntrack": site.programs.borrow().conntrack(),
        "maps": site.programs.borrow_mut().map_sizes(),
        "learned": {
            "names": sizes.names, "maxNames": sizes.max_names,
            "addresses": sizes.addresses, "maxAddresses": sizes.max_addresses,
            "facts": sizes.facts,
            "fullestPattern": sizes.fullest_pattern, "maxNamesPerPattern": sizes.max_names_per_pattern,
            "longestName": sizes.longest_name, "maxAddressesPerName": sizes.max_addresses_per_name,
            "classes": sizes.classes, "maxClasses": sizes.max_classes,
        },
        "reverse": reverse_figures(&site.reverse.borrow()),
        "counters": {
            "lessons": counters.lessons, "learned": counters.learned, "renewed": counters.renewed,
            "expired": counters.expired, "extended": counters.extended, "shortened": counters.shortened,
            "shared": counters.shared, "cellsLeftOut": counters.cells_left_out,
            "withoutClass": counters.without_class,
            "refused": by(counters.refused.iter().map(|(k, v)| (format!("{k:?}"), *v)).collect()),
            "refusedNames": by(
                counters.refused_names.iter().map(|(k, v)| (k.as_str().to_owned(), *v)).collect(),
            ),
            "evicted": by(counters.evicted.iter().map(|(k, v)| (format!("{k:?}"), *v)).collect()),
            "held": by(counters.held.iter().map(|(k, v)| (format!("{k:?}"), *v)).collect()),
            "unreadableAnswers": figures.unreadable_answers.get(),
            "pushes": figures.pushes.get(), "failedPushes": figures.failed_pushes.get(),
            "collections": figures.collections.get(), "collectionMicros": figures.collection_micros.get(),
            "journalFailures": site.journal.borrow().failures,
        },
        "sharedAddresses": shared,
        "fqdnState": fqdn_state(site),
    })
}

fn reverse_figures(reverse: &Reverse) -> Value {
    let counters = reverse.counters();
    json!({
        "addresses": reverse.len(), "maxAddresses": reverse.bound(),
        "evicted": counters.evicted, "leftOut": counters.left_out,
    })
}

/// `.status.fqdn_state` of each policy, in the shape the field knows (compat.md section 1); bounded.
fn fqdn_state(site: &Site) -> BTreeMap<String, BTreeMap<String, Vec<FqdnAddresses>>> {
    let Some(installed) = site.installed.borrow().clone() else { return BTreeMap::new() };
    let mut policies: BTreeMap<&FqdnSelector, BTreeSet<&str>> = BTreeMap::new();
    for entry in installed.table.entries.keys() {
        policies.entry(&entry.selector).or_default().insert(&entry.policy);
    }
    let now = (monotonic(), SystemTime::now());
    let mut state: BTreeMap<String, BTreeMap<String, Vec<FqdnAddresses>>> = BTreeMap::new();
    for name in site.learner.borrow().view(None, MAX_NAMES).names {
        for selector in &name.selectors {
            for policy in policies.get(selector).into_iter().flatten() {
                let by_selector = state.entry((*policy).to_owned()).or_default();
                by_selector.entry(selector.text().to_owned()).or_default().extend(both_families(&name, now));
            }
        }
    }
    state
}

/// One entry for each family that has addresses; there is no set of its own for a name.
fn both_families(name: &NameView, (monotonic_now, now): (u64, SystemTime)) -> Vec<FqdnAddresses> {
    let of_family = |version: &str, is_v4: bool| {
        let times: BTreeMap<String, String> = name
            .addresses
            .iter()
            .filter(|(address, _)| address.is_ipv4() == is_v4)
            .take(MAX_STATE_ADDRESSES)
            .map(|(address, until)| (address.to_string(), rfc3339(as_wall(*until, monotonic_now, now))))
            .collect();
        (!times.is_empty()).then(|| FqdnAddresses {
            fqdn: Some(name.name.as_str().to_owned()),
            set_name: Some(String::new()),
            ip_expiration_times: Some(times),
            version: Some(version.to_owned()),
            ..FqdnAddresses::default()
        })
    };
    [of_family("ip", true), of_family("ip6", false)].into_iter().flatten().collect()
}

fn proxy_figures(parts: &RefCell<Option<Parts>>) -> Value {
    let parts = parts.borrow();
    let Some(Parts { metrics, .. }) = parts.as_ref() else { return json!({"running": false}) };
    let outcomes: Map<String, Value> = Outcome::ALL
        .iter()
        .filter(|outcome| metrics.outcome(**outcome) > 0)
        .map(|outcome| (outcome.label().to_owned(), json!(metrics.outcome(*outcome))))
        .collect();
    json!({
        "running": true,
        "queries": outcomes,
        "transports": transports(metrics),
        "spoofs": Spoof::ALL.iter().map(|s| (s.label(), metrics.spoofs(*s))).collect::<BTreeMap<_, _>>(),
        "bounds": Bound::ALL.iter().map(|b| (b.label(), metrics.bound(*b))).collect::<BTreeMap<_, _>>(),
        "upstreamLatency": histogram(&metrics.upstream_latency),
        "holdLatency": histogram(&metrics.hold_latency),
        "tries": metrics.tries.get(), "failedTries": metrics.failed_tries.get(),
        "tcpRetries": metrics.tcp_retries.get(), "truncated": metrics.truncated.get(),
        "cache": {"entries": metrics.cache_entries.get(), "bytes": metrics.cache_bytes.get(), "misses": metrics.cache_misses.get()},
        "inFlight": metrics.in_flight.get(), "waiting": metrics.waiting.get(),
        "connections": metrics.connections.get(), "maxConnections": Limits::default().connections,
        "tlsConnections": metrics.tls_connections.get(), "maxTlsConnections": metrics.tls_connections_max.get(),
    })
}

fn transports(metrics: &Metrics) -> Map<String, Value> {
    let total = |transport: Transport| -> u64 {
        Outcome::ALL.iter().map(|outcome| metrics.queries(transport, *outcome)).sum()
    };
    Transport::ALL.iter().map(|t| (t.label().to_owned(), json!(total(*t)))).collect()
}

/// Count, sum and the buckets that have something, by their upper ends in microseconds.
fn histogram(histogram: &Histogram) -> Value {
    let buckets = histogram.buckets();
    let named = Histogram::BOUNDS.iter().map(|bound| bound.to_string()).chain(["more".to_owned()]);
    let filled: Map<String, Value> = named
        .zip(buckets)
        .filter(|(_, number)| *number > 0)
        .map(|(bound, number)| (format!("le{bound}us"), json!(number)))
        .collect();
    json!({"count": histogram.count(), "sumMicros": histogram.sum(), "buckets": filled})
}

fn names(site: &Site, filter: Option<&str>) -> Value {
    let learner = site.learner.borrow();
    let view = learner.view(filter, MAX_NAMES);
    let now = (monotonic(), SystemTime::now());
    json!({
        "names": view.names.iter().map(|name| name_view(name, now)).collect::<Vec<_>>(),
        "leftOut": view.left_out,
    })
}

fn name_view(name: &NameView, (monotonic_now, now): (u64, SystemTime)) -> Value {
    let addresses: Map<String, Value> = name
        .addresses
        .iter()
        .map(|(address, until)| (address.to_string(), json!(rfc3339(as_wall(*until, monotonic_now, now)))))
        .collect();
    json!({
        "name": name.name.as_str(),
        "addresses": addresses,
        "selectors": name.selectors.iter().map(|s| s.text().to_owned()).collect::<Vec<_>>(),
        "policies": name.policies,
        "asked": rfc3339(as_wall(name.asked, monotonic_now, now)),
    })
}

/// What is known of the addresses of a packet.
pub(super) fn told(site: &Site, asked: &Asked, now: u64) -> Told {
    let (learner, reverse) = (site.learner.borrow(), site.reverse.borrow());
    // After a restart the names of the journal are known before anybody asks again.
    let name = |address: IpAddr| {
        let name = reverse.get(address).cloned();
        let name = name.or_else(|| learner.names_of(address, 1).into_iter().next());
        name.map(|name| name.as_str().to_owned())
    };
    Told {
        source: name(asked.source),
        destination: name(asked.destination),
        index: asked
            .service
            .and_then(|(protocol, port)| learner.index_of(now, asked.destination, protocol, port)),
    }
}

/// What is known of an address.
pub(super) fn known(site: &Site, address: IpAddr) -> Known {
    let learner = site.learner.borrow();
    let mut learned = learner.learned(monotonic());
    learned.addresses.retain(|other, _| *other == address);
    let names = learner.names_of(address, MAX_NAMES);
    Known { learned, names: names.iter().map(|name| name.as_str().to_owned()).collect(), early: None }
}
