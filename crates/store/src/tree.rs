//! Removing a directory with its content by paths, where nobody else changes it.

use std::io;
use std::path::{Path, PathBuf};

use crate::Disk;

/// Removes `path`. Directories still to be removed are kept in a list, not on the stack.
pub(crate) fn remove<D: Disk + ?Sized>(disk: &D, path: &Path, steps: &mut u64) -> io::Result<()> {
    let mut todo: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(path) = todo.last().cloned() {
        let left = steps.checked_sub(1);
        *steps = left.ok_or_else(|| io::Error::other("there is more than is removed in one go"))?;
        let Err(refused) = disk.remove_file(&path) else {
            todo.pop();
            continue;
        };
        let Ok(names) = disk.list(&path) else { return Err(refused) };
        if names.is_empty() {
            disk.remove_directory(&path)?;
            todo.pop();
        }
        todo.extend(names.iter().map(|name| path.join(name)));
    }
    Ok(())
}
