//! Listening sockets of a server: unix sockets and TCP.

use std::fmt;
use std::fs::{Metadata, Permissions};
use std::io::{self, ErrorKind as IoErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use marcot::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest path of a unix socket on Linux; the address ends with a zero byte.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Connections to a unix socket that may wait to be accepted. The kernel's own limit may be lower.
const BACKLOG: i32 = 4096;

/// The permission bits of a file's mode.
const MODE_BITS: u32 = 0o777;

/// Default permission bits of a new unix socket: only its owner has access.
pub const SOCKET_MODE_DEFAULT: u32 = 0o600;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket and its access mode.
    Unix {
        /// Where to make it.
        path: PathBuf,
        /// Permission bits; see [`SOCKET_MODE_DEFAULT`].
        mode: u32,
    },
    /// A TCP port. NBD without TLS neither encrypts nor authenticates.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path, .. } => write!(f, "{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// A listening socket that does not block.
pub(super) struct Listener {
    socket: OwnedFd,
    pub(super) address: Address,
    /// The socket file that this server has made and removes.
    file: Option<SocketFile>,
}

/// A socket file, identified by its inode, because another server may have replaced it meanwhile.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Listener {
    /// # Errors
    /// `Exists` if a server answers there; `Invalid` if the path is too long; else what the
    /// operating system says, with its error as the source.
    pub(super) fn bind(address: &Address) -> Result<Self> {
        match address {
            Address::Unix { path, mode } => Self::bind_unix(path, *mode),
            Address::Tcp(address) => Self::bind_tcp(*address),
        }
    }

    fn bind_tcp(address: SocketAddr) -> Result<Self> {
        let at = |error| cannot_listen(&address, tcp_remedy(&error), error);
        let listener = TcpListener::bind(address).map_err(at)?;
        listener.set_nonblocking(true).map_err(at)?;
        // With port 0 the system has chosen a port.
        let address = listener.local_addr().map_err(at)?;
        Ok(Self { socket: listener.into(), address: Address::Tcp(address), file: None })
    }

    fn bind_unix(path: &Path, mode: u32) -> Result<Self> {
        let at = |error| cannot_listen(&path.display(), unix_remedy(&error), error);
        check_length(path)?;
        remove_stale(path)?;
        let socket = listen_with_mode(path, mode).map_err(|error| at(error.into()))?;
        let file = std::fs::symlink_metadata(path).map_err(at)?;
        if file.mode() & MODE_BITS != mode {
            // The umask may have removed permission bits. Until here nobody had more access than allowed.
            set_mode(path, &file, mode).map_err(at)?;
        }
        Ok(Self {
            socket,
            address: Address::Unix { path: path.to_owned(), mode },
            file: Some(SocketFile { path: path.to_owned(), device: file.dev(), inode: file.ino() }),
        })
    }

    /// Takes a waiting client; `None` if there is none.
    ///
    /// # Errors
    /// Those of the operating system, such as a lack of descriptors.
    pub(super) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&self.socket, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if matches!(self.address, Address::Tcp(_)) {
            rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
            // A peer that vanished must not keep an image open for ever.
            rustix::net::sockopt::set_socket_keepalive(&socket, true)?;
        }
        Ok(Some(socket))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(file) = &self.file else { return };
        let ours = std::fs::symlink_metadata(&file.path)
            .is_ok_and(|now| (now.dev(), now.ino()) == (file.device, file.inode));
        if ours {
            let _ = std::fs::remove_file(&file.path);
        }
    }
}

fn cannot_listen(address: &dyn fmt::Display, remedy: &str, error: io::Error) -> Error {
    Error::from_io(format!("cannot listen on {address}{remedy}"), error)
}

fn tcp_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        IoErrorKind::AddrInUse => " (another process listens there; give another port)",
        IoErrorKind::AddrNotAvailable => {
            " (not an address of this machine; 'ip address' lists those, 0.0.0.0 stands for all)"
        }
        IoErrorKind::PermissionDenied => " (ports below 1024 are for root; give a higher one)",
        _ => "",
    }
}

