//! What can go wrong, with the remedy.

use std::io;
use std::path::PathBuf;

/// Why eBPF cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// No privilege.
    #[error("eBPF needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Privilege,
    /// The kernel was built without bpf(2).
    #[error("this kernel has no bpf(2): it needs CONFIG_BPF_SYSCALL")]
    NoSyscall,
    /// No TCX.
    #[error("this kernel has no TCX: it needs Linux 6.6 with CONFIG_NET_XGRESS")]
    NoTcx,
    /// No bpffs.
    #[error("this kernel has no bpf file system, so nothing could outlive this process")]
    NoBpffs,
    /// Memory that may be locked is used up (kernels before 5.11, or a limit of the control group).
    #[error("the limit of locked memory is reached: raise RLIMIT_MEMLOCK (`LimitMEMLOCK=infinity`)")]
    Memlock,
    /// Something else.
    #[error("bpf(2) does not work here")]
    Other(#[source] io::Error),
}

/// Why something with the data path failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// See [`Unavailable`].
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// A system call failed.
    #[error("{what} failed")]
    Call {
        /// What was tried.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The object was not taken.
    #[error("the eBPF programs cannot be loaded")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Two processes must not write the same maps.
    #[error("another process uses {}", .0.display())]
    Busy(PathBuf),
    /// The folder for pins holds something else.
    #[error("{} is not empty and no bpffs; name another folder", .0.display())]
    NotBpffs(PathBuf),
    /// There is no such interface.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The programs read Ethernet frames.
    #[error("{0} carries no Ethernet frames, so nothing can be attached to it")]
    NotEthernet(String),
    /// Another program is there; links do not share an interface's XDP.
    #[error(
        "another XDP program is attached to {0}; detach it (`ip link set dev {0} xdp off`) or use mode tcx"
    )]
    Occupied(String),
    /// The driver cannot.
    #[error("the driver of {0} has no native XDP (or not with this MTU); use mode tcx or generic")]
    NoNativeXdp(String),
    /// A map is full.
    #[error("the map {map} is full at {bound} entries")]
    Full {
        /// Its name.
        map: &'static str,
        /// Its size.
        bound: u32,
    },
    /// A class with more cells than a chain can hold.
    #[error("a class may have 128 cells, not {0}")]
    TooManyCells(usize),
    /// A class id outside of the learner's range.
    #[error("{0} is no id for a class of names")]
    ClassId(u32),
    /// The self-test was not passed.
    #[error("the self-test failed: {0}")]
    SelfTest(String),
}

impl Error {
    /// A failed call.
    pub(crate) fn call(what: impl Into<String>, source: io::Error) -> Self {
        Self::Call { what: what.into(), source }
    }
}

/// Names what failed.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::call(what(), source))
    }
}
