//! Work in the background: fetching ahead, making objects whole, counting.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::flight::Landed;
use super::layout::CHUNK_BYTES;
use super::space::STORING;
use super::{CachedObject, Inner};

/// Jobs of a process at a time. Each holds one fetch in memory. What exceeds them is not done: it is needed later,
/// or never.
const JOBS_MAX: usize = 8;

impl Inner {
    /// Starts a job. Returns false where there are enough of them. A job does not keep the cache: the cache keeps its
    /// jobs, and one that has not begun when the cache is dropped is not done.
    fn start(self: &Arc<Self>, job: impl FnOnce(&Arc<Self>) + Send + 'static) -> bool {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // A job may run in this call, and may start another one: then the list must not be locked.
        let mut running = std::mem::take(&mut *jobs);
        drop(jobs);
        running.retain_mut(|job| !job.is_finished());
        let has_room = running.len() < JOBS_MAX;
        if has_room {
            let cache = Arc::downgrade(self);
            running.push(self.place.world.workers.start(Box::new(move || {
                if let Some(cache) = cache.upgrade() {
                    job(&cache);
                }
            })));
        }
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).append(&mut running);
        has_room
    }

    /// Fetches chunks before they are needed.
    pub(super) fn fetch_ahead(self: &Arc<Self>, object: &CachedObject, chunks: Range<u32>) {
        let end = chunks.end.min(object.state.chunks());
        let all_here = {
            let slot = object.state.slot();
            let here = |chunk| slot.open.as_ref().is_some_and(|open| open.has(chunk));
            (chunks.start..end).all(here)
        };
        if all_here || self.trouble.is_on() {
            return;
        }
        let object = object.clone();
        self.start(move |cache| cache.fill(&object, chunks.start..end));
    }

    /// Fetches what is missing of an object.
    pub(super) fn complete(self: &Arc<Self>, object: &CachedObject) {
        let of = object.clone();
        let started = self.start(move |cache| {
            cache.fill(&of, 0..of.state.chunks());
            of.state.completed();
        });
        if !started {
            object.state.completed();
        }
    }

    pub(super) fn recount_later(self: &Arc<Self>) {
        self.start(|cache| {
            if let Err(error) = cache.bound.recount(&cache.place, STORING) {
                tracing::debug!(%error, "the cache could not be counted");
            }
        });
    }

    pub(super) fn shrink_later(self: &Arc<Self>) {
        self.start(|cache| {
            if let Err(error) = cache.bound.shrink(&cache.place) {
                tracing::debug!(%error, "the cache could not be made smaller");
            }
        });
    }

    /// Fetches those chunks that are missing. Errors are left to whoever needs the chunks.
    fn fill(self: &Arc<Self>, object: &CachedObject, chunks: Range<u32>) {
        let mut chunk = chunks.start;
        while chunk < chunks.end && !self.trouble.is_on() {
            if self.is_here(&object.state, chunk) {
                chunk += 1;
                continue;
            }
            match self.obtain(object, chunk, chunk + 1, chunks.end) {
                Ok((first, Landed::Bytes { bytes, end })) => {
                    if (bytes.len() as u64) < u64::from(end - first) * CHUNK_BYTES {
                        // The object ends here.
                        break;
                    }
                    chunk = end.max(chunk + 1);
                }
                // Another process has it.
                Ok(_) => chunk += 1,
                Err(error) => {
                    tracing::debug!(%error, key = %object.state.id.key, "not fetched ahead");
                    break;
                }
            }
        }
    }
}
