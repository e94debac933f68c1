//! The status: what is in force, what it counted, what is wrong; in the shape of the Firewall object.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use fw_crds::{Counter, DeviceStats, DropLogStats, FirewallStats, FirewallStatus, RuleStats};
use fw_policy::ObjectKind;
use fw_ruleset::Count;
use fw_ruleset::ir::{Rule, Ruleset, Statement, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::published::{Key, Published};
use crate::reconcile::{Basis, DryRun, Judged, State, Tally, View};
use crate::source::SourceCounters;
use crate::timestamp::rfc3339;

pub mod describe;

/// What does not change while the process runs.
#[derive(Clone, Debug, Default)]
pub struct Identification {
    /// Name of the firewall.
    pub firewall: String,
    /// What the source is.
    pub source: String,
    /// What the kernel can do, one line each: `nftables owner and persist: yes`.
    pub kernel: BTreeMap<String, String>,
}

/// The whole answer to `status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `metal-stack.io/v1`
    pub api_version: String,
    /// `Firewall`
    pub kind: String,
    /// Name and namespace.
    pub metadata: BTreeMap<String, String>,
    /// The status.
    pub status: Body,
}

/// What the Firewall object's status has, and beside it what only the controller knows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    /// The Firewall object's status.
    #[serde(flatten)]
    pub firewall: FirewallStatus,
    /// Ours.
    pub controller: Controller,
}

/// What only the controller knows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Controller {
    /// True when a table of ours is in force.
    pub enforcing: bool,
    /// What the rules in force were made from: `base`, `snapshot`, `objects`, `adopted`, `before dryrun`, `none`.
    pub ruleset: String,
    /// What the source is waiting for, e.g. the manifest directory.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waiting_for: String,
    /// Why the last change was not applied, and when it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Outcome of the dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<Value>,
    /// Where the objects come from, and what that source counted.
    pub source: Value,
    /// State of each policy: `deployed`, or `ignored: why`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub policies: BTreeMap<String, String>,
    /// Number of LoadBalancer Services that open something.
    pub services: usize,
    /// Everything that is wrong or worth knowing, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// What the controller itself could not do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The last change of our table by others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_drift: Option<String>,
    /// Transactions.
    pub transactions: Value,
    /// Times that counters in the kernel were reset by others.
    pub counter_resets: u64,
    /// When the counters were last read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters_read: Option<String>,
    /// DNS: the proxy, what was learned, where eBPF programs are, what they dropped.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub names: Value,
    /// Intrusion detection: whether it answers, what it counts, what became of its alerts.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub ids: Value,
    /// What the control socket counted.
    pub control_socket: Value,
    /// What the kernel can do.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kernel: BTreeMap<String, String>,
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// One line for the log, the service manager and the top of `status`.
pub fn headline(view: &View) -> String {
    let mut text = match &view.state {
        State::NotEnforcing(why) => format!("NOT ENFORCING: {why}"),
        State::Enforcing(Basis::Current) => {
            let set = view.enforced.as_ref().map(|judged| &judged.set);
            let (policies, services) = set.map_or((0, 0), |set| (set.policies.len(), set.services.len()));
            format!(
                "ENFORCING {}, {}",
                count(policies, "policy", "policies"),
                count(services, "service", "services")
            )
        }
        State::Enforcing(Basis::Base) => "ENFORCING the base ruleset: nothing new passes".to_owned(),
        State::Enforcing(Basis::Snapshot) => "ENFORCING a stale snapshot".to_owned(),
        State::Enforcing(Basis::Adopted) => "ENFORCING what the kernel held at start".to_owned(),
        State::Enforcing(Basis::Foreign) => {
            "a table inet firewall of somebody else is in force until the objects are read".to_owned()
        }
        State::Enforcing(Basis::BeforeDryRun) => {
            let steps = view.dry_run.as_ref().map_or(0, |dry_run| dry_run.steps);
            format!("ENFORCING the rules of before the dry run; it would take {steps} steps")
        }
    };
    if !view.waiting_for.is_empty() {
        text.push_str(&format!(", {}", view.waiting_for));
    }
    if let (Some(refused), State::Enforcing(_)) = (&view.refused, &view.state) {
        text.push_str(&format!("; the last change was not applied: {refused}"));
    }
    if !view.findings.is_empty() {
        text.push_str(&format!("; {}", count(view.findings.len(), "finding", "findings")));
    }
    text
}

/// The status of a view. `names`: what the thread of names says.
pub fn status(
    view: &View,
    of: &Identification,
    names: Value,
    control_socket: Value,
    now: SystemTime,
) -> Status {
    let metadata = [("name", of.firewall.as_str()), ("namespace", fw_crds::NAMESPACE)];
    Status {
        api_version: format!("{}/{}", fw_crds::GROUP, fw_crds::VERSION),
        kind: "Firewall".to_owned(),
        metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        status: Body {
            firewall: firewall(view, &names),
            controller: Controller { names, ..controller(view, of, control_socket, now) },
        },
    }
}

