//! Room that a pool keeps back on its medium, so that a full disk can be emptied again.

use super::pool::Pool;
use crate::error::{ErrorKind, Result};

impl Pool {
    /// Does what is needed to make room; on a full disk, with what was kept back for it.
    pub(crate) fn with_reserve<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        match work() {
            Err(error) if error.kind() == ErrorKind::NoSpace && self.give_up_reserve() => {
                let done = work();
                self.keep_reserve();
                done
            }
            done => done,
        }
    }

    /// Keeps some room on the medium back, so that a full disk can be emptied again by removing
    /// snapshots and images, by shrinking and by discarding. Where there is not room for all of it, it
    /// keeps what it can, and the rest is tried again later.
    pub(crate) fn keep_reserve(&self) {
        self.segments().keep_reserve(self.store().limits().reserve_bytes);
    }

    /// True where something is kept back.
    pub(crate) fn has_reserve(&self) -> bool {
        self.segments().has_reserve()
    }

    /// Gives the reserve to whoever needs it; true if there was one.
    pub(crate) fn give_up_reserve(&self) -> bool {
        self.segments().give_up_reserve()
    }
}
