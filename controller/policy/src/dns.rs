//! What the Firewall object asks of the DNS proxy and of the eBPF programs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use crate::IfName;

/// `spec.dns`, `dnsServerAddress`, `dnsPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// When DNS from inside is redirected to the proxy.
    pub intercept: Intercept,
    /// Port of the proxy, UDP and TCP.
    pub port: u16,
    /// Whom the proxy asks, in order. Empty: the resolver the client asked.
    pub upstreams: Vec<Upstream>,
    /// PEM file with those who may certify upstreams that speak TLS. `None`: whom the system trusts.
    pub ca_file: Option<PathBuf>,
    /// How the cluster can ask the proxy itself over TLS and HTTPS.
    pub tls: Option<DnsTls>,
    /// What becomes of questions for names that no policy allows.
    pub other_names: OtherNames,
    /// While the proxy does not answer: whether DNS to [`Dns::fallback_resolvers`] passes.
    pub fallback: bool,
    /// DNS over TLS and QUIC (853) from inside.
    pub dot: Encrypted,
    /// HTTPS (443) from inside to [`Dns::doh_endpoints`].
    pub doh: Encrypted,
    /// Known DNS over HTTPS resolvers. Host bits cleared.
    pub doh_endpoints: BTreeSet<IpNet>,
    /// RFC 1918 and ULA prefixes that patterns and expressions may open. Host bits cleared.
    pub private_prefixes: BTreeSet<IpNet>,
    /// Learned addresses may be opened inside these only. `None`: everywhere (`allowedNetworks.egress`).
    pub allowed: Option<BTreeSet<IpNet>>,
    /// Seconds: a TTL below counts as this much.
    pub ttl_min: u32,
    /// Seconds: a TTL above counts as this much, and is lowered to it in the answer.
    pub ttl_max: u32,
    /// Seconds an address stays allowed after its TTL.
    pub grace: u32,
    /// Names in all.
    pub max_names: u32,
    /// Names one pattern or expression may hold.
    pub max_names_per_pattern: u32,
    /// Addresses of one name.
    pub max_addresses_per_name: u32,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            intercept: Intercept::default(),
            port: 5353,
            upstreams: Vec::new(),
            ca_file: None,
            tls: None,
            other_names: OtherNames::default(),
            fallback: true,
            dot: Encrypted::default(),
            doh: Encrypted::default(),
            doh_endpoints: BTreeSet::new(),
            private_prefixes: BTreeSet::new(),
            allowed: None,
            ttl_min: 5,
            ttl_max: 3600,
            grace: 60,
            max_names: 65_536,
            max_names_per_pattern: 16_384,
            max_addresses_per_name: 2_048,
        }
    }
}

/// Resolvers that are let through while the proxy is away (compat.md section 3).
const FALLBACK_RESOLVERS: [&str; 8] = [
    "8.8.8.8",
    "8.8.4.4",
    "1.1.1.1",
    "1.0.0.1",
    "2001:4860:4860::8888",
    "2001:4860:4860::8844",
    "2606:4700:4700::1111",
    "2606:4700:4700::1001",
];

impl Dns {
    /// The resolvers of the field and the configured ones.
    pub fn fallback_resolvers(&self) -> BTreeSet<IpAddr> {
        let known = FALLBACK_RESOLVERS.iter().filter_map(|text| text.parse().ok());
        known.chain(self.upstreams.iter().map(|upstream| upstream.address.ip())).collect()
    }
}

impl Dns {
    /// TCP ports on which the cluster can ask the proxy over TLS and HTTPS; they differ from [`Dns::port`].
    pub fn tls_ports(&self) -> BTreeSet<u16> {
        self.tls.iter().flat_map(|tls| [tls.dot_port, tls.doh_port]).flatten().collect()
    }

    /// What the Firewall says of packets to encrypted resolvers: [`Encrypted::Policy`] for all others.
    pub fn encrypted(&self, destination: IpAddr, port: u16) -> Encrypted {
        match port {
            DOT_PORT => self.dot,
            DOH_PORT if self.doh_endpoints.iter().any(|net| net.contains(&destination)) => self.doh,
            _ => Encrypted::Policy,
        }
    }
}

/// Port of DNS (RFC 1035).
pub const DNS_PORT: u16 = 53;
/// Port of DNS over TLS (RFC 7858) and over QUIC (RFC 9250).
pub const DOT_PORT: u16 = 853;
/// Port of DNS over HTTPS (RFC 8484).
pub const DOH_PORT: u16 = 443;

/// When DNS from inside is redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Intercept {
    /// When a policy has names.
    #[default]
    WithNames,
    /// Always.
    Always,
}

/// A resolver the proxy forwards to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Upstream {
    /// Address and port.
    pub address: SocketAddr,
    /// The name its certificate must have; then DNS over TLS is spoken.
    pub tls_name: Option<String>,
}

/// Listeners for DNS over TLS (RFC 7858) and over HTTPS (RFC 8484) in front of the proxy. At least one port is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsTls {
    /// PEM file with the certificate and those between it and the root.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// TCP port of DNS over TLS. `None`: not served.
    pub dot_port: Option<u16>,
    /// TCP port of DNS over HTTPS. `None`: not served.
    pub doh_port: Option<u16>,
}

/// What becomes of questions for names that no policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum OtherNames {
    /// They are answered, and open nothing.
    #[default]
    Answer,
    /// REFUSED.
    Refused,
    /// NXDOMAIN.
    NxDomain,
}

/// What becomes of encrypted DNS past the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Encrypted {
    /// The policies say.
    #[default]
    Policy,
    /// Dropped, whatever the policies say.
    Deny,
    /// Accepted, whatever the policies say.
    Allow,
}

/// `spec.fastpath`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fastpath {
    /// For interfaces that [`Fastpath::interfaces`] does not name.
    pub mode: FastpathMode,
    /// By interface.
    pub interfaces: BTreeMap<IfName, FastpathMode>,
    /// Bits of the packet mark that are ours; adjacent, at least 8 of them.
    pub mark_mask: u32,
}

impl Default for Fastpath {
    fn default() -> Self {
        Self { mode: FastpathMode::Auto, interfaces: BTreeMap::new(), mark_mask: 0x00ff_ffff }
    }
}

impl Fastpath {
    /// The mark that carries an index, in the bits of [`Fastpath::mark_mask`]; `None` where they do not hold it, and
    /// for 0, which is no index.
    pub fn mark_of(&self, index: u32) -> Option<u32> {
        let shifted = index.checked_shl(self.mark_mask.trailing_zeros())?;
        let fits = shifted & self.mark_mask == shifted && shifted >> self.mark_mask.trailing_zeros() == index;
        (fits && index > 0).then_some(shifted)
    }

    /// The mode asked for on an interface.
    pub fn mode_of(&self, interface: &IfName) -> FastpathMode {
        self.interfaces.get(interface).copied().unwrap_or(self.mode)
    }
}

/// Where packets are dropped early. The stamp is attached by TCX in all but `Off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum FastpathMode {
    /// Native XDP on drivers of real network cards, TCX alone elsewhere, `Off` where eBPF does not work.
    #[default]
    Auto,
    /// XDP in the driver.
    Native,
    /// XDP after the driver.
    Generic,
    /// TCX alone.
    Tcx,
    /// No eBPF: nftables sets.
    Off,
}
