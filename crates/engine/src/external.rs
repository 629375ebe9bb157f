//! Disks outside the store: what the target of a migration reads of its source until that is copied.
//!
//! The head of such an image says how its source is opened ([`MigrationRecord::source_spec`]), and in which state it was
//! when the migration began. How that is done, this library does not know: the process that uses it says so, once for
//! each store ([`crate::Store::set_external_sources`]).
//!
//! Invariants:
//! - A source is opened only for an image in a local pool of the user of this process. What somebody else has written
//!   names no file and no server that this process would open.
//! - What has another state than when the migration began is not read.
//! - A source that cannot be opened is not tried again for [`PAUSE`], so that the readers of an image do not all wait
//!   for a server that is gone.
//! - What a worker has fetched of it ([`External::fetch`]) is in memory until it is used, as far as that is no more
//!   than [`FETCHED_BLOCKS_MAX`].
//! - That a block could not be fetched says nothing about it after [`PAUSE`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use marcot_format::BLOCK_BYTES;
use marcot_format::record::MigrationRecord;
use marcot_store::World;

use crate::device::Extent;
use crate::error::{Error, ErrorKind, Result, fail};

/// How long a source that could not be opened is left alone, and how long an error of a fetch counts.
const PAUSE: Duration = Duration::from_secs(3);
/// Range whose holes are asked for first, in bytes.
const LOOK_BYTES: u64 = 4 << 20;
/// Most blocks that are kept for writes that cover them in part, 4 MiB. A write takes its blocks, two at most, as soon as
/// both are here.
const FETCHED_BLOCKS_MAX: usize = 1024;
const BLOCK: usize = BLOCK_BYTES as usize;

/// A disk outside the store. It stays as it is while it is open, or its reads fail.
pub trait ExternalDisk: Send + Sync {
    /// Its size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on, which lie inside the disk.
    ///
    /// # Errors
    /// Where they cannot be read, or the disk has changed.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Data and holes from `offset` on, in order and without gaps. They may end before `offset + length`, but there is
    /// at least one where the range is not empty. The range lies inside the disk.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>>;
}

/// Opens disks outside the store.
pub trait ExternalSources: Send + Sync {
    /// Opens the disk that `spec` describes, if it is in the state `state`.
    ///
    /// # Errors
    /// Where it cannot be opened, or has changed.
    fn open(&self, spec: &str, state: &str) -> Result<Arc<dyn ExternalDisk>>;
}

enum Opened {
    NotYet,
    Yes(Arc<dyn ExternalDisk>),
    /// Why not, and when it was tried.
    Failed(Error, Duration),
}

/// The source of the migration that an open image is the target of.
pub(crate) struct External {
    sources: Option<Arc<dyn ExternalSources>>,
    world: World,
    label: String,
    spec: String,
    state: String,
    /// Why it is never opened.
    refused: Option<&'static str>,
    opened: Mutex<Opened>,
    fetched: Mutex<VecDeque<Fetched>>,
}

/// A block that was fetched, or why it could not be.
struct Fetched {
    /// Its first byte.
    offset: u64,
    /// When it was fetched.
    at: Duration,
    block: Result<Box<[u8]>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl External {
    /// The source that an image with this record is migrated from. `refused` says why it is never opened.
    pub(crate) fn new(
        record: &MigrationRecord,
        label: &str,
        refused: Option<&'static str>,
        (sources, world): (Option<Arc<dyn ExternalSources>>, World),
    ) -> Arc<Self> {
        Arc::new(Self {
            sources,
            world,
            label: label.to_owned(),
            spec: record.source_spec.clone(),
            state: record.source_state.clone(),
            refused,
            opened: Mutex::new(Opened::NotYet),
            fetched: Mutex::default(),
        })
    }

    fn disk(&self) -> Result<Arc<dyn ExternalDisk>> {
        let mut opened = locked(&self.opened);
        let now = self.world.clock.uptime();
        match &*opened {
            Opened::Yes(disk) => return Ok(Arc::clone(disk)),
            Opened::Failed(error, at) if now.saturating_sub(*at) < PAUSE => {
                return Err(error.clone());
            }
            _ => {}
        }
        let (found, now) = match self.open() {
            Ok(disk) => (Opened::Yes(Arc::clone(&disk)), Ok(disk)),
            Err(error) => {
                tracing::error!(image = %self.label, error = %error.sentence(), "the source of the migration cannot be used");
                (Opened::Failed(error.clone(), self.world.clock.uptime()), Err(error))
            }
        };
        *opened = found;
        now
    }

    fn open(&self) -> Result<Arc<dyn ExternalDisk>> {
        if let Some(why) = self.refused {
            return self.failed(Error::new(ErrorKind::ReadOnly, why));
        }
        let Some(sources) = &self.sources else {
            let message = "this program reads no sources of migrations";
            return self.failed(Error::new(ErrorKind::Unsupported, message));
        };
        sources.open(&self.spec, &self.state).or_else(|error| self.failed(error))
    }

    fn failed<T>(&self, error: Error) -> Result<T> {
        // For a guest, whatever is the matter is an I/O error.
        let message = format!(
            "the source that {} is migrated from cannot be read: {}",
            self.label,
            error.sentence()
        );
        fail(ErrorKind::Io, message)
    }

    /// As [`Self::read`]; a block that was fetched is taken, and waits for nothing.
    pub(crate) fn take(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match self.take_fetched(offset, buf.len()) {
            Some(block) => block.map(|block| buf.copy_from_slice(&block)),
            None => self.read(offset, buf),
        }
    }

    /// Reads a block, and keeps it, or the error, for the write that needs it ([`Self::take`]). For workers.
    pub(crate) fn fetch(&self, offset: u64) {
        let mut block = vec![0; BLOCK].into_boxed_slice();
        let block = self.read(offset, &mut block).map(|()| block);
        let at = self.world.clock.uptime();
        let mut fetched = self.all_fetched();
        fetched.retain(|known| known.offset != offset);
        if fetched.len() == FETCHED_BLOCKS_MAX {
            fetched.pop_front();
        }
        fetched.push_back(Fetched { offset, at, block });
    }

    /// Whether a block was fetched, and the error where that failed a moment ago.
    pub(crate) fn has_fetched(&self, offset: u64) -> Result<bool> {
        match self.all_fetched().iter().find(|known| known.offset == offset) {
            None => Ok(false),
            Some(known) => known.block.as_ref().map(|_| true).map_err(Error::clone),
        }
    }

    /// What was fetched and not taken, without errors of former times.
    fn all_fetched(&self) -> MutexGuard<'_, VecDeque<Fetched>> {
        let now = self.world.clock.uptime();
        let mut fetched = locked(&self.fetched);
        fetched.retain(|known| known.block.is_ok() || now.saturating_sub(known.at) < PAUSE);
        fetched
    }

