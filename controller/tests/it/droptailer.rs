//! droptailer's client and server with the real controller: what was dropped is shown, or counted as lost.

mod accounts;
mod outage;
mod packets;
mod stage;
mod stern;
