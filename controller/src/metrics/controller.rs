//! Families of the reconciler, of objects and of what they let pass.

use std::collections::BTreeMap;

use fw_intake::Severity;
use fw_policy::ObjectKind;
use fw_ruleset::DEFAULT_CELL_LIMIT;
use fw_ruleset::ir::{Rule, Ruleset, Statement, Verdict};
use serde_json::Value;

use super::families::{Families, number, object};
use super::{Figures, MAX_OBJECTS};
use crate::cluster::Api;
use crate::published::{Key, Published};
use crate::reconcile::View;

impl Families {
    pub(super) fn enforcement(&mut self, figures: &Figures<'_>) {
        let controller = &figures.status["status"]["controller"];
        let enforcing = u64::from(controller["enforcing"] == true);
        self.gauge("firewall_enforcing", "1 while a table of ours is in force.", &[], enforcing);
        let basis = controller["ruleset"].as_str().unwrap_or("none");
        let help = "What the rules in force were made from; always 1.";
        self.gauge("firewall_ruleset_info", help, &[("basis", basis)], 1);
        let version = env!("CARGO_PKG_VERSION");
        self.gauge("firewall_build_info", "The controller; always 1.", &[("version", version)], 1);
        let help = "What the controller itself could not do.";
        for (part, count) in figures.problems.by_part() {
            self.gauge("firewall_problems", help, &[("part", part)], size(count));
        }
        self.gauge("firewall_problems", help, &[("part", "state")], size(figures.view.problems.len()));
        self.findings(figures.view);
    }

