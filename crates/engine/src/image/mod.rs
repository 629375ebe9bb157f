//! An open image: its map, its log, and the head on disk.
//!
//! Invariants:
//! - One thread uses an [`Image`] at a time; the image lock makes sure that no other process
//!   writes it.
//! - The durable state is the head's root plus the log from the head's log position on, up to the
//!   last flush. A head never names a page or block that is not durable (I1).
//! - A segment is removed only after a head that no longer needs it is durable, and only where no
//!   snapshot and no clone can name it (I5); see [`reclaim`].

mod access;
mod append;
mod checkpoint;
mod checkpoint_job;
mod commands;
mod compact;
mod copies;
mod diff;
mod extents;
mod external;
mod flatten;
mod head;
mod idle;
mod memory;
mod migration;
mod move_job;
mod open;
mod orphan;
mod overlay;
mod pages;
mod parked;
mod parts;
mod placing;
mod read;
mod reclaim;
mod replay;
mod resize;

mod results;
mod room;
mod settings;
mod snapshot;
mod sparsify;
mod starting;
mod state;
mod tenure;
mod write;

use std::sync::Arc;

use marcot_format::record::{HeadRecord, LogPosition, SnapshotRecord};
use marcot_format::{ImageId, SnapId};
use marcot_store::{Lock, Running};

use crate::catalog::migration::refuse_frozen;
use crate::catalog::{Identity, Pool, advisory, no_snapshot};
use crate::error::{ErrorKind, Result, fail};
use crate::external::External;
use crate::in_flight::InFlight;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::root::{OwnedRoot, RootOf, Source, empty_root};
use crate::segment::{SegmentName, Series};

use checkpoint_job::CheckpointJob;
use external::SourceRead;
use head::Head;
pub(crate) use orphan::forget_child;
use overlay::Overlay;
use parked::Parked;
pub(crate) use replay::DamagedLog;
pub use results::{DiffExtent, FlattenPart, UsageRow};
use room::Room;
pub use snapshot::SNAPSHOTS_MAX;
use state::State;
pub(crate) use tenure::{Takeover, check_not_owned_elsewhere};

/// How often a reader without a lock tries to open an image whose head changes meanwhile.
const READ_ATTEMPTS_MAX: u32 = 10;

/// What this process may do with the image.
enum Mode {
    /// The only process that may write it; holds the image lock.
    Owner { _lock: Box<dyn Lock> },
    /// Reads by the head as it was at opening. The readers' lock, where it could be taken, keeps the segments
    /// that this head names.
    Reader { _lock: Option<Box<dyn Lock>> },
    /// Reads a snapshot; holds the snapshot's pin where the pool can be written.
    Snapshot { _pin: Option<Box<dyn Lock>> },
}

/// An open image or snapshot.
///
/// Dropping it without [`Image::close`] loses nothing that was flushed.
pub struct Image {
    identity: Arc<Identity>,
    mode: Mode,
    /// The durable head.
    head: Head,
    /// The root in memory, and everything that refers to it.
    state: State,
    /// Numbers of the next segments.
    series: Series,
    journal: Journal,
    /// Requests that wait for the medium.
    in_flight: InFlight,
    /// A checkpoint in the background.
    checkpoint_job: Option<CheckpointJob>,
    /// Requests that wait for a service.
    parked: Parked,
    /// What the log says, of an image that is only read.
    overlay: Option<Overlay>,
    /// The source of a migration, outside the store.
    external: Option<Arc<External>>,
    /// What a worker reads of it, to be copied next.
    source_read: Option<SourceRead>,
    room: Room,
    poisoned: bool,
    /// The previous owner may not have closed the image, and may have left segments that no root names.
    unclean: bool,
    /// A worker that removes what an owner before has left behind.
    cleaning: Option<Box<dyn Running>>,
    /// What was replayed lies on this host, and may not have been stored where other hosts find it.
    replayed_here: bool,
}