/// The part of it that goes to the API server.
pub fn firewall(view: &View, names: &Value) -> FirewallStatus {
    let judged = view.enforced.as_ref().or(view.wanted.as_ref());
    let stats = |judged: &Judged| {
        let mut stats = stats(&judged.ruleset, &view.published);
        add_early_drops(&mut stats, &names["earlyDrops"]);
        stats
    };
    FirewallStatus {
        state: Some(if is_enforcing(view) { "enforcing" } else { "not enforcing" }.to_owned()),
        last_run: view.last_run.map(rfc3339),
        message: Some(headline(view)),
        controller_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        inside: judged.map(|judged| judged.inside.clone()),
        writer: None,
        stats: view.enforced.as_deref().map(stats),
    }
}

/// Early drops are policy drops, counted where they happened.
fn add_early_drops(stats: &mut FirewallStats, early: &Value) {
    for place in ["xdp", "tcx"] {
        for (reason, packets) in early[place].as_object().into_iter().flatten() {
            let packets = packets.as_u64().unwrap_or_default();
            let dropped = Counter { bytes: 0, packets };
            stats.drops.entry(reason.clone()).or_default().insert(place.to_owned(), dropped);
            let total = stats.drop_total.get_or_insert_default();
            total.packets = total.packets.saturating_add(packets);
        }
    }
    let count = |key: &str| early[key].as_u64().unwrap_or_default();
    let (total, not_logged) = (count("total"), count("notLogged"));
    if let Some(log) = &mut stats.drop_log {
        log.shown = log.shown.saturating_add(total.saturating_sub(not_logged));
        log.suppressed = log.suppressed.saturating_add(not_logged);
    }
}

/// True when a table of ours is in force.
pub fn is_enforcing(view: &View) -> bool {
    matches!(view.state, State::Enforcing(_))
}

fn controller(view: &View, of: &Identification, control_socket: Value, now: SystemTime) -> Controller {
    let drift = view.last_drift.as_ref().map(|drift| {
        let what = if drift.deleted { "deleted" } else { "changed" };
        format!("{} {what} by {}", rfc3339(drift.at), drift.by)
    });
    let retry = view.retry_in.map(|wait| format!(" (tried again every {} s)", wait.as_secs().max(1)));
    Controller {
        enforcing: is_enforcing(view),
        ruleset: basis_name(&view.state).to_owned(),
        waiting_for: view.waiting_for.clone(),
        refused: view.refused.as_ref().map(|text| format!("{text}{}", retry.unwrap_or_default())),
        dry_run: view.dry_run.as_ref().map(|dry_run: &DryRun| value_of(dry_run)),
        source: source(of, &view.source),
        policies: policies(view),
        services: view.wanted.as_ref().map_or(0, |judged| judged.set.services.len()),
        findings: view.findings.iter().map(ToString::to_string).collect(),
        problems: view.problems.clone(),
        last_drift: drift,
        transactions: value_of::<Tally>(&view.tally),
        counter_resets: view.published.resets,
        counters_read: view.counters_read.map(|read| age(read, now)),
        names: Value::Null,
        ids: Value::Null,
        control_socket,
        kernel: of.kernel.clone(),
    }
}

fn age(then: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    format!("{} ({seconds} s ago)", rfc3339(then))
}

fn basis_name(state: &State) -> &'static str {
    match state {
        State::NotEnforcing(_) => "none",
        State::Enforcing(Basis::Base) => "base",
        State::Enforcing(Basis::Snapshot) => "snapshot",
        State::Enforcing(Basis::Current) => "objects",
        State::Enforcing(Basis::Adopted) => "adopted",
        State::Enforcing(Basis::Foreign) => "foreign",
        State::Enforcing(Basis::BeforeDryRun) => "before dryrun",
    }
}

fn source(of: &Identification, counters: &SourceCounters) -> Value {
    let mut value = value_of(counters);
    if let Value::Object(map) = &mut value {
        map.insert("name".to_owned(), Value::String(of.source.clone()));
    }
    value
}

/// Our own types have text keys only, so they always have a JSON form.
fn value_of<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

fn policies(view: &View) -> BTreeMap<String, String> {
    let states = view.wanted.iter().flat_map(|judged| &judged.states);
    let text = |state: &fw_intake::PolicyState| match state.message() {
        "" => state.state().to_owned(),
        message => format!("{}: {message}", state.state()),
    };
    states
        .filter(|(id, _)| id.kind == ObjectKind::ClusterwideNetworkPolicy)
        .map(|(id, state)| (format!("{}/{}", id.namespace, id.name), text(state)))
        .collect()
}

