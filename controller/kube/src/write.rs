//! Writing what the report says, one task for each kind of thing; none of them waits for another one.

mod figures;

pub use figures::{Tally, WriteFigures};
