//! Which addresses are never learned.

/// Why an address is not learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// `0.0.0.0/8`, `::`.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`, and the `fec0::/10` of old.
    LinkLocal,
    /// `224.0.0.0/4`, `ff00::/8`.
    Multicast,
    /// `240.0.0.0/4` with the broadcast address.
    Reserved,
    /// An IPv6 form of an IPv4 address that no host has on the wire: `::ffff:0:0/96`, `::/96`.
    Mapped,
    /// An address of this machine.
    Own,
    /// Inside a prefix of the cluster.
    Cluster,
    /// RFC 1918 or ULA, and only patterns or expressions outside `dns.privatePrefixes` ask for it.
    Private,
    /// Outside `allowedNetworks.egress`.
    NotAllowed,
}
