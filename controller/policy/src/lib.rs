//! The policy model and its naive reference decision; pure.
//!
//! A [`PolicySet`] is what the objects of a cluster mean, after intake has parsed and judged them.
//! [`PolicySet::decide`] is the deliberately naive reference that the compiled ruleset and the kernel are
//! compared with. Nothing here knows of Kubernetes, nftables, sockets or clocks.

pub mod comment;
mod decide;
mod dns;
mod fqdn;
pub mod hint;
mod model;
mod names;
mod origin;
mod packet;

pub use decide::{Decision, DropReason, Why};
pub use dns::{
    DNS_PORT, DOH_PORT, DOT_PORT, Dns, DnsTls, Encrypted, Fastpath, FastpathMode, Intercept, OtherNames,
    Upstream,
};
pub use fqdn::{Learned, NameEntry};
pub use model::{
    Block, DropLog, DropLogTarget, Firewall, FqdnSelector, HostProtection, IcmpEcho, Inside, InsideBasis,
    Masquerade, Peers, Policy, PolicySet, PortRange, Ports, Protocol, RateLimit, Rule, Service, ServiceName,
    Snat, Sources,
};
pub use names::{IfName, NameError};
pub use origin::{ObjectKind, Origin};
pub use packet::{ConntrackState, Packet, Transport};
