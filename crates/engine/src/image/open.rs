//! Opening images and snapshots.

use marcot_format::{ImageId, SnapId};

use super::{DamagedLog, Image, Takeover, check_not_owned_elsewhere};
use crate::catalog::{Pool, no_snapshot};
use crate::error::{ErrorKind, Result};

impl Pool {
    /// Opens an image for writing; this process is its owner until it closes it.
    ///
    /// # Errors
    /// `Owned` while another process has it; `NotFound`, `ReadOnly`, `Corrupt`, `NewerFormat`.
    pub fn open(&self, image: ImageId) -> Result<Image> {
        self.add_pools();
        Image::open_owner(self, image, DamagedLog::Refuse)
    }

    /// As [`Pool::open`], although another host may have the image open. What that host has not flushed is
    /// lost, and its next write that has to last fails. For an operator who knows that the host is gone.
    ///
    /// # Errors
    /// As [`Pool::open`], and `Fenced` where another host takes the image over at the same time.
    pub fn take_over(&self, image: ImageId) -> Result<Image> {
        self.add_pools();
        Image::open_owner_with(self, image, DamagedLog::Refuse, Takeover::Force)
    }

    /// Takes an image over from another host that has it open, as [`Pool::take_over`], and closes it. Returns false
    /// where no other host has it open.
    ///
    /// # Errors
    /// As [`Pool::take_over`].
    pub fn end_other_owner(&self, image: ImageId) -> Result<bool> {
        let head = self.read_head(image)?;
        match check_not_owned_elsewhere(self, &head) {
            Err(error) if error.kind() == ErrorKind::Busy => {
                tracing::warn!(image = %self.image_label(&head), "taken over from another host");
                self.take_over(image)?.close().map(|()| true)
            }
            checked => checked.map(|()| false),
        }
    }

    /// As [`Pool::open`], for repair: the log ends where it is damaged, and what was written after
    /// that is given up.
    pub(crate) fn open_for_repair(&self, image: ImageId) -> Result<Image> {
        self.add_pools();
        Image::open_owner(self, image, DamagedLog::Cut)
    }

    /// Opens an image for reading, as it is on disk now. Where its log is damaged, it ends there.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn open_read_only(&self, image: ImageId) -> Result<Image> {
        self.add_pools();
        Image::open_reader(self, image, DamagedLog::Cut)
    }

    /// Opens a snapshot for reading.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn open_snapshot(&self, image: ImageId, snap: &str) -> Result<Image> {
        self.add_pools();
        let head = self.read_head(image)?;
        let found = head.snapshots.iter().find(|s| s.name == snap && s.group.is_none());
        let Some(snapshot) = found else {
            return Err(no_snapshot(&self.image_label(&head), snap));
        };
        Image::open_snapshot(self, image, SnapId(snapshot.id))
    }
}
