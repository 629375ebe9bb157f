//! Why a disk image cannot be read.

use std::{fmt, io};

/// Result of everything here.
pub type Result<T = ()> = std::result::Result<T, Error>;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What was read contradicts itself, or is cut off.
    Damaged,
    /// It is not what the caller said that it is.
    Invalid,
    /// It uses something that is not read here. The sentence names what helps.
    Unsupported,
    /// It needs a file that the caller does not allow, or that is not there.
    Refused,
    /// The operating system, or the other end of a connection.
    Io,
    /// The caller wants it to end.
    Interrupted,
}

/// A failure, with one sentence.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    below: Option<io::Error>,
}

impl Error {
    /// A failure of a kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), below: None }
    }

    /// [`ErrorKind::Damaged`].
    pub fn damaged(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Damaged, message)
    }

    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// [`ErrorKind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// [`ErrorKind::Io`], with its cause.
    pub fn io(message: impl Into<String>, below: io::Error) -> Self {
        Self { kind: ErrorKind::Io, message: message.into(), below: Some(below) }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operating system's number, if that is the cause.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.below.as_ref().and_then(io::Error::raw_os_error)
    }

    /// The same failure, told of the file `name`.
    #[must_use]
    pub fn of(mut self, name: &str) -> Self {
        self.message = format!("'{name}': {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.below.as_ref().map(|below| below as _)
    }
}

impl From<io::Error> for Error {
    fn from(below: io::Error) -> Self {
        let kind = match below.kind() {
            io::ErrorKind::Interrupted => ErrorKind::Interrupted,
            // Decoders say so of bytes that they do not understand.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => ErrorKind::Damaged,
            _ => ErrorKind::Io,
        };
        Self { kind, message: below.to_string(), below: Some(below) }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}
