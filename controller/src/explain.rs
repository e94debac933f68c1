//! What would happen to a packet, and what would have to be allowed.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use fw_policy::{
    DropReason, ObjectKind, Origin, Packet, Peers, Policy, PolicySet, Rule, ServiceName, Transport, Why,
};
use fw_ruleset::{Ruleset, evaluate};
use serde::{Deserialize, Serialize};

use crate::names::{EarlyDrop, Known};

/// Near misses that are listed.
const MAX_NEAR: usize = 3;

/// The answer to `explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The packet as it was understood.
    pub packet: String,
    /// True: it passes.
    pub accepted: bool,
    /// Why, as a sentence.
    pub reason: String,
    /// The object and field that decide, e.g. `clusterwidenetworkpolicy firewall/allow-web spec.egress[0].to[1]`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decided_by: Option<String>,
    /// Comment of the rule that gives the verdict, the key of its counter in the status; of a packet that is dropped
    /// early the path of its counter there, e.g. `stats.drops.policy.xdp`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub counter: Option<String>,
    /// Where it is dropped before nftables sees it, and for which reason: `by xdp on vlan104009, for policy`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dropped_early: Option<String>,
    /// For a dropped packet: what would have to be allowed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remedy: Option<String>,
    /// Entries that miss the packet by one condition.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub near: Vec<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "packet:     {}", self.packet)?;
        writeln!(f, "verdict:    {}", if self.accepted { "accept" } else { "drop" })?;
        writeln!(f, "reason:     {}", self.reason)?;
        if let Some(origin) = &self.decided_by {
            writeln!(f, "decided by: {origin}")?;
        }
        if let Some(early) = &self.dropped_early {
            writeln!(f, "early:      {early}")?;
        }
        if let Some(comment) = &self.counter {
            writeln!(f, "counted at: {comment}")?;
        }
        for near in &self.near {
            writeln!(f, "near miss:  {near}")?;
        }
        if let Some(remedy) = &self.remedy {
            writeln!(f, "to allow:   {remedy}")?;
        }
        Ok(())
    }
}

/// Explains a packet by the reference, with the counter that the compiled ruleset or the early drop gives it. `known`:
/// what is known of it from DNS answers and from the eBPF programs.
pub fn explain(set: &PolicySet, ruleset: &Ruleset, packet: &Packet, known: &Known) -> Explanation {
    let decision = set.decide_with(packet, &known.learned);
    let mut reason = reason(set, packet, &decision.why);
    // What a name allows is decided by what is in the eBPF maps at the moment, which the ruleset does not say.
    if !matches!(decision.why, Why::Name { .. }) && evaluate(ruleset, packet).accepted != decision.accepted {
        reason.push_str(
            "; BUT the compiled ruleset decides otherwise: this is a fault of the controller, report it",
        );
    }
    if known.early.is_some() && decision.accepted {
        reason.push_str(
            "; BUT the eBPF programs drop it: they are behind, or this is a fault of the controller, report it",
        );
    }
    if !known.names.is_empty() {
        reason.push_str(&format!("; {} was learned from {}", packet.destination, known.names.join(", ")));
    }
    let near =
        if decision.why == Why::Drop(DropReason::Policy) { near_misses(set, packet) } else { Vec::new() };
    Explanation {
        packet: packet.to_string(),
        accepted: decision.accepted,
        reason,
        decided_by: origin(&decision.why).map(|origin| origin.to_string()),
        counter: Some(known.early.as_ref().map_or_else(|| decision.why.counter(), counter_of)),
        dropped_early: known.early.as_ref().map(described),
        remedy: remedy(set, packet, &decision.why),
        near,
    }
}

/// The early drop's counters count packets wherever they are dropped the same way.
fn counter_of(early: &EarlyDrop) -> String {
    let places: BTreeSet<&str> = early.places.values().copied().collect();
    let paths = places.iter().map(|place| format!("stats.drops.{}.{place}", early.reason));
    paths.collect::<Vec<_>>().join(" or ")
}

