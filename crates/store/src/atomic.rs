//! Small files that are replaced as a whole.

use std::io;
use std::path::Path;

use crate::Disk;

fn write_temporary(
    disk: &dyn Disk,
    path: &Path,
    unique: u64,
    mode: u32,
    bytes: &[u8],
) -> io::Result<std::path::PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{unique:016x}.tmp"));
    let file = disk.create_new(&temporary, mode)?;
    let written = file.write_at(0, &[bytes]).and_then(|()| file.sync());
    if let Err(error) = written {
        // If this fails too, a harmless temporary file stays. The first error is returned.
        let _ = disk.remove_file(&temporary);
        return Err(error);
    }
    Ok(temporary)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// Replaces the content of `path`, durably. After a crash the file is the old one or the new one.
/// `unique` tells concurrent temporary files apart.
///
/// 1. Write and sync a temporary file. 2. Rename it; this is the commit. 3. Sync the directory.
///
/// # Errors
/// What the operating system says. After an error in step 3 the new content is visible, and may or
/// may not survive a crash.
pub fn replace(
    disk: &dyn Disk,
    path: &Path,
    unique: u64,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    let temporary = write_temporary(disk, path, unique, mode, bytes)?;
    if let Err(error) = disk.rename(&temporary, path) {
        let _ = disk.remove_file(&temporary);
        return Err(error);
    }
    disk.sync_directory(parent(path))
}

/// As [`replace`], but only where `path` does not exist yet.
///
/// # Errors
/// `AlreadyExists`, or as [`replace`].
pub fn publish_new(
    disk: &dyn Disk,
    path: &Path,
    unique: u64,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    let temporary = write_temporary(disk, path, unique, mode, bytes)?;
    if let Err(error) = disk.rename_new(&temporary, path) {
        let _ = disk.remove_file(&temporary);
        return Err(error);
    }
    disk.sync_directory(parent(path))
}
