//! Dropped and accepted packets as records: NFLOG in, compatible lines out.
//!
//! * [`record`] (pure): a logged packet as [`DropRecord`], and as the line that log pipelines know.
//! * [`control`] (pure): what droptailer and the controller say to each other.
//! * [`header`] (pure): what the kernel's LOG line says of a packet's headers.
//! * [`nflog`]: records from an NFLOG group.
//! * [`wire`]: what clients and servers say to each other, by gRPC.

pub mod control;
pub mod header;
pub mod nflog;
pub mod record;
mod timestamp;
pub mod wire;

pub use nflog::{Source, SourceError};
pub use record::{Action, DropRecord, Logged};
