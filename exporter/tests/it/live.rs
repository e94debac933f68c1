//! Scrapes while others edit: never an error, never a series twice, never one rule's figures under another's labels.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_exporter::scrape::{self, Scraper};
use fw_testkit::{Netns, nft};

use crate::rig::{alone, parse, single};

/// Rules that always stay; enough for a dump to take several datagrams.
const STEADY: u64 = 1500;
/// Rules that come and go together.
const GROUP: u64 = 40;

/// A rule whose counter says which it is.
fn rule(number: u64) -> String {
    let (high, low) = (number / 250, number % 250);
    format!("ip saddr 10.{high}.{low}.1 counter packets {number} bytes {} comment \"r{number}\"", number * 3)
}

/// An edit: the chain of the one group is emptied and that of the other filled, in one transaction.
fn edit(round: u64) -> String {
    let (full, empty) = if round.is_multiple_of(2) { ("a", "b") } else { ("b", "a") };
    let first = if full == "a" { 10_000 } else { 20_000 };
    let mut text = String::from("flush chain inet t a\nflush chain inet t b\n");
    for number in first..first + GROUP {
        let _ = writeln!(text, "add rule inet t {full} {}", rule(number));
    }
    // Anonymous sets come and go with their rules.
    let _ = writeln!(
        text,
        "add rule inet t {full} tcp dport {{ 1, {round}, 3-9 }} counter comment \"{empty} is empty\""
    );
    text
}

/// Checks one scrape; gives the group it saw.
fn check(text: &str) -> Result<char> {
    let all = parse(text)?;
    ensure!(single(&all, "nftables_up")? == 1.0, "not up");
    let mut seen = BTreeSet::new();
    for ((name, labels), value) in &all {
        let factor = match name.as_str() {
            "nftables_rule_packets" => 1,
            "nftables_rule_bytes" => 3,
            _ => continue,
        };
        let Some(number) = labels["comment"].strip_prefix('r') else { continue };
        let number: u64 = number.parse().context("a comment of ours")?;
        let address = format!("10.{}.{}.1", number / 250, number % 250);
        ensure!(labels["source_addresses"] == address, "{labels:?}");
        ensure!(*value == (number * factor) as f64, "{labels:?} has {value}");
        seen.insert(number);
    }
    let steady = seen.range(..10_000).count();
    let (a, b) = (seen.range(10_000..20_000).count(), seen.range(20_000..).count());
    ensure!(steady as u64 == STEADY, "{steady} of {STEADY} rules that never change");
    match (a as u64, b as u64) {
        (GROUP, 0) => Ok('a'),
        (0, GROUP) => Ok('b'),
        other => anyhow::bail!("{other:?} rules of groups of which one is there at a time"),
    }
}

#[test]
fn scrapes_during_edits_see_one_state_each_and_share_reads() -> Result<()> {
    let ns = Netns::new("explive")?;
    let mut base = String::from("table inet t {\nchain a { }\nchain b { }\nchain steady {\n");
    for number in 1..=STEADY {
        let _ = writeln!(base, "{}", rule(number));
    }
    base.push_str("}\n}\n");
    nft::load(&ns, &base)?;
    nft::load(&ns, &edit(0))?;
    let stop = AtomicBool::new(false);
    let edits = AtomicU64::new(0);
    let duration = Duration::from_secs(if std::env::var_os("FW_SOAK").is_some() { 60 } else { 4 });
    let texts = std::thread::scope(|scope| -> Result<Vec<String>> {
        let editor = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                nft::load(&ns, &edit(1 + edits.fetch_add(1, Ordering::Relaxed)))?;
                // As often as no program edits, and yet with gaps that a read of this size fits into.
                std::thread::sleep(Duration::from_millis(25));
            }
            Ok(())
        });
        let texts = ns.run(|| scrapes(duration))?;
        stop.store(true, Ordering::Relaxed);
        editor.join().map_err(|_| anyhow::anyhow!("the editor panicked"))??;
        texts
    })?;
    let edits = edits.load(Ordering::Relaxed);
    println!("{} scrapes, {edits} edits", texts.len());
    ensure!(edits > 10 && texts.len() > 10, "too little happened");
    let mut groups = BTreeSet::new();
    for text in &texts {
        groups.insert(check(text)?);
    }
    assert_eq!(groups, BTreeSet::from(['a', 'b']), "both states were seen");
    let last = texts.last().context("no scrape")?;
    let reads = parse(last)?;
    let count =
        |name: &str| reads.iter().filter(|((it, _), _)| it == name).map(|(_, value)| value).sum::<f64>();
    let (reads, scrapes) = (count("nftables_exporter_reads_total"), count("nftables_exporter_scrapes_total"));
    println!("{reads} reads, {scrapes} scrapes, {} retries", count("nftables_exporter_retries_total"));
    ensure!(reads < scrapes, "scrapes at one time share a read");
    Ok(())
}

/// Four scrapes at a time for some seconds.
fn scrapes(duration: Duration) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let scraper = Arc::new(Scraper::default());
    let config = Arc::new(alone());
    let until = Instant::now() + duration;
    runtime.block_on(async {
        let mut texts = Vec::new();
        while Instant::now() < until {
            let one = || {
                let (scraper, config) = (Arc::clone(&scraper), Arc::clone(&config));
                tokio::spawn(async move { scrape::text(scraper.scrape(&config, 0).await) })
            };
            let tasks = [one(), one(), one(), one()];
            for task in tasks {
                texts.push(task.await?);
            }
        }
        Ok(texts)
    })
}
