//! The whole judgement.

use std::collections::BTreeMap;

use fw_policy::{ObjectKind, Origin, PolicySet, ServiceName};

use crate::allowed::Allowed;
use crate::facts::HostFacts;
use crate::finding::{Finding, Reason, Severity, Subject};
use crate::firewall::read_firewall;
use crate::inside;
use crate::manifest::Manifest;
use crate::names::NAMESPACE;
use crate::objects::{Id, Objects, origin};
use crate::reading::Content;
use crate::report::Report;
use crate::text::{quoted, safe};

/// Findings of one intake that are kept; the rest is counted.
const MAX_FINDINGS: usize = 10_000;

/// What the objects mean.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Intake {
    /// What is to be enforced.
    pub set: PolicySet,
    /// Everything to report, in a stable order, without repetitions.
    pub findings: Vec<Finding>,
    /// `status.state` and `status.message` of every ClusterwideNetworkPolicy, also of those that do not count.
    pub states: BTreeMap<Id, PolicyState>,
    /// The Firewall object that was chosen; `None`: there is none, its defaults hold.
    pub firewall: Option<Id>,
    /// Which side is inside and why, as a sentence for the status.
    pub inside: String,
}

/// Status of a policy; the texts are those of compat.md section 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyState {
    /// `deployed`; the message is empty, or says which entries are not enforced.
    Deployed {
        /// `status.message`.
        message: String,
    },
    /// `ignored`: nothing of it is enforced.
    Ignored {
        /// `status.message`.
        message: String,
    },
}

impl PolicyState {
    /// `status.state`.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Deployed { .. } => "deployed",
            Self::Ignored { .. } => "ignored",
        }
    }

    /// `status.message`.
    pub fn message(&self) -> &str {
        match self {
            Self::Deployed { message } | Self::Ignored { message } => message,
        }
    }
}

/// Judges all objects. A pure function: the same objects and facts give the same result, in any order.
pub fn intake(objects: &Objects<'_>, facts: &HostFacts) -> Intake {
    let mut intake = Intake { findings: objects.findings().to_vec(), ..Intake::default() };
    let allowed = intake.add_firewall(objects, facts);
    for (id, manifest) in objects.of_kind(ObjectKind::ClusterwideNetworkPolicy) {
        intake.add_policy(id, manifest, &allowed);
    }
    for (id, manifest) in objects.of_kind(ObjectKind::Service) {
        intake.add_service(id, manifest, &allowed);
    }
    intake.add_inapplicable(objects);
    intake.check_resolvers();
    intake.finish();
    intake
}

impl Intake {
    fn add_firewall(&mut self, objects: &Objects<'_>, facts: &HostFacts) -> Allowed {
        let mut allowed = Allowed::default();
        let (chosen, finding) = select_firewall(objects, facts);
        self.findings.extend(finding);
        if let Some((id, manifest)) = chosen {
            let mut report = Report::new(id);
            (self.set.firewall, allowed) = read_firewall(&manifest.body.tree(), facts, &mut report);
            self.firewall = Some(id.clone());
            self.findings.extend(report.into_findings());
        }
        self.inside = inside::describe(&self.set.firewall.inside);
        allowed
    }

    fn add_policy(&mut self, id: &Id, manifest: &Manifest, allowed: &Allowed) {
        let Content::Policy(read) = &manifest.body.reading().content else { return };
        let (policy, state, findings) = read.judge(allowed);
        if let Some(policy) = policy {
            self.set.policies.insert(id.name.clone(), policy);
        }
        self.states.insert(id.clone(), state);
        self.findings.extend(findings);
    }

    fn add_service(&mut self, id: &Id, manifest: &Manifest, allowed: &Allowed) {
        let Content::Service(read) = &manifest.body.reading().content else { return };
        let (service, findings) = read.judge(&allowed.ingress);
        self.set.load_balancer_addresses.extend(read.assigned());
        if let Some(service) = service {
            let name = ServiceName { namespace: id.namespace.clone(), name: id.name.clone() };
            self.set.services.insert(name, service);
        }
        self.findings.extend(findings);
    }

