//! The reserve: space that a pool keeps back on its medium, so that a full disk can be emptied again.

use super::pool::Pool;
use crate::error::{ErrorKind, Result};

impl Pool {
    /// Does work that frees space. Where the disk is full, the reserve is given up first, and kept again
    /// afterwards.
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

    /// Keeps some space on the medium back. With it, a full disk can be emptied again by removing
    /// snapshots and images, by shrinking and by discarding. Where there is too little space, it keeps
    /// what it can get, and a later call tries to get the rest.
    pub(crate) fn keep_reserve(&self) {
        self.segments().keep_reserve(self.store().limits().reserve_bytes);
    }

    /// True where some space is kept back.
    pub(crate) fn has_reserve(&self) -> bool {
        self.segments().has_reserve()
    }

    /// Frees the reserve. Returns true where there was one.
    pub(crate) fn give_up_reserve(&self) -> bool {
        self.segments().give_up_reserve()
    }
}
