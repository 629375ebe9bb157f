//! Making room on a full disk.
//!
//! What gives space back has to write a little first: a group that says what was discarded, map pages
//! that no longer name it, a head. Each pool keeps a reserve for that. It is given up for such work
//! only, and taken again at once after it, as far as there is room: nothing else ever gets it.

use marcot_format::record::HeadRecord;

use super::Image;
use crate::error::{Error, ErrorKind, Result};

/// Where the image stands with room on the medium.
#[derive(Default)]
pub(super) struct Room {
    /// What is being done makes room, so the reserve must not be taken again meanwhile.
    pub spends_reserve: bool,
    /// Something found no room that a checkpoint may make.
    pub wanted: bool,
}

impl Image {
    /// Does what gives space back; where there is no room for it, with the pool's reserve.
    pub(super) fn for_room<T>(&mut self, work: impl Fn(&mut Self) -> Result<T>) -> Result<T> {
        match work(self) {
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

    /// A checkpoint that lets go of what the head before named.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub(super) fn checkpoint_for_room(&mut self, change: impl Fn(&mut HeadRecord)) -> Result<()> {
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

    /// True where a log that finds no room for its map is brought into it in parts: with the reserve.
    pub(super) fn may_store_in_parts(&self) -> bool {
        self.has_ended_log() && (self.room.spends_reserve || !self.identity.pool.has_reserve())
    }

    /// True where the next checkpoint makes room: segments go that it does not name.
    pub(super) fn has_dead(&self) -> bool {
        let open_data = self.journal.open_segment().map(|open| open.name);
        let open_map = self.state.pages.open_map();
        let goes = |name: &_| {
            Some(*name) != open_data && Some(*name) != open_map && self.head.is_private(name)
        };
        self.state.pages.has_dead() || self.state.table.has_dead(goes)
    }

    /// Does what needs room. Where there is none, but a checkpoint makes some, does it again after that.
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

    /// A checkpoint that makes room and found none is done again with the reserve, in
    /// [`Self::make_room`].
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
