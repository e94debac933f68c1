//! Others at our table.

use std::time::Instant;

use anyhow::{Result, ensure};
use fw_testkit::nft;
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::range::{Range, Shot};

use crate::daemon::{Daemon, eventually};
use crate::rig::{FIREWALL, at, documents, fresh_port, policy};

const ALLOWED: &str = "accept traffic for np web tcp";

fn start(label: &str, variables: &[(&str, &str)]) -> Result<(Lab, Daemon)> {
    let lab = Lab::standard(label)?;
    let mut daemon = Daemon::new(label)?;
    let web = policy("web", "{egress: [{to: [{cidr: 1.2.3.0/24}], ports: [{port: 80}]}]}");
    daemon.write("all.yaml", &documents(&[FIREWALL, &web]))?;
    daemon.start(&lab.firewall, variables)?;
    daemon.wait_until_enforcing()?;
    Ok((lab, daemon))
}

/// Whether new connections to an allowed and to a denied port come through.
fn passes(lab: &Lab) -> Result<[bool; 2]> {
    let shot =
        |port| Shot { from: 0, packet: Crafted::syn(at("10.0.16.2", fresh_port()), at("1.2.3.4", port)) };
    let fates = Range::new(lab)?.fire(&[shot(80), shot(81)])?;
    Ok([!fates[0].is_empty(), !fates[1].is_empty()])
}

/// The counter of the policy as the status has it.
fn published(status: &serde_json::Value) -> Option<u64> {
    status["status"]["stats"]["rules"]["accept"][ALLOWED]["counter"]["packets"].as_u64()
}

#[test]
fn with_an_owner_others_cannot_change_the_table() -> Result<()> {
    let (lab, _daemon) = start("owned", &[])?;
    let before = nft::list_ruleset(&lab.firewall)?;
    for attempt in [
        "insert rule inet firewall forward accept",
        "delete table inet firewall",
        "flush chain inet firewall forward",
        "add element inet firewall inside { \"vlan179\" }",
    ] {
        let refused = nft::load(&lab.firewall, attempt);
        let error = format!("{:#}", refused.expect_err(attempt));
        ensure!(error.contains("not permitted"), "{attempt}: {error}");
    }
    nft::load(&lab.firewall, "flush ruleset")?;
    assert_eq!(nft::list_ruleset(&lab.firewall)?, before, "others' flush ruleset leaves an owned table");
    assert_eq!(passes(&lab)?, [true, false]);
    Ok(())
}

#[test]
fn without_an_owner_a_change_is_noticed_and_repaired() -> Result<()> {
    let (lab, daemon) = start("drift", &[("FW_WITHOUT_OWNER", "1")])?;
    assert_eq!(passes(&lab)?, [true, false]);
    for (number, attack) in [
        "insert rule inet firewall forward accept",
        "flush chain inet firewall egress-web-tcp",
        "add element inet firewall inside { \"vlan179\" }",
        "delete table inet firewall",
    ]
    .into_iter()
    .enumerate()
    {
        let repairs =
            |status: &serde_json::Value| status["status"]["controller"]["transactions"]["repairs"].as_u64();
        // What was read last is what a repair restores.
        let counted = number as u64 + 1;
        daemon.wait_until("it has read the counters", |status| published(status) == Some(counted))?;
        let began = Instant::now();
        nft::load(&lab.firewall, attack)?;
        daemon.wait_until("it has repaired the table", |status| repairs(status) >= Some(counted))?;
        eprintln!("{attack:?} was repaired and reported within {:?}", began.elapsed());
        eventually("the table is as it was", || {
            let text = nft::list_ruleset(&lab.firewall)?;
            Ok(text.contains(ALLOWED) && !text.contains("\"vlan179\""))
        })?;
        assert_eq!(passes(&lab)?, [true, false], "{attack}");
    }
    let counters = nft::counters(&lab.firewall)?;
    assert_eq!(counters.comment(ALLOWED), 5, "repairs restore what was read last");
    let lines = daemon.lines()?;
    ensure!(
        lines.iter().any(|line| line.contains("nft (")),
        "the log names the process:\n{}",
        lines.join("\n")
    );
    Ok(())
}
