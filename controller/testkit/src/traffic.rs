//! Traffic and what became of it.
//!
//! Real sockets: [`probe`] (one question each), [`server`], [`steady`] (connections that must not break),
//! [`meter`] (rates), [`any`] (a server on whole prefixes). Crafted packets: [`craft`], [`inject`], [`sniff`] and [`range`](mod@range), which puts them
//! together: thousands of packets in, and for each where it came out. [`corpus`]: frames that parsers get wrong. [`flood`]:
//! packets at full speed; [`live`]: frames that the kernel itself lets appear at an interface. [`conntrack`]: forgetting connections. [`gate`]: when
//! something opens and closes.

pub mod any;
pub mod conntrack;
pub mod corpus;
pub mod craft;
pub mod flood;
pub mod gate;
pub mod inject;
pub mod live;
pub mod meter;
mod packet_socket;
pub mod probe;
pub mod range;
pub mod server;
pub mod sniff;
pub mod steady;
