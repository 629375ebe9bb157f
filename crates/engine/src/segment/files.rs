//! Open segment files, shared by all images of the process and bounded in number.
//!
//! A file that was removed gives its space back when the last process closes it. So files are closed
//! when an image that needs them is closed or becomes idle. In between, a sweep closes the files that
//! another process has removed.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use marcot_backend::{Backend, Key, SegmentSet};
use marcot_format::group::{GROUP_HEADER_BLOCKS_MAX, GroupHeader};
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use marcot_format::{BLOCK_BYTES, FormatError, ImageId, PoolId};
use marcot_store::{DiskFile, World};

use super::SegmentName;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};

/// Limit on segment files kept open for reading, unless [`Files::set_open_max`] sets another.
const FILES_OPEN_MAX: usize = 512;

/// Least time between two sweeps for removed files, in seconds.
const SWEEP_INTERVAL_S: i64 = 2;

/// Authors of segments, each with its pool.
pub(crate) type Authors = BTreeSet<(PoolId, ImageId)>;

#[derive(Default)]
struct Cache {
    open: HashMap<SegmentName, (Arc<dyn DiskFile>, u64)>,
    tick: u64,
    /// Images that are open.
    images: usize,
    swept_s: i64,
}

impl Cache {
    fn forget_authors(&mut self, authors: &Authors) {
        self.open.retain(|name, _| !authors.contains(&(name.pool, name.author)));
    }
}

fn header_of(name: SegmentName, epoch: u64) -> SegmentHeader {
    SegmentHeader { kind: name.kind, author: name.author.0, sequence: name.sequence, epoch }
}

/// The header of a segment's file; `None` where it is damaged.
///
/// # Errors
/// `NewerFormat`; `Corrupt` where it is the header of another segment; what the operating system
/// says.
fn read_header(file: &dyn DiskFile, name: SegmentName) -> Result<Option<SegmentHeader>> {
    let mut block = vec![0; SEGMENT_HEADER_BYTES];
    let n = file.read_at(0, &mut block).at(|| format!("cannot read segment {name}"))?;
    match SegmentHeader::decode(&block[..n]) {
        Ok(header) if header == header_of(name, header.epoch) => Ok(Some(header)),
        Ok(_) => {
            let message = format!("the file of segment {name} holds another segment");
            fail(ErrorKind::Corrupt, message)
        }
        Err(error @ FormatError::NewerFormat { .. }) => {
            Err(Error::from_format(format!("cannot read segment {name}"), error))
        }
        Err(_) => Ok(None),
    }
}

/// Where a pool lies, and what can be trusted there.
#[derive(Clone)]
pub(crate) struct Place {
    /// How messages name the place.
    pub shown: String,
    /// Reaches the place. All users of the pool in this process share it.
    pub backend: Backend,
    /// Device and number of the directory, and who owns it; see [`marcot_backend::Access`].
    pub identity: (u64, u64, u32),
    /// The other user who owns it; `None` where it is this user's own.
    pub foreign: Option<u32>,
    /// Everybody on the machine may read it.
    pub public: bool,
    /// It belongs to another store.
    pub attached: bool,
}

fn check_pools_max(count: usize, count_max: usize) -> Result<()> {
    if count < count_max {
        return Ok(());
    }
    let message = format!(
        "this process holds {count} pools open, which is all that its descriptors are divided for; start it again, or raise the limit (ulimit -n) first"
    );
    fail(ErrorKind::Exhausted, message)
}

/// Fails where the pool in `place` has the number of the known pool, which lies elsewhere, and may not
/// take the number over.
fn check_no_copy(pool: PoolId, known: &Place, place: &Place) -> Result<()> {
    // An open image must not continue its writes in another pool.
    let written = known.foreign.is_none() && is_used(known);
    let stays = place.attached || !known.attached || written;
    if !stays || !known.backend.records.exists(&Key::Pool).unwrap_or(false) {
        return Ok(());
    }
    let message = format!(
        "the pools in {} and in {} have the same number ({pool}), so one is a copy of the other; only one of them can be used in a store",
        place.shown, known.shown
    );
    fail(ErrorKind::Invalid, message)
}

/// True where the pool is in use, besides being listed as known.
fn is_used(known: &Place) -> bool {
    Arc::strong_count(&known.backend.records) > 1
}

