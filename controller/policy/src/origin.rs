//! What a human wrote, so that every rule, counter, drop and error can name it.

use std::fmt;

/// The kind of object a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// `ClusterwideNetworkPolicy`, metal-stack.io/v1.
    ClusterwideNetworkPolicy,
    /// `Firewall`, metal-stack.io/v1.
    Firewall,
    /// Core `Service` of type LoadBalancer.
    Service,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterwideNetworkPolicy => "clusterwidenetworkpolicy",
            Self::Firewall => "firewall",
            Self::Service => "service",
        })
    }
}

/// An object and, where it is known, the field in it. Prints as
/// `clusterwidenetworkpolicy firewall/allow-web spec.egress[0].to[1].cidr`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// Kind of the object.
    pub kind: ObjectKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Path of the field, as `kubectl explain` would have it with indexes; empty for the object itself.
    pub field: String,
}

impl Origin {
    /// The policy `name`; policies live in the namespace `firewall` only.
    pub fn policy(name: impl Into<String>, field: impl Into<String>) -> Self {
        Self {
            kind: ObjectKind::ClusterwideNetworkPolicy,
            namespace: "firewall".to_owned(),
            name: name.into(),
            field: field.into(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        if self.field.is_empty() { Ok(()) } else { write!(f, " {}", self.field) }
    }
}