fn described(early: &EarlyDrop) -> String {
    let places = early.places.iter().map(|(interface, place)| format!("by {place} on {interface}"));
    format!("{}, for {}", places.collect::<Vec<_>>().join(" or "), early.reason)
}

fn reason(set: &PolicySet, packet: &Packet, why: &Why) -> String {
    match why {
        Why::Established => "it belongs to an established connection".to_owned(),
        Why::Icmp => {
            "ICMP that passes without a policy (an error about an established connection, or icmpEcho)"
                .to_owned()
        }
        Why::Ingress { policy, .. } => format!("the ingress policy {policy} allows it"),
        Why::Egress { policy, .. } => format!("the egress policy {policy} allows it"),
        Why::Name { policy, selector, .. } => {
            format!("the egress policy {policy} allows it by the name {}", selector.text())
        }
        Why::EncryptedDns { .. } => "the Firewall allows encrypted DNS".to_owned(),
        Why::DnsFallback { .. } => {
            "it is DNS to a known resolver, which passes while the DNS proxy does not answer".to_owned()
        }
        Why::Service(name) => format!("it goes to the LoadBalancer Service {name}"),
        Why::Drop(DropReason::Policy) => match direction(set, packet) {
            Direction::Egress => "no egress policy allows it".to_owned(),
            Direction::Ingress => "no ingress policy and no LoadBalancer Service allows it".to_owned(),
            Direction::Outside => {
                format!(
                    "neither {} nor {} is an inside interface ({})",
                    packet.input,
                    packet.output,
                    inside(set)
                )
            }
        },
        Why::Drop(DropReason::Spoofed) => {
            format!(
                "it enters by inside, but {} is neither the cluster's nor a LoadBalancer address",
                packet.source
            )
        }
        Why::Drop(other) => other.to_string(),
    }
}

fn origin(why: &Why) -> Option<Origin> {
    match why {
        Why::Ingress { policy, field, .. } | Why::Egress { policy, field, .. } => {
            Some(Origin::policy(policy, field))
        }
        Why::Service(ServiceName { namespace, name }) => Some(Origin {
            kind: ObjectKind::Service,
            namespace: namespace.clone(),
            name: name.clone(),
            field: String::new(),
        }),
        Why::Name { policy, .. } => Some(Origin::policy(policy, "spec.egress[].toFQDNs")),
        Why::Established | Why::Icmp | Why::EncryptedDns { .. } | Why::DnsFallback { .. } | Why::Drop(_) => {
            None
        }
    }
}

fn remedy(set: &PolicySet, packet: &Packet, why: &Why) -> Option<String> {
    let Why::Drop(reason) = why else { return None };
    Some(match reason {
        DropReason::Policy => return policy_remedy(set, packet),
        DropReason::Spoofed => {
            "if the source is one of the cluster's, add its prefix to spec.clusterPrefixes of the \
                                Firewall"
                .to_owned()
        }
        DropReason::UnsupportedProtocol => "policies can allow TCP and UDP only".to_owned(),
        DropReason::EncryptedDns => {
            "spec.dns.dot or spec.dns.doh of the Firewall refuses it; DNS over UDP and TCP goes through the proxy"
                .to_owned()
        }
        DropReason::Bgp => "BGP to the machines is never forwarded under host protection".to_owned(),
        DropReason::Invalid => "nothing can allow packets that conntrack calls invalid".to_owned(),
    })
}

