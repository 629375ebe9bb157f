//! Finding out whether direct writes to a file are still in flight.
//!
//! A direct write that a process left in flight when it ended keeps the open file description, and the
//! lock on it. The lock needs write access to the file. So a reader cannot make anybody wait.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Number of looks: 30 s in all. A medium that takes longer for a write makes it fail.
const LOOKS_MAX: u32 = 30_000;

fn whole_file(kind: i32) -> libc::flock {
    // Start and length 0 mean the whole file, even if it grows.
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Marks an open file description as one that writes, for as long as it exists.
pub(super) fn mark(file: BorrowedFd<'_>) -> io::Result<()> {
    let lock = whole_file(libc::F_WRLCK);
    // SAFETY: the descriptor is open, and the kernel reads the structure during the call only.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits until no other open file description of the file is marked, or until a write would have failed.
pub(super) fn wait(file: BorrowedFd<'_>) {
    for _ in 0..LOOKS_MAX {
        let mut lock = whole_file(libc::F_RDLCK);
        // SAFETY: the descriptor is open, and the kernel writes into the structure during the call
        // only.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
        // Where the file system has no such locks, it has no direct writes either.
        if result == -1 || lock.l_type == libc::F_UNLCK as i16 {
            return;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}
