//! Temporary files that commands left behind when they were cut off.
//!
//! Invariant: a temporary file goes only where nobody can be writing it: whoever could is locked out,
//! or it has not been written to for an hour, when writing it takes milliseconds.

use std::path::{Path, PathBuf};

use marcot_store::{Disk, LockMode};

use super::child_names::temporary_of_pool;
use super::pool::Pool;
use super::store::Store;
use crate::error::Result;

/// Nobody is writing a temporary file that was not changed for so long.
const ABANDONED_S: i64 = 3600;

/// Most temporary files of a directory that are looked at in one go: others may fill `children`.
const TEMPORARIES_MAX: usize = 100_000;

/// Hexadecimal digits that tell temporary files of one name apart.
const UNIQUE_DIGITS: usize = 16;

/// The name of the file that a temporary file was to become; `None` for any other file.
pub(super) fn temporary_for(file: &str) -> Option<&str> {
    let inner = file.strip_prefix('.')?.strip_suffix(".tmp")?;
    let (name, unique) = inner.rsplit_once('.')?;
    let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (!name.is_empty() && unique.len() == UNIQUE_DIGITS && unique.bytes().all(digits))
        .then_some(name)
}

/// Temporary files in a directory; none where it cannot be listed.
fn temporaries(disk: &dyn Disk, directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // What cannot be listed holds nothing that could be removed.
    let _ = disk.visit(directory, &mut |name| {
        if name.to_str().and_then(temporary_for).is_some() {
            found.push(directory.join(name));
        }
        found.len() < TEMPORARIES_MAX
    });
    found.sort_unstable();
    found
}

/// Removes temporary files of a directory; returns how many. Those that cannot be removed stay.
fn sweep(disk: &dyn Disk, files: Vec<PathBuf>) -> u64 {
    files.iter().filter(|path| disk.remove_file(path).is_ok()).count() as u64
}

impl Pool {
    fn abandoned(&self, path: &Path) -> bool {
        let changed = self.disk().modified_s(path);
        changed.is_ok_and(|at_s| self.now_s().saturating_sub(at_s) > ABANDONED_S)
    }

    /// Removes temporary files of names of a namespace. The pool's lock is held, without which nobody
    /// writes any.
    pub(super) fn sweep_names(&self, names: &Path) -> u64 {
        sweep(self.disk(), temporaries(self.disk(), names))
    }

    fn names_directories(&self) -> Vec<PathBuf> {
        let names = self.directory().join("names");
        let parts = self.disk().list(&names).unwrap_or_default();
        parts.iter().map(|part| names.join(part)).collect()
    }

    /// Temporary files that were abandoned long ago.
    pub(crate) fn abandoned_files(&self) -> Result<Vec<PathBuf>> {
        let mut directories = self.names_directories();
        directories.extend([self.directory().to_owned(), self.directory().join("children")]);
        directories.extend(self.image_ids()?.into_iter().map(|image| self.image_directory(image)));
        let all = directories.iter().flat_map(|d| temporaries(self.disk(), d));
        Ok(all.filter(|path| self.abandoned(path)).collect())
    }

    /// Removes what commands left in this pool when they were cut off; returns how many files.
    pub(crate) fn sweep_litter(&self) -> Result<u64> {
        let disk = self.disk();
        let _catalogue = self.lock(LockMode::Exclusive)?;
        // The pool's own record, names, and records of children here are written under this lock.
        let mut removed = sweep(disk, temporaries(disk, self.directory()));
        for names in self.names_directories() {
            removed += self.sweep_names(&names);
        }
        let mut children = temporaries(disk, &self.directory().join("children"));
        children.retain(|path| temporary_of_pool(path, self.id()) || self.abandoned(path));
        removed += sweep(disk, children);
        for image in self.image_ids()? {
            let mut files = temporaries(disk, &self.image_directory(image));
            if files.is_empty() {
                continue;
            }
            // Its owner writes heads.
            let lock = self.lock_image(image).ok().flatten();
            files.retain(|path| lock.is_some() || self.abandoned(path));
            removed += sweep(disk, files);
        }
        Ok(removed)
    }
}

impl Store {
    /// Removes what attaching and detaching left in the store's directories when it was cut off.
    pub(super) fn sweep_litter(&self) -> Result<()> {
        let disk = &*self.inner.disk;
        let _lock = self.lock("collect what was left in it")?;
        sweep(disk, temporaries(disk, &self.directory().join("attached")));
        let mut own = temporaries(disk, self.directory());
        let now_s = self.inner.world.clock.now_s();
        // Who makes a store holds no lock yet.
        own.retain(|path| disk.modified_s(path).is_ok_and(|at_s| now_s - at_s > ABANDONED_S));
        sweep(disk, own);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_are_told_from_others() {
        assert_eq!(temporary_for(".head.0123456789abcdef.tmp"), Some("head"));
        assert_eq!(temporary_for(".a.b.0123456789abcdef.tmp"), Some("a.b"));
        for other in [
            "head",
            ".tmp",
            ".head.tmp",
            "..0123456789abcdef.tmp",
            "head.0123456789abcdef.tmp",
            ".head.0123456789abcde.tmp",
            ".head.0123456789abcdeg.tmp",
            ".head.0123456789ABCDEF.tmp",
            ".head.0123456789abcdef.tmp~",
        ] {
            assert_eq!(temporary_for(other), None, "{other}");
        }
    }
}
