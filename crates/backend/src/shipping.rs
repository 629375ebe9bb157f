//! Shipping: how segments and logs that are written on one host reach the other hosts of a pool.
//!
//! In a local directory, a file that was synced is all that another process needs. In a bucket, an owner writes
//! its segments in a directory of its host, and has to upload them before a head names them. Its log lies
//! there too. A flush ships what was appended since the last one.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use marcot_format::ImageId;
use marcot_format::record::{OwnerRecord, SegmentMarks, ShippedLog};
use marcot_store::DiskFile;

use crate::SegmentSet;
use crate::object::counted::Requests;

/// See the module. All methods may take as long as the service does, so that no image's thread should wait for
/// them while guests do.
///
/// An image has one owner at a time, with a *term* that is higher than those of all owners before. The engine
/// stores the term in the head. So the orders of steps are:
/// - Opening: [`Self::begin_term`], the head with the new term, [`Self::recover`], where the owner before has not
///   closed the image, and [`Self::hold_term`].
/// - Flush: [`Self::ship`].
/// - Checkpoint: [`Self::seal`], the new head, [`Self::forget_log`].
pub trait Shipping: Send + Sync {
    /// This host, as the owner of an image. `term` and `since_s` are 0.
    fn host(&self) -> OwnerRecord;

    /// True where a flush has to ship the log. Otherwise it is durable on this host only.
    fn ships_flushes(&self) -> bool;

    /// Prepares this host to own an image with this term. `before` is the owner in the head, and `first_sequence` the
    /// number of the first data segment of the log. Returns `Some` where
    /// what lies on this host is the state of that owner, so that its log can be replayed here: the number from which
    /// on data segments were made on this host. Anything else
    /// that lies here for the image is put aside: nobody will replay it.
    ///
    /// # Errors
    /// What the operating system says.
    fn begin_term(
        &self,
        image: ImageId,
        before: Option<&OwnerRecord>,
        term: u64,
        first_sequence: u32,
    ) -> io::Result<Option<u32>>;

    /// The head has the term, and what lies on this host is the state of its owner: the log was recovered, or the
    /// owner before has closed the image. To be called where [`Self::begin_term`] has returned `None`. Owners on this
    /// host give no numbers below `made_from` to data segments.
    ///
    /// # Errors
    /// What the operating system says.
    fn hold_term(&self, image: ImageId, term: u64, made_from: u32) -> io::Result<()>;

    /// True where what lies on this host is the state of this owner, which is the one in the head.
    ///
    /// # Errors
    /// What the operating system says.
    fn holds(&self, image: ImageId, owner: &OwnerRecord) -> io::Result<bool>;

    /// This process does not own the image any more.
    fn end_term(&self, image: ImageId);

    /// Ends the owner before: stores a fence behind the last part of the log that it has shipped. Then writes
    /// the parts to this host, so that the log can be replayed here. `first` is the number of the first part,
    /// and `first_sequence` that of the first data segment of the log.
    ///
    /// # Errors
    /// `Fenced` where a later owner has stored a fence.
    fn recover(
        &self,
        image: ImageId,
        term: u64,
        first: u64,
        first_sequence: u32,
    ) -> Result<Recovered, ShipError>;

    /// Stores a part of the log. The part before it was stored.
    ///
    /// # Errors
    /// `Fenced` where a later owner has stored a fence: nothing was stored.
    fn ship(&self, part: &ShippedLog) -> Result<(), ShipError>;

    /// Uploads a data segment that nobody writes to any more.
    ///
    /// # Errors
    /// What the service says.
    fn seal_data(&self, image: ImageId, sequence: u32) -> io::Result<()>;

    /// Uploads those segments of a set that lie on this host and have numbers below these. Nobody writes to them
    /// any more.
    ///
    /// # Errors
    /// What the service says.
    fn seal(&self, set: SegmentSet, below: &SegmentMarks) -> io::Result<()>;

    /// Uploads the segments of all sets of copies with this number that lie on this host. Nobody writes to them
    /// any more.
    ///
    /// # Errors
    /// What the service says.
    fn seal_copies(&self, copies: u64) -> io::Result<()>;

    /// Removes parts of a log that a root covers. Fences stay, because an owner before may still be about to
    /// store a part of that number. What cannot be removed is litter. `log_from` is the number of the first data segment
    /// of the log in a durable head: what was uploaded need not lie on this host any more, except the log.
    fn forget_log(&self, image: ImageId, log_from: u32, parts: &mut dyn Iterator<Item = u64>);

    /// Ends the log of an image that is being removed, whose last owner may not know: stores a fence behind its last part.
    /// `first` is the number of the first part, where that is known, and `term` is higher than that of the last owner.
    ///
    /// # Errors
    /// What the service says.
    fn end_log(&self, image: ImageId, first: u64, term: u64) -> io::Result<()>;

    /// Removes all parts of the log of an image that is gone. Its fences stay, for owners that were replaced and do not
    /// know. What cannot be removed is litter.
    fn forget_logs(&self, image: ImageId);

    /// What was put aside on this host: the ends of logs of owners that other hosts have replaced.
    ///
    /// # Errors
    /// What the operating system says.
    fn tails(&self) -> io::Result<Vec<Tail>> {
        Ok(Vec::new())
    }

    /// The data segments of one of [`Self::tails`], with their numbers, sorted by these.
    ///
    /// # Errors
    /// `NotFound`; what the operating system says.
    fn open_tail(&self, name: &str) -> io::Result<Vec<(u32, Arc<dyn DiskFile>)>> {
        let _ = name;
        Err(io::ErrorKind::NotFound.into())
    }

    /// Removes one of [`Self::tails`].
    ///
    /// # Errors
    /// As [`Self::open_tail`].
    fn remove_tail(&self, name: &str) -> io::Result<()> {
        self.open_tail(name).map(drop)
    }

    /// How long what a guest asks for may wait for the service; `None`: as long as it takes.
    fn io_timeout(&self) -> Option<Duration> {
        None
    }

    /// What the processes of this host have asked of the pool's service; `None` where nobody counts.
    fn requests(&self) -> Option<io::Result<Asked>> {
        None
    }

    /// Forgets what was counted for an image that is gone; the pool's count keeps it.
    fn forget_requests(&self, _: ImageId) {}

    /// Why requests wait for the service now; `None` where it works, as far as is known.
    fn trouble(&self) -> Option<Trouble> {
        None
    }

    /// Waits until the service answers, as long as guests wait. To be called before what has no time-out itself.
    ///
    /// # Errors
    /// `TimedOut` where it has not answered for that time.
    fn await_service(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The end of a log that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// What it is called on this host.
    pub name: String,
    /// The image whose log it is.
    pub image: ImageId,
    /// When it was put aside, in seconds since 1970.
    pub since_s: i64,
    /// What its files take.
    pub bytes: u64,
}

/// What the processes of a host have asked of the service of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// All of it.
    pub all: Requests,
    /// For the objects of each image.
    pub images: BTreeMap<ImageId, Requests>,
}

/// Why requests wait for a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// One sentence.
    pub why: String,
    /// How long it has lasted.
    pub lasts: Duration,
}

/// What [`Shipping::recover`] has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Number of the next part.
    pub next: u64,
    /// Numbers of the parts that hold groups.
    pub parts: Vec<u64>,
}

/// Why a part of a log was not stored.
#[derive(Debug)]
pub enum ShipError {
    /// A later owner has taken the image over.
    Fenced,
    /// The service has not stored it, or it is not known whether it has.
    Io(io::Error),
}

impl From<io::Error> for ShipError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for ShipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fenced => f.write_str("another host has taken the image over"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ShipError {}