impl Image {
    /// Opens an image for writing: takes its lock and replays its log.
    ///
    /// # Errors
    /// `Owned` where another process has it; `NotFound`, `ReadOnly`, `Corrupt`, `NewerFormat`.
    pub(crate) fn open_owner(pool: &Pool, id: ImageId, damaged_log: DamagedLog) -> Result<Self> {
        Self::open_owner_with(pool, id, damaged_log, Takeover::Refuse)
    }

    /// As [`Self::open_owner`], also for an image that only the end of a migration may change.
    pub(crate) fn open_migrating(pool: &Pool, id: ImageId) -> Result<Self> {
        pool.add_pools();
        Self::open_any(pool, id, DamagedLog::Refuse, Takeover::Refuse, &|_| Ok(()))
    }

    /// As [`Self::open_owner`]; `takeover` says what is done where another host has the image open.
    ///
    /// # Errors
    /// As [`Self::open_owner`], and `Fenced` where another host becomes the owner at the same time.
    pub(crate) fn open_owner_with(
        pool: &Pool,
        id: ImageId,
        damaged_log: DamagedLog,
        takeover: Takeover,
    ) -> Result<Self> {
        let check = |head: &HeadRecord| refuse_frozen(head, &pool.image_label(head));
        Self::open_any(pool, id, damaged_log, takeover, &check)
    }

    /// As [`Self::open_owner_with`], if `check` accepts the head.
    fn open_any(
        pool: &Pool,
        id: ImageId,
        damaged_log: DamagedLog,
        takeover: Takeover,
        check: &dyn Fn(&HeadRecord) -> Result<()>,
    ) -> Result<Self> {
        // In a bucket, a lock needs no head.
        let head = match pool.segments().shipping() {
            Some(_) if !pool.read_only() => None,
            _ => Some(pool.read_head(id)?),
        };
        if let Some(head) = head.as_ref().filter(|_| pool.read_only()) {
            let label = pool.image_label(head);
            let message = format!("{}; {label} cannot be changed", pool.why_read_only());
            return fail(ErrorKind::ReadOnly, message);
        }
        let Some(lock) = pool.lock_image(id)? else {
            let label = match head {
                Some(head) => pool.image_label(&head),
                None => pool.image_label(&pool.read_head(id)?),
            };
            let owner = match pool.owner_pid(id) {
                Some(pid) if pid > 0 => format!("process {pid}"),
                _ => "another process".to_owned(),
            };
            return fail(ErrorKind::Owned, format!("{label} is open in {owner}"));
        };
        // Read again: it may have changed before this process got the lock.
        let head = pool.read_head_for_writing(id)?;
        check(&head)?;
        let given = head.reserved.unwrap_or_default();
        let claimed = tenure::claim(pool, id, &head, takeover)?;
        let (head, tenure) = match claimed {
            Some((head, tenure)) => (head, Some(tenure)),
            None => (head, None),
        };
        let began_here = tenure.as_ref().is_none_or(|tenure| tenure.has_begun_here(&head));
        let mut image = Self::assemble(pool, id, head, Mode::Owner { _lock: lock }, None)?;
        image.replay(damaged_log, began_here)?;
        if let Some(tenure) = tenure {
            image.begin_tenure(tenure, &given);
        }
        Ok(image)
    }

