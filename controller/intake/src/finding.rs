//! What was wrong or worth knowing: becomes an Event, a status message or a line of `check`.

use std::fmt;

use fw_policy::Origin;

/// One thing an operator should know, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Where it is.
    pub subject: Subject,
    /// How bad.
    pub severity: Severity,
    /// Machine-readable reason; also the reason of the Kubernetes Event.
    pub reason: Reason,
    /// What is wrong and what the firewall does about it. One line; text of users is quoted and shortened.
    pub message: String,
    /// The next step for the author. One line.
    pub remedy: String,
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// An object, or a field of it.
    Object(Origin),
    /// A manifest file, where no object of ours could be made of it.
    File {
        /// Path as the source names it.
        path: String,
        /// Line counted from 1; 0 where unknown.
        line: u64,
        /// Column counted from 1; 0 where unknown.
        column: u64,
    },
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Something written is not enforced: `check` exits 1.
    Error,
    /// Enforced as written, but hardly as meant, or not in full yet.
    Warning,
    /// Ignored on purpose.
    Info,
}

/// Why there is a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The object does not count: wrong namespace or wrong API version.
    Inapplicable,
    /// An address lies outside `allowedNetworks`.
    ForbiddenCIDR,
    /// A prefix does not parse or is of a form that is not taken.
    InvalidCIDR,
    /// An `except` does not parse; its block matches nothing.
    InvalidExcept,
    /// An `except` has nothing in common with its block.
    ExceptOutsideBlock,
    /// An `except` covers its whole block, which then matches nothing.
    ExceptCoversBlock,
    /// A port is out of range, or a range is the wrong way round.
    InvalidPort,
    /// A protocol other than TCP and UDP.
    UnsupportedProtocol,
    /// An IP address does not parse or cannot be used.
    InvalidAddress,
    /// A name is not what Kubernetes or the kernel take.
    InvalidName,
    /// A DNS selector is not valid.
    InvalidSelector,
    /// A DNS selector matches more than its author may think.
    WideSelector,
    /// Names are learned from whatever resolver a client asks.
    UntrustedResolver,
    /// `to` and `toFQDNs` in one rule.
    ToBesideToFQDNs,
    /// A field has the wrong JSON type.
    InvalidType,
    /// A field has a value outside its bounds or its enumeration.
    InvalidValue,
    /// A field nobody knows, often a typing error.
    UnknownField,
    /// An object of a kind that is not ours.
    UnknownKind,
    /// The same object twice.
    DuplicateObject,
    /// The same entry twice where only one can count.
    DuplicateEntry,
    /// A list or a set of objects is longer than the firewall takes.
    TooMany,
    /// There is no Firewall object for this machine.
    NoFirewall,
    /// Which side is inside is not known: nothing is opened.
    NoInside,
    /// The cluster's prefixes are not known: no check for spoofed sources, no source NAT.
    NoClusterPrefixes,
    /// The routes now point elsewhere than when inside was chosen.
    InsideChanged,
    /// A network id is not in `firewallNetworks`, or its type does not fit.
    UnknownNetwork,
    /// A field is accepted for compatibility and has no effect.
    IgnoredField,
    /// A Service has no assigned address yet.
    NoAddress,
    /// A manifest file cannot be parsed; its last parsed objects stay.
    InvalidManifest,
    /// A manifest file or directory cannot be read; what was read last stays.
    Unreadable,
    /// Something was left out because it passes a bound of the compiler.
    LimitReached,
}

impl Finding {
    /// The object concerned, where there is one.
    pub fn origin(&self) -> Option<&Origin> {
        match &self.subject {
            Subject::Object(origin) => Some(origin),
            Subject::File { .. } => None,
        }
    }
}

impl fmt::Display for Finding {
    /// One line: severity, object and field path, reason, message, next step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, severity, reason, message, remedy } = self;
        write!(f, "{severity}: {subject}: {reason}: {message}; next: {remedy}")
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(origin) => origin.fmt(f),
            Self::File { path, line: 0, .. } => f.write_str(path),
            Self::File { path, line, column: 0 } => write!(f, "{path}:{line}"),
            Self::File { path, line, column } => write!(f, "{path}:{line}:{column}"),
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

impl fmt::Display for Reason {
    /// The variant's name: CamelCase, as Kubernetes wants reasons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
