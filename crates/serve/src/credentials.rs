//! The process at the other end of a unix socket, by the kernel's word.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Root. Its processes may do everything that other users may do.
const ROOT: u32 = 0;

/// User and number of a process when it connected; for a listener, when it began to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    /// 0 where the process is in a container whose processes this one does not see.
    pub(crate) pid: u32,
}

impl Credentials {
    /// True for `user` and for root, who may do everything that `user` may do.
    pub(crate) fn acts_for(&self, user: u32) -> bool {
        self.uid == user || self.uid == ROOT
    }
}

/// Asks the kernel.
///
/// # Errors
/// Where `socket` is not a connected unix socket.
pub(crate) fn of_peer(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to values of this frame, and `length` is the size of the first. Any
    // bytes are a valid `ucred`. (rustix has this call too, with a process number that is never 0.)
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    match outcome {
        0 => Ok(Credentials { uid: found.uid, pid: u32::try_from(found.pid).unwrap_or(0) }),
        _ => Err(io::Error::last_os_error()),
    }
}
