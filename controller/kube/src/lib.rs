//! The API server's side of the firewall: what is watched there, and what is written back.
//!
//! ```text
//! API server ─watch─▶ Cluster ─(source, reconcile)─▶ Report ─merge─▶ wanted statuses ─apply─▶ API server
//!                        └──────────── what is there already ─────────────┘
//! ```
//!
//! Level-triggered in both directions. [`Cluster`] is all objects at one moment; a relist that finds the same objects
//! changes nothing. [`Report`] is all that this firewall has to say; what differs from the objects as they are is
//! written, so a lost write, another writer or a restored backup heals by itself. Nothing here delays a rule: it runs
//! on a thread of its own, and the rest of the controller only reads and fills `watch` channels.

pub mod cluster;
pub mod connection;
pub mod legacy;
pub mod owned;
pub mod report;
pub mod status;
mod watcher;
pub mod write;

pub use cluster::{Cluster, Figures, Listed, Object, Watched};
pub use connection::{Connection, Credentials};
pub use report::{Complaint, FirewallReport, PolicyReport, PolicyState, Report};
pub use watcher::watch;
pub use write::{Tally, WriteFigures, report};

/// The namespace in which our objects are.
pub const NAMESPACE: &str = fw_crds::NAMESPACE;

/// Text of an error with its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat their cause in their own message.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
