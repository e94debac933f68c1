//! The allocator's own memory.

/// Gives pages that hold nothing any more back to the kernel. glibc keeps what lies between pieces in use: a list of
/// thousands of objects, parsed and thrown away, would stay as large as it was.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) is MT-Safe and only touches free memory; 0 leaves no reserve at the top.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has all threads share two arenas. glibc would give each of them one of its own, with free pages of its own; ours take
/// turns. To be called before there are threads.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) sets a number; it is MT-Unsafe only while other threads allocate for the first time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
