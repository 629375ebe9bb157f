//! The listening side of an owner's control socket, and how long paths are dealt with.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use marcot::{Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::SOCKET_NAME;
use super::connection::ControlConnection;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Listens in an image's directory; removes its socket when dropped.
#[derive(Debug)]
pub struct ControlListener {
    socket: OwnedFd,
    directory: OwnedFd,
}

impl ControlListener {
    /// Listens on [`SOCKET_NAME`] in `directory`. The caller must hold the image's lock, because
    /// a socket that is already there is removed.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn bind(directory: &Path) -> Result<Self> {
        let context = || format!("cannot listen for commands in {}", directory.display());
        let at = |error: Errno| Error::from_io(context(), error.into());
        let directory = open_directory(directory).map_err(at)?;
        match rustix::fs::unlinkat(&directory, SOCKET_NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(at(error)),
        }
        let socket = new_socket().map_err(at)?;
        // The mode of a new socket file follows that of the socket: closed to others from the
        // first instant.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(at)?;
        rustix::net::bind(&socket, &address(&directory).map_err(at)?).map_err(at)?;
        rustix::net::listen(&socket, BACKLOG).map_err(at)?;
        Ok(Self { socket, directory })
    }

    /// Takes a waiting connection; `None` if there is none.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn accept(&self) -> Result<Option<ControlConnection>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.socket, flags) {
            Ok(socket) => ControlConnection::new(socket)
                .map(Some)
                .map_err(|e| Error::from_io("cannot serve a control connection", e)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(Error::from_io("cannot accept", error.into())),
        }
    }
}

impl AsFd for ControlListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        // What cannot be removed is removed by the next owner.
        let _ = rustix::fs::unlinkat(&self.directory, SOCKET_NAME, AtFlags::empty());
    }
}

/// A descriptor that stands for a directory, whatever the length of its path.
pub(super) fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The socket in `directory`, by a path that fits into an address.
pub(super) fn address(directory: &OwnedFd) -> rustix::io::Result<SocketAddrUnix> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    SocketAddrUnix::new(path.join(SOCKET_NAME))
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}
