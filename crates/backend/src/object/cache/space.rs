//! Keeping within the limit: counting what all processes store, and removing what was not used for long.
//!
//! Invariants:
//! - Bytes are counted before they are stored, and not counted any more only after they are gone. So what the
//!   objects take is never more than what is counted, except for what the file system adds for itself.
//! - An object is removed by giving its file another name. The process that succeeds owns the file. It removes
//!   it, and then cuts it, so that its space becomes free while other processes have it open.
//! - Where two processes work on one file, too much is counted rather than too little. So it is where a process is
//!   killed. The bytes are counted anew from time to time.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use marcot_store::{Lock, LockMode};

use super::layout::{FILE_MODE, SHARDS, SPACE_BYTES, Space, USED_PLACE, is_temporary, temporary};
use super::place::Place;

/// The bytes that a new file takes beside its data: the header of its index.
pub(super) const FILE_COST_BYTES: u64 = 4096;
/// The bytes that a chunk takes beside its data: its record, which may be the first one in a block.
pub(super) const CHUNK_COST_BYTES: u64 = 4096;
/// More is removed than is needed, in bytes. So the next few chunks find room.
const ROOM_BYTES: u64 = 32 << 20;
/// Objects that are removed for the sake of one chunk, at most. Removing one takes some milliseconds.
const REMOVED_MAX: u32 = 4;
/// Objects among which the one is chosen that was not used for the longest time.
const SAMPLE_OBJECTS: usize = 16;
/// The bytes are counted anew after this part of the limit was added.
const RECOUNT_PART: u64 = 4;
/// Space of the disk that is left to others, in bytes.
const LEFT_FREE_BYTES: u64 = 64 << 20;
/// Storing takes some milliseconds from the time when it was counted.
pub(super) const STORING: Duration = Duration::from_secs(1);
/// The lock is held for some microseconds. A process that was stopped may hold it for ever.
const LOCK_LOOKS_MAX: u32 = 200;
/// Time between two looks.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

pub(super) struct Bound {
    bytes_max: u64,
    /// Threads of this process take turns, so that they do not poll for each other.
    turn: Mutex<()>,
}

impl Bound {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, turn: Mutex::new(()) }
    }

    /// Changes what is counted. Returns what is counted then.
    fn change(
        &self,
        place: &Place,
        change: impl FnOnce(Option<Space>) -> Space,
    ) -> io::Result<Space> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = patient_lock(place, &place.paths.space_lock())?;
        let disk = place.disk();
        let path = place.paths.space();
        let file = match disk.open(&path, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.create_new(&path, FILE_MODE)?
            }
            opened => opened?,
        };
        let mut bytes = [0; SPACE_BYTES];
        let n = file.read_at(0, &mut bytes)?;
        let before = Space::decode(&bytes[..n]);
        let after = change(before);
        if before != Some(after) {
            file.write_at(0, &[&after.encode()])?;
        }
        Ok(after)
    }

    /// What is counted. A record that is missing or damaged is made anew.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn counted(&self, place: &Place) -> io::Result<Space> {
        let mut known = true;
        let space = self.change(place, |before| {
            known = before.is_some();
            before.unwrap_or_default()
        })?;
        match known {
            true => Ok(space),
            false => self.recount(place, Duration::ZERO),
        }
    }

    /// Counts bytes that are about to be stored, and makes room for them. `None` where there is no room: the
    /// cache is full and nothing can be removed, or the disk is full. The object at `keep` is not removed.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn reserve(
        &self,
        place: &Place,
        bytes: u64,
        keep: &Path,
    ) -> io::Result<Option<Space>> {
        let mut known = true;
        let add = |before: Option<Space>| {
            known = before.is_some();
            let before = before.unwrap_or_default();
            let (counted, added) = (before.bytes + bytes, before.added_bytes + bytes);
            Space { bytes: counted, added_bytes: added, ..before }
        };
        let mut space = self.change(place, add)?;
        if !known {
            // These bytes are not stored yet, so that they would not be found.
            let found = self.recount(place, Duration::ZERO)?.bytes;
            space = self.change(place, |now| {
                let now = now.unwrap_or_default();
                Space { bytes: now.bytes.max(found + bytes), ..now }
            })?;
        }
        let is_full = |space: Space| space.bytes > self.bytes_max || disk_is_full(place, bytes);
        let mut removed = 0;
        let mut wanted = is_full(space);
        while wanted && removed < REMOVED_MAX {
            let Some(left) = self.remove_one(place, keep)? else { break };
            removed += 1;
            space = left;
            let room = ROOM_BYTES.min(self.bytes_max / 8);
            wanted = is_full(space) || space.bytes + room > self.bytes_max;
        }
        if is_full(space) {
            self.give_back(place, bytes)?;
            return Ok(None);
        }
        Ok(Some(space))
    }

    /// Takes bytes off that were not stored.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn give_back(&self, place: &Place, bytes: u64) -> io::Result<Space> {
        self.change(place, |before| {
            let before = before.unwrap_or_default();
            Space { bytes: before.bytes.saturating_sub(bytes), ..before }
        })
    }

    /// True where it is time to count anew.
    pub(super) fn is_recount_due(&self, space: Space) -> bool {
        space.added_bytes - space.recounted_at.min(space.added_bytes)
            > self.bytes_max / RECOUNT_PART
    }

    /// Removes an object that was not used for long, except `keep`. `None` where there is none.
    fn remove_one(&self, place: &Place, keep: &Path) -> io::Result<Option<Space>> {
        // Another process may have removed the one that was chosen.
        for _ in 0..REMOVED_MAX {
            let Some(path) = least_used(place, keep) else { return Ok(None) };
            if let Some(freed) = self.remove(place, &path)? {
                return Ok(Some(freed));
            }
        }
        Ok(None)
    }

    /// Removes the file of an object. `None` where it is not there.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn remove(&self, place: &Place, path: &Path) -> io::Result<Option<Space>> {
        let disk = place.disk();
        let shard = path.parent().unwrap_or(Path::new("."));
        let aside = temporary(shard, place.world.random.number());
        match disk.rename(path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            renamed => renamed?,
        }
        let bytes = cut(place, &aside);
        self.give_back(place, bytes).map(Some)
    }

    /// Counts what the objects take, and removes what was left behind. Only one process does it at a time.
    ///
    /// What was counted before this call and is not stored yet is not found. A caller that has time passes a
    /// `pause`, so that it is stored meanwhile.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn recount(&self, place: &Place, pause: Duration) -> io::Result<Space> {
        let lock = place.disk().lock(&place.paths.scan_lock(), LockMode::Exclusive, false)?;
        let before = self.change(place, Option::unwrap_or_default)?;
        if lock.is_none() {
            return Ok(before);
        }
        if !pause.is_zero() {
            place.world.clock.pause(pause);
        }
        let mut bytes = 0;
        for shard in 0..SHARDS {
            let shard = place.paths.shard(shard);
            for name in names(place, &shard) {
                let path = shard.join(&name);
                if is_temporary(&name) {
                    cut(place, &path);
                } else if let Ok(info) = place.disk().file_info(&path) {
                    bytes += info.allocated_bytes;
                }
            }
        }
        // What was added meanwhile may be counted twice, and what was removed may still be counted.
        let counted = self.change(place, |now| {
            let now = now.unwrap_or_default();
            let added = now.added_bytes.saturating_sub(before.added_bytes);
            Space { bytes: bytes + added, recounted_at: now.added_bytes, ..now }
        })?;
        Ok(counted)
    }

    /// Removes objects until the limit is kept. It may have been higher when they were stored.
    pub(super) fn shrink(&self, place: &Place) -> io::Result<()> {
        let mut space = self.counted(place)?;
        while space.bytes > self.bytes_max {
            let Some(freed) = self.remove_one(place, Path::new(""))? else { break };
            space = freed;
        }
        Ok(())
    }
}

