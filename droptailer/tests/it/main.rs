//! droptailer as seen from outside. Needs root, `ip` and `nft`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod certs;
mod client;
mod deploy;
mod golden;
mod hostile;
mod journal;
#[allow(dead_code, reason = "today's droptailer, in a target beside this one, uses the rest")]
mod journald;
mod metrics;
mod nflog;
mod rig;
mod server;
