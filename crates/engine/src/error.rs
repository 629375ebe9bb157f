//! One error for the whole engine: a kind that callers match on, a sentence for people, and the
//! error below it.

use std::fmt;
use std::io;

/// Result of every engine call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, for callers that must tell cases apart.
///
/// [`ErrorKind::errno`] gives the number an `rbd` user expects as exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The pool, image, snapshot or namespace does not exist.
    NotFound,
    /// The name is taken.
    Exists,
    /// Another process has it open, or another operation holds it.
    Busy,
    /// The image is open in another process; its owner can be asked.
    Owned,
    /// The image still has snapshots.
    HasSnapshots,
    /// The snapshot still has children.
    HasChildren,
    /// The snapshot is protected from removal.
    Protected,
    /// The snapshot is not protected.
    NotProtected,
    /// The image has no parent.
    NoParent,
    /// An argument is not acceptable.
    Invalid,
    /// A name is longer than it may be.
    NameTooLong,
    /// A range lies outside the image.
    OutOfRange,
    /// The image or pool was opened read-only, or is a snapshot.
    ReadOnly,
    /// The operating system refused access.
    PermissionDenied,
    /// The medium is full.
    NoSpace,
    /// There are as many as there may be.
    TooMany,
    /// Stored bytes fail verification.
    Corrupt,
    /// Written by a newer version, with a feature this one does not know.
    NewerFormat,
    /// An earlier flush failed; the image must be reopened before anything is promised again.
    Poisoned,
    /// This process lost the image to a later owner.
    Fenced,
    /// The pool is not empty.
    NotEmpty,
    /// Not available for this image, pool or machine.
    Unsupported,
    /// The user or a broken connection ended it.
    Interrupted,
    /// The process or the machine lacks descriptors or memory.
    Exhausted,
    /// Any other input or output error.
    Io,
}

impl ErrorKind {
    /// The errno that `rbd` 16.2 would exit with for this kind.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Self::NotFound => 2,
            Self::Interrupted => 4,
            Self::Io | Self::Corrupt | Self::Poisoned => 5,
            Self::PermissionDenied => 13,
            Self::Busy | Self::Owned | Self::HasChildren | Self::Protected | Self::NotEmpty => 16,
            Self::Exists => 17,
            Self::Invalid | Self::NotProtected | Self::NoParent | Self::OutOfRange => 22,
            Self::NoSpace => 28,
            Self::Exhausted => 24,
            Self::ReadOnly => 30,
            Self::NameTooLong => 36,
            Self::HasSnapshots => 39,
            Self::Unsupported | Self::NewerFormat => 95,
            Self::Fenced => 108,
            Self::TooMany => 122,
        }
    }
}

/// Kinds that say nothing of what is stored; see [`ErrorKind::is_obstacle`].
const OBSTACLES: [ErrorKind; 5] = [
    ErrorKind::Busy,
    ErrorKind::Owned,
    ErrorKind::PermissionDenied,
    ErrorKind::Interrupted,
    ErrorKind::Exhausted,
];

impl ErrorKind {
    /// True where something could not be looked at: another time, or for another user, it may be found
    /// whole. So it is no damage, nothing is repaired because of it, and nothing is given up.
    #[must_use]
    pub fn is_obstacle(self) -> bool {
        OBSTACLES.contains(&self)
    }

    /// The obstacle that has this errno.
    #[must_use]
    pub fn obstacle_of_errno(errno: i32) -> Option<Self> {
        OBSTACLES.into_iter().find(|kind| kind.errno() == errno)
    }
}

impl ErrorKind {
    /// True where nothing that is written from now on would be kept: the image has to be opened again.
    #[must_use]
    pub fn ends_writing(self) -> bool {
        matches!(self, Self::Poisoned | Self::Fenced)
    }
}

/// An engine error.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that reads `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Wraps an operating system error, keeping its kind.
    pub fn from_io(context: impl Into<String>, source: io::Error) -> Self {
        let kind = kind_of_io(&source);
        Self { kind, message: context.into(), source: Some(Box::new(source)) }
    }

    /// Wraps a decoding error.
    pub fn from_format(context: impl Into<String>, source: marcot_format::FormatError) -> Self {
        let kind = match source {
            marcot_format::FormatError::NewerFormat { .. } => ErrorKind::NewerFormat,
            _ => ErrorKind::Corrupt,
        };
        Self { kind, message: context.into(), source: Some(Box::new(source)) }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence without the causes below it.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The errno to report; see [`ErrorKind::errno`].
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }

    /// The same error under a wider sentence.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        Self { kind: self.kind, message: message.into(), source: Some(Box::new(self)) }
    }
}

/// Linux: too many files are open in the machine (ENFILE), or in the process (EMFILE).
const TOO_MANY_OPEN: [i32; 2] = [23, 24];

fn kind_of_io(error: &io::Error) -> ErrorKind {
    if error.raw_os_error().is_some_and(|errno| TOO_MANY_OPEN.contains(&errno)) {
        return ErrorKind::Exhausted;
    }
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists | io::ErrorKind::AddrInUse => ErrorKind::Exists,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        io::ErrorKind::InvalidInput => ErrorKind::Invalid,
        io::ErrorKind::InvalidFilename => ErrorKind::NameTooLong,
        io::ErrorKind::ResourceBusy
        | io::ErrorKind::WouldBlock
        | io::ErrorKind::ExecutableFileBusy => ErrorKind::Busy,
        io::ErrorKind::OutOfMemory => ErrorKind::Exhausted,
        io::ErrorKind::Interrupted => ErrorKind::Interrupted,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {}", system_words(&source.to_string())),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}

/// A sentence without the error number that Rust appends to the system's words: it means nothing to
/// who reads it, and where it is wanted there is [`Error::errno`].
#[must_use]
pub fn system_words(sentence: &str) -> &str {
    sentence.rfind(" (os error ").map_or(sentence, |end| &sentence[..end])
}

/// Shorthand used all over the engine.
pub(crate) fn fail<T>(kind: ErrorKind, message: impl Into<String>) -> Result<T> {
    Err(Error::new(kind, message))
}

/// Adds a sentence to an operating system error.
pub(crate) trait IoContext<T> {
    fn at(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::from_io(context(), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_at_now_is_no_damage() {
        let kind = |errno| Error::from_io("", io::Error::from_raw_os_error(errno)).kind();
        // EAGAIN, ENOMEM, EACCES, EBUSY, ENFILE, EMFILE, ETXTBSY; EPERM.
        for errno in [11, 12, 13, 16, 23, 24, 26, 1] {
            assert!(kind(errno).is_obstacle(), "{errno}: {:?}", kind(errno));
        }
        // ENOENT, EIO, ENOTDIR, EISDIR, ENODATA, EUCLEAN.
        for errno in [2, 5, 20, 21, 61, 117] {
            assert!(!kind(errno).is_obstacle(), "{errno}: {:?}", kind(errno));
        }
        assert_eq!(ErrorKind::obstacle_of_errno(24), Some(ErrorKind::Exhausted));
        assert_eq!(ErrorKind::obstacle_of_errno(5), None);
    }

    #[test]
    fn the_systems_words_come_without_its_number() {
        let full = Error::from_io("cannot write the head", io::Error::from_raw_os_error(28));
        assert_eq!(full.to_string(), "cannot write the head: No space left on device");
        let wider = full.context("cannot rename 'a'");
        let words = "cannot rename 'a': cannot write the head: No space left on device";
        assert_eq!((wider.to_string().as_str(), wider.errno()), (words, 28));
    }
}
