//! droptailer as seen from outside. Needs root, `ip` and `nft`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod certs;
mod deploy;
mod golden;
mod hostile;
mod metrics;
mod nflog;
mod rig;
mod server;
