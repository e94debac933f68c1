//! What the intake needs to know of the machine it runs for; plain data that the shell fills.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fw_policy::IfName;
use ipnet::IpNet;

/// Facts about the firewall's own machine. The default is "not on a firewall" (`check` on a laptop): nothing is
/// known of interfaces, and findings that need them say so.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// Which Firewall object is this machine's (`--firewall-name`). `None`: the only one there is, or the one
    /// called `firewall`.
    pub firewall_name: Option<String>,
    /// The interfaces with what is routed over them, as they were at start or when the Firewall last changed
    /// (semantics.md section 3: a later change is a finding, not a new inside). `None`: unknown.
    pub interfaces: Option<Vec<Interface>>,
    /// TCP ports on which sshd listens.
    pub sshd_ports: BTreeSet<u16>,
    /// TCP sessions that end on this machine: (remote address, remote port, local address, local port).
    pub tcp_sessions: BTreeSet<(IpAddr, u16, IpAddr, u16)>,
}

/// One interface of the machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// Its name.
    pub name: IfName,
    /// The VRF it is enslaved to. Bridges and bonds do not count: the forward hook never sees their ports.
    pub vrf: Option<IfName>,
    /// Destinations of the unicast routes over it, in any table, connected networks included.
    pub prefixes: BTreeSet<IpNet>,
}
