//! Who is at work on an image: its owner, readers of its head, readers of its snapshots.

use std::path::{Path, PathBuf};

use marcot_format::{ImageId, SnapId};
use marcot_store::{Lock, LockMode};

use super::pool::{Pool, read_file};
use crate::error::{IoContext, Result};

/// How often an image's lock is tried, and how long apart.
const LOCK_ATTEMPTS: u32 = 5;

const LOCK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(2);

/// What a reader of a head holds.
struct ReadersLock {
    _image: Box<dyn Lock>,
    _any: Option<Box<dyn Lock>>,
}

impl Lock for ReadersLock {}

impl Pool {
    /// Takes the image's lock for its owner; `None` where somebody has it open.
    pub(crate) fn lock_image(&self, image: ImageId) -> Result<Option<Box<dyn Lock>>> {
        let path = self.image_directory(image).join("lock");
        let mut lock = None;
        for attempt in 0..LOCK_ATTEMPTS {
            let tried = self.disk().lock(&path, LockMode::Exclusive, false);
            lock = tried.at(|| format!("cannot lock {}", path.display()))?;
            if lock.is_some() {
                break;
            }
            // Whoever looks who the owner is holds the lock for a moment.
            if attempt + 1 < LOCK_ATTEMPTS {
                self.0.store.inner.world.clock.pause(LOCK_INTERVAL);
            }
        }
        if lock.is_some()
            && let Ok(file) = self.disk().open(&path, true)
        {
            // For people and for `info`; the lock is what counts.
            let _ = file.set_length(0);
            let _ = file.write_at(0, &[format!("{}\n", self.disk().process_id()).as_bytes()]);
        }
        Ok(lock)
    }

    fn readers_path(&self, image: ImageId) -> PathBuf {
        self.image_directory(image).join("readers")
    }

    /// Keeps what the head names now from being removed while it is read, where that can be done.
    /// Taken before the head is read. Owners go on.
    pub(crate) fn lock_readers(&self, image: ImageId) -> Option<Box<dyn Lock>> {
        // Whoever asks whether there are readers holds it for a moment.
        let lock = |path: &Path| self.disk().lock(path, LockMode::Shared, true).ok().flatten();
        let any = lock(&self.any_reader_path());
        Some(Box::new(ReadersLock { _image: lock(&self.readers_path(image))?, _any: any }))
    }

    fn any_reader_path(&self) -> PathBuf {
        self.directory().join("readers")
    }

    /// As [`Self::being_read`], of all images of the pool.
    pub(super) fn any_reader(&self) -> Result<bool> {
        self.is_locked_by_readers(&self.any_reader_path())
    }

    /// True where somebody may read the image by a head that is older than the one on disk. Whoever
    /// comes later reads that one, so what it does not name can go after this has said no.
    pub(crate) fn being_read(&self, image: ImageId) -> Result<bool> {
        self.is_locked_by_readers(&self.readers_path(image))
    }

    fn is_locked_by_readers(&self, path: &Path) -> Result<bool> {
        if self.disk().mode(path).is_err() {
            return Ok(false);
        }
        let lock = self.disk().lock(path, LockMode::Exclusive, false);
        Ok(lock.at(|| format!("cannot lock {}", path.display()))?.is_none())
    }

    /// Process that owns the image; `None` where nobody does.
    pub(crate) fn owner_pid(&self, image: ImageId) -> Option<u32> {
        let path = self.image_directory(image).join("lock");
        self.disk().mode(&path).ok()?;
        match self.disk().lock(&path, LockMode::Shared, false) {
            Ok(None) => {
                let text = read_file(self.disk(), &path).unwrap_or_default();
                Some(String::from_utf8_lossy(&text).trim().parse().unwrap_or(0))
            }
            _ => None,
        }
    }

    fn pin_path(&self, image: ImageId, snap: SnapId) -> PathBuf {
        self.image_directory(image).join(format!("snap-{snap}"))
    }

    /// Keeps a snapshot from being removed while it is read, where that can be done.
    pub(crate) fn pin_snapshot(&self, image: ImageId, snap: SnapId) -> Option<Box<dyn Lock>> {
        let path = self.pin_path(image, snap);
        self.disk().lock(&path, LockMode::Shared, false).ok().flatten()
    }

    /// Locks a snapshot for its removal; `None` while it is read.
    pub(crate) fn lock_snapshot(
        &self,
        image: ImageId,
        snap: SnapId,
    ) -> Result<Option<Box<dyn Lock>>> {
        let path = self.pin_path(image, snap);
        self.with_reserve(|| {
            let lock = self.disk().lock(&path, LockMode::Exclusive, false);
            lock.at(|| format!("cannot lock {}", path.display()))
        })
    }

    pub(crate) fn remove_snapshot_pin(&self, image: ImageId, snap: SnapId) {
        // Missing where nobody ever read the snapshot.
        let _ = self.disk().remove_file(&self.pin_path(image, snap));
    }
}
