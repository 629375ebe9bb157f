//! Records: small named values. Each changes as a whole.

use std::fmt;
use std::io;

use marcot_format::frame::{FrameKind, decode_message};
use marcot_format::record::HeadRecord;
use marcot_format::{FormatError, ImageId};

use crate::{ChildKey, Key, Listed, Prefix};

/// The records of a pool.
///
/// Errors are those of the operating system, or of these kinds: `NotFound` where the record does not exist,
/// `AlreadyExists` where it does, `FileTooLarge` where it is longer than allowed, `DirectoryNotEmpty` for a
/// namespace that holds names.
pub trait Records: Send + Sync {
    /// The bytes of a record.
    ///
    /// # Errors
    /// `NotFound`; `FileTooLarge` where it has more than `bytes_max` bytes.
    fn get(&self, key: &Key, bytes_max: u64) -> io::Result<Vec<u8>>;

    /// True where the record exists. It is not read.
    ///
    /// # Errors
    /// What the operating system says.
    fn exists(&self, key: &Key) -> io::Result<bool>;

    /// Stores a record that must not exist yet. It is durable when this returns.
    ///
    /// # Errors
    /// `AlreadyExists`; `NotFound` for a name in a namespace that does not exist. After any other error
    /// the record may exist or not; [`Self::get`] shows which.
    fn create(&self, key: &Key, bytes: &[u8]) -> io::Result<()>;

    /// Stores a record, and replaces an existing one. Only for records that nobody else writes at the same
    /// time, because of a lease, and for hints, where any of two concurrent writes will do.
    ///
    /// # Errors
    /// What the operating system says.
    fn put(&self, key: &Key, bytes: &[u8]) -> io::Result<()>;

    /// Replaces the head that has the stamp `from`. The new head is durable when this returns.
    ///
    /// # Errors
    /// See [`SwapError`].
    fn swap(&self, key: &Key, from: Stamp, bytes: &[u8]) -> Result<(), SwapError>;

    /// Replaces the record of a group, if it has the bytes `from`. The new one is durable when this returns. On an object
    /// store also what is noted beside a head; there, a note that was removed has no bytes.
    ///
    /// # Errors
    /// See [`SwapError`].
    fn replace(&self, key: &Key, from: &[u8], bytes: &[u8]) -> Result<(), SwapError>;

    /// Gives a record another key, which must be free. Until [`Self::settle`] has returned for the new key,
    /// the record has one of the two keys after a crash.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`.
    fn rename(&self, from: &Key, to: &Key) -> io::Result<()>;

    /// Removes a record; with a head everything that is kept beside it. Until [`Self::settle`] has
    /// returned, the record may exist again after a crash.
    ///
    /// # Errors
    /// `NotFound`; `DirectoryNotEmpty`.
    fn remove(&self, key: &Key) -> io::Result<()>;

