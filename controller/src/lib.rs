//! The shell around the pure crates: sources, reconcile loop, status, control socket and command line.

pub mod commands;
pub mod config;
pub mod explain;
pub mod fault;
pub mod packet_text;
pub mod published;
pub mod source;
pub mod state;
pub mod telemetry;
#[cfg(test)]
mod temporary;
pub mod timestamp;