fn policy_remedy(set: &PolicySet, packet: &Packet) -> Option<String> {
    let direction = direction(set, packet);
    let Some((protocol, port)) = packet.transport.service() else {
        return Some(match (packet.transport, &direction) {
            (Transport::Icmp { kind: 8 | 128, .. }, Direction::Egress) => {
                "icmpEcho: egress in the spec of the Firewall".to_owned()
            }
            (Transport::Icmp { kind: 8 | 128, .. }, Direction::Ingress) => {
                "icmpEcho: both in the spec of the Firewall".to_owned()
            }
            _ => "only echo requests and errors about established connections can pass".to_owned(),
        });
    };
    let protocol = protocol.to_string().to_ascii_uppercase();
    let (list, peers, address) = match direction {
        Direction::Egress => ("egress", "to", packet.destination),
        Direction::Ingress => ("ingress", "from", packet.source),
        Direction::Outside => {
            return Some(
                "if one of them leads to the cluster, name it in spec.insideInterfaces of the Firewall"
                    .to_owned(),
            );
        }
    };
    Some(format!(
        "a ClusterwideNetworkPolicy in namespace firewall with spec: {{{list}: [{{{peers}: [{{cidr: \"{}\"}}], ports: \
         [{{protocol: {protocol}, port: {port}}}]}}]}}",
        host_cidr(address),
    ))
}