    /// Opens an image as it is on disk, for reading only.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub(crate) fn open_reader(pool: &Pool, id: ImageId, damaged_log: DamagedLog) -> Result<Self> {
        let lock = pool.lock_readers(id);
        let is_local = pool.segments().shipping().is_none();
        let locked = lock.is_some();
        let mut mode = Mode::Reader { _lock: lock };
        let mut attempts = 0;
        loop {
            let head = pool.read_head(id)?;
            let version = head.version;
            let is_log_here = tenure::is_log_here(pool, id, &head)?;
            let opened = Self::assemble(pool, id, head, mode, None).and_then(|mut image| {
                if is_log_here {
                    image.replay(damaged_log, is_local)?;
                }
                Ok(image)
            });
            // Without the lock, the owner may have removed segments that this head needs.
            let moved = !locked && pool.read_head(id).is_ok_and(|head| head.version != version);
            attempts += 1;
            match opened {
                Err(_) if moved && attempts < READ_ATTEMPTS_MAX => {
                    mode = Mode::Reader { _lock: None };
                }
                opened => return opened,
            }
        }
    }

    /// Opens a snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub(crate) fn open_snapshot(pool: &Pool, id: ImageId, snap: SnapId) -> Result<Self> {
        let pin = pool.pin_snapshot(id, snap);
        let head = pool.read_head(id)?;
        let Some(record) = head.snapshots.iter().find(|s| s.id == snap.0).cloned() else {
            return fail(ErrorKind::NotFound, format!("the snapshot {snap} does not exist"));
        };
        Self::assemble(pool, id, head, Mode::Snapshot { _pin: pin }, Some(&record))
    }

    fn assemble(
        pool: &Pool,
        id: ImageId,
        head: HeadRecord,
        mode: Mode,
        snapshot: Option<&SnapshotRecord>,
    ) -> Result<Self> {
        let label = match snapshot {
            Some(s) => format!("{}@{}", pool.image_label(&head), s.name),
            None => pool.image_label(&head),
        };
        let root = snapshot.map_or(&head.root, |s| &s.root).clone().unwrap_or_else(empty_root);
        if root.size_bytes > marcot_format::IMAGE_BYTES_MAX {
            return fail(ErrorKind::Corrupt, format!("{label} has an impossible size"));
        }
        let identity = Arc::new(Identity { pool: pool.clone(), id, label });
        let head = Head::new(Arc::clone(&identity), head)?;
        let of = RootOf { pool: pool.clone(), image: id, snap: snapshot.map(|s| SnapId(s.id)) };
        let state = State::open(&of, &root)
            .map_err(|e| e.context(format!("cannot open {}", identity.label)))?;
        let files = Arc::clone(pool.files());
        files.image_opened();
        let group_next = head.log.unwrap_or_default().group;
        let external = external::source_of(pool, &head, &identity.label);
        Ok(Self {
            series: Series::new(files, pool.id(), id, head.marks.unwrap_or_default()),
            journal: Journal::new(Arc::clone(&identity), group_next),
            identity,
            mode,
            head,
            state,
            in_flight: InFlight::default(),
            checkpoint_job: None,
            parked: Parked::default(),
            overlay: None,
            external,
            source_read: None,
            room: Room::default(),
            poisoned: false,
            unclean: false,
            cleaning: None,
            replayed_here: false,
        })
    }

    /// The image's number.
    #[must_use]
    pub fn id(&self) -> ImageId {
        self.identity.id
    }

    /// The pool it lies in.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.identity.pool
    }

    /// `pool/image`, or `pool/image@snap`, for messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.identity.label
    }

    /// The image, for who is going to write it.
    ///
    /// # Errors
    /// `ReadOnly`, naming the lock, where somebody's advisory lock keeps writers out.
    pub fn unlocked(self) -> Result<Self> {
        advisory::check_unlocked(&self.head, &self.identity.label)?;
        Ok(self)
    }

    fn is_owner(&self) -> bool {
        matches!(self.mode, Mode::Owner { .. })
    }

    fn check_owner(&self) -> Result<()> {
        let label = &self.identity.label;
        match self.mode {
            Mode::Owner { .. } if self.is_poisoned() => fail(
                ErrorKind::Poisoned,
                format!("{label} lost an earlier write to its medium; close it and open it again"),
            ),
            Mode::Owner { .. } => Ok(()),
            Mode::Reader { .. } => {
                fail(ErrorKind::ReadOnly, format!("{label} was opened read-only"))
            }
            Mode::Snapshot { .. } => {
                fail(ErrorKind::ReadOnly, format!("{label} is a snapshot and cannot be written"))
            }
        }
    }

    /// True once something that was acknowledged may be gone.
    fn is_poisoned(&self) -> bool {
        self.poisoned || self.journal.is_poisoned()
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.state.size_bytes) {
            let message = format!(
                "{length} bytes at {offset} lie beyond the end of {} ({} bytes)",
                self.identity.label, self.state.size_bytes
            );
            return fail(ErrorKind::OutOfRange, message);
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        self.identity.pool.store().limits()
    }

    /// Where a root comes from: a snapshot of this image or, with `None`, its head.
    fn root_of(&self, snap: Option<u64>) -> RootOf {
        RootOf { pool: self.identity.pool.clone(), image: self.identity.id, snap: snap.map(SnapId) }
    }

    /// Makes everything durable and closes the image.
    ///
    /// # Errors
    /// `Poisoned`, `Io`: what was flushed stays; reopening replays it. A full disk is no error: all is
    /// durable in the log.
    pub fn close(mut self) -> Result<()> {
        if !self.is_owner() {
            return Ok(());
        }
        self.check_owner()?;
        self.settle_start()?;
        if self.state.changed || self.journal.is_open() {
            self.state.compaction.abandon();
            self.close_target();
            self.end_log()?;
            match self.after_making_room(Self::last_checkpoint) {
                // All of it is in the log, which the next owner replays.
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    tracing::warn!(image = %self.identity.label, error = %error.sentence(), "closed without a checkpoint");
                }
                stored => stored?,
            }
        }
        self.remove_prepared_map();
        self.end_tenure()
    }

    /// Where the log of the next head begins.
    fn log_position(&self) -> LogPosition {
        match self.journal.position() {
            Some(position) => position,
            None if self.head.keeps_log => self.head.log.unwrap_or_default(),
            None => LogPosition {
                sequence: self.series.marks().data,
                slot: 1,
                group: self.journal.group_next(),
            },
        }
    }

    /// The data and map segments that are being written, or that replay needs as a passage. Nobody may empty or
    /// remove them.
    fn open_segments(&self) -> Vec<SegmentName> {
        let open = [self.journal.open_name(), self.state.pages.open_map()];
        let target = self.state.compaction.open_name();
        open.into_iter().flatten().chain(target).chain(self.journal.beside_names()).collect()
    }

    /// Makes the log durable.
    fn sync_log(&mut self) -> Result<()> {
        self.journal.sync(&mut self.in_flight)
    }

    fn remove_prepared_map(&mut self) {
        if let Some(prepared) = self.state.pages.take_prepared_map() {
            prepared.remove(&self.identity);
        }
    }

    /// Makes the log durable and ends it.
    fn end_log(&mut self) -> Result<()> {
        self.settle_start()?;
        self.remove_prepared_map();
        self.journal.end(&mut self.state.table, &mut self.in_flight)
    }

    /// Drops pages from memory; see [`State::evict`].
    fn evict(&mut self, bytes_max: u64) {
        self.state.evict(bytes_max, self.identity.id);
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Nothing of this image may be running or in flight when another process takes the lock.
        self.state.compaction.abandon();
        self.journal.abandon(&mut self.in_flight);
        if let Some(prepared) = self.state.pages.take_prepared_map() {
            prepared.wait();
        }
        if let Err(error) = self.settle() {
            tracing::warn!(image = %self.identity.label, error = %error.sentence(), "the last checkpoint failed");
        }
        if let Some(cleaning) = self.cleaning.take() {
            cleaning.wait();
        }
        if self.is_owner()
            && let Some(shipping) = self.identity.pool.segments().shipping()
        {
            shipping.end_term(self.identity.id);
        }
        self.identity.pool.files().image_closed(&self.state.table.authors());
    }
}