    fn findings(&mut self, view: &View) {
        let mut kinds: BTreeMap<(String, &str), u64> = BTreeMap::new();
        for finding in view.findings.iter() {
            let severity = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Info => "info",
            };
            *kinds.entry((finding.reason.to_string(), severity)).or_default() += 1;
        }
        self.declare("firewall_findings", "Findings about objects.", false);
        for ((reason, severity), count) in kinds {
            let labels = [("reason", reason.as_str()), ("severity", severity)];
            self.gauge("firewall_findings", "Findings about objects.", &labels, count);
        }
    }

    pub(super) fn reconciler(&mut self, view: &View) {
        let timing = &view.timing;
        let help = "From objects to what the kernel holds, by outcome.";
        for (outcome, durations) in
            [("applied", &timing.applied), ("refused", &timing.refused), ("dry run", &timing.dry_run)]
        {
            let labels = [("outcome", outcome)];
            self.durations("firewall_reconcile_duration_seconds", help, &labels, durations);
        }
        let help = "From the moment objects came until they were enforced.";
        self.durations("firewall_objects_lag_seconds", help, &[], &timing.lag);
        let tally = &view.tally;
        let counters = [
            ("firewall_transactions_total", "Transactions committed.", tally.commits),
            ("firewall_transactions_refused_total", "Attempts to commit that failed.", tally.refused),
            (
                "firewall_transactions_repeated_total",
                "Transactions sent again because others committed in between.",
                tally.others_in_between,
            ),
            ("firewall_drift_repairs_total", "Changes by others that were repaired.", tally.repairs),
            ("firewall_resets_total", "Counters that others reset.", view.published.resets),
        ];
        for (name, help, value) in counters {
            self.counter(name, help, &[], value);
        }
        let gauges = [
            ("firewall_transaction_steps", "Steps of the last transaction.", size(tally.last_steps)),
            ("firewall_transaction_messages", "Its netlink messages.", size(tally.last_messages)),
            ("firewall_generation", "The kernel's generation after it.", tally.generation.into()),
        ];
        for (name, help, value) in gauges {
            self.gauge(name, help, &[], value);
        }
        let help = "Time the last transaction took.";
        self.gauge_seconds("firewall_transaction_duration_seconds", help, tally.last_commit_us);
        for (name, help, at) in [
            (
                "firewall_last_reconcile_timestamp_seconds",
                "When objects were last reconciled.",
                view.last_run,
            ),
            ("firewall_last_objects_timestamp_seconds", "When other objects came last.", view.objects_read),
            ("firewall_counters_timestamp_seconds", "When counters were last read.", view.counters_read),
        ] {
            let since = at.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            self.gauge(name, help, &[], since.map_or(0, |since| since.as_secs()));
        }
    }

    pub(super) fn ruleset(&mut self, view: &View) {
        let ruleset = view.enforced.as_ref().map(|judged| judged.ruleset.as_ref());
        let sets = ruleset.iter().flat_map(|ruleset| ruleset.sets.values());
        let chains = ruleset.iter().flat_map(|ruleset| ruleset.chains.values());
        let sizes = [
            ("chains", chains.clone().count()),
            ("elements", sets.clone().map(|set| set.elements.len()).sum()),
            ("rules", chains.map(|chain| chain.rules.len()).sum()),
            ("sets", sets.count()),
        ];
        for (what, count) in sizes {
            let help = "What the ruleset in force has of it.";
            self.gauge("firewall_ruleset_size", help, &[("what", what)], size(count));
        }
        let help = "Elements and port ranges that policies may fill together.";
        self.gauge("firewall_ruleset_cells_bound", help, &[], size(DEFAULT_CELL_LIMIT));
        self.accepted(view);
    }

    /// One pair of series per policy, direction and Service, in the order of their names up to a bound.
    fn accepted(&mut self, view: &View) {
        const PACKETS: (&str, &str) = (
            "firewall_policy_accepted_packets_total",
            "Packets that opened what a policy or Service allows.",
        );
        const BYTES: (&str, &str) = ("firewall_policy_accepted_bytes_total", "Bytes of these packets.");
        let ruleset = view.enforced.as_ref().map(|judged| judged.ruleset.as_ref());
        let accepted = ruleset.map(|ruleset| accepted(ruleset, &view.published)).unwrap_or_default();
        self.declare(PACKETS.0, PACKETS.1, true);
        self.declare(BYTES.0, BYTES.1, true);
        for ((policy, direction), (packets, bytes)) in accepted.iter().take(MAX_OBJECTS) {
            let labels = [("direction", *direction), ("policy", policy.as_str())];
            self.counter(PACKETS.0, PACKETS.1, &labels, *packets);
            self.counter(BYTES.0, BYTES.1, &labels, *bytes);
        }
        let help = "Policies and Services beyond the bound, in the order of their names.";
        let left_out = accepted.len().saturating_sub(MAX_OBJECTS);
        self.gauge("firewall_policy_series_left_out", help, &[], size(left_out));
        let help = "Policies, by direction, and Services that may have series.";
        self.gauge("firewall_policy_series_bound", help, &[], size(MAX_OBJECTS));
    }

    pub(super) fn drops(&mut self, status: &Value) {
        let stats = &status["status"]["stats"];
        let help = "Dropped packets by reason and place; their sum is all that was dropped.";
        self.declare("firewall_dropped_packets_total", help, true);
        for (reason, places) in object(&stats["drops"]) {
            for (place, count) in object(places) {
                let labels = [("reason", reason.as_str()), ("where", place.as_str())];
                self.counter("firewall_dropped_packets_total", help, &labels, number(&count["packets"]));
            }
        }
        let help = "Dropped packets that are logged, and those that the limit kept back.";
        for outcome in ["shown", "suppressed"] {
            let packets = number(&stats["dropLog"][outcome]);
            self.counter("firewall_drop_log_packets_total", help, &[("outcome", outcome)], packets);
        }
    }

    /// Of an API server listings are whole lists, and events are its watches'.
    pub(super) fn source(&mut self, source: &Value) {
        let counters = [
            ("firewall_source_listings_total", "Listings of objects.", "scans"),
            ("firewall_source_events_total", "Changes that an API server told, one by one.", "events"),
            ("firewall_source_errors_total", "Reads, or requests to watch, that failed.", "readErrors"),
        ];
        for (name, help, key) in counters {
            self.counter(name, help, &[], number(&source[key]));
        }
    }

    pub(super) fn api(&mut self, api: &Api) {
        for (watched, listed) in &api.cluster.borrow().listed {
            let labels = [("resource", watched.name())];
            let followed = u64::from(listed.complete && listed.problem.is_none());
            self.gauge("firewall_api_followed", "1 while the watch goes on.", &labels, followed);
            self.gauge("firewall_api_objects", "Known objects.", &labels, size(listed.objects.len()));
            let figures = &listed.figures;
            for (name, help, value) in [
                ("firewall_api_lists_total", "Whole lists, with which a watch begins.", figures.lists),
                ("firewall_api_events_total", "Changes that a watch told.", figures.events),
                ("firewall_api_errors_total", "Requests to list or watch that failed.", figures.errors),
            ] {
                self.counter(name, help, &labels, value);
            }
        }
        let kinds = [
            ("events", &api.figures.events),
            ("firewall", &api.figures.firewall),
            ("policies", &api.figures.policies),
        ];
        for (what, tally) in kinds {
            for (outcome, count) in
                [("written", tally.written()), ("failed", tally.failed()), ("lost", tally.lost())]
            {
                let labels = [("outcome", outcome), ("what", what)];
                let help = "Statuses and events to the API server; what failed is tried again.";
                self.counter("firewall_api_writes_total", help, &labels, count);
            }
            let help = "Statuses and events that wait to be written.";
            self.gauge("firewall_api_writes_waiting", help, &[("what", what)], tally.waiting());
        }
        let standby = u64::from(api.figures.standby().is_some());
        let help = "1 while another machine writes the status of our Firewall object.";
        self.gauge("firewall_api_standby", help, &[], standby);
    }

    pub(super) fn control_socket(&mut self, socket: &Value, enricher: &Value) {
        let requests = number(&socket["requests"]);
        self.counter("firewall_control_requests_total", "Requests on the control socket.", &[], requests);
        let refused = [
            ("bad request", "badRequests"),
            ("connection", "refusedConnections"),
            ("accept", "acceptErrors"),
            ("follower", "refusedFollowers"),
        ];
        for (what, key) in refused {
            let help = "What the control socket refused.";
            self.counter("firewall_control_refused_total", help, &[("what", what)], number(&socket[key]));
        }
        let gauges = [
            ("firewall_control_connections", "Connections to the control socket.", &socket["connections"]),
            ("firewall_control_connections_bound", "Connections there may be.", &socket["maxConnections"]),
            ("firewall_enrich_cached", "Answers about packets that are remembered.", &enricher["cached"]),
            ("firewall_enrich_cached_bound", "Answers that may be remembered.", &enricher["maxCached"]),
        ];
        for (name, help, value) in gauges {
            self.gauge(name, help, &[], number(value));
        }
        let counters = [
            ("firewall_enrich_packets_total", "Logged packets that were asked about.", "packets"),
            ("firewall_enrich_cache_hits_total", "Answers that were remembered.", "cacheHits"),
            ("firewall_enrich_cache_emptied_total", "Times the bound of answers was met.", "cacheEmptied"),
        ];
        for (name, help, key) in counters {
            self.counter(name, help, &[], number(&enricher[key]));
        }
    }
}

