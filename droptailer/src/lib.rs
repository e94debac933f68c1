//! Dropped and accepted packets as records: NFLOG in, compatible lines out.
//!
//! * [`record`] (pure): a logged packet as [`DropRecord`], and as the line that log pipelines know.
//! * [`control`] (pure): what droptailer and the controller say to each other.
//! * [`header`] (pure): what the kernel's LOG line says of a packet's headers.
//! * [`line`] (pure): the line of any record.
//! * [`nflog`]: records from an NFLOG group.
//! * [`certs`]: an authority and certificates, made.
//! * [`server`]: what prints lines in the cluster.
//! * [`tls`]: what both sides make of certificates, again when they change.
//! * [`wire`]: what clients and servers say to each other, by gRPC.

pub mod certs;
pub mod control;
pub mod header;
pub mod line;
pub mod nflog;
pub mod record;
pub mod server;
mod timestamp;
pub mod tls;
pub mod wire;

pub use nflog::{Source, SourceError};
pub use record::{Action, DropRecord, Logged};
