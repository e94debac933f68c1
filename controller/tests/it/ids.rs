//! Intrusion detection: a real suricata on an interface of the firewall, and sockets and logs that misbehave.

mod alerts;
pub(crate) mod field;
mod real;
mod socket;
