//! Dropped and accepted packets as records: NFLOG in, compatible lines out.
//!
//! * [`record`] (pure): a logged packet as [`DropRecord`], and as the line that log pipelines know.
//! * [`control`] (pure): what droptailer and the controller say to each other.
//! * [`header`] (pure): what the kernel's LOG line says of a packet's headers.
//! * [`line`] (pure): the line of any record.
//! * [`nflog`]: records from an NFLOG group.
//! * [`loss`]: what was lost, by cause.
//! * [`client`]: what brings records from a firewall to the server.
//! * [`spool`]: where they wait for it.
//! * [`journal`]: the kernel's log line, to and from the journal.
//! * [`tail`]: what shows them on the firewall itself.
//! * [`certs`]: an authority and certificates, made.
//! * [`server`]: what prints lines in the cluster.
//! * [`tls`]: what both sides make of certificates, again when they change.
//! * [`wire`]: what clients and servers say to each other, by gRPC.

pub mod certs;
pub mod client;
pub mod control;
pub mod header;
pub mod journal;
pub mod line;
pub mod loss;
pub mod nflog;
pub mod record;
pub mod server;
pub mod spool;
pub mod tail;
mod timestamp;
pub mod tls;
pub mod wire;

pub use nflog::{Source, SourceError};
pub use record::{Action, DropRecord, Logged};
