//! The controller in front of a real API server: what people type, what packets do, and what failures change.

mod field;
mod pair;
mod users;
