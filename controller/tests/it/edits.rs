//! A thousand edits under traffic.

use std::time::Duration;

use anyhow::{Context as _, Result};
use fw_policy::{Block, Peers, Policy, PolicySet, PortRange, Ports, Protocol, Rule};
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::traffic::steady::Steady;

use crate::daemon::soak_factor;
use crate::rig::{FIREWALL, Rig, at, judge, policy};

const EDITS: u32 = 1000;
const POLICIES: u32 = 500;

/// One policy of the crowd: two blocks that overlap others', two ports.
fn crowd(number: u32, port: u16) -> Policy {
    let net = |text: String| text.parse().expect("a prefix");
    let blocks =
        [net(format!("30.{}.0.0/16", number % 50)), net(format!("30.{}.{}.0/24", number % 50, number % 256))];
    let block = |(index, net)| Block { index, net, except: vec![] };
    let range = |(index, first)| PortRange { index, protocol: Protocol::Tcp, first, last: first + 10 };
    let rule = Rule {
        index: 0,
        peers: Peers::Blocks(blocks.into_iter().enumerate().map(block).collect()),
        ports: Ports::Ranges([port, 9000].into_iter().enumerate().map(range).collect()),
    };
    Policy { ingress: vec![], egress: vec![rule] }
}

/// Edits rotate: add, change, remove, rename.
fn edit(set: &mut PolicySet, round: u32) {
    let victim = format!("crowd-{}", (round * 7) % POLICIES);
    match round % 4 {
        0 => drop(set.policies.insert(format!("new-{round}"), crowd(round, 1000))),
        1 => drop(set.policies.insert(victim, crowd(round, 2000 + u16::try_from(round % 1000).unwrap_or(0)))),
        2 => drop(set.policies.remove(&format!("new-{}", round - 2))),
        _ => {
            if let Some(policy) = set.policies.remove(&victim) {
                set.policies.insert(format!("{victim}-renamed-{round}"), policy);
            }
        }
    }
}

#[test]
fn a_thousand_edits_break_no_connection_and_lose_no_count() -> Result<()> {
    let untouched = policy(
        "untouched",
        "{egress: [{to: [{cidr: 203.0.113.2/32}], ports: [{port: 7000}, {port: 7001, protocol: UDP}]}]}",
    );
    let mut set = judge(&crate::rig::documents(&[FIREWALL, &untouched]), &Default::default())?.set;
    for number in 0..POLICIES {
        set.policies.insert(format!("crowd-{number}"), crowd(number, 80));
    }
    let mut rig = Rig::new("edits", FIREWALL)?;
    rig.apply_set(&set)?;
    let ns = &rig.lab.internet().ns;
    let tcp = Server::tcp(ns, &[at("203.0.113.2", 7000)], Service::Echo)?;
    let udp = Server::udp(ns, &[at("203.0.113.2", 7001)])?;
    let pace = Duration::from_millis(5);
    let connections = Steady::tcp(&rig.lab.cluster().ns, None, tcp.addresses()[0], 10, pace)?;
    let datagrams = Steady::udp(&rig.lab.cluster().ns, at("10.0.16.2", 0), udp.addresses()[0], pace)?;
    let comment = "accept traffic for np untouched tcp";
    let mut last_count = 0;
    let mut most_messages = 0;
    let edits = EDITS * soak_factor();
    for round in 0..edits {
        edit(&mut set, round);
        let messages = rig.apply_counting(&set)?;
        most_messages = most_messages.max(messages);
        if round % 100 == 0 {
            let count = rig.counters()?.comment(comment);
            assert!(count >= last_count, "edit {round}: the counter went from {last_count} to {count}");
            last_count = count;
        }
    }
    let whole = rig.messages_from_nothing(&set).context("the whole ruleset")?;
    eprintln!("the longest of {edits} edits took {most_messages} messages, the whole ruleset takes {whole}");
    assert!(most_messages <= 60, "an edit of one policy took {most_messages} messages");
    let counters = rig.counters()?;
    assert_eq!(counters.comment(comment), 10, "each connection was counted once");
    let report = connections.stop()?;
    assert_eq!((report.flows, report.breaks.as_slice(), report.retransmits), (10, &[][..], 0));
    let report = datagrams.stop()?;
    assert_eq!((report.sent, report.breaks.as_slice()), (report.answered, &[][..]), "no packet was lost");
    assert!(report.sent > 100, "traffic flowed: {report:?}");
    Ok(())
}
