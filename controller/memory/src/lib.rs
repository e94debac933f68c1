//! The allocator of the daemons.
//!
//! Every edit has all policies compiled anew, which is hundreds of thousands of small pieces of memory: with glibc's
//! allocator an edit takes twice as long.
#![allow(unsafe_code, reason = "an option of mimalloc is set by its C interface")]

use libmimalloc_sys::{mi_option_eager_commit_delay, mi_option_set, mi_option_t};

/// To be a program's `#[global_allocator]`.
pub use mimalloc::MiMalloc as Allocator;

/// `mi_option_purge_delay`, which the binding does not name: it follows this one in `mi_option_e` of mimalloc.h.
const PURGE_DELAY: mi_option_t = mi_option_eager_commit_delay + 1;

/// From now on what is free goes back to the kernel at once. By default mimalloc waits for some milliseconds, and then for
/// the thread that had it to allocate again: a list of thousands of objects, parsed at the start by a thread that has
/// nothing to do afterwards, would stay as large as it was. To be called before there are threads.
pub fn give_back_at_once() {
    // SAFETY: sets a number; nobody else reads it, as there is one thread.
    unsafe { mi_option_set(PURGE_DELAY, 0) }
}