/// The message where a directory was replaced while it is in use. Writes through the old directory must
/// not be mixed with the content of the new one.
fn exchanged(known: &Place) -> String {
    format!(
        "{} was exchanged for another directory, or given to another user, while this process uses images in it; it goes on with the one before: close those images first",
        known.shown
    )
}

/// Finds and opens segments by name.
pub(crate) struct Files {
    world: World,
    places: Mutex<HashMap<PoolId, Place>>,
    cache: Mutex<Cache>,
    open_max: AtomicUsize,
    pools_max: AtomicUsize,
    /// Some of the places are reached through a service.
    has_service: AtomicBool,
}

impl Files {
    pub(crate) fn new(world: World) -> Self {
        let (places, cache) = (Mutex::default(), Mutex::default());
        let (open_max, pools_max) = (FILES_OPEN_MAX.into(), usize::MAX.into());
        let has_service = AtomicBool::new(false);
        Self { world, places, cache, open_max, pools_max, has_service }
    }

    /// Sets the limit on known pools. Each of them is held open while this process runs.
    pub(crate) fn set_pools_max(&self, count: usize) {
        self.pools_max.store(count, Ordering::Relaxed);
    }

    /// Sets the limit on segment files kept open for reading. One file at least is kept.
    pub(crate) fn set_open_max(&self, count: usize) {
        self.open_max.store(count.max(1), Ordering::Relaxed);
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Makes a pool's place known and returns the back end that reaches it. Where the same directory is
    /// known already, that is the back end known before. A pool's number is only a claim: where two pools
    /// have the same number, the pool that belongs to the store keeps it.
    ///
    /// # Errors
    /// `Invalid` where another directory holds a pool of the same number. One is then a copy, and
    /// using it would write into the original, or it pretends to be the other. `Busy` where the
    /// directory was replaced by another one while the old one is in use. `Exhausted` where there are
    /// too many pools.
    pub(crate) fn add_pool(&self, pool: PoolId, mut place: Place) -> Result<Backend> {
        if place.backend.segments.shipping().is_some() {
            self.has_service.store(true, Ordering::Relaxed);
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = places.get(&pool) else {
            check_pools_max(places.len(), self.pools_max.load(Ordering::Relaxed))?;
            let backend = place.backend.clone();
            places.insert(pool, place);
            return Ok(backend);
        };
        let same_path = known.shown == place.shown;
        if !same_path {
            check_no_copy(pool, known, &place)?;
        }
        if same_path && known.identity == place.identity {
            place.backend = known.backend.clone();
        } else {
            // While `places` is locked, nobody can begin to use the pool.
            if same_path && is_used(known) {
                return fail(ErrorKind::Busy, exchanged(known));
            }
            // Files of the old directory may be open.
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.open.retain(|name, _| name.pool != pool);
        }
        let backend = place.backend.clone();
        places.insert(pool, place);
        Ok(backend)
    }

    /// The place of a pool.
    ///
    /// # Errors
    /// `Io` where the store does not know the pool, so its data is out of reach.
    pub(crate) fn place(&self, pool: PoolId) -> Result<Place> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.get(&pool).cloned().ok_or_else(|| {
            let message = format!(
                "pool {pool}, which holds data of this image, is not known to this store; attach it again with 'pool attach'"
            );
            Error::new(ErrorKind::Io, message)
        })
    }

    /// Fails where an image of the pool `reader` may not name data in the pool `named`. Returns false
    /// where the store does not know `named`: it must not be used then. It may become known later.
    ///
    /// The head of another user's image is only a claim. It could name private images of the user who
    /// reads it, and have them served to others. So another user's images may name data only in pools
    /// of that user, and in pools that everybody may read.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub(crate) fn check_named(&self, reader: PoolId, named: PoolId) -> Result<bool> {
        let reader_place = self.place(reader)?;
        let Some(user) = reader_place.foreign else { return Ok(true) };
        let Ok(place) = self.place(named) else { return Ok(false) };
        if place.public || place.foreign == Some(user) {
            return Ok(true);
        }
        let message = format!(
            "an image of the pool in {}, which belongs to user {user}, names data of the pool in {}, which that user may not read",
            reader_place.shown, place.shown
        );
        fail(ErrorKind::PermissionDenied, message)
    }