    /// A client that may choose the resolver can choose one that lies, and so open any address under an allowed name.
    fn check_resolvers(&mut self) {
        let Some(id) = &self.firewall else { return };
        if !self.set.has_names() || !self.set.firewall.dns.upstreams.is_empty() {
            return;
        }
        let mut report = Report::new(id);
        report.warning(
            "spec.dns.upstreams",
            Reason::UntrustedResolver,
            "policies have names, and the proxy asks whatever resolver the client asked: one that lies can open any \
             address under an allowed name",
            "name the resolvers to ask in spec.dns.upstreams, or one in spec.dnsServerAddress",
        );
        self.findings.extend(report.into_findings());
    }

    /// Policies that were sorted out before they were read are ignored, and their status says why.
    fn add_inapplicable(&mut self, objects: &Objects<'_>) {
        for finding in objects.findings().iter().filter(|finding| finding.reason == Reason::Inapplicable) {
            let Some(Origin { kind: kind @ ObjectKind::ClusterwideNetworkPolicy, namespace, name, .. }) =
                finding.origin().cloned()
            else {
                continue;
            };
            let ignored = || PolicyState::Ignored { message: finding.message.clone() };
            self.states.entry(Id { kind, namespace, name }).or_insert_with(ignored);
        }
    }

    fn finish(&mut self) {
        self.findings.sort();
        self.findings.dedup();
        let more = self.findings.len().saturating_sub(MAX_FINDINGS);
        if more > 0 {
            self.findings.truncate(MAX_FINDINGS + 1);
            if let Some(last) = self.findings.last_mut() {
                last.severity = Severity::Error;
                last.reason = Reason::TooMany;
                last.message = format!("{more} findings from this object on are not shown");
                last.remedy = "correct those shown first".to_owned();
            }
        }
    }
}

/// The Firewall of this machine: the one of its name, else the only one, else the one called `firewall`.
fn select_firewall<'o>(
    objects: &'o Objects<'_>,
    facts: &HostFacts,
) -> (Option<(&'o Id, &'o Manifest)>, Option<Finding>) {
    let all: Vec<(&Id, &Manifest)> = objects.of_kind(ObjectKind::Firewall).collect();
    let called = |name: &str| all.iter().copied().find(|(id, _)| id.name == name);
    if let Some(name) = facts.firewall_name.as_deref() {
        return match (called(name), all.as_slice()) {
            (Some(found), _) => (Some(found), None),
            // A machine is often called otherwise than the one Firewall there is.
            (None, [only]) => (Some(*only), Some(stands_in(only.0, name))),
            (None, _) => {
                let why = "this Firewall does not exist".to_owned();
                (None, Some(no_firewall(name, Severity::Warning, why, ADD)))
            }
        };
    }
    match (all.as_slice(), called("firewall")) {
        // A warning and no error: `check` on a file with policies alone is no failure.
        ([], _) => {
            (None, Some(no_firewall("firewall", Severity::Warning, "there is no Firewall".to_owned(), ADD)))
        }
        ([only], _) => (Some(*only), None),
        (several, Some(chosen)) => {
            let finding = Finding {
                subject: Subject::Object(origin(chosen.0)),
                severity: Severity::Warning,
                reason: Reason::DuplicateObject,
                message: format!("there are {} Firewalls; the one called firewall counts", several.len()),
                remedy: CHOOSE.to_owned(),
            };
            (Some(chosen), Some(finding))
        }
        (several, None) => {
            let message = format!("there are {} Firewalls and none is called firewall", several.len());
            (None, Some(no_firewall("firewall", Severity::Error, message, CHOOSE)))
        }
    }
}

const ADD: &str = "add a Firewall in namespace firewall";
const CHOOSE: &str = "give --firewall-name to choose one";

fn stands_in(only: &Id, name: &str) -> Finding {
    Finding {
        subject: Subject::Object(origin(only)),
        severity: Severity::Info,
        reason: Reason::NoFirewall,
        message: format!("there is no Firewall called {}; this is the only one, so it counts", quoted(name)),
        remedy: CHOOSE.to_owned(),
    }
}

fn no_firewall(name: &str, severity: Severity, why: String, remedy: &str) -> Finding {
    let id = Id { kind: ObjectKind::Firewall, namespace: NAMESPACE.to_owned(), name: safe(name) };
    Finding {
        subject: Subject::Object(origin(&id)),
        severity,
        reason: Reason::NoFirewall,
        message: why + ", so nothing is opened",
        remedy: remedy.to_owned(),
    }
}
