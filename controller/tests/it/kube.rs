//! The controller in front of a real API server: what people type, what packets do, and what failures change.

mod credentials;
mod droptailer;
mod edits;
pub(crate) mod field;
mod kills;
mod legacy;
mod malformed;
mod outage;
mod pair;
mod rights;
mod scale;
mod users;
