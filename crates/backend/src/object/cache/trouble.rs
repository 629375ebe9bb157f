//! Saying once that something is wrong, and once that it is over.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Damage of so many objects is told in single lines. A crash may leave many torn files.
const DAMAGE_LINES_MAX: u64 = 20;

/// What is wrong with the cache at the moment.
#[derive(Default)]
pub(super) struct Trouble {
    passed_by: AtomicBool,
    damaged: AtomicU64,
}

impl Trouble {
    /// Something could not be stored or read. Reads go to the service.
    pub(super) fn begin(&self, directory: &dyn Display, why: &dyn Display) {
        match self.passed_by.swap(true, Ordering::Relaxed) {
            false => tracing::warn!(
                "the cache {directory} does not work, so that more is fetched than needed: {why}"
            ),
            true => tracing::debug!(%why, "the cache {directory} still does not work"),
        }
    }

    /// Something was stored.
    pub(super) fn end(&self, directory: &dyn Display) {
        if self.passed_by.load(Ordering::Relaxed) && self.passed_by.swap(false, Ordering::Relaxed) {
            tracing::info!("the cache {directory} works again");
        }
    }

    /// True between the two.
    pub(super) fn is_on(&self) -> bool {
        self.passed_by.load(Ordering::Relaxed)
    }

    /// Bytes in the cache are not those that were stored.
    pub(super) fn damaged(&self, file: &dyn Display, key: &str, chunk: u32, why: &dyn Display) {
        let count = self.damaged.fetch_add(1, Ordering::Relaxed);
        match count {
            0..DAMAGE_LINES_MAX => tracing::warn!(
                key,
                chunk,
                "a part of the cache's file {file} {why}, and is fetched again"
            ),
            DAMAGE_LINES_MAX => tracing::warn!("more files of the cache are damaged, as {file}"),
            _ => tracing::debug!(key, chunk, "a part of the cache's file {file} {why}"),
        }
    }

    /// Damaged parts that were found.
    pub(super) fn damaged_count(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }
}
