//! All that this firewall has to say, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fw_crds::{FirewallStatus, FqdnAddresses};
use fw_intake::Id;

/// What is to be told about the objects of the cluster. Whole each time; what differs from the objects as they are
/// is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Name of this machine. Two machines that take their settings from one Firewall are told apart by it.
    pub firewall: String,
    /// About each ClusterwideNetworkPolicy that was judged, those of other namespaces too. The same `Arc` as long as it is
    /// the same.
    pub policies: BTreeMap<Id, Arc<PolicyReport>>,
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
    /// What became of it.
    pub state: PolicyState,
    /// `status.message`; empty when all is well.
    pub message: String,
    /// Addresses of each selector.
    pub fqdn_state: Arc<BTreeMap<String, Vec<FqdnAddresses>>>,
}

/// What became of a policy, from the best to the worst: of several firewalls the worst one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyState {
    /// All of it is in force.
    Deployed,
    /// It is in force but for entries that are not valid.
    Invalid,
    /// It is not in force yet, or an older version of it is.
    #[default]
    Pending,
    /// Nothing of it is enforced, by what is written in it and in the Firewall.
    Ignored,
}

impl PolicyState {
    /// `status.state`.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Deployed => "deployed",
            Self::Invalid => "invalid",
            Self::Pending => "pending",
            Self::Ignored => "ignored",
        }
    }

    /// What another firewall wrote; a word of a version to come is nothing to rely on.
    #[must_use]
    pub fn of_text(text: &str) -> Self {
        let all = [Self::Deployed, Self::Invalid, Self::Pending, Self::Ignored];
        all.into_iter().find(|state| state.text() == text).unwrap_or_default()
    }
}

/// About the Firewall object.
#[derive(Clone, Debug, PartialEq)]
pub struct FirewallReport {
    /// Which one.
    pub id: Id,
    /// Its uid.
    pub uid: String,
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
    /// Reason in CamelCase: `Inapplicable`, `ForbiddenCIDR`, `Reconciled`, `Error`, `RuleRefused`, `DriftRepaired`; for
    /// what is enforced but hardly as meant, the finding's own.
    pub reason: String,
    /// True: type Warning; false: Normal.
    pub warning: bool,
    /// What happened and what to do, for people.
    pub note: String,
}
