//! What was learned, as lines that survive a restart.

use std::net::IpAddr;

use crate::name::Name;

/// A name leads to an address. Times are in the clock of the caller, nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// A name that a selector matched when it was learned.
    pub name: Name,
    /// The address.
    pub address: IpAddr,
    /// When a client last asked for it.
    pub asked: u64,
    /// When the last TTL that was handed out is over.
    pub handed: u64,
    /// When it is forgotten.
    pub until: u64,
}
