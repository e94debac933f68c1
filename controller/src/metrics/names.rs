//! Families of the DNS proxy, of what was learned from its answers, and of the eBPF programs.

use serde_json::Value;

use super::families::{Families, number, object};

impl Families {
    pub(super) fn proxy(&mut self, proxy: &Value) {
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

    pub(super) fn learned(&mut self, names: &Value) {
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
        self.counter_seconds(
            "firewall_names_collection_seconds_total",
            "Time that took.",
            number(&counters["collectionMicros"]),
        );
        self.counter(
            "firewall_names_failed_pushes_total",
            "Lists of changes the data path did not take.",
            &[],
            number(&counters["failedPushes"]),
        );
        let reverse = &names["reverse"];
        let help = "Addresses whose last answered name is known.";
        self.gauge("firewall_reverse_names", help, &[], number(&reverse["addresses"]));
        let help = "Addresses whose last answered name may be known.";
        self.gauge("firewall_reverse_names_bound", help, &[], number(&reverse["maxAddresses"]));
        for (cause, key) in [("made room", "evicted"), ("long answer", "leftOut")] {
            let help = "Addresses whose last answered name was not kept.";
            let forgotten = number(&reverse[key]);
            self.counter("firewall_reverse_names_forgotten_total", help, &[("cause", cause)], forgotten);
        }
    }

    /// What the eBPF programs dropped, and what became of its samples.
    pub(super) fn programs(&mut self, names: &Value) {
        for (name, help, key) in [
            ("firewall_ebpf_map_entries", "Entries of an eBPF map.", "used"),
            ("firewall_ebpf_map_bound", "Entries an eBPF map can have.", "bound"),
            ("firewall_ebpf_map_bytes", "Memory of an eBPF map.", "bytes"),
        ] {
            self.declare(name, help, false);
            for (map, size) in object(&names["maps"]) {
                self.gauge(name, help, &[("map", map)], number(&size[key]));
            }
        }
        let early = &names["earlyDrops"];
        let (total, unsampled) = (number(&early["total"]), number(&early["notLogged"]));
        let ring_full = number(&early["ringFull"]);
        for (sample, packets) in [
            ("given", total.saturating_sub(unsampled)),
            ("above the rate", unsampled.saturating_sub(ring_full)),
            ("ring full", ring_full),
        ] {
            let help = "Packets that eBPF programs dropped, by what became of their samples.";
            self.counter("firewall_early_drops_total", help, &[("sample", sample)], packets);
        }
        let help = "Samples of early drops that were read since the start of the process.";
        self.counter("firewall_early_samples_read_total", help, &[], number(&early["samples"]));
        let help = "Samples that did not fit into the queue of a follower.";
        self.counter("firewall_early_samples_lost_total", help, &[], number(&early["lostByFollowers"]));
        let help = "Who is told of early drops.";
        self.gauge("firewall_early_followers", help, &[], number(&early["followers"]));
        let help = "How many may be told of early drops.";
        self.gauge("firewall_early_followers_bound", help, &[], super::MAX_FOLLOWERS);
    }
}
