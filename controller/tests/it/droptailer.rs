//! droptailer's client and server with the real controller: what was dropped is shown, or counted as lost.

mod accounts;
mod early;
mod group;
mod outage;
mod packets;
mod renewal;
mod spool;
pub(crate) mod stage;
mod stern;