    /// How messages name a segment.
    pub(crate) fn show(&self, name: SegmentName) -> String {
        let place = self.place(name.pool);
        place.map_or_else(|_| name.to_string(), |place| place.backend.segments.show(name.key()))
    }

    /// Opens a segment's file without looking at its content; for writing too where `write` is true.
    ///
    /// # Errors
    /// `NotFound`, and as [`Self::place`].
    pub(crate) fn open_as_it_is(
        &self,
        name: SegmentName,
        write: bool,
    ) -> Result<Arc<dyn DiskFile>> {
        let place = self.place(name.pool)?;
        let file = place.backend.segments.open(name.key(), write);
        file.at(|| format!("cannot open segment {}", self.show(name)))
    }

    /// As [`Self::open_as_it_is`], to replay the log in a segment.
    ///
    /// # Errors
    /// As [`Self::open_as_it_is`].
    pub(crate) fn open_log(&self, name: SegmentName) -> Result<Arc<dyn DiskFile>> {
        let file = self.place(name.pool)?.backend.segments.open_log(name.key());
        file.at(|| format!("cannot open segment {}", self.show(name)))
    }

    /// Bytes that a segment takes on the medium; 0 for one that is gone.
    pub(crate) fn allocated_bytes(&self, name: SegmentName) -> u64 {
        let file = self.open_as_it_is(name, false).ok();
        file.and_then(|file| file.allocated_bytes().ok()).unwrap_or(0)
    }

    /// Opens a segment for reading, verifying that the file is the one it should be.
    ///
    /// # Errors
    /// `Corrupt`, `NewerFormat`, `Io` (also where it is missing), or what the operating system says.
    pub(crate) fn get(&self, name: SegmentName) -> Result<Arc<dyn DiskFile>> {
        {
            let mut cache = self.cache();
            cache.tick += 1;
            let tick = cache.tick;
            if let Some((file, used)) = cache.open.get_mut(&name) {
                *used = tick;
                return Ok(Arc::clone(file));
            }
        }
        let file = self.open(name)?;
        let mut cache = self.cache();
        if cache.open.len() >= self.open_max.load(Ordering::Relaxed) {
            let mut ticks: Vec<u64> = cache.open.values().map(|(_, used)| *used).collect();
            let middle = ticks.len() / 2;
            let cut = *ticks.select_nth_unstable(middle).1;
            cache.open.retain(|_, (_, used)| *used > cut);
        }
        let tick = cache.tick;
        cache.open.insert(name, (Arc::clone(&file), tick));
        Ok(file)
    }

    /// False where [`Self::get`] may wait for a service.
    pub(crate) fn is_at_hand(&self, name: SegmentName) -> bool {
        self.cache().open.contains_key(&name)
            || self.place(name.pool).is_ok_and(|place| place.backend.segments.shipping().is_none())
    }

    /// True where some segment may have to be fetched from a service.
    pub(crate) fn has_service(&self) -> bool {
        self.has_service.load(Ordering::Relaxed)
    }

