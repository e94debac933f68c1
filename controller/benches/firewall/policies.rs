//! Policy sets of a given size, and the same as one rule with two anonymous sets each: how such rulesets are
//! usually written.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use fw_policy::{Block, Inside, InsideBasis, Peers, Policy, PolicySet, PortRange, Ports, Protocol, Rule};
use ipnet::{IpNet, Ipv4Net};

/// Peers of each policy.
const PEERS: u32 = 4;

/// `count` policies of four /24s each, all different, with two ports.
pub(crate) fn uniform(count: u32) -> PolicySet {
    set(count, |number| {
        let nets = (0..PEERS).map(|peer| net(0x1400_0000 + ((number * PEERS + peer) << 8), 24)).collect();
        (nets, vec![(443, 443), (8000 + port(number % 100), 8100)])
    })
}

/// `count` policies, half of them on 0.0.0.0/0, half on prefixes of all lengths that nest at random; port ranges
/// that overlap at random.
pub(crate) fn adversarial(count: u32) -> PolicySet {
    set(count, |number| {
        let first = 1 + port(number * 13 % 60_000);
        let ports = vec![(first, first + port(number % 3000))];
        if number % 2 == 0 {
            return (vec![net(0, 0)], ports);
        }
        let nets = (0..PEERS).map(|peer| {
            let length = u8::try_from(8 + (number * 7 + peer * 3) % 25).unwrap_or(32);
            net(number.wrapping_mul(2_654_435_761).wrapping_add(peer * 77_777), length)
        });
        (nets.collect(), ports)
    })
}

/// The edit that is measured: one policy's address and port change.
pub(crate) fn edited(set: &PolicySet, round: u32) -> PolicySet {
    let mut set = set.clone();
    let number = u32::try_from(set.policies.len() / 2).unwrap_or(0);
    if let Some(policy) = set.policies.get_mut(&name(number)) {
        let blocks = vec![Block { index: 0, net: net(0xC612_0000 + (round << 8), 24), except: vec![] }];
        let range = PortRange { index: 0, protocol: Protocol::Tcp, first: 1000 + port(round), last: 2000 };
        policy.egress =
            vec![Rule { index: 0, peers: Peers::Blocks(blocks), ports: Ports::Ranges(vec![range]) }];
    }
    set
}

fn name(number: u32) -> String {
    format!("policy-{number:05}")
}

fn port(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn net(address: u32, length: u8) -> IpNet {
    Ipv4Net::new(Ipv4Addr::from(address), length).map(|net| IpNet::V4(net.trunc())).unwrap_or_default()
}

fn set(count: u32, of: impl Fn(u32) -> (Vec<IpNet>, Vec<(u16, u16)>)) -> PolicySet {
    let mut set = PolicySet::default();
    let inside = ["vrf104009", "vlan104009"].iter().filter_map(|name| name.parse().ok()).collect();
    set.firewall.inside = Inside { interfaces: inside, prefixes: [].into(), basis: InsideBasis::Explicit };
    for number in 0..count {
        let (nets, ports) = of(number);
        let block = |(index, net)| Block { index, net, except: vec![] };
        let range = |(index, (first, last))| PortRange { index, protocol: Protocol::Tcp, first, last };
        let rule = Rule {
            index: 0,
            peers: Peers::Blocks(nets.into_iter().enumerate().map(block).collect()),
            ports: Ports::Ranges(ports.into_iter().enumerate().map(range).collect()),
        };
        set.policies.insert(name(number), Policy { ingress: vec![], egress: vec![rule] });
    }
    set
}

/// The same policies as today's controller writes them: a rule each, with two anonymous sets, the whole table
/// loaded anew for every change.
pub(crate) fn as_rules(set: &PolicySet) -> String {
    let mut text = String::from(
        "table inet firewall\ndelete table inet firewall\ntable inet firewall {\n chain forward {\n  \
         type filter hook forward priority 1; policy drop;\n  \
         ct state established,related counter accept comment \"accept established connections\"\n",
    );
    for (name, policy) in &set.policies {
        for rule in &policy.egress {
            let Peers::Blocks(blocks) = &rule.peers else { continue };
            let Ports::Ranges(ranges) = &rule.ports else { continue };
            let nets: Vec<String> = blocks.iter().map(|block| block.net.to_string()).collect();
            let ports: Vec<String> = ranges.iter().map(|r| format!("{}-{}", r.first, r.last)).collect();
            let _ = writeln!(
                text,
                "  ip daddr {{ {} }} tcp dport {{ {} }} counter accept comment \"accept traffic for np {name} tcp\"",
                nets.join(", "),
                ports.join(", ")
            );
        }
    }
    text.push_str(" }\n}\n");
    text
}
