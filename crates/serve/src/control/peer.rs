//! Who is at the other end of a control socket, as the kernel tells it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The process at the other end when the connection was made; of a listener, when it began to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its number; 0 where it cannot be seen from here, as that of another container.
    pub(crate) pid: u32,
    /// Its user.
    pub(crate) user: u32,
}

const ROOT: u32 = 0;

impl Peer {
    /// Asks the kernel.
    ///
    /// # Errors
    /// Where `socket` is no connected unix socket.
    pub(crate) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut told = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: both pointers are to locals that live through the call, and `bytes` is the size of
        // the first. (The wrapper of rustix takes a number of 0, which means "not visible", for
        // impossible.)
        let outcome = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut told).cast(),
                &raw mut bytes,
            )
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { pid: u32::try_from(told.pid).unwrap_or(0), user: told.uid })
    }

    /// True for `user` and for root, who may do all that `user` may.
    pub(crate) fn acts_for(&self, user: u32) -> bool {
        self.user == user || self.user == ROOT
    }
}