/// Statistics in the field's shape. Rules with equal comments are summed; rules that count under a name show the
/// named counter's figures.
pub fn stats(ruleset: &Ruleset, published: &Published) -> FirewallStats {
    let named = |name: &str| published.get(&Key::Named(name.to_owned())).unwrap_or_default();
    let device = |side: &str| {
        let (r#in, out) = (named(&format!("{side}_in")).bytes, named(&format!("{side}_out")).bytes);
        (side.to_owned(), DeviceStats { r#in, out, total: r#in.saturating_add(out) })
    };
    let drops = drops(ruleset, published);
    FirewallStats {
        devices: ["external", "internal"].map(device).into(),
        ids_stats: BTreeMap::new(),
        rules: rules(ruleset, published),
        drop_total: Some(counter(named("drop_total"))),
        drop_log: Some(drop_log(ruleset, published)),
        drops: drops
            .into_iter()
            .map(|(reason, count)| (reason, [("nftables".to_owned(), count)].into()))
            .collect(),
    }
}

fn rules(ruleset: &Ruleset, published: &Published) -> BTreeMap<String, BTreeMap<String, RuleStats>> {
    // The three actions are always there, as dashboards expect.
    let mut rules: BTreeMap<String, BTreeMap<String, RuleStats>> =
        ["accept", "drop", "other"].map(|action| (action.to_owned(), BTreeMap::new())).into();
    for (chain, definition) in &ruleset.chains {
        let mut seen = BTreeSet::new();
        for rule in &definition.rules {
            let Some(comment) = &rule.comment else { continue };
            let Some(key) = key_of(chain, comment, rule) else { continue };
            // Equal comments of one chain are one series already.
            if !seen.insert(key.clone()) {
                continue;
            }
            let count = published.get(&key).unwrap_or_default();
            let entry = rules.entry(action(rule).to_owned()).or_default().entry(comment.clone()).or_default();
            entry.counter.packets = entry.counter.packets.saturating_add(count.packets);
            entry.counter.bytes = entry.counter.bytes.saturating_add(count.bytes);
        }
    }
    rules
}

fn key_of(chain: &str, comment: &str, rule: &Rule) -> Option<Key> {
    if rule.body.contains(&Statement::Counter) {
        return Some(Key::Rule { chain: chain.to_owned(), comment: comment.to_owned() });
    }
    rule.body.iter().find_map(|statement| match statement {
        Statement::NamedCounter(name) => Some(Key::Named(name.clone())),
        _ => None,
    })
}

fn action(rule: &Rule) -> &'static str {
    match rule.body.last() {
        Some(Statement::Verdict(Verdict::Accept)) => "accept",
        Some(Statement::Verdict(Verdict::Drop)) => "drop",
        _ => "other",
    }
}

/// Dropped packets by reason; `drop_total` is the reason `policy`. They add up to all packets dropped.
fn drops(ruleset: &Ruleset, published: &Published) -> BTreeMap<String, Counter> {
    let names = ruleset.counters.keys().filter(|name| name.as_str() != "drop_logged");
    names
        .filter_map(|name| {
            let reason = if name == "drop_total" { "policy" } else { name.strip_prefix("drop_")? };
            let count = published.get(&Key::Named(name.clone())).unwrap_or_default();
            Some((reason.to_owned(), counter(count)))
        })
        .collect()
}

/// What the drop log showed, and what its limit kept back: everything counted on the way to it, less what it showed.
fn drop_log(ruleset: &Ruleset, published: &Published) -> DropLogStats {
    let mut offered = BTreeSet::new();
    for chain in ruleset.chains.values() {
        let mut counters = Vec::new();
        for rule in &chain.rules {
            let leads_to_log = matches!(rule.body.last(),
                Some(Statement::Verdict(Verdict::Jump(name) | Verdict::Goto(name))) if name == "drop_log");
            if leads_to_log {
                offered.extend(counters.drain(..));
            }
            if !matches!(rule.body.last(), Some(Statement::Verdict(_))) {
                counters.extend(rule.body.iter().filter_map(|statement| match statement {
                    Statement::NamedCounter(name) => Some(name.clone()),
                    _ => None,
                }));
            }
        }
    }
    let packets = |name: &String| published.get(&Key::Named(name.clone())).unwrap_or_default().packets;
    let offered = offered.iter().map(packets).fold(0_u64, u64::saturating_add);
    let shown = packets(&"drop_logged".to_owned());
    DropLogStats { shown, suppressed: offered.saturating_sub(shown) }
}

fn counter(count: Count) -> Counter {
    Counter { bytes: count.bytes, packets: count.packets }
}

#[cfg(test)]
mod tests;