    fn take_fetched(&self, offset: u64, length: usize) -> Option<Result<Box<[u8]>>> {
        let mut fetched = self.all_fetched();
        let at = fetched.iter().position(|f| f.offset == offset && length == BLOCK)?;
        fetched.remove(at).map(|fetched| fetched.block)
    }

    /// Fills `buf` with the bytes from `offset` on. Behind the end of the disk they are zeros.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let disk = self.disk()?;
        let inside = disk.size_bytes().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (inside, behind) = buf.split_at_mut(inside);
        behind.fill(0);
        match inside.is_empty() {
            true => Ok(()),
            false => disk.read_at(offset, inside).or_else(|error| self.give_up(error)),
        }
    }

    /// Data and holes of the whole range from `offset` on, or of the start of it, where there are more than `max` of them.
    /// Behind the end of the disk there are holes.
    pub(crate) fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>> {
        let disk = self.disk()?;
        let (mut found, mut at, end) = (Vec::new(), offset, offset + length);
        let inside = end.min(disk.size_bytes());
        while at < inside && found.len() <= max {
            let some = disk.extents(at, inside - at).or_else(|error| self.give_up(error))?;
            let reached = some.last().map_or(at, |last| last.offset + last.length);
            if reached <= at || some.first().is_none_or(|first| first.offset != at) {
                return self.give_up(Error::new(ErrorKind::Io, "its map of holes goes nowhere"));
            }
            found.extend(some);
            at = reached;
        }
        if at < end && at >= inside {
            found.push(Extent { offset: at, length: end - at, data: false });
        }
        Ok(found)
    }

    /// How long the hole is that begins at `offset`: 0 where there is data, at most `length`.
    pub(crate) fn hole(&self, offset: u64, length: u64) -> Result<u64> {
        let disk = self.disk()?;
        let Some(inside) = disk.size_bytes().checked_sub(offset).filter(|inside| *inside > 0)
        else {
            return Ok(length);
        };
        let mut hole = 0;
        // A short range first: a long one may have many parts.
        for asked in [LOOK_BYTES.min(length), length] {
            let asked = asked.min(inside);
            let found = disk.extents(offset, asked).or_else(|error| self.give_up(error))?;
            hole = found.first().filter(|first| !first.data).map_or(0, |first| first.length);
            if hole < asked {
                return Ok(hole);
            }
        }
        Ok(hole)
    }

    /// The next reader opens the disk again, and sees whether it is still the same.
    fn give_up<T>(&self, error: Error) -> Result<T> {
        *locked(&self.opened) = Opened::NotYet;
        tracing::error!(image = %self.label, error = %error.sentence(), "the source of the migration cannot be read");
        self.failed(error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use marcot_store::Clock;

    use super::*;

    /// A clock that the test sets, in seconds.
    #[derive(Default)]
    struct Hands(AtomicU64);

    impl Clock for Hands {
        fn now_s(&self) -> i64 {
            self.0.load(Ordering::Relaxed) as i64
        }
    }

    #[test]
    fn an_error_that_nobody_has_taken_counts_for_a_moment_only() {
        let clock = Arc::new(Hands::default());
        let world = World { clock: clock.clone(), ..World::system() };
        let source = External::new(&MigrationRecord::default(), "i", None, (None, world));
        source.fetch(0);
        assert!(source.has_fetched(0).is_err());
        assert!(!source.has_fetched(BLOCK_BYTES).unwrap());
        clock.0.store(2, Ordering::Relaxed);
        assert!(source.has_fetched(0).is_err());
        clock.0.store(4, Ordering::Relaxed);
        assert!(!source.has_fetched(0).unwrap());
    }
}