/// Packets and bytes by `namespace/name` and direction: `egress`, `ingress`, or `service`.
fn accepted(ruleset: &Ruleset, published: &Published) -> BTreeMap<(String, &'static str), (u64, u64)> {
    let mut sums: BTreeMap<(String, &'static str), (u64, u64)> = BTreeMap::new();
    let accepts = |rule: &&Rule| {
        rule.body.contains(&Statement::Counter) && rule.body.contains(&Statement::Verdict(Verdict::Accept))
    };
    for (name, chain) in &ruleset.chains {
        let Some(origin) = &chain.origin else { continue };
        let Some(rule) = chain.rules.iter().find(accepts) else { continue };
        let direction = match origin.kind {
            ObjectKind::Service => "service",
            ObjectKind::ClusterwideNetworkPolicy if origin.field.starts_with("spec.ingress") => "ingress",
            ObjectKind::ClusterwideNetworkPolicy => "egress",
            ObjectKind::Firewall => continue,
        };
        let key = Key::Rule { chain: name.clone(), comment: rule.comment.clone().unwrap_or_default() };
        let count = published.get(&key).unwrap_or_default();
        let sum = sums.entry((format!("{}/{}", origin.namespace, origin.name), direction)).or_default();
        *sum = (sum.0.saturating_add(count.packets), sum.1.saturating_add(count.bytes));
    }
    sums
}

fn size(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