    fn open(&self, name: SegmentName) -> Result<Arc<dyn DiskFile>> {
        let file = match self.open_as_it_is(name, false) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // It may come back when a directory is mounted or restored.
                return fail(ErrorKind::Io, format!("segment {} is missing", self.show(name)));
            }
            file => file?,
        };
        if read_header(&*file, name)?.is_none() {
            // Blocks and pages can still be read: their checksums are stored elsewhere.
            tracing::warn!(segment = %self.show(name), "the header of a segment is damaged");
        }
        Ok(file)
    }

    /// True where a segment's header is damaged. Its blocks and pages are not affected.
    pub(crate) fn header_is_damaged(&self, name: SegmentName) -> Result<bool> {
        Ok(read_header(&*self.get(name)?, name)?.is_none())
    }

    /// Writes a damaged header again. A data segment needs its epoch in the header; the epoch is taken
    /// from the segment's first group.
    ///
    /// # Errors
    /// `Corrupt` where no group starts the segment; what the operating system says.
    pub(crate) fn restore_header(&self, name: SegmentName) -> Result<()> {
        let context = || format!("cannot restore the header of segment {}", self.show(name));
        let file = self.open_as_it_is(name, true).map_err(|e| e.context(context()))?;
        let mut epoch = 0;
        if name.kind == SegmentKind::Data {
            let mut bytes = vec![0; GROUP_HEADER_BLOCKS_MAX * BLOCK_BYTES as usize];
            let n = file.read_at(SEGMENT_HEADER_BYTES as u64, &mut bytes).at(context)?;
            let group =
                GroupHeader::decode(&bytes[..n]).map_err(|e| Error::from_format(context(), e))?;
            if (group.author, group.sequence) != (name.author.0, name.sequence) {
                return fail(ErrorKind::Corrupt, format!("{}: its group is another's", context()));
            }
            epoch = group.epoch;
        }
        let header = header_of(name, epoch);
        file.write_at(0, &[&header.encode()]).and_then(|()| file.sync()).at(context)
    }

    /// Closes a segment that is about to be removed.
    pub(crate) fn forget(&self, name: SegmentName) {
        self.cache().open.remove(&name);
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an image as open.
    pub(crate) fn image_opened(&self) {
        self.cache().images += 1;
    }

    /// Counts an image as closed, and closes the segments of these authors; with the last image all
    /// segments. Another image that needs a segment opens it again.
    pub(crate) fn image_closed(&self, authors: &Authors) {
        let mut cache = self.cache();
        cache.images = cache.images.saturating_sub(1);
        if cache.images == 0 {
            cache.open.clear();
        } else {
            cache.forget_authors(authors);
        }
    }

    /// Closes the segments of these authors, because an image that uses them is idle.
    pub(crate) fn forget_authors(&self, authors: &Authors) {
        self.cache().forget_authors(authors);
    }

    /// Closes segments that another process has removed. Does nothing within [`SWEEP_INTERVAL_S`] of
    /// the last sweep.
    pub(crate) fn sweep(&self) {
        let mut cache = self.cache();
        let now_s = self.world.clock.now_s();
        if (now_s - cache.swept_s).abs() >= SWEEP_INTERVAL_S && !cache.open.is_empty() {
            cache.swept_s = now_s;
            cache.open.retain(|_, (file, _)| !file.is_removed().unwrap_or(false));
        }
    }

    /// Removes a segment's file and returns the bytes that it took. A file that is gone already is no
    /// error.
    pub(crate) fn remove(&self, name: SegmentName) -> Result<u64> {
        self.forget(name);
        match self.place(name.pool)?.backend.segments.remove(name.key()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            removed => removed.at(|| format!("cannot remove segment {}", self.show(name))),
        }
    }

    /// Creates a segment with its header, durably in its set.
    ///
    /// # Errors
    /// `Exists` where the name is taken; `NoSpace`, or what the operating system says.
    pub(crate) fn create(&self, name: SegmentName, epoch: u64) -> Result<Arc<dyn DiskFile>> {
        let place = self.place(name.pool)?;
        let created = place.backend.segments.create(name.key(), &header_of(name, epoch).encode());
        created.at(|| format!("cannot create segment {}", self.show(name)))
    }

    /// Makes a new segment out of a dead one of the same pool; see [`marcot_backend::Segments::reuse`].
    ///
    /// # Errors
    /// `Exists` where the name is taken, or what the operating system says.
    pub(crate) fn reuse(
        &self,
        dead: SegmentName,
        name: SegmentName,
        epoch: u64,
    ) -> Result<Arc<dyn DiskFile>> {
        self.forget(dead);
        let (segments, header) = (self.place(name.pool)?.backend.segments, header_of(name, epoch));
        let reused = segments.reuse(dead.key(), name.key(), &header.encode());
        reused.at(|| format!("cannot use segment {} again", self.show(dead)))
    }

    /// Creates the place for the segments of a set, durably.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn create_set(&self, pool: PoolId, set: SegmentSet) -> Result<()> {
        let place = self.place(pool)?;
        let created = place.backend.segments.create_set(set);
        created.at(|| format!("cannot create a directory for segments in {}", place.shown))
    }

    /// Names of the segments of a set in a pool.
    pub(crate) fn list(&self, pool: PoolId, set: SegmentSet) -> Result<Vec<SegmentName>> {
        let place = self.place(pool)?;
        let listed = place.backend.segments.list(set);
        let keys = listed.at(|| format!("cannot list the segments in {}", place.shown))?;
        Ok(keys.into_iter().map(|key| SegmentName::of(pool, key)).collect())
    }
}
