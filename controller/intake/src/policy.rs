//! ClusterwideNetworkPolicy to rules.

use fw_policy::{Peers, Policy, Ports, Rule};
use serde_json::Value;

use crate::allowed::{Allowed, Limit};
use crate::field::{Field, List};
use crate::finding::{Finding, Reason};
use crate::outcome::PolicyState;
use crate::peers::read_blocks;
use crate::ports::read_ports;
use crate::report::Report;
use crate::selectors::{Expressions, read_selectors};

/// Status message of a policy that reaches outside `allowedNetworks` (compat.md section 4).
pub(crate) const FORBIDDEN: &str = "ingress/egress does not match allowed networks";

/// What a policy says, whatever is allowed.
#[derive(Debug)]
pub(crate) struct PolicyRead {
    policy: Policy,
    report: Report,
}

/// Reads one policy.
pub(crate) fn read_policy(body: &Value, mut report: Report) -> PolicyRead {
    for key in unknown_root_fields(body) {
        report.warning(
            &key,
            Reason::UnknownField,
            "is not a field of the object; it is ignored",
            "move it to spec",
        );
    }
    let spec = Field::root(body, "spec");
    if spec.is_missing() {
        let message = "is missing, so the policy opens nothing";
        report.warning("spec", Reason::InvalidValue, message, "write spec.ingress or spec.egress");
    } else if spec.map(&mut report) {
        for path in spec.unknown_keys(&["description", "ingress", "egress"]) {
            let message = "is not a field of the policy; it is ignored";
            report.warning(&path, Reason::UnknownField, message, "write ingress or egress");
        }
    }
    let ingress = read_rules(&spec.get("ingress"), Direction::Ingress, &mut report);
    let egress = read_rules(&spec.get("egress"), Direction::Egress, &mut report);
    PolicyRead { policy: Policy { ingress, egress }, report }
}

impl PolicyRead {
    /// What the policy opens, or `None` when it is ignored as a whole, its status, and all that is to be said of it.
    pub(crate) fn judge(&self, allowed: &Allowed) -> (Option<Policy>, PolicyState, Vec<Finding>) {
        let mut report = self.report.clone();
        let Policy { ingress, egress } = &self.policy;
        let fits = [
            within(&allowed.ingress, "spec.ingress", ingress, "from", &mut report),
            within(&allowed.egress, "spec.egress", egress, "to", &mut report),
        ];
        if fits.contains(&false) {
            return (None, PolicyState::Ignored { message: FORBIDDEN.to_owned() }, report.into_findings());
        }
        let message = report.summary();
        if report.has_errors() && !ingress.iter().chain(egress).any(opens_something) {
            return (None, PolicyState::Ignored { message }, report.into_findings());
        }
        (Some(self.policy.clone()), PolicyState::Deployed { message }, report.into_findings())
    }
}

/// True when all peers of all rules are inside the limit.
fn within(limit: &Limit, list: &str, rules: &[Rule], peers: &str, report: &mut Report) -> bool {
    let mut fits = true;
    for rule in rules {
        fits &= limit.check(&format!("{list}[{}].{peers}", rule.index), &rule.peers, report);
    }
    fits
}

/// Keys beside `spec` that somebody may have put on the wrong level.
fn unknown_root_fields(body: &Value) -> Vec<String> {
    let rules = ["ingress", "egress"];
    rules.into_iter().filter(|key| body.get(*key).is_some()).map(str::to_owned).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// The rules of one direction.
fn read_rules(field: &Field<'_>, direction: Direction, report: &mut Report) -> Vec<Rule> {
    let list = field.list(fw_crds::MAX_RULES, report);
    let mut expressions = Expressions::default();
    let mut rules = Vec::with_capacity(list.entries.len());
    for (index, entry) in &list.entries {
        let known: &[&str] = match direction {
            Direction::Ingress => &["from", "ports"],
            Direction::Egress => &["to", "toFQDNs", "ports"],
        };
        if !entry.map(report) || entry.refuse_unknown(known, "the rule matches nothing", report) {
            continue;
        }
        let peers_field = entry.get(if direction == Direction::Ingress { "from" } else { "to" });
        let peer_list = peers_field.list(fw_crds::MAX_PEERS, report);
        let peers = match direction {
            Direction::Ingress => blocks_or_any(&peer_list, report),
            Direction::Egress => read_destinations(entry, &peers_field, &peer_list, &mut expressions, report),
        };
        rules.push(Rule { index: *index, peers, ports: read_ports(&entry.get("ports"), report) });
    }
    rules
}

/// Empty or missing as written is everyone; a list that lost its entries matches what is left.
fn blocks_or_any(list: &List<'_>, report: &mut Report) -> Peers {
    if list.empty { Peers::Any } else { Peers::Blocks(read_blocks(list, report)) }
}

/// `to` and `toFQDNs`. A non-empty `to` wins; with the key `toFQDNs` the rule never means any destination.
fn read_destinations(
    rule: &Field<'_>,
    to: &Field<'_>,
    list: &List<'_>,
    expressions: &mut Expressions,
    report: &mut Report,
) -> Peers {
    let names = rule.get("toFQDNs");
    if !rule.has_key("toFQDNs") || (names.is_missing() && !list.empty) {
        return blocks_or_any(list, report);
    }
    if !to.is_missing() {
        let (wins, loses) = if list.empty { ("toFQDNs", "to") } else { ("to", "toFQDNs") };
        report.warning(
            &names.path,
            Reason::ToBesideToFQDNs,
            format_args!("the rule has both to and toFQDNs; {wins} counts and {loses} does not"),
            "make two rules of it, one with to and one with toFQDNs",
        );
    }
    if !list.empty {
        return blocks_or_any(list, report);
    }
    Peers::Names(read_selectors(&names, expressions, report))
}

/// False for a rule of which nothing is left.
fn opens_something(rule: &Rule) -> bool {
    let peers = match &rule.peers {
        Peers::Any => true,
        Peers::Blocks(blocks) => !blocks.is_empty(),
        Peers::Names(selectors) => !selectors.is_empty(),
    };
    peers && !matches!(&rule.ports, Ports::Ranges(ranges) if ranges.is_empty())
}
