//! Intrusion detection by suricata: what it counts on each interface, and what it alerts of.
//!
//! ```text
//! command socket ─client─▶ answers ─command─▶ Figures by interface
//! EVE file ─follower─▶ chunks ─lines─▶ lines ─alert─▶ Alert ─gate─▶ what is logged, what is an event, what is only counted
//! ```
//!
//! `command`, `lines`, `alert` and `gate` are pure; `client` and `follower` are the sockets and files around them. All that
//! comes from suricata is taken for hostile: sizes, numbers of things and waiting times are bounded, and what passes a bound
//! is counted.

pub mod alert;
pub mod client;
pub mod command;
pub mod follower;
pub mod gate;
pub mod lines;

pub use alert::{Alert, Event, parse};
pub use client::{Reading, SocketError, read};
pub use command::Figures;
pub use follower::{FollowError, Follower, Position, Tail};
pub use gate::{Gate, Passed};
