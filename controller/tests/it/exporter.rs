//! The exporter over the controller's own table, with traffic: every figure is the one nft lists.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use fw_exporter::config::Config;
use fw_exporter::exposition;
use fw_exporter::scrape::{self, Scraper};
use fw_testkit::Netns;

use crate::rig::{FIREWALL, Rig, documents, policy};
use crate::traffic::{CLUSTER, INTERNET, into, out, udp_out};

/// Name, labels and value.
type Sample = (String, BTreeMap<String, String>, u64);

/// Samples of a scrape in a namespace.
fn scraped(ns: &Netns) -> Result<Vec<Sample>> {
    let config =
        Config { controller_socket: String::new(), droptailer_socket: String::new(), ..Config::default() };
    let text = ns.run(|| -> Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(async { scrape::text(Scraper::default().scrape(&config, 0).await) }))
    })??;
    let mut samples = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("nftables_") && !line.contains("exporter_")) {
        let (name, labels) = exposition::sample(line).with_context(|| format!("no sample: {line}"))?;
        let value = line.rsplit(' ').next().and_then(|value| value.parse().ok()).context("no value")?;
        samples.push((name, labels, value));
    }
    Ok(samples)
}

#[test]
fn the_exporter_shows_the_figures_of_our_table_under_traffic_as_nft_does() -> Result<()> {
    let policies = [
        policy("web", "{egress: [{to: [{cidr: 1.2.3.0/24}], ports: [{protocol: TCP, port: 443}]}]}"),
        policy("dns", "{egress: [{to: [{cidr: 0.0.0.0/0}], ports: [{protocol: UDP, port: 53}]}]}"),
        policy("in", "{ingress: [{from: [{cidr: 203.0.113.0/24}], ports: [{protocol: TCP, port: 22}]}]}"),
    ];
    let parts: Vec<&str> = [FIREWALL].into_iter().chain(policies.iter().map(String::as_str)).collect();
    let rig = Rig::new("exporter", &documents(&parts))?;
    let shots = [
        out("1.2.3.4", 443),
        out("1.2.3.5", 443),
        out("1.2.3.5", 80),
        udp_out("9.9.9.9", 53),
        into(INTERNET[0], CLUSTER[0], 22),
        into(INTERNET[0], CLUSTER[0], 23),
    ];
    assert_eq!(rig.fire(&shots)?, [true, true, false, true, true, false]);

    let counters = rig.counters()?;
    let samples = scraped(&rig.lab.firewall)?;
    let mut comments: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, labels, value) in &samples {
        if name == "nftables_up" {
            continue;
        }
        ensure!(
            labels.get("table").or(labels.get("name")).is_some_and(|it| it == "firewall"),
            "{name} {labels:?}"
        );
        if name == "nftables_rule_packets" {
            *comments.entry(labels["comment"].as_str()).or_default() += value;
        }
        if name == "nftables_counter_packets" {
            assert_eq!(counters.named(&labels["name"]), *value, "{labels:?}");
        }
    }
    comments.remove("empty");
    let listed: BTreeMap<&str, u64> =
        counters.by_comment.iter().map(|(comment, count)| (comment.as_str(), count.packets)).collect();
    assert_eq!(comments, listed);
    assert_eq!(comments.get("accept traffic for np web tcp"), Some(&2));
    assert_eq!(counters.named("drop_total"), 2);
    Ok(())
}