fn host_cidr(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

enum Direction {
    Egress,
    Ingress,
    Outside,
}

fn direction(set: &PolicySet, packet: &Packet) -> Direction {
    let inside = &set.firewall.inside.interfaces;
    match (inside.contains(&packet.input), inside.contains(&packet.output)) {
        (true, _) => Direction::Egress,
        (false, true) => Direction::Ingress,
        (false, false) => Direction::Outside,
    }
}

fn inside(set: &PolicySet) -> String {
    let names: Vec<&str> = set.firewall.inside.interfaces.iter().map(|name| name.as_str()).collect();
    if names.is_empty() { "no inside is known".to_owned() } else { format!("inside: {}", names.join(", ")) }
}

fn near_misses(set: &PolicySet, packet: &Packet) -> Vec<String> {
    let Some((protocol, port)) = packet.transport.service() else { return Vec::new() };
    let (list, peer, rules): (_, _, fn(&Policy) -> &Vec<Rule>) = match direction(set, packet) {
        Direction::Egress => ("egress", packet.destination, |policy| &policy.egress),
        Direction::Ingress => ("ingress", packet.source, |policy| &policy.ingress),
        Direction::Outside => return Vec::new(),
    };
    let mut near = Vec::new();
    for (name, policy) in &set.policies {
        for rule in rules(policy) {
            let field = format!("spec.{list}[{}]", rule.index);
            let what = match (has_peer(rule, peer), rule.ports.contains(protocol, port)) {
                // A rule for everyone is near everything.
                (true, false) if rule.peers != Peers::Any => {
                    format!("has {peer} but not port {protocol} {port}")
                }
                (false, true) if is_excepted(rule, peer) => format!("excepts {peer}"),
                _ => continue,
            };
            near.push(format!("{} {what}", Origin::policy(name, field)));
            if near.len() == MAX_NEAR {
                return near;
            }
        }
    }
    near
}

fn has_peer(rule: &Rule, peer: IpAddr) -> bool {
    match &rule.peers {
        Peers::Any => true,
        Peers::Blocks(blocks) => blocks.iter().any(|block| block.covering_prefix_len(peer).is_some()),
        Peers::Names(_) => false,
    }
}

fn is_excepted(rule: &Rule, peer: IpAddr) -> bool {
    let Peers::Blocks(blocks) = &rule.peers else { return false };
    blocks.iter().any(|block| block.net.contains(&peer))
}

#[cfg(test)]
mod tests {
    use fw_policy::{Block, Ports};

    use super::*;
    use crate::packet_text::parse;

    fn example() -> PolicySet {
        let mut set = PolicySet::default();
        set.firewall.inside.interfaces.insert("vrf104009".parse().unwrap());
        let block = Block {
            index: 0,
            net: "1.2.3.0/24".parse().unwrap(),
            except: vec!["1.2.3.128/25".parse().unwrap()],
        };
        let ports = Ports::Ranges(vec![fw_policy::PortRange {
            index: 0,
            protocol: fw_policy::Protocol::Tcp,
            first: 443,
            last: 443,
        }]);
        let rule = Rule { index: 0, peers: Peers::Blocks(vec![block]), ports };
        set.policies.insert("web".to_owned(), Policy { ingress: Vec::new(), egress: vec![rule] });
        set
    }

    fn ask(packet: &str) -> Explanation {
        let set = example();
        explain(
            &set,
            &fw_ruleset::compile(&set, fw_ruleset::DEFAULT_CELL_LIMIT).ruleset,
            &parse(packet).unwrap(),
            &Known::default(),
        )
    }

    #[test]
    fn an_allowed_packet_names_the_policy_entry_that_decides() {
        let answer = ask("tcp 10.0.1.5 -> 1.2.3.4:443 in vrf104009 out vlan179");
        assert!(answer.accepted);
        assert_eq!(
            answer.decided_by.as_deref(),
            Some("clusterwidenetworkpolicy firewall/web spec.egress[0].to[0]")
        );
        assert_eq!(answer.remedy, None);
    }

    #[test]
    fn a_dropped_packet_says_what_would_have_to_be_allowed_and_what_nearly_does() {
        let answer = ask("tcp 10.0.1.5 -> 1.2.3.4:80 in vrf104009 out vlan179");
        assert!(!answer.accepted);
        let remedy = answer.remedy.unwrap();
        assert!(
            remedy.contains("{egress: [{to: [{cidr: \"1.2.3.4/32\"}]") && remedy.contains("port: 80"),
            "{remedy}"
        );
        assert_eq!(
            answer.near,
            ["clusterwidenetworkpolicy firewall/web spec.egress[0] has 1.2.3.4 but not port tcp 80"]
        );
        let answer = ask("tcp 10.0.1.5 -> 1.2.3.200:443 in vrf104009 out vlan179");
        assert_eq!(answer.near, ["clusterwidenetworkpolicy firewall/web spec.egress[0] excepts 1.2.3.200"]);
    }

    #[test]
    fn a_packet_that_is_dropped_early_is_counted_there_and_one_that_would_be_accepted_is_called_a_fault() {
        let set = example();
        let ruleset = fw_ruleset::compile(&set, fw_ruleset::DEFAULT_CELL_LIMIT).ruleset;
        let places = [("vlan1".parse().unwrap(), "xdp"), ("vlan2".parse().unwrap(), "tcx")].into();
        let early = Some(EarlyDrop { places, reason: "expired name" });
        let known = Known { early, ..Known::default() };
        let ask = |port| {
            let packet = format!("tcp 10.0.1.5 -> 1.2.3.4:{port} in vrf104009 out vlan179");
            explain(&set, &ruleset, &parse(&packet).unwrap(), &known)
        };
        let answer = ask(80);
        let counter = "stats.drops.expired name.tcx or stats.drops.expired name.xdp";
        assert_eq!(answer.counter.as_deref(), Some(counter));
        assert_eq!(
            answer.dropped_early.as_deref(),
            Some("by xdp on vlan1 or by tcx on vlan2, for expired name")
        );
        assert!(!answer.reason.contains("BUT"), "{}", answer.reason);
        assert!(ask(443).reason.contains("BUT the eBPF programs drop it"));
    }

    #[test]
    fn the_remedy_fits_the_direction() {
        let answer = ask("tcp 9.9.9.9 -> 10.0.1.5:80 in vlan179 out vrf104009");
        assert!(answer.remedy.unwrap().contains("{ingress: [{from: [{cidr: \"9.9.9.9/32\"}]"));
        let answer = ask("tcp 9.9.9.9 -> 10.0.1.5:80 in vlan179 out vlan180");
        assert!(answer.reason.contains("inside: vrf104009"), "{}", answer.reason);
        assert!(answer.remedy.unwrap().contains("insideInterfaces"));
        let answer = ask("icmp 10.0.1.5 -> 9.9.9.9 in vrf104009 out vlan180");
        assert_eq!(answer.remedy.unwrap(), "icmpEcho: egress in the spec of the Firewall");
    }
}
