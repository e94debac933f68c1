//! What the proxy is told.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fw_policy::Upstream;

use crate::metrics::Transport;

/// What cannot change while the proxy runs, and the first [`Settings`].
#[derive(Clone, Debug)]
pub struct Config {
    /// UDP and TCP port; 0: any that is free for all ([`crate::Proxy::port`] says which).
    pub port: u16,
    /// Addresses to listen on. IPv6 sockets take IPv6 only.
    pub addresses: Vec<IpAddr>,
    /// What can change.
    pub settings: Settings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 5353,
            addresses: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            settings: Settings::default(),
        }
    }
}

/// What can change while the proxy runs ([`crate::Handle::update`]). What is in flight goes on as it was.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whom to ask, in order. Empty: the resolver the client asked.
    pub upstreams: Vec<Upstream>,
    /// Who may certify upstreams that speak TLS.
    pub roots: Roots,
    /// By which interfaces UDP questions may come. `None`: by any. (For TCP the kernel does not say by which interface
    /// a connection came; nftables' input chain keeps it to the inside.)
    pub interfaces: Option<Interfaces>,
    /// One question to one upstream.
    pub try_timeout: Duration,
    /// One question in all.
    pub timeout: Duration,
    /// How long an answer waits for [`crate::Decision::release`].
    pub hold_deadline: Duration,
    /// The largest UDP answer, whatever the client offers; taken as 512 to 4096.
    pub udp_size: u16,
    /// Bounds.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            roots: Roots::default(),
            interfaces: None,
            try_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            hold_deadline: Duration::from_millis(100),
            udp_size: 1232,
            limits: Limits::default(),
        }
    }
}

/// Interfaces by index; `lo` (index 1 in every namespace) is always among them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Interfaces(pub BTreeMap<u32, Interface>);

/// How an interface's questions are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Interface {
    /// The VRF device it is a port of: the answer is routed in that VRF. `None`: by the main table.
    pub vrf: Option<u32>,
}

/// Certificates that may sign those of upstreams.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Roots {
    /// Those the system trusts.
    #[default]
    System,
    /// Those of a PEM file.
    File(PathBuf),
}

/// Bounds; each has a counter in [`crate::Metrics`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Questions asked upstream at a time; more get SERVFAIL.
    pub in_flight: usize,
    /// Clients that wait for them, in all; more get SERVFAIL.
    pub waiting: usize,
    /// Connections from clients; more are closed at once.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_client: usize,
    /// Questions of one connection that are not answered yet; more are read later.
    pub questions_per_connection: usize,
    /// Bytes of answers that wait for connections to take them, in all; past it the connection is closed.
    pub connection_bytes: usize,
    /// A connection on which nothing happens is closed after this.
    pub idle: Duration,
    /// Answers kept.
    pub cache_entries: usize,
    /// Bytes of answers kept.
    pub cache_bytes: usize,
    /// Seconds an answer is kept at most.
    pub cache_ttl: u32,
    /// Seconds a negative answer is kept at most (RFC 2308 section 5 suggests one to three hours).
    pub cache_negative_ttl: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: 4096,
            waiting: 16_384,
            connections: 512,
            connections_per_client: 64,
            questions_per_connection: 64,
            connection_bytes: 32 << 20,
            idle: Duration::from_secs(10),
            cache_entries: 16_384,
            cache_bytes: 16 << 20,
            cache_ttl: 86_400,
            cache_negative_ttl: 3600,
        }
    }
}

/// Finds out which resolver a client asked before nftables redirected it.
pub trait OriginalDestination {
    /// `client` and `local` are the two ends as the proxy sees them. `None`: unknown, or it asked the proxy itself.
    /// Called on the proxy's thread for each question (UDP) or connection (TCP) while no upstream is configured.
    fn of(&self, transport: Transport, client: SocketAddr, local: SocketAddr) -> Option<SocketAddr>;
}

/// For a proxy whose upstreams are configured.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOriginal;

impl OriginalDestination for NoOriginal {
    fn of(&self, _: Transport, _: SocketAddr, _: SocketAddr) -> Option<SocketAddr> {
        None
    }
}
