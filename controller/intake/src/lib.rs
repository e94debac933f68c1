//! Objects in, `PolicySet` and findings out; pure.
//!
//! [`parse`] turns the bytes of one manifest file into [`Manifest`]s, [`Objects::new`] sorts what all sources
//! delivered by kind and name, and [`intake`] judges it: what is valid becomes a [`fw_policy::PolicySet`], what is
//! not becomes [`Finding`]s. A bad entry costs that entry, never its neighbours, and never opens anything.
//!
//! Objects are read as JSON trees and not as typed structs, because a wrong type in one entry must not lose the
//! object. The schema in `fw-crds` is the strict side; the API server enforces it before we see the object.

mod address;
mod allowed;
mod compact;
mod dns;
mod facts;
mod fastpath;
mod field;
mod finding;
mod firewall;
mod fqdn_state;
mod inside;
mod manifest;
mod names;
mod network;
mod objects;
mod outcome;
mod peers;
mod policy;
mod ports;
mod reading;
mod report;
mod selectors;
mod service;
mod text;
mod values;

pub use compact::Compact;
pub use facts::{HostFacts, Interface};
pub use finding::{Finding, Reason, Severity, Subject};
pub use fqdn_state::{
    FqdnState, FqdnStateError, KnownAddress, MAX_STATE_ADDRESSES, MAX_STATE_BYTES, MAX_STATE_NAMES,
    read_fqdn_state,
};
pub use inside::inside_changed;
pub use manifest::{MAX_FILE_BYTES, Manifest, ParseError, parse};
pub use objects::{Id, MAX_OBJECTS, Objects};
pub use outcome::{Intake, PolicyState, intake};
pub use service::SOURCE_RANGES;
