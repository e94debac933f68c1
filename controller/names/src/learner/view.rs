//! What status and the command `dns` show.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fw_policy::FqdnSelector;

use crate::change::Nanos;
use crate::name::Name;

/// Some of the names.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct View {
    /// By name.
    pub names: Vec<NameView>,
    /// Names that the limit left out.
    pub left_out: usize,
}

/// A name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameView {
    /// The name.
    pub name: Name,
    /// Selectors that match it, in order.
    pub selectors: Vec<FqdnSelector>,
    /// Policies that have these selectors, in order.
    pub policies: Vec<String>,
    /// When a client last asked.
    pub asked: Nanos,
    /// Its addresses and when they are over.
    pub addresses: BTreeMap<IpAddr, Nanos>,
}

/// An allowed address that a name beyond all policies has as well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedAddress {
    /// The address.
    pub address: IpAddr,
    /// A name it is allowed for.
    pub allowed: Name,
    /// A name that no policy allows.
    pub other: Name,
}
