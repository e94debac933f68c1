//! Errors that say which rule and which object.

use std::fmt;
use std::io;

use fw_netlink::batch::TooLong;
use fw_netlink::socket::SocketError;
use fw_policy::Origin;

use crate::lower::LowerError;

/// Why the kernel does not hold what it was to hold.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused one step of a transaction; nothing was applied.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// A rule or key has no form in the kernel.
    #[error("{place} has no form in the kernel")]
    Lower {
        /// Chain and rule, or set.
        place: String,
        /// What is wrong with it.
        #[source]
        source: LowerError,
    },
    /// A message of the transaction is longer than netlink allows.
    #[error("the transaction cannot be written")]
    TooLong(#[from] TooLong),
    /// Our table changed since it was read.
    #[error("table inet firewall was changed by others since it was read; it has to be read again")]
    Stale,
    /// Others commit so often that no moment was free.
    #[error("other users of nftables changed their rulesets {0} times in a row while ours was committed")]
    Busy(u32),
    /// The table belongs to another socket.
    #[error(
        "table inet firewall is owned by another process (netlink port {port}); \
         only one firewall-controller can run in a network namespace"
    )]
    Taken {
        /// Netlink port of the owner.
        port: u32,
    },
    /// No CAP_NET_ADMIN.
    #[error("changing nftables needs CAP_NET_ADMIN in the user namespace that owns the network namespace")]
    Privilege,
    /// The kernel refused the transaction as a whole.
    #[error("the kernel refused the transaction: {}{}", io::Error::from_raw_os_error(*errno), hint(*errno))]
    Whole {
        /// Positive errno.
        errno: i32,
    },
    /// The answer to a transaction was lost: it may or may not have been applied. Read again.
    #[error("the kernel's answer to a transaction was lost; the table has to be read again")]
    Uncertain(#[source] SocketError),
    /// A set holds as many elements as it may (ENFILE); nothing was applied.
    #[error("set {set} of table inet firewall is full")]
    Full {
        /// Its name.
        set: String,
    },
    /// What marks packets beside nftables does not follow; said by whoever drives both. Nothing was applied.
    #[error("packets may still be marked as another ruleset reads marks, so the ruleset stays as it is: {0}")]
    Marks(String),
    /// The ruleset kept changing while it was read.
    #[error("the ruleset changed {0} times in a row while it was read")]
    Unsteady(u32),
    /// The socket failed.
    #[error("talking to nftables failed")]
    Socket(#[from] SocketError),
}

fn hint(errno: i32) -> &'static str {
    match errno {
        libc_errno::EMLINK => " (jumps are nested more than 15 deep or form a loop)",
        libc_errno::ENOMEM | libc_errno::ENOBUFS => " (no memory)",
        _ => "",
    }
}

/// The errnos this crate gives a meaning to (include/uapi/asm-generic/errno-base.h and errno.h).
pub(crate) mod libc_errno {
    pub(crate) const EPERM: i32 = 1;
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const ENOMEM: i32 = 12;
    pub(crate) const EBUSY: i32 = 16;
    pub(crate) const EEXIST: i32 = 17;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const ENFILE: i32 = 23;
    pub(crate) const EMLINK: i32 = 31;
    pub(crate) const ERANGE: i32 = 34;
    pub(crate) const ERESTART: i32 = 85;
    pub(crate) const EOPNOTSUPP: i32 = 95;
    pub(crate) const ENOBUFS: i32 = 105;
}

/// One refused step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Index in the plan's steps.
    pub op: usize,
    /// What the step is, with the names that people know: `rule "accept traffic for np web tcp" in chain egress-web-tcp`.
    pub place: String,
    /// The object it was compiled from.
    pub origin: Option<Origin>,
    /// The part the kernel objects to: `expression lookup (3rd)`, `element 192.0.2.0 : jump egress-web-tcp`.
    pub detail: Option<String>,
    /// Positive errno.
    pub errno: i32,
    /// The kernel's own words, when it has some.
    pub text: Option<String>,
    /// Further steps that were refused in the same transaction.
    pub others: usize,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel refused {}", self.place)?;
        if let Some(origin) = &self.origin {
            write!(f, " of {origin}")?;
        }
        write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        if let Some(text) = &self.text {
            write!(f, " ({text})")?;
        }
        if let Some(detail) = &self.detail {
            write!(f, ", at {detail}")?;
        }
        f.write_str(hint(self.errno))?;
        if self.others > 0 {
            write!(f, "; further refusals in the same transaction: {}", self.others)?;
        }
        f.write_str("; nothing was applied")
    }
}

impl std::error::Error for Refusal {}
