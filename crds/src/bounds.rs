//! Bounds that the schema and the intake share. They are far above what is in use; they keep the estimated cost of
//! the CEL rules inside the API server's limits and a hostile object from stalling the compiler.

/// Rules of one direction of a policy.
pub const MAX_RULES: usize = 512;
/// Peers of one rule.
pub const MAX_PEERS: usize = 10_000;
/// Exceptions of one peer.
pub const MAX_EXCEPTS: usize = 1_000;
/// Ports of one rule or Service.
pub const MAX_PORTS: usize = 512;
/// DNS selectors of one rule.
pub const MAX_SELECTORS: usize = 1_000;
/// Prefixes in one list of a Firewall or of a Service.
pub const MAX_PREFIXES: usize = 1_000;
/// Networks, egress rules, rate limits and inside interfaces of a Firewall.
pub const MAX_NETWORKS: usize = 256;
/// Addresses of one egress rule, or assigned to one Service.
pub const MAX_ADDRESSES: usize = 256;
/// SSH ports of the box.
pub const MAX_SSH_PORTS: usize = 16;
/// Lines per second, and burst, of the drop log.
pub const MAX_LOG_RATE: u32 = 1_000_000;
/// Characters of a regular expression over names.
pub const MAX_REGEX: usize = 1_024;
/// Regular expressions of one policy.
pub const MAX_REGEXES: usize = 256;
/// Upstream resolvers of the DNS proxy.
pub const MAX_UPSTREAMS: usize = 16;
/// Bytes of the path of a file: the kernel's PATH_MAX (linux/limits.h) without the end.
pub const MAX_PATH: usize = 4_095;
/// Interfaces with a fastpath mode of their own.
pub const MAX_FASTPATH_INTERFACES: usize = 256;
/// Seconds of a TTL clamp or of the grace period: a week.
pub const MAX_SECONDS: u32 = 604_800;
/// Names that may be learned, in all and by one pattern.
pub const MAX_NAMES: u32 = 1_048_576;
/// Addresses of one name that may be learned.
pub const MAX_ADDRESSES_PER_NAME: u32 = 65_536;
/// Largest id of a VRF: it is a VXLAN network identifier of 24 bits (RFC 7348).
pub const MAX_VRF: u32 = 0x00ff_ffff;
