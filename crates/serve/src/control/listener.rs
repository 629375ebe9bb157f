//! The listening side of a control socket, and how its file is reached.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use marcot::{Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::connection::ControlConnection;
use super::{Place, READER_PREFIX, READER_SUFFIX, SOCKET_NAME};
use crate::credentials;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// How many names a reader's socket is tried under: those of dead readers with our number are taken.
const READER_NAMES_MAX: u32 = 1000;

/// Listens in an image's directory; removes its socket when dropped.
#[derive(Debug)]
pub struct ControlListener {
    pub(super) socket: Arc<OwnedFd>,
    directory: OwnedFd,
    name: String,
    place: Place,
}

impl ControlListener {
    /// Listens on [`SOCKET_NAME`] as the image's owner. The caller must hold the image's lock,
    /// because a socket that is already there is removed.
    ///
    /// # Errors
    /// `PermissionDenied` in another user's pool; those of the operating system.
    pub fn bind(place: &Place) -> Result<Self> {
        let at = |error: Errno| cannot_listen(place, error);
        let directory = open_own(place).map_err(at)?;
        match rustix::fs::unlinkat(&directory, SOCKET_NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(at(error)),
        }
        Self::listen(place, directory, SOCKET_NAME).map_err(at)
    }

    /// Listens as one of those who read the image or a snapshot of it, beside the owner.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn bind_reader(place: &Place) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let at = |error: Errno| cannot_listen(place, error);
        let pid = std::process::id();
        let mut tried = 0;
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{READER_PREFIX}{pid}.{number}{READER_SUFFIX}");
            let directory = open_own(place).map_err(at)?;
            // It gets its name once it listens: what refuses connections is dead.
            let hidden = format!(".{name}");
            let outcome = Self::listen(place, directory, &hidden).and_then(|mut listener| {
                let directory = &listener.directory;
                let flags = rustix::fs::RenameFlags::NOREPLACE;
                rustix::fs::renameat_with(directory, &hidden, directory, &name, flags)?;
                listener.name = name;
                Ok(listener)
            });
            tried += 1;
            match outcome {
                Err(Errno::ADDRINUSE | Errno::EXIST) if tried < READER_NAMES_MAX => {}
                outcome => return outcome.map_err(at),
            }
        }
    }

    fn listen(place: &Place, directory: OwnedFd, name: &str) -> rustix::io::Result<Self> {
        let socket = new_socket()?;
        // The mode of a new socket file follows that of the socket: closed to others from the
        // first instant.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &address(&directory, name)?)?;
        let (socket, name) = (Arc::new(socket), name.to_owned());
        let listener = Self { socket, directory, name, place: place.clone() };
        rustix::net::listen(&listener.socket, BACKLOG)?;
        Ok(listener)
    }

    /// Takes a waiting connection of the image's user or of root; `None` if there is none. Others
    /// are disconnected.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn accept(&self) -> Result<Option<ControlConnection>> {
        match accept(&self.socket) {
            Ok(socket) => self.connection(socket),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(Error::from_io("cannot accept", error.into())),
        }
    }

    /// A connection that has been accepted, unless it is a stranger's.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn connection(&self, socket: OwnedFd) -> Result<Option<ControlConnection>> {
        let at = |error| Error::from_io("cannot serve a control connection", error);
        let peer = credentials::of_peer(socket.as_fd()).map_err(at)?;
        if !peer.acts_for(self.place.user()) {
            tracing::warn!(?peer, "a control connection of another user is refused");
            return Ok(None);
        }
        ControlConnection::new(socket, peer, self.place.image()).map(Some).map_err(at)
    }
}

impl AsFd for ControlListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        // What cannot be removed is removed by the next owner, or by who finds nobody behind it.
        let _ = rustix::fs::unlinkat(&self.directory, &*self.name, AtFlags::empty());
    }
}

/// Takes a connection that waits at a listening socket.
pub(super) fn accept(socket: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::net::accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}

/// The directory of a place where this process may listen.
fn open_own(place: &Place) -> rustix::io::Result<OwnedFd> {
    if !place.is_own() {
        return Err(Errno::PERM);
    }
    open_directory(place.directory())
}

fn cannot_listen(place: &Place, error: Errno) -> Error {
    let context = format!("cannot listen for commands in {}", place.directory().display());
    Error::from_io(context, error.into())
}

/// A descriptor that stands for a directory, whatever the length of its path.
pub(super) fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// The name `name` in `directory`, by a path that fits into an address.
fn address(directory: &OwnedFd, name: &str) -> rustix::io::Result<SocketAddrUnix> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    SocketAddrUnix::new(path.join(name))
}

/// A unix socket whose calls do not wait.
pub(super) fn new_socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}
