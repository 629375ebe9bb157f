//! One error for the whole engine: a kind that callers match on, a sentence for people, and the
//! error below it.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use marcot_format::FormatError;
use serde::{Deserialize, Serialize};

use crate::printable::system_words;

/// Result of every engine call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What went wrong, for callers that must tell cases apart.
        ///
        /// Serialized by its name in lower case: `not_found`, `has_children`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum ErrorKind {
            $($(#[$doc])* $name,)*
        }

        impl ErrorKind {
            /// All of them, for tables that must not forget one.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

kinds! {
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
    /// The image is a member of a group.
    InGroup,
    /// Not available for this image, pool or machine.
    Unsupported,
    /// The user or a broken connection ended it.
    Interrupted,
    /// The process or the machine lacks descriptors or memory.
    Exhausted,
    /// The service that keeps the pool does not answer.
    Unreachable,
    /// Any other input or output error.
    Io,
}

/// Kinds that say nothing of what is stored; see [`ErrorKind::is_obstacle`].
const OBSTACLES: [ErrorKind; 6] = [
    ErrorKind::Busy,
    ErrorKind::Owned,
    ErrorKind::PermissionDenied,
    ErrorKind::Interrupted,
    ErrorKind::Exhausted,
    ErrorKind::Unreachable,
];

impl ErrorKind {
    /// True where something could not be looked at: another time, or for another user, it may be found
    /// whole. So it is no damage, nothing is repaired because of it, and nothing is given up.
    #[must_use]
    pub fn is_obstacle(self) -> bool {
        OBSTACLES.contains(&self)
    }
}

impl ErrorKind {
    /// True where nothing that is written from now on would be kept: the image has to be opened again.
    #[must_use]
    pub fn ends_writing(self) -> bool {
        matches!(self, Self::Poisoned | Self::Fenced)
    }
}

/// What can be done about an error where the caller has a switch for it, whose name only the caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Clone without a marker in the parent's pool: [`crate::CloneOptions::untracked`].
    CloneUntracked,
    /// Check the pool and set right what can be: [`crate::CheckOptions::repair`].
    RepairPool,
    /// Work in a store that belongs to the user who runs this process: [`crate::Store::open`].
    OwnStore,
}

/// An engine error: a kind, one sentence, and perhaps the error below it.
///
/// [`fmt::Display`] shows the sentence alone and [`std::error::Error::source`] gives what is below, so
/// that a reporter that walks the chain shows everything once. [`Error::sentence`] is the whole of it.
///
/// Clones share what is below, so that one error can be the answer to several who wait.
///
/// ```
/// use marcot::{Error, ErrorKind};
///
/// let full = Error::from_io("cannot write the head", std::io::ErrorKind::StorageFull.into());
/// let error = full.context("cannot rename 'a'");
/// assert_eq!(error.kind(), ErrorKind::NoSpace);
/// assert_eq!(error.to_string(), "cannot rename 'a'");
/// let whole = "cannot rename 'a': cannot write the head: no storage space";
/// assert_eq!(error.sentence().to_string(), whole);
/// ```
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: Arc<str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    remedy: Option<Remedy>,
}

impl Error {
    /// An error of `kind` that reads `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into().into(), source: None, remedy: None }
    }

    pub(crate) fn above(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self { source: Some(Arc::new(source)), ..Self::new(kind, message) }
    }

    /// Wraps an operating system error, keeping its kind.
    pub fn from_io(context: impl Into<String>, source: io::Error) -> Self {
        Self::above(kind_of_io(&source), context, source)
    }

    /// Wraps a decoding error.
    pub fn from_format(context: impl Into<String>, source: FormatError) -> Self {
        Self::above(kind_of_format(&source), context, source)
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

    /// The sentence with the causes below it, for people: in a terminal, a log or an answer.
    #[must_use]
    pub fn sentence(&self) -> Sentence<'_> {
        Sentence(self)
    }

    /// The same error under a wider sentence.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        Self { remedy: self.remedy, ..Self::above(self.kind, message, self) }
    }

    /// What can be done about it, where the caller has to say how.
    #[must_use]
    pub fn remedy(&self) -> Option<Remedy> {
        self.remedy
    }

    pub(crate) fn with_remedy(self, remedy: Remedy) -> Self {
        Self { remedy: Some(remedy), ..self }
    }
}

/// An error with all that is below it, shown on one line: see [`Error::sentence`].
#[derive(Debug, Clone, Copy)]
pub struct Sentence<'a>(&'a Error);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut below = self.0.source();
        while let Some(error) = below {
            write!(f, ": {}", system_words(&error.to_string()))?;
            below = error.source();
        }
        Ok(())
    }
}

/// Linux: too many files are open in the machine (ENFILE), or in the process (EMFILE).
const TOO_MANY_OPEN: [i32; 2] = [23, 24];

fn kind_of_format(error: &FormatError) -> ErrorKind {
    match error {
        FormatError::NewerFormat { .. } => ErrorKind::NewerFormat,
        _ => ErrorKind::Corrupt,
    }
}

/// A back end may decode what lies around a record; then its error has the decoding error inside.
fn kind_of_io(error: &io::Error) -> ErrorKind {
    if error.raw_os_error().is_some_and(|errno| TOO_MANY_OPEN.contains(&errno)) {
        return ErrorKind::Exhausted;
    }
    let format = error.get_ref().and_then(|inner| inner.downcast_ref::<FormatError>());
    if let Some(format) = format {
        return kind_of_format(format);
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
        io::ErrorKind::TimedOut => ErrorKind::Unreachable,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        io::ErrorKind::DirectoryNotEmpty => ErrorKind::NotEmpty,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.sentence())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
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
        // EAGAIN, ENOMEM, EACCES, EBUSY, ENFILE, EMFILE, ETXTBSY; EPERM, ETIMEDOUT.
        for errno in [11, 12, 13, 16, 23, 24, 26, 1, 110] {
            assert!(kind(errno).is_obstacle(), "{errno}: {:?}", kind(errno));
        }
        // ENOENT, EIO, ENOTDIR, EISDIR, ENODATA, EUCLEAN.
        for errno in [2, 5, 20, 21, 61, 117] {
            assert!(!kind(errno).is_obstacle(), "{errno}: {:?}", kind(errno));
        }
    }

    #[test]
    fn what_a_back_end_cannot_decode_is_damaged_or_newer() {
        let kind =
            |error| Error::from_io("", io::Error::new(io::ErrorKind::InvalidData, error)).kind();
        let newer = FormatError::NewerFormat { what: "object", version: 9, features: 0 };
        assert_eq!(kind(newer), ErrorKind::NewerFormat);
        assert_eq!(kind(FormatError::Checksum { what: "object" }), ErrorKind::Corrupt);
    }

    #[test]
    fn the_systems_words_come_without_its_number() {
        let full = Error::from_io("cannot write the head", io::Error::from_raw_os_error(28));
        let words = "cannot write the head: No space left on device";
        assert_eq!(full.sentence().to_string(), words);
        let wider = full.clone().context("cannot rename 'a'");
        assert_eq!(wider.sentence().to_string(), format!("cannot rename 'a': {words}"));
        assert_eq!(wider.kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn each_level_of_an_error_shows_itself_once() {
        let error = Error::from_io("low", io::Error::from_raw_os_error(5)).context("high");
        let mut levels = vec![error.to_string()];
        let mut below = error.source();
        while let Some(error) = below {
            levels.push(system_words(&error.to_string()).to_owned());
            below = error.source();
        }
        assert_eq!(levels, ["high", "low", "Input/output error"]);
        assert_eq!(error.sentence().to_string(), levels.join(": "));
    }
}