fn unix_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        IoErrorKind::NotFound => " (its directory must exist)",
        IoErrorKind::PermissionDenied => " (give a path in a directory where you may create files)",
        _ => "",
    }
}

fn check_length(path: &Path) -> Result<()> {
    let bytes = path.as_os_str().len();
    if bytes <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!(
            "the socket path {} is {bytes} bytes long; Linux allows {SOCKET_PATH_BYTES_MAX}",
            path.display()
        ),
    ))
}

/// Removes the socket that a dead server has left at `path`.
fn remove_stale(path: &Path) -> Result<()> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot_listen(&shown, unix_remedy(&error), error)),
        Ok(found) if !found.file_type().is_socket() => {
            let message = format!("cannot listen on {shown}: there is a file that is not a socket");
            return Err(Error::new(ErrorKind::Exists, message));
        }
        Ok(found) if found.uid() != rustix::process::geteuid().as_raw() => {
            let message = format!(
                "cannot listen on {shown}: there is a socket of another user (uid {}); give another \
                 path, or have it removed",
                found.uid()
            );
            return Err(Error::new(ErrorKind::Exists, message));
        }
        Ok(_) => {}
    }
    match connect(path) {
        // EAGAIN means that the queue is full, so a server listens.
        Ok(()) | Err(Errno::AGAIN) => {
            let remedy = " (another server answers on this socket; give another path)";
            Err(cannot_listen(&shown, remedy, Errno::ADDRINUSE.into()))
        }
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(|error| {
            Error::from_io(format!("cannot remove the stale socket {shown}"), error)
        }),
        Err(error) => {
            let message = format!("cannot tell whether a server answers on {shown}");
            Err(Error::from_io(message, error.into()))
        }
    }
}

fn unix_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Listens on `path`. The file of a new socket gets the mode of the socket, less the umask. So others have no
/// access from the first moment on.
fn listen_with_mode(path: &Path, mode: u32) -> rustix::io::Result<OwnedFd> {
    let socket = unix_socket()?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Sets the mode of `file` at `path`, unless another file has taken its place.
fn set_mode(path: &Path, file: &Metadata, mode: u32) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty())?;
    let now = rustix::fs::fstat(&opened)?;
    if (now.st_dev, now.st_ino) != (file.dev(), file.ino()) {
        return Err(Errno::EXIST.into());
    }
    let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Tries to connect, without waiting for an accept.
fn connect(path: &Path) -> rustix::io::Result<()> {
    rustix::net::connect(&unix_socket()?, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn unix(path: &Path) -> Address {
        Address::Unix { path: path.to_owned(), mode: SOCKET_MODE_DEFAULT }
    }

    fn refusal(path: &Path) -> ErrorKind {
        Listener::bind(&unix(path)).err().unwrap().kind()
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let first = Listener::bind(&unix(&path)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(refusal(&path), ErrorKind::Exists);
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn the_socket_has_its_mode_whatever_it_is() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o660, 0o666, 0o622] {
            let path = directory.path().join(format!("{mode:o}"));
            let _listener = Listener::bind(&Address::Unix { path: path.clone(), mode }).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & MODE_BITS, mode);
        }
    }

    #[test]
    fn a_server_whose_queue_is_full_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("full");
        let socket = unix_socket().unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&*path).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let waiting: Vec<_> = std::iter::from_fn(|| {
            let client = unix_socket().unwrap();
            rustix::net::connect(&client, &SocketAddrUnix::new(&*path).unwrap()).ok()?;
            Some(client)
        })
        .collect();
        assert!(!waiting.is_empty());
        assert_eq!(refusal(&path), ErrorKind::Exists);
    }

    #[test]
    fn files_and_long_paths_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(refusal(&path), ErrorKind::Exists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert_eq!(refusal(&directory.path().join("x".repeat(100))), ErrorKind::Invalid);
    }
}
