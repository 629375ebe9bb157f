//! Removing files of other users from a directory that is open to all.
//!
//! The other user has chosen names and depth, and may change the tree meanwhile. So:
//! - Names are bytes, and each is looked up in an open directory. No path grows with the depth.
//! - A directory that is not empty is first moved into a private directory, and so is each directory found
//!   in it. There nobody can exchange it for something else, and nothing lies deeper than one level. So a
//!   few descriptors and no list of names are enough for a tree of any depth and width.
//! - No symbolic link is followed, and no other file system is entered. A mount point cannot be moved
//!   either.
//! - The steps are counted, so a user who adds files meanwhile cannot keep this going.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::beneath::Beneath;

/// The flags with which directories are opened to read their names.
pub(super) const LISTED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Calls `each` for the names in a directory, without `.` and `..`, until it returns false. The directory
/// was opened with [`LISTED`].
pub(super) fn each_name(
    directory: BorrowedFd<'_>,
    each: &mut dyn FnMut(&OsStr) -> bool,
) -> io::Result<()> {
    for entry in fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") && !each(OsStr::from_bytes(name)) {
            break;
        }
    }
    Ok(())
}

/// Removes `name` with its content. `aside`, in the same directory, is the name of the private directory. It
/// is made if needed, and stays where something in it cannot be removed.
pub(super) fn remove(
    within: &Beneath,
    name: &Path,
    aside: &Path,
    steps: &mut u64,
) -> io::Result<()> {
    step(steps)?;
    if remove_one(within.root(), name)? {
        return Ok(());
    }
    let (place, called) = match private(within, name)? {
        // A private directory that an interrupted removal has left.
        Some(place) => (place, name),
        None => (move_aside(within, name, aside)?, aside),
    };
    let emptied = empty(&place, steps);
    match fs::unlinkat(within.root(), called, AtFlags::REMOVEDIR) {
        Err(error) => Err(emptied.err().unwrap_or_else(|| error.into())),
        Ok(()) => Ok(()),
    }
}

fn step(steps: &mut u64) -> io::Result<()> {
    let left = steps.checked_sub(1);
    *steps = left.ok_or_else(|| io::Error::other("there is more than is removed in one go"))?;
    Ok(())
}

/// Removes a file or an empty directory; false for a directory that is not empty.
fn remove_one(directory: BorrowedFd<'_>, name: &Path) -> io::Result<bool> {
    let refused = match fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        // EPERM may mean a directory, or a file that must not be removed. The next call shows which.
        Err(error @ (Errno::ISDIR | Errno::PERM)) => error,
        Err(error) => return Err(error.into()),
    };
    match fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(Errno::NOTDIR) => Err(refused.into()),
        Err(error) => Err(error.into()),
    }
}

/// Opens a directory that only this user may change; `None` for any other.
fn private(within: &Beneath, name: &Path) -> io::Result<Option<Beneath>> {
    let place = within.open_beneath(name, false)?;
    let stat = fs::fstat(place.root())?;
    let own = stat.st_uid == rustix::process::geteuid().as_raw();
    Ok((own && stat.st_mode & 0o077 == 0).then_some(place))
}

/// Makes the private directory and moves a directory into it.
fn move_aside(within: &Beneath, name: &Path, aside: &Path) -> io::Result<Beneath> {
    fs::mkdirat(within.root(), aside, Mode::RWXU)?;
    let made = private(within, aside).and_then(|place| {
        let place = place.ok_or_else(|| io::Error::other("the directory was exchanged"))?;
        fs::renameat(within.root(), name, place.root(), "0")?;
        Ok(place)
    });
    if made.is_err() {
        let _ = fs::unlinkat(within.root(), aside, AtFlags::REMOVEDIR);
    }
    made
}

/// Empties the private directory. Where something stays, returns the last error.
fn empty(place: &Beneath, steps: &mut u64) -> io::Result<()> {
    let mut next_name = 0;
    let directory = place.open(Path::new("."), LISTED, Mode::empty())?;
    loop {
        let (mut progress, mut kept) = (false, Ok(()));
        each_name(directory.as_fd(), &mut |name| {
            match take_apart(place, Path::new(name), &mut next_name, steps) {
                Ok(changed) => progress |= changed,
                Err((changed, error)) => {
                    progress |= changed;
                    kept = Err(error);
                }
            }
            *steps > 0
        })?;
        // Directories moved here meanwhile may not have been listed, so list again.
        if !progress || *steps == 0 {
            return kept;
        }
    }
}

/// Removes one directory of the private directory, with its content. Directories in it that are not empty
/// are moved beside it. Returns whether that changed anything.
fn take_apart(
    place: &Beneath,
    name: &Path,
    next_name: &mut u64,
    steps: &mut u64,
) -> Result<bool, (bool, io::Error)> {
    let unchanged = |error: io::Error| (false, error);
    step(steps).map_err(unchanged)?;
    if remove_one(place.root(), name).map_err(unchanged)? {
        return Ok(true);
    }
    let directory = place.open(name, LISTED, Mode::empty()).map_err(unchanged)?;
    let (mut changed, mut kept) = (false, None);
    let listed = each_name(directory.as_fd(), &mut |name| {
        let name = Path::new(name);
        let removed = step(steps).and_then(|()| match remove_one(directory.as_fd(), name)? {
            true => Ok(()),
            false => move_up(directory.as_fd(), name, place, next_name),
        });
        match removed {
            Ok(()) => changed = true,
            Err(error) => kept = Some(error),
        }
        *steps > 0
    });
    let error = listed.err().or(kept);
    match fs::unlinkat(place.root(), name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(still_there) => Err((changed, error.unwrap_or_else(|| still_there.into()))),
    }
}

/// Moves a directory into the private directory, under a number that is free there.
fn move_up(
    from: BorrowedFd<'_>,
    name: &Path,
    place: &Beneath,
    next_name: &mut u64,
) -> io::Result<()> {
    loop {
        *next_name += 1;
        match fs::renameat(from, name, place.root(), next_name.to_string()) {
            // Something that an earlier removal could not remove has this number.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR) => {}
            moved => return Ok(moved?),
        }
    }
}
