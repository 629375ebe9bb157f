//! Leases of an image: its owner, readers of its head, readers of its snapshots.

use marcot_backend::Lease;
use marcot_format::{ImageId, SnapId};
use marcot_store::{Lock, LockMode};

use super::pool::Pool;
use crate::error::{IoContext, Result};

/// How often an image's lock is tried at most.
const LOCK_ATTEMPTS: u32 = 5;

/// The time between two attempts.
const LOCK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(2);

/// The locks that a reader of a head holds.
struct ReadersLock {
    _image: Box<dyn Lock>,
    _any: Option<Box<dyn Lock>>,
}

impl Lock for ReadersLock {}

impl Pool {
    /// Takes the image's lock for its owner; `None` where somebody has it open.
    pub(crate) fn lock_image(&self, image: ImageId) -> Result<Option<Box<dyn Lock>>> {
        let mut lock = None;
        for attempt in 0..LOCK_ATTEMPTS {
            lock = self.try_lease(Lease::Owner(image))?;
            if lock.is_some() {
                break;
            }
            // A process that asks for the owner holds the lock for a moment.
            if attempt + 1 < LOCK_ATTEMPTS {
                self.0.store.inner.world.clock.pause(LOCK_INTERVAL);
            }
        }
        if lock.is_some() {
            // The note is for people and for `info`. Only the lock counts.
            self.leases().note_holder(Lease::Owner(image), &self.process_id().to_string());
        }
        Ok(lock)
    }

    /// Takes a lease exclusively, without waiting; `None` where somebody has it.
    pub(crate) fn try_lease(&self, lease: Lease) -> Result<Option<Box<dyn Lock>>> {
        let taken = self.leases().take(lease, LockMode::Exclusive, false);
        taken.at(|| format!("cannot lock {}", self.leases().show(lease)))
    }

    /// Keeps the segments that the head names now from being removed while they are read. It is taken
    /// before the head is read and does not stop owners. `None` where it cannot be taken.
    pub(crate) fn lock_readers(&self, image: ImageId) -> Option<Box<dyn Lock>> {
        // It waits, because a process that asks whether there are readers holds the lease for a moment.
        let take = |lease| self.leases().take(lease, LockMode::Shared, true).ok().flatten();
        let any = take(Lease::AnyReader);
        Some(Box::new(ReadersLock { _image: take(Lease::Readers(image))?, _any: any }))
    }

    /// As [`Self::being_read`], for all images of the pool.
    pub(crate) fn any_reader(&self) -> Result<bool> {
        self.has_readers(Lease::AnyReader)
    }

    /// True where somebody may read the image by a head that is older than the one on disk. A reader that
    /// starts later reads the head on disk. So where this is false, segments that this head does not
    /// name can be removed.
    pub(crate) fn being_read(&self, image: ImageId) -> Result<bool> {
        self.has_readers(Lease::Readers(image))
    }

    fn has_readers(&self, lease: Lease) -> Result<bool> {
        Ok(self.leases().was_taken(lease) && self.try_lease(lease)?.is_none())
    }

    /// Process that owns the image; `None` where nobody does.
    pub(crate) fn owner_pid(&self, image: ImageId) -> Option<u32> {
        let lease = Lease::Owner(image);
        if !self.leases().was_taken(lease) {
            return None;
        }
        match self.leases().take(lease, LockMode::Shared, false) {
            Ok(None) => {
                let holder = self.leases().holder(lease).unwrap_or_default();
                Some(holder.parse().unwrap_or(0))
            }
            _ => None,
        }
    }

    /// Keeps a snapshot from being removed while it is read. `None` where the lease cannot be taken.
    pub(crate) fn pin_snapshot(&self, image: ImageId, snap: SnapId) -> Option<Box<dyn Lock>> {
        let lease = Lease::Snapshot(image, snap);
        self.leases().take(lease, LockMode::Shared, false).ok().flatten()
    }

    /// Locks a snapshot for its removal; `None` while it is read.
    pub(crate) fn lock_snapshot(
        &self,
        image: ImageId,
        snap: SnapId,
    ) -> Result<Option<Box<dyn Lock>>> {
        self.with_reserve(|| self.try_lease(Lease::Snapshot(image, snap)))
    }

    pub(crate) fn remove_snapshot_pin(&self, image: ImageId, snap: SnapId) {
        // There is none where nobody ever read the snapshot.
        self.leases().forget(Lease::Snapshot(image, snap));
    }
}
