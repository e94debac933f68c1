//! The shell around the pure crates: sources, reconcile loop, status, control socket and command line.

pub mod addresses;
pub mod app;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod control;
pub mod droptailer;
pub mod enrich;
pub mod explain;
pub mod fault;
mod findings;
pub mod host;
pub mod ids;
pub mod metrics;
pub mod names;
pub mod notify;
pub mod packet_text;
pub mod persist;
pub mod problems;
pub mod published;
pub mod reconcile;
pub mod report;
pub mod source;
pub mod state;
pub mod status;
pub mod telemetry;
#[cfg(test)]
mod temporary;
pub mod timestamp;
