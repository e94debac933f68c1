//! Applies a typed ruleset ([`fw_ruleset::Ruleset`]) to the kernel: one guarded transaction over our one table.
//!
//! ```text
//! Ruleset ─plan─▶ Plan ─encode (lower)─▶ messages ─NetlinkKernel::commit─▶ kernel
//! Ruleset ◀─recognise─ Observed ◀─NetlinkKernel::read─ kernel
//! ```
//!
//! [`Kernel`] is the boundary: [`NetlinkKernel`] talks to the real one, [`fake::FakeKernel`] keeps a ruleset in
//! memory and fails as nftables does. Everything blocks; run it on a thread of its own.

mod changes;
mod encode;
mod error;
pub mod fake;
mod kernel;
mod lower;
mod monitor;
mod netlink;
mod observe;
mod probe;
mod set;

pub use encode::{MARK, Position, Transaction, encode_plan};
pub use error::{Error, Refusal};
pub use kernel::{ElementChange, Foreign, Kernel, Receipt, Step, Table, TimedElement};
pub use lower::{LowerError, lower};
pub use monitor::{Drift, Monitor};
pub use netlink::NetlinkKernel;
pub use observe::{Observed, ObservedChain, ObservedRule, ObservedSet, recognise};
pub use probe::{Feature, Features};
