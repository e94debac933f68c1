//! What DNS answers mean for policies; pure: time is an argument, nothing here reads a clock, a socket or a file.
//!
//! ```text
//! message ─answer::read─▶ Answer ─Learner::learn─▶ Lesson{changes, ttl} ─data path─▶ confirmed ─▶ answer released
//! PolicySet ─Table::new─▶ Table ─Learner::set_table─▶ changes
//! ```

pub mod change;
pub mod table;

pub use change::Change;
pub use table::Table;
