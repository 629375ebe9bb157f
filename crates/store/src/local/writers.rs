//! Telling whether somebody still writes a file past the page cache.
//!
//! A write that a process left under way when it ended holds the file's open description, and with
//! it the lock that lies on that. Only who may write the file can lock it so: a reader cannot keep
//! anybody waiting.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Between looks whether writers of a file have ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Looks: a medium that takes longer than this (30 s) for a write fails it.
const LOOKS_MAX: u32 = 30_000;

fn whole_file(kind: i32) -> libc::flock {
    // All zeros but the kind: from the start of the file to its end, wherever that will be.
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Says of an open description that it writes, as long as it lives.
pub(super) fn mark(file: BorrowedFd<'_>) -> io::Result<()> {
    let lock = whole_file(libc::F_WRLCK);
    // SAFETY: the descriptor is open, and the kernel reads the structure during the call only.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits until no other open description of the file says so, or for as long as a write may take.
pub(super) fn wait(file: BorrowedFd<'_>) {
    for _ in 0..LOOKS_MAX {
        let mut lock = whole_file(libc::F_RDLCK);
        // SAFETY: the descriptor is open, and the kernel writes into the structure during the call
        // only.
        let told = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
        // Where there are no such locks, there are no such writers either.
        if told == -1 || lock.l_type == libc::F_UNLCK as i16 {
            return;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}
