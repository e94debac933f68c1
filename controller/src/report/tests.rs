use std::sync::Mutex;

use fw_intake::HostFacts;
use fw_nft::fake::{FakeKernel, Fault};
use fw_policy::ObjectKind;
use serde_json::json;

use super::*;
use crate::published::Published;
use crate::reconcile::{Host, Memory, NoNames, Questions, Reconciler, Remembered};

struct NoHost;

impl Host for NoHost {
    fn facts(&mut self, _: Questions) -> HostFacts {
        HostFacts::default()
    }
}

struct NoMemory;

impl Memory for NoMemory {
    fn snapshot(&mut self, _: Arc<Snapshot>, _: Option<Manifest>) {}

    fn forget_snapshot(&mut self) {}

    fn kernel(&mut self, _: Arc<Published>, _: bool) {}

    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A firewall on a made-up kernel, and the report it made last.
struct Machine {
    kernel: FakeKernel,
    reconciler: Reconciler,
    names: Value,
    last: Mutex<Report>,
}

impl Machine {
    fn start() -> Self {
        let kernel = FakeKernel::default();
        let (host, memory, names) = (Box::new(NoHost), Box::new(NoMemory), Box::new(NoNames));
        let reconciler = Reconciler::start(
            Box::new(kernel.clone()),
            host,
            memory,
            names,
            Remembered::default(),
            Instant::now(),
        );
        Self { kernel, reconciler, names: Value::Null, last: Mutex::default() }
    }

    fn give(&mut self, objects: &[Value]) -> Report {
        let group = |body: &Value| {
            let manifest = Manifest { source: "API server".to_owned(), line: 0, body: body.into() };
            (body["metadata"].to_string(), Arc::new(vec![Arc::new(manifest)]))
        };
        let groups = objects.iter().map(group).collect();
        let snapshot = Snapshot { groups, fresh: true, ..Snapshot::default() };
        self.reconciler.objects(Arc::new(snapshot), Instant::now());
        self.report()
    }

    fn report(&mut self) -> Report {
        let of = Identification { firewall: "box".to_owned(), ..Identification::default() };
        let mut last = self.last.lock().unwrap();
        *last = report(&self.reconciler.view(), &self.names, &of, &last);
        last.clone()
    }
}

fn object(kind: &str, namespace: &str, name: &str, generation: i64, spec: Value) -> Value {
    let api_version = if kind == "Service" { "v1" } else { "metal-stack.io/v1" };
    json!({
        "apiVersion": api_version, "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}"), "generation": generation},
    })
}

