//! DNS for tests: real servers, a scripted one, and clients that see every byte.
//!
//! * [`Zone`]s written in Rust, served by [`Authority`] (Knot DNS or BIND), resolved by [`Resolver`] (Unbound), also as
//!   plain forwarders (Unbound, dnsmasq). [`awkward`]: the names that break resolvers.
//! * [`Scripted`]: an in-process server that says what it is told to, wrong or right, late or never.
//! * [`Client`] and [`TcpClient`]: questions byte for byte, answers as bytes and as messages.
//! * [`Load`]: thousands of questions at a rate, and a connection to each answer at once.

mod authority;
pub mod awkward;
mod client;
pub mod load;
mod resolver;
pub mod scripted;
pub mod wire;
mod zone;

pub use authority::{Authority, Software};
pub use client::{Answer, Client, TcpClient, framed};
pub use load::{Connect, Load, LoadReport, Pace};
pub use resolver::{Forwarder, Resolver, Stub};
pub use scripted::{Reply, Scripted, Spoof, Unique};
pub use wire::{Edns, Name, Query, Record, kind};
pub use zone::Zone;
