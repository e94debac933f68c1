//! What DNS answers mean for policies; pure: time is an argument, nothing here reads a clock, a socket or a file.
//!
//! ```text
//! message ─answer::read─▶ Answer ─Learner::learn─▶ Lesson ─Learner::changes─▶ data path ─confirm─▶ answer released
//! PolicySet ─Table::new─▶ Table ─Learner::set_table─▶ changes
//! ```

pub mod answer;
pub mod change;
pub mod indexes;
pub mod journal;
pub mod learner;
pub mod matcher;
pub mod name;
pub mod reverse;
pub mod table;
pub mod ttl;

pub mod judge;
mod layout;
mod records;

pub use answer::{Answer, Malformed};
pub use change::{Change, Nanos};
pub use indexes::Indexes;
pub use journal::Fact;
pub use judge::Refusal;
pub use learner::{Learner, Lesson};
pub use matcher::Matcher;
pub use name::Name;
pub use reverse::Reverse;
pub use table::Table;
