//! What the reconciler remembers across restarts.

use std::sync::Arc;

use fw_intake::{Finding, Manifest, Reason, Severity, Subject};
use fw_policy::{ObjectKind, Origin};
use serde::{Deserialize, Serialize};

use super::Questions;
use crate::published::Published;
use crate::source::{Groups, Snapshot};

/// What is waited for before any source has listed.
pub(super) const FIRST_LISTING: &str = "waiting for the first listing";

/// The last complete set of objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredSnapshot {
    /// The objects in the groups of their source.
    #[serde(with = "shared")]
    pub groups: Groups,
    /// The Firewall object last seen; it stays in force when it is deleted.
    pub firewall: Option<Manifest>,
}

impl StoredSnapshot {
    /// The document for a snapshot.
    pub fn new(snapshot: &Snapshot, firewall: Option<Manifest>) -> Self {
        Self { groups: snapshot.groups.clone(), firewall }
    }

    /// The objects in the groups of their source.
    pub fn groups(&self) -> Groups {
        self.groups.clone()
    }

    /// As if a source had sent it before it listed anything.
    pub fn as_snapshot(&self) -> Snapshot {
        let note = FIRST_LISTING.to_owned();
        Snapshot { groups: self.groups(), note, ..Snapshot::default() }
    }
}

/// Objects are shared with whoever has them: a copy of thousands of trees is tens of megabytes.
mod shared {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use fw_intake::Manifest;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::source::Groups;

    pub(super) fn serialize<S: Serializer>(groups: &Groups, serializer: S) -> Result<S::Ok, S::Error> {
        let plain = groups.iter().map(|(name, group)| {
            let manifests: Vec<&Manifest> = group.iter().map(Arc::as_ref).collect();
            (name, manifests)
        });
        serializer.collect_map(plain)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Groups, D::Error> {
        let plain = BTreeMap::<String, Vec<Manifest>>::deserialize(deserializer)?;
        let shared = |group: Vec<Manifest>| Arc::new(group.into_iter().map(Arc::new).collect());
        Ok(plain.into_iter().map(|(name, group)| (name, shared(group))).collect())
    }
}

/// What belongs to the table in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelRecord {
    /// The published counter values.
    pub published: Published,
    /// True when the table was compiled from a Firewall without dryrun.
    pub from_firewall: bool,
}

/// What was remembered when this process started.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    /// The last complete set of objects.
    pub snapshot: Option<StoredSnapshot>,
    /// What belongs to the table; `None` after a reboot.
    pub kernel: Option<KernelRecord>,
}

/// Where the reconciler puts what must survive it. Never blocks.
pub trait Memory: Send {
    /// Keeps a complete set of objects.
    fn snapshot(&mut self, snapshot: Arc<Snapshot>, firewall: Option<Manifest>);

    /// Forgets it.
    fn forget_snapshot(&mut self);

    /// Keeps what belongs to the table.
    fn kernel(&mut self, published: Arc<Published>, from_firewall: bool);

    /// What could not be kept, and why.
    fn problems(&self) -> Vec<String>;
}

/// The finding about a Firewall object that is gone and stays in force.
pub(super) fn kept_finding(firewall: Option<&Manifest>) -> Finding {
    let id = firewall.and_then(Manifest::id);
    Finding {
        subject: Subject::Object(Origin {
            kind: ObjectKind::Firewall,
            namespace: id.map_or("firewall", |id| &id.namespace).to_owned(),
            name: id.map_or("firewall", |id| &id.name).to_owned(),
            field: String::new(),
        }),
        severity: Severity::Warning,
        reason: Reason::NoFirewall,
        message: "the object was removed; its last spec stays in force".to_owned(),
        remedy: "add a Firewall, or run `firewall-controller flush` to give it up".to_owned(),
    }
}

/// What has to be asked for a Firewall: routes where neither interfaces nor a private primary network are written,
/// sessions where the machine itself is protected.
pub(super) fn questions(firewall: &Manifest) -> Questions {
    let body = firewall.body.tree();
    let list = |pointer| body.pointer(pointer).and_then(|value| value.as_array());
    let has_interfaces = list("/spec/insideInterfaces").is_some_and(|list| !list.is_empty());
    let is_primary = |network: &serde_json::Value| {
        network["networktype"].as_str().is_some_and(|kind| kind.starts_with("privateprimary"))
    };
    let has_primary = list("/spec/firewallNetworks").is_some_and(|list| list.iter().any(is_primary));
    Questions {
        routes: !has_interfaces && !has_primary,
        sessions: body.pointer("/spec/hostProtection").is_some(),
    }
}
