//! Making room on a full disk.
//!
//! Work that gives space back has to write a little first: a group that says what was discarded, map pages
//! that no longer name it, a head. Each pool keeps a reserve for that. The reserve is given up for such work
//! only, and is taken again right after it, as far as there is room.

use marcot_format::record::HeadRecord;

use super::Image;
use crate::error::{Error, ErrorKind, Result};
use crate::segment::SegmentName;

/// Where the image stands with room on the medium.
#[derive(Default)]
pub(super) struct Room {
    /// The work that is being done makes room, so the reserve must not be taken again meanwhile.
    pub spends_reserve: bool,
    /// Some work found no room, and a checkpoint may make some.
    pub wanted: bool,
}

impl Image {
    /// Does work that gives space back. Where there is no room for it, does it again with the pool's reserve.
    pub(super) fn for_room<T>(&mut self, work: impl Fn(&mut Self) -> Result<T>) -> Result<T> {
        match work(self) {
            Err(error) if error.kind() == ErrorKind::NoSpace && self.journal.spare_count() > 0 => {
                self.journal.remove_spares();
                self.for_room(work)
            }
            Err(error)
                if error.kind() == ErrorKind::NoSpace && self.identity.pool.give_up_reserve() =>
            {
                let spending = std::mem::replace(&mut self.room.spends_reserve, true);
                let done = work(self);
                self.room.spends_reserve = spending;
                self.room.wanted = true;
                self.identity.pool.keep_reserve();
                done
            }
            done => done,
        }
    }

    /// A checkpoint that frees what only the previous head named. It may spend the reserve, and may store an
    /// ended log in parts.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub(super) fn checkpoint_for_room(&mut self, change: impl Fn(&mut HeadRecord)) -> Result<()> {
        // A checkpoint that is running may keep some more.
        self.settle()?;
        self.journal.remove_spares();
        let stored = self.for_room(|image| match image.checkpoint_with(&change) {
            Err(error) if error.kind() == ErrorKind::NoSpace && image.may_store_in_parts() => {
                image.store_log_in_parts()?;
                image.checkpoint_with(&change)
            }
            stored => stored,
        });
        self.room.wanted = false;
        stored
    }

    /// True where an ended log that finds no room for its map may be stored in parts: the reserve is being
    /// spent, or there is none.
    pub(super) fn may_store_in_parts(&self) -> bool {
        self.has_ended_log() && (self.room.spends_reserve || !self.identity.pool.has_reserve())
    }

    /// True where the next checkpoint makes room, because it removes segments.
    pub(super) fn has_dead(&self) -> bool {
        let open = self.open_segments();
        let goes = |name: &SegmentName| !open.contains(name) && self.head.is_private(name);
        self.journal.spare_count() > 0
            || self.state.pages.has_dead()
            || self.state.table.has_dead(goes)
    }

    /// Does work that needs room. Where there is none, but a checkpoint makes some, does it again after that.
    pub(super) fn after_making_room<T>(
        &mut self,
        work: impl Fn(&mut Self) -> Result<T>,
    ) -> Result<T> {
        match work(self) {
            Err(error)
                if error.kind() == ErrorKind::NoSpace
                    && self.has_dead()
                    && self.checkpoint_for_room(|_| {}).is_ok() =>
            {
                work(self)
            }
            done => done,
        }
    }

    /// Notes where a checkpoint that would make room has found none. [`Self::make_room`] does it again with
    /// the reserve.
    pub(super) fn note_lack_of_room(&mut self, error: Option<&Error>) {
        let full = error.is_some_and(|error| error.kind() == ErrorKind::NoSpace);
        self.room.wanted |= full && self.has_dead();
    }

    /// Does the checkpoint that makes room; true if it did.
    pub(super) fn make_room(&mut self) -> Result<bool> {
        match self.checkpoint_for_room(|_| {}) {
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                tracing::warn!(image = %self.identity.label, error = %error.sentence(), "checkpoint put off");
                Ok(false)
            }
            made => made.map(|()| true),
        }
    }
}
