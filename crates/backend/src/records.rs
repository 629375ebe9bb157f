//! Small named values that change one at a time, each as a whole.

use std::fmt;
use std::io;

use marcot_format::frame::{FrameKind, decode_message};
use marcot_format::record::HeadRecord;
use marcot_format::{FormatError, ImageId};

use crate::{ChildKey, Key, Listed, Prefix};

/// The records of a pool.
///
/// Errors are the operating system's, or are of these kinds: `NotFound` for a record that is not there,
/// `AlreadyExists` for one that is, `FileTooLarge` for one that is longer than it may be,
/// `DirectoryNotEmpty` for a namespace that holds names.
pub trait Records: Send + Sync {
    /// The bytes of a record.
    ///
    /// # Errors
    /// `NotFound`; `FileTooLarge` where it has more than `bytes_max` bytes.
    fn get(&self, key: &Key, bytes_max: u64) -> io::Result<Vec<u8>>;

    /// True where the record is there. It is not read.
    ///
    /// # Errors
    /// What the operating system says.
    fn exists(&self, key: &Key) -> io::Result<bool>;

    /// Stores a record that must not be there yet. It is durable when this returns.
    ///
    /// # Errors
    /// `AlreadyExists`; `NotFound` for a name in a namespace that is not there. After any other error it
    /// may be there or not; [`Self::get`] tells.
    fn create(&self, key: &Key, bytes: &[u8]) -> io::Result<()>;

    /// Stores a record over the one that is there, if any. Only for records that nobody else writes
    /// meanwhile, because a lease excludes it, or of which any is good enough, because it is a hint.
    ///
    /// # Errors
    /// What the operating system says.
    fn put(&self, key: &Key, bytes: &[u8]) -> io::Result<()>;

    /// Stores a head over the one that has the stamp `from`. It is durable when this returns.
    ///
    /// # Errors
    /// See [`SwapError`].
    fn swap(&self, key: &Key, from: Stamp, bytes: &[u8]) -> Result<(), SwapError>;

    /// Gives a record another name, which must be free. It has the one or the other after a crash, until
    /// [`Self::settle`] has returned for the new name.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`.
    fn rename(&self, from: &Key, to: &Key) -> io::Result<()>;

    /// Removes a record; with a head all that is kept beside it. After a crash it may be there again,
    /// until [`Self::settle`] has returned.
    ///
    /// # Errors
    /// `NotFound`; `DirectoryNotEmpty`.
    fn remove(&self, key: &Key) -> io::Result<()>;

    /// Makes durable what can be read under this key now, also that nothing can: who wrote or removed it
    /// may have been killed before it was durable.
    ///
    /// # Errors
    /// `NotFound` where the namespace is gone; what the operating system says.
    fn settle(&self, key: &Key) -> io::Result<()>;

    /// Shows `each` what is there, in no order, until it returns false. Nothing is read.
    ///
    /// # Errors
    /// `NotFound` for a namespace that is not there.
    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed<'_>) -> bool) -> io::Result<()>;

    /// The user who stored a record, as the operating system numbers users.
    ///
    /// # Errors
    /// `NotFound`; what the operating system says.
    fn owner(&self, key: &Key) -> io::Result<u32>;

    /// What writes that were cut off have left there. It is no record, and takes room.
    fn leftovers(&self, at: &Beside) -> Vec<Leftover>;

    /// Removes what a write has left; false where it stays.
    fn remove_leftover(&self, leftover: &Leftover) -> bool;

    /// What people call the record: a path, or an object's key.
    fn show(&self, key: &Key) -> String;
}

/// Where leftovers are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beside {
    /// The pool's record.
    Pool,
    /// The names of a namespace; `""` for the default one.
    Names(String),
    /// An image's head.
    Head(ImageId),
    /// Children.
    Children,
}

/// What a write left that was cut off. Or a write that is under way: only the lease under which such
/// records are written tells, or its age.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leftover {
    /// What people call it.
    pub shown: String,
    /// The child whose record it was to become, by its name; only that of a child counts.
    pub child: Option<ChildKey>,
    /// When it was written last, in seconds since 1970; `None` where nobody knows.
    pub written_s: Option<i64>,
}

/// Which of an image's heads is meant. No two heads of an image that were stored one after the other
/// have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The epoch, which each owner raises.
    pub epoch: u64,
    /// The version, which each head raises by one.
    pub version: u64,
}

impl Stamp {
    /// The stamp of a head.
    #[must_use]
    pub fn of(head: &HeadRecord) -> Self {
        Self { epoch: head.epoch, version: head.version }
    }

    /// The stamp in a head's bytes.
    ///
    /// # Errors
    /// Where they are no head.
    pub fn in_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let (head, _) = decode_message::<HeadRecord>(FrameKind::Head, bytes)?;
        Ok(Self::of(&head))
    }
}

/// Why a record was not swapped.
#[derive(Debug)]
pub enum SwapError {
    /// Another record is there than the one that was to be replaced. Nothing was changed.
    Changed,
    /// It failed. The record is the one that was to be replaced.
    Unchanged(io::Error),
    /// It failed, and whether the old or the new record survives a crash is not known.
    Unknown(io::Error),
}

impl fmt::Display for SwapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => f.write_str("it was changed meanwhile"),
            Self::Unchanged(error) | Self::Unknown(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SwapError {}
