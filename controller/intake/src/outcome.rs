//! The whole judgement.

use std::collections::BTreeMap;

use fw_policy::{Inside, PolicySet};

use crate::facts::HostFacts;
use crate::finding::Finding;
use crate::objects::{Id, Objects};

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
    let _ = facts;
    Intake { findings: objects.findings.clone(), ..Intake::default() }
}

/// Compares an inside that was chosen by routes with what the routes say now. The caller keeps the facts of the
/// moment of choice for [`intake`] and asks here after each route change.
pub fn inside_changed(chosen: &Inside, now: &HostFacts) -> Option<Finding> {
    let _ = (chosen, now);
    None
}