    /// Removes a name, or what is noted beside a head, that still says what `record` says. Another process may have
    /// removed it, and given the name to another image. Where one lock holds all writers of a pool, the caller holds it.
    ///
    /// # Errors
    /// `NotFound`, also where it says something else.
    fn remove_same(&self, key: &Key, record: &[u8]) -> io::Result<()> {
        match self.get(key, record.len() as u64) {
            Ok(found) if found == record => self.remove(key),
            Ok(_) => Err(io::ErrorKind::NotFound.into()),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(io::ErrorKind::NotFound.into())
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Self::rename`], for a name that still leads to what `record` says. Another process may have given the name to
    /// another image. Where one lock holds all writers of a pool, the caller holds it.
    ///
    /// # Errors
    /// As [`Self::rename`]; `NotFound` also where the name leads elsewhere.
    fn rename_name(&self, from: &Key, to: &Key, record: &[u8]) -> io::Result<()> {
        match self.get(from, record.len() as u64) {
            Ok(found) if found == record => self.rename(from, to),
            Ok(_) => Err(io::ErrorKind::NotFound.into()),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(io::ErrorKind::NotFound.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Makes sure that no record of this key is ever created, where records of it are created once and for all: the
    /// heads of a pool that several hosts use. Elsewhere leases do that, and this does nothing.
    ///
    /// # Errors
    /// `AlreadyExists` where there is one.
    fn forbid(&self, key: &Key) -> io::Result<()> {
        let _ = key;
        Ok(())
    }

    /// Makes the present state of a record durable: its content, or that it does not exist. The process that
    /// wrote or removed it may have been killed before that was durable.
    ///
    /// # Errors
    /// `NotFound` where the namespace is gone; what the operating system says.
    fn settle(&self, key: &Key) -> io::Result<()>;

    /// Calls `each` for everything under a prefix, in no order, until it returns false. The records are
    /// not read.
    ///
    /// # Errors
    /// `NotFound` for a namespace that does not exist.
    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed<'_>) -> bool) -> io::Result<()>;

    /// The records of the names of a namespace, in no order: as a list and a get for each name, but a back end
    /// may need fewer requests for it. A name that is removed meanwhile is left out.
    ///
    /// # Errors
    /// `NotFound` for a namespace that does not exist.
    fn names(&self, namespace: &str, bytes_max: u64) -> io::Result<Vec<NameRead>> {
        let mut names = Vec::new();
        self.list(&Prefix::Names(namespace.to_owned()), &mut |listed| {
            if let Listed::Key(Key::Name { name, .. }) = listed {
                names.push(name.clone());
            }
            true
        })?;
        let read = |name: String| {
            let key = Key::Name { namespace: namespace.to_owned(), name };
            let record = self.get(&key, bytes_max);
            let gone = matches!(&record, Err(error) if error.kind() == io::ErrorKind::NotFound);
            match key {
                Key::Name { name, .. } if !gone => Some((name, record)),
                _ => None,
            }
        };
        Ok(names.into_iter().filter_map(read).collect())
    }

    /// The user who stored a record, as the operating system numbers users.
    ///
    /// # Errors
    /// `NotFound`; what the operating system says.
    fn owner(&self, key: &Key) -> io::Result<u32>;

    /// What interrupted writes have left there. Leftovers are no records, but take space.
    fn leftovers(&self, at: &Beside) -> Vec<Leftover>;

    /// Removes a leftover. Returns false where it stays.
    fn remove_leftover(&self, leftover: &Leftover) -> bool;

    /// How messages name the record: a path, or an object's key.
    fn show(&self, key: &Key) -> String;
}

/// A name and its record, or why that cannot be read.
pub type NameRead = (String, io::Result<Vec<u8>>);

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
    /// Groups.
    Groups,
}

/// What an interrupted write has left. It may also belong to a write in progress. Only the lease under
/// which such records are written, or its age, tells the two apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leftover {
    /// How messages name it.
    pub shown: String,
    /// Where it was to become the record of a child: that record's key, from the name.
    pub child: Option<ChildKey>,
    /// When it was written last, in seconds since 1970; `None` where that is not known.
    pub written_s: Option<i64>,
}

/// Identifies one of the heads that an image has had. Two heads of an image that were stored one after
/// the other have different stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The epoch. Each owner raises it.
    pub epoch: u64,
    /// The version. Each new head raises it by one.
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
    /// Where the bytes are no head.
    pub fn in_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let (head, _) = decode_message::<HeadRecord>(FrameKind::Head, bytes)?;
        Ok(Self::of(&head))
    }
}

/// Why a record was not swapped.
#[derive(Debug)]
pub enum SwapError {
    /// The stored record is not the one that was to be replaced. Nothing was changed.
    Changed,
    /// The swap failed. The record that was to be replaced is still there.
    Unchanged(io::Error),
    /// The swap failed. It is not known whether the old or the new record survives a crash.
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
