//! Memory that was freed, but that the allocator keeps.
//!
//! The GNU C library gives the end of a heap back to the system, and nothing from between what is in
//! use. Map pages are small and lie between everything else: a server of 74 MiB whose image drops
//! nearly all of its pages stays at 74 MiB by itself, and has 9 MiB when asked to give them back.

/// Gives whole pages of memory that nobody uses back to the system. Other threads that allocate may
/// wait for milliseconds meanwhile.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, and locks the allocator's state as every allocation does.
    unsafe {
        libc::malloc_trim(0);
    }
}
