//! All that this firewall has to say, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fw_crds::{FirewallStatus, FqdnAddresses};
use fw_intake::Id;

/// What is to be told about the objects of the cluster. Whole each time; what differs from the objects as they are
/// is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Name of this firewall: part of field managers and of what several firewalls keep apart by.
    pub firewall: String,
    /// About each ClusterwideNetworkPolicy that was judged, those of other namespaces too.
    pub policies: BTreeMap<Id, PolicyReport>,
    /// The Firewall object that is this machine's, with its status; `None`: there is none.
    pub own: Option<FirewallReport>,
    /// What events are to be there for.
    pub complaints: BTreeSet<Complaint>,
}

/// About one policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyReport {
    /// Version of the spec that was judged.
    pub generation: i64,
    /// The object that was judged.
    pub uid: String,
    /// `status.state`: `deployed`, `ignored`, `invalid` (some entries are not enforced) or `pending` (not in force yet).
    pub state: &'static str,
    /// `status.message`; empty when all is well.
    pub message: String,
    /// Reason of the conditions, in CamelCase.
    pub reason: &'static str,
    /// Addresses of each selector.
    pub fqdn_state: Arc<BTreeMap<String, Vec<FqdnAddresses>>>,
}

/// About the Firewall object.
#[derive(Clone, Debug, PartialEq)]
pub struct FirewallReport {
    /// Which one.
    pub id: Id,
    /// Its status; bounded in size by the writer.
    pub status: Arc<FirewallStatus>,
    /// `spec.interval`: how often the status is written, in milliseconds.
    pub interval_ms: u64,
}

/// Something that an event is written for, once, until it is gone and comes again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Complaint {
    /// The object it is about.
    pub about: Id,
    /// Its uid, so that `kubectl describe` finds the event.
    pub uid: String,
    /// Reason in CamelCase: `Inapplicable`, `ForbiddenCIDR`, `Reconciled`, `Error`, `RuleRefused`, `DriftRepaired`.
    pub reason: &'static str,
    /// True: type Warning; false: Normal.
    pub warning: bool,
    /// What happened and what to do, for people.
    pub note: String,
}
