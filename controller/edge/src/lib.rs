//! What every program of this tree has at its edge.
//!
//! * [`pages`]: metrics and probes, over HTTP.
//! * [`socket`]: a unix socket of its own, to be asked by.
//! * [`chain`]: an error as one line of a log.

mod error;
pub mod pages;
pub mod socket;

pub use error::chain;