fn firewall(more: Value) -> Value {
    let mut spec = json!({"insideInterfaces": ["vrf1"], "clusterPrefixes": ["10.0.0.0/8"], "interval": "3s"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object("Firewall", "firewall", "firewall", 1, spec)
}

fn policy(generation: i64, cidr: &str) -> Value {
    let spec = json!({"egress": [{"to": [{"cidr": cidr}], "ports": [{"protocol": "TCP", "port": 443}]}]});
    object("ClusterwideNetworkPolicy", "firewall", "web", generation, spec)
}

fn about(report: &Report, name: &str) -> (PolicyState, String, i64) {
    let found = report.policies.iter().find(|(id, _)| id.name == name).unwrap().1;
    (found.state, found.message.clone(), found.generation)
}

fn complaints(report: &Report) -> Vec<(&str, &str, &str)> {
    let said = |complaint: &fw_kube::Complaint| complaint.reason != "Reconciled";
    let all = report.complaints.iter().filter(|complaint| said(complaint));
    all.map(|complaint| (complaint.about.name.as_str(), complaint.reason.as_str(), complaint.note.as_str()))
        .collect()
}

#[test]
fn deployed_is_said_only_of_the_version_that_the_kernel_has() {
    let mut machine = Machine::start();
    let all = [firewall(json!({})), policy(1, "192.0.2.0/24")];
    assert_eq!(about(&machine.give(&all), "web"), (PolicyState::Deployed, String::new(), 1));

    machine.kernel.inject(Fault::Whole(12));
    let report = machine.give(&[firewall(json!({})), policy(2, "198.51.100.0/24")]);
    let (state, message, generation) = about(&report, "web");
    assert_eq!((state, generation), (PolicyState::Pending, 2));
    assert!(message.starts_with("not in force yet: "), "{message}");
    assert_eq!(complaints(&report).len(), 1);
    assert_eq!((complaints(&report)[0].0, complaints(&report)[0].1), ("firewall", "RuleRefused"));

    machine.reconciler.retry(Instant::now());
    assert_eq!(about(&machine.report(), "web"), (PolicyState::Deployed, String::new(), 2));
    assert_eq!(complaints(&machine.report()), []);
}

#[test]
fn a_policy_that_a_refused_change_of_others_does_not_concern_stays_deployed() {
    let mut machine = Machine::start();
    machine.give(&[firewall(json!({})), policy(1, "192.0.2.0/24")]);
    machine.kernel.inject(Fault::Whole(12));
    let mut other = policy(1, "203.0.113.0/24");
    other["metadata"]["name"] = json!("other");
    let report = machine.give(&[firewall(json!({})), policy(1, "192.0.2.0/24"), other]);
    assert_eq!(about(&report, "web").0, PolicyState::Deployed);
    assert_eq!(about(&report, "other").0, PolicyState::Pending);
}

#[test]
fn nothing_is_deployed_while_a_dry_run_or_a_flush_keeps_it_out() {
    let mut machine = Machine::start();
    machine.give(&[firewall(json!({})), policy(1, "192.0.2.0/24")]);
    let report = machine.give(&[firewall(json!({"dryrun": true})), policy(2, "198.51.100.0/24")]);
    let (state, message, _) = about(&report, "web");
    assert_eq!(
        (state, message.as_str()),
        (PolicyState::Pending, "not in force: the Firewall asks for a dry run")
    );
    machine.give(&[firewall(json!({})), policy(2, "198.51.100.0/24")]);
    machine.reconciler.flush().unwrap();
    let (state, message, _) = about(&machine.report(), "web");
    assert_eq!(state, PolicyState::Pending);
    assert!(message.contains("FLUSHED"), "{message}");
}

#[test]
fn what_is_not_valid_is_told_with_the_field_on_the_object_it_is_about() {
    let mut machine = Machine::start();
    let mut partly = policy(4, "not a prefix");
    partly["spec"]["egress"].as_array_mut().unwrap().push(json!({"to": [{"cidr": "192.0.2.0/24"}]}));
    let mut elsewhere = policy(1, "192.0.2.0/24");
    elsewhere["metadata"] =
        json!({"name": "lost", "namespace": "default", "uid": "uid-lost", "generation": 1});
    let forbidden = {
        let mut forbidden = policy(1, "198.51.100.0/24");
        forbidden["metadata"]["name"] = json!("far");
        forbidden["metadata"]["uid"] = json!("uid-far");
        forbidden
    };
    let allowed = json!({"allowedNetworks": {"egress": ["192.0.2.0/24"]}});
    let mut service = object(
        "Service",
        "shop",
        "web",
        0,
        json!({
            "type": "LoadBalancer", "ports": [{"port": 99999}],
        }),
    );
    service["metadata"].as_object_mut().unwrap().remove("generation");
    let report = machine.give(&[firewall(allowed), partly, elsewhere, forbidden, service]);

    let (state, message, generation) = about(&report, "web");
    assert_eq!((state, generation), (PolicyState::Invalid, 4));
    assert!(message.starts_with("spec.egress[0].to[0].cidr: "), "{message}");
    assert_eq!(about(&report, "lost").0, PolicyState::Ignored);
    assert_eq!(
        about(&report, "far"),
        (PolicyState::Ignored, "ingress/egress does not match allowed networks".to_owned(), 1)
    );
    let all = complaints(&report);
    let of = |name, reason| {
        let found = all.iter().find(|(n, r, _)| (*n, *r) == (name, reason));
        assert!(found.is_some(), "{name} {reason} is not among {all:?}");
        found.unwrap().2
    };
    assert_eq!(
        of("far", "ForbiddenCIDR"),
        "address:\"198.51.100.0/24\" is outside of the allowed network range:\"192.0.2.0/24\", ignoring \
         (spec.egress[0].to[0].cidr)"
    );
    assert!(of("web", "Inapplicable").starts_with("spec."), "{all:?}");
    assert!(of("lost", "Inapplicable").contains("only namespace firewall counts"), "{all:?}");
    let on_service = report.complaints.iter().find(|complaint| complaint.about.kind == ObjectKind::Service);
    assert!(on_service.unwrap().note.contains("spec.ports[0]"), "{all:?}");
    assert!(
        report.complaints.iter().all(|complaint| complaint.uid.starts_with("uid-")),
        "{:?}",
        report.complaints
    );
}

#[test]
fn each_applied_change_is_one_reconciled_event_and_a_relist_is_none() {
    let mut machine = Machine::start();
    let reconciled = |report: &Report| {
        let found = report.complaints.iter().find(|complaint| complaint.reason == "Reconciled");
        let found = found.unwrap();
        assert!(!found.warning && found.about.kind == ObjectKind::Firewall, "{found:?}");
        found.note.clone()
    };
    let first = reconciled(&machine.give(&[firewall(json!({})), policy(1, "192.0.2.0/24")]));
    assert!(first.starts_with("ENFORCING 1 policy"), "{first}");
    assert_eq!(reconciled(&machine.give(&[firewall(json!({})), policy(1, "192.0.2.0/24")])), first);
    assert_ne!(reconciled(&machine.give(&[firewall(json!({})), policy(2, "198.51.100.0/24")])), first);
}

#[test]
fn the_own_status_has_its_interval_and_is_of_the_object_that_is_there() {
    let mut machine = Machine::start();
    let report = machine.give(&[firewall(json!({}))]);
    let own = report.own.unwrap();
    assert_eq!((own.interval_ms, own.uid.as_str(), own.id.name.as_str()), (3000, "uid-firewall", "firewall"));
    assert_eq!(own.status.state.as_deref(), Some("enforcing"));
    assert!(own.status.last_run.is_some() && own.status.stats.is_some());
    // A deleted Firewall stays in force; but there is no object to write to.
    assert_eq!(machine.give(&[]).own, None);
}

#[test]
fn addresses_are_told_and_what_is_the_same_is_shared() {
    let mut machine = Machine::start();
    machine.give(&[firewall(json!({})), policy(1, "192.0.2.0/24")]);
    let entry =
        json!({"fqdn": "a.example", "setName": "", "ipExpirationTimes": {"192.0.2.1": "t"}, "version": "ip"});
    machine.names = json!({"fqdnState": {"web": {"*.example": [entry]}, "other": "garbage"}});
    let first = machine.report();
    let web = first.policies.values().next().unwrap();
    assert_eq!(web.fqdn_state["*.example"][0].fqdn.as_deref(), Some("a.example"));
    let second = machine.report();
    assert!(Arc::ptr_eq(web, second.policies.values().next().unwrap()));
    machine.names = json!({"fqdnState": {"web": 7}});
    assert!(machine.report().policies.values().next().unwrap().fqdn_state.is_empty());
}
