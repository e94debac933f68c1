//! What is exported is what `nft -j list ruleset` says, of every statement, every family and random rules.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use fw_testkit::r#gen::{Rng, seed};
use fw_testkit::{Netns, nft};

use crate::oracle::{self, sorted};
use crate::rig::{alone, of_nft, parse, same, scrape, single};
use crate::writer;

const STATEMENTS: &str = include_str!("../fixtures/statements.nft");

/// Compares everything; gives what was scraped.
fn compare(ns: &Netns) -> Result<String> {
    let text = scrape(ns, &alone())?;
    let all = parse(&text)?;
    ensure!(single(&all, "nftables_up")? == 1.0, "not up:\n{text}");
    for name in ["unreadable_messages", "left_out_series"] {
        ensure!(single(&all, &format!("nftables_exporter_{name}"))? == 0.0, "{name}:\n{text}");
    }
    let ours = of_nft(all);
    ensure!(!ours.is_empty(), "nothing was exported");
    same(&sorted(ours), &sorted(oracle::series(ns)?))?;
    Ok(text)
}

#[test]
fn every_statement_in_every_family_is_counted_and_labelled_as_nft_lists_it() -> Result<()> {
    let ns = Netns::new("expstat")?;
    nft::load(&ns, STATEMENTS)?;
    let text = compare(&ns)?;
    // And some by hand, so that oracle and exporter cannot be wrong alike.
    for (comment, labels) in [
        ("merged loads", r#"destination_addresses="1.2.3.4",destination_ports="22""#),
        ("merged loads", r#"source_addresses="10.0.0.0/8",source_ports="any""#),
        ("twice", r#"destination_addresses="any""#),
    ] {
        let mut lines = text.lines().filter(|line| line.contains(comment) && line.contains("rule_bytes"));
        ensure!(lines.any(|line| line.contains(labels)), "{comment}: {labels} is not in\n{text}");
    }
    for part in [
        r#"source_addresses="!= 10.0.0.0/8""#,
        r#"source_addresses="!= @named4""#,
        r#"output_interfaces="!= vlan1""#,
        r#"destination_ports="1000-2000""#,
        r#"source_addresses="& 255.0.255.0 == 10.0.1.0""#,
        r#"source_addresses="!= 1.1.1.1 . 80,2.2.2.2 . 443""#,
        r#"action="snat""#,
        r#"action="dnat""#,
        r#"action="masquerade""#,
        r#"action="reject""#,
        r#"action="goto""#,
        r#"comment="twice",destination_addresses="any",destination_ports="any",family="inet",input_interfaces="any",output_interfaces="any",source_addresses="any",source_ports="any",table="filter"} 6"#,
    ] {
        ensure!(text.contains(part), "{part} is not in\n{text}");
    }
    ensure!(!text.contains("handle="), "handles are off:\n{text}");
    Ok(())
}

#[test]
fn random_rulesets_are_counted_and_labelled_as_nft_lists_them() -> Result<()> {
    let rounds = if std::env::var_os("FW_SOAK").is_some() { 300 } else { 25 };
    let ns = Netns::new("exprand")?;
    let first = seed();
    for seed in (first..).take(rounds) {
        println!("seed {seed}");
        let ruleset = writer::ruleset(&mut Rng::new(seed));
        nft::load(&ns, &ruleset).with_context(|| format!("seed {seed}:\n{ruleset}"))?;
        compare(&ns).with_context(|| format!("seed {seed}:\n{ruleset}"))?;
    }
    Ok(())
}

#[test]
fn with_the_switch_chains_and_rules_have_the_handles_that_nft_shows() -> Result<()> {
    let ns = Netns::new("exphandle")?;
    nft::load(&ns, STATEMENTS)?;
    let mut config = alone();
    config.handles = true;
    let ours = of_nft(parse(&scrape(&ns, &config)?)?);
    let mut handles: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (name, labels) in ours.keys() {
        if let Some(handle) = labels.get("handle").filter(|_| name != "nftables_rule_packets") {
            let key = (name.clone(), format!("{} {}", labels["family"], labels["table"]));
            handles.entry(key).or_default().push(handle.clone());
        }
    }
    let mut wanted: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for object in nft::json(&ns)? {
        for (kind, name) in [("chain", "nftables_chain_rules"), ("rule", "nftables_rule_bytes")] {
            let Some(body) = object.get(kind) else { continue };
            let counts = |it: &serde_json::Value| {
                it.get("counter").is_some_and(|counter| counter.get("packets").is_some())
            };
            if kind == "rule" && !body["expr"].as_array().is_some_and(|list| list.iter().any(counts)) {
                continue;
            }
            let place = format!("{} {}", body["family"].as_str().unwrap(), body["table"].as_str().unwrap());
            wanted.entry((name.to_owned(), place)).or_default().push(body["handle"].to_string());
        }
    }
    for list in handles.values_mut().chain(wanted.values_mut()) {
        list.sort();
    }
    assert_eq!(handles, wanted);
    Ok(())
}

#[test]
fn hostile_names_comments_and_long_sets_are_escaped_and_bounded() -> Result<()> {
    let ns = Netns::new("exphost")?;
    // nft itself takes no quote or line feed in a comment; other programs write what they like, and so does this one.
    writer::hostile_table(&ns)?;
    let many: Vec<String> = (0..600).map(|n| format!("10.{}.{}.7", n / 250, n % 250)).collect();
    let comment = "c".repeat(127);
    nft::load(
        &ns,
        &format!(
            "table ip long {{ chain c {{\nip saddr {{ {} }} counter comment \"{comment}\"\n}}\n}}",
            many.join(", ")
        ),
    )?;
    let text = scrape(&ns, &alone())?;
    let all = parse(&text)?;
    let rules: Vec<_> = all.iter().filter(|((name, _), _)| name == "nftables_rule_packets").collect();
    let comments: Vec<&str> = rules.iter().map(|((_, labels), _)| labels["comment"].as_str()).collect();
    for wanted in [writer::HOSTILE_COMMENT, comment.as_str()] {
        ensure!(comments.contains(&wanted), "{wanted:?} is not among {comments:?}");
    }
    let addresses = rules.iter().map(|((_, labels), _)| labels["source_addresses"].len()).max();
    ensure!(addresses.is_some_and(|length| (500..=1024).contains(&length)), "{addresses:?}");
    ensure!(single(&all, "nftables_exporter_shortened_labels")? >= 1.0, "nothing was shortened:\n{text}");
    ensure!(all.keys().any(|(_, labels)| labels.get("table").is_some_and(|it| it.contains('\u{fffd}'))));
    Ok(())
}

#[test]
fn what_is_over_the_bound_of_series_is_left_out_and_counted() -> Result<()> {
    let ns = Netns::new("expbound")?;
    let rules: String = (1..=20).map(|port| format!("tcp dport {port} counter\n")).collect();
    nft::load(&ns, &format!("table ip t {{ chain c {{\n{rules}}}\n}}"))?;
    let mut config = alone();
    config.max_series = 5;
    let all = parse(&scrape(&ns, &config)?)?;
    let shown = all.keys().filter(|(name, _)| name == "nftables_rule_packets").count();
    assert_eq!((shown, single(&all, "nftables_exporter_left_out_series")?), (5, 15.0));
    Ok(())
}