/// True where the disk has not even the space that is left to others.
fn disk_is_full(place: &Place, bytes: u64) -> bool {
    let free = place.disk().free_bytes(&place.paths.directory);
    free.is_ok_and(|free| free < bytes + LEFT_FREE_BYTES)
}

fn names(place: &Place, shard: &Path) -> Vec<String> {
    place.disk().list(shard).unwrap_or_default()
}

/// Removes a file under a temporary name, and gives its space back. Returns the bytes that it took.
fn cut(place: &Place, path: &Path) -> u64 {
    let disk = place.disk();
    let file = disk.open(path, true);
    // The name goes first: who writes to the file after it was cut sees that it has none.
    if let Err(error) = disk.remove_file(path) {
        tracing::debug!(%error, file = %path.display(), "a file of the cache stays");
    }
    let Ok(file) = file else { return 0 };
    let bytes = file.allocated_bytes().unwrap_or(0);
    let _ = file.set_length(0);
    bytes
}

/// Of some objects, the one that was not used for the longest time.
fn least_used(place: &Place, keep: &Path) -> Option<PathBuf> {
    let start = place.world.random.number();
    let mut oldest: Option<(i64, PathBuf)> = None;
    let mut seen = 0;
    for i in 0..SHARDS {
        let shard = place.paths.shard((start + i) % SHARDS);
        let names = names(place, &shard);
        let from = (start >> 8) as usize % names.len().max(1);
        for name in names[from..].iter().chain(&names[..from]) {
            let path = shard.join(name);
            if is_temporary(name) || path == keep {
                continue;
            }
            let used = last_used(place, &path);
            if oldest.as_ref().is_none_or(|(time, _)| used < *time) {
                oldest = Some((used, path));
            }
            seen += 1;
            if seen == SAMPLE_OBJECTS {
                return oldest.map(|(_, path)| path);
            }
        }
    }
    oldest.map(|(_, path)| path)
}

/// When an object was used last, in seconds since 1970; what cannot be read goes first.
fn last_used(place: &Place, path: &Path) -> i64 {
    let mut bytes = [0; 8];
    let file = place.disk().open(path, false);
    match file.and_then(|file| file.read_at(USED_PLACE, &mut bytes)) {
        Ok(8) => i64::from_le_bytes(bytes),
        _ => i64::MIN,
    }
}

/// Takes a lock that others hold for moments only.
fn patient_lock(place: &Place, path: &Path) -> io::Result<Box<dyn Lock>> {
    for look in 0..LOCK_LOOKS_MAX {
        if let Some(lock) = place.disk().lock(path, LockMode::Exclusive, false)? {
            return Ok(lock);
        }
        if look + 1 < LOCK_LOOKS_MAX {
            place.world.clock.pause(LOCK_PAUSE);
        }
    }
    let message = format!("{} stays locked by another process", path.display());
    Err(io::Error::new(io::ErrorKind::WouldBlock, message))
}
