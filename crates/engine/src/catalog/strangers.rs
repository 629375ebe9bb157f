//! Files of other users in a pool's directory `children`, where every user may create files.
//!
//! A marker of a clone is a small file whose name is made of numbers. Other files, and more markers than a
//! pool may leave, take space from the pool's owner. A name may be any bytes, and a directory may hold a
//! tree of any depth. The code here copes with both.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;

use marcot_backend::{ChildKey, SharedDirectory};
use marcot_store::FileInfo;

use super::child_names::is_of_another_name;
use super::children::{CHILD_RECORD_BYTES_MAX, MARKERS_MAX};
use super::pool::Pool;
use crate::error::{IoContext, Result};
use crate::printable::printable_bytes;

/// Limit on the bytes that a marker takes on the medium. It is above its length, because file systems
/// allocate in larger units.
const MARKER_ROOM_MAX: u64 = 64 << 10;

/// Limit on the files that are reported one by one.
const TOLD_MAX: usize = 20;

/// Limit on the files that are looked at or removed in one pass, so that a user who adds files meanwhile
/// cannot keep the pass going.
const STEPS_MAX: u64 = 1 << 24;

/// The user who may remove files in other users' directories.
const ROOT: u32 = 0;

/// Prefix of the name of a directory of the pool's owner, to which another user's directory is moved
/// before it is removed. The number of that user and two more numbers follow.
const ASIDE: &str = ".swept";

/// Files of other users that do not belong in the directory of children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Strangers {
    /// Files that are no markers.
    pub junk: Vec<Junk>,
    /// How many more such files there are than `junk` lists.
    pub junk_more: u64,
    /// How many of those are still there.
    pub junk_more_left: u64,
    /// Users with more markers than a pool may leave, and how many.
    pub over_limit: Vec<(u32, u64)>,
    /// There are more files than were looked at.
    pub unfinished: bool,
}

/// A file that is no marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Junk {
    /// Its name, fit for a message.
    pub name: String,
    /// The user who left it, and what it is; or why that cannot be found out.
    pub what: std::result::Result<(u32, Kind), String>,
    /// Whether it was removed; or why removing it failed.
    pub removed: std::result::Result<bool, String>,
}

/// What another user has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory with all that is in it.
    Directory,
    /// Anything else, with the bytes that it takes on the medium.
    File { bytes: u64 },
}

/// A marker's name is made of numbers. While it is being written, the name has a point before them and a
/// suffix.
fn is_name_of_marker(name: &str) -> bool {
    let temporary = || {
        let name = name.strip_prefix('.')?.strip_suffix(".tmp")?;
        ChildKey::parse(name.rsplit_once('.')?.0)
    };
    ChildKey::parse(name).or_else(temporary).is_some()
}

/// Space may be allocated beyond a file's length, so both are limited.
fn is_small(info: &FileInfo) -> bool {
    info.plain && info.length <= CHILD_RECORD_BYTES_MAX && info.allocated_bytes <= MARKER_ROOM_MAX
}

/// For a directory that a pass has moved another user's files to: that user, and the number of the pass.
fn parse_aside(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(ASIDE)?.strip_prefix('.')?.split('.');
    let user = parts.next()?.parse().ok()?;
    let pass = u64::from_str_radix(parts.next()?, 16).ok()?;
    parts.next()?.parse::<u64>().ok()?;
    parts.next().is_none().then_some((user, pass))
}

/// One pass over the directory of children.
struct Pass<'a> {
    pool: &'a Pool,
    shared: &'a SharedDirectory,
    remove: bool,
    /// The number that tells this pass from others.
    number: u64,
    /// How many more files may be looked at or removed.
    steps: u64,
    found: Strangers,
    /// The number of markers by user.
    markers: BTreeMap<u32, u64>,
}

impl Pool {
    /// Looks for files of other users that are no markers. With `remove`, removes them, as far as possible.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn strangers(&self, remove: bool) -> Result<Strangers> {
        let Some(shared) = &self.0.backend.shared else { return Ok(Strangers::default()) };
        let mut pass = Pass {
            pool: self,
            shared,
            remove,
            number: self.unique(),
            steps: STEPS_MAX,
            found: Strangers::default(),
            markers: BTreeMap::new(),
        };
        let visited = shared.disk.look_through(&shared.path, &mut |name, info| {
            pass.steps = pass.steps.saturating_sub(1);
            pass.look(name, info);
            pass.steps > 0
        });
        match visited {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            visited => visited.at(|| format!("cannot list {}", shared.path.display()))?,
        }
        let Pass { mut found, markers, steps, .. } = pass;
        found.over_limit = markers.into_iter().filter(|(_, n)| *n > MARKERS_MAX as u64).collect();
        found.unfinished = steps == 0;
        Ok(found)
    }

    /// Removes files of other users that are no markers, and logs which.
    ///
    /// # Errors
    /// As [`Self::strangers`].
    pub(crate) fn sweep_strangers(&self) -> Result<()> {
        for Junk { name, what, removed } in self.strangers(true)?.junk {
            let pool = self.name();
            match (what, removed) {
                (Ok((user, _)), Ok(_)) => {
                    tracing::warn!(%pool, user, %name, "removed from children/");
                }
                (Ok((user, _)), Err(error)) => {
                    tracing::warn!(%pool, user, %name, %error, "cannot be removed from children/; remove it by hand");
                }
                (Err(error), _) => {
                    tracing::warn!(%pool, %name, %error, "cannot be looked at in children/");
                }
            }
        }
        Ok(())
    }

    /// Removes everything in the directory of children of a pool that was removed. What cannot be removed
    /// stays.
    pub(crate) fn clear_children(&self) {
        let Some(SharedDirectory { disk, path: directory }) = &self.0.backend.shared else {
            return;
        };
        let (number, mut steps) = (self.unique(), STEPS_MAX);
        let _ = disk.look_through(directory, &mut |name, _| {
            let aside =
                directory.join(format!("{ASIDE}.{}.{number:016x}.{steps}", self.owner_id()));
            let _ = disk.remove_tree(&directory.join(name), &aside, &mut steps);
            steps > 0
        });
    }
}

impl Pass<'_> {
    fn look(&mut self, name: &OsStr, info: io::Result<FileInfo>) {
        let text = name.to_str().unwrap_or_default();
        let what = match info {
            Err(error) => Err(error.to_string()),
            Ok(info) => {
                let Some(user) = self.user_of_junk(text, &info) else { return };
                Ok((
                    user,
                    match info.directory {
                        true => Kind::Directory,
                        false => Kind::File { bytes: info.allocated_bytes },
                    },
                ))
            }
        };
        let removed = match &what {
            Ok((user, _)) if self.remove => self.remove(name, *user).map(|()| true),
            _ => Ok(false),
        };
        if self.found.junk.len() < TOLD_MAX {
            let name = printable_bytes(name.as_encoded_bytes());
            self.found.junk.push(Junk { name, what, removed });
        } else {
            self.found.junk_more += 1;
            self.found.junk_more_left += u64::from(removed != Ok(true));
        }
    }

    /// The user who left a file that is no marker; `None` for a file that belongs here. Counts markers.
    fn user_of_junk(&mut self, name: &str, info: &FileInfo) -> Option<u32> {
        if info.owner_id != self.pool.owner_id() {
            if is_name_of_marker(name) && is_small(info) {
                *self.markers.entry(info.owner_id).or_default() += 1;
                return None;
            }
            return Some(info.owner_id);
        }
        if info.directory {
            // A directory that this pass could not remove was reported already.
            let aside = parse_aside(name).filter(|(_, pass)| *pass != self.number);
            return aside.map(|(user, _)| user);
        }
        let planted = |key| is_of_another_name(&self.pool.recorded_child(key), key);
        ChildKey::parse(name).is_some_and(planted).then_some(info.owner_id)
    }

    fn remove(&mut self, name: &OsStr, user: u32) -> std::result::Result<(), String> {
        let SharedDirectory { disk, path: directory } = self.shared;
        let aside = format!("{ASIDE}.{user}.{:016x}.{}", self.number, self.steps);
        let (path, aside) = (directory.join(name), directory.join(aside));
        disk.remove_tree(&path, &aside, &mut self.steps).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied if disk.user_id() != ROOT => {
                format!("{error}; root can, with 'rm -r'")
            }
            _ => error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_told_from_other_files_by_name() {
        let name = "0000000000000001.0000000000000002.03.0000000000000004.0000000000000005";
        for marker in [name.to_owned(), format!(".{name}.00000000000000ff.tmp")] {
            assert!(is_name_of_marker(&marker), "{marker}");
        }
        for other in ["junk", ".1.2.3.4.5", "1.2.3.4", ".junk.00ff.tmp", "1.2.3.4.5.tmp", ""] {
            assert!(!is_name_of_marker(other), "{other}");
        }
    }

    #[test]
    fn a_directory_that_a_pass_could_not_remove_is_known_by_its_name() {
        assert_eq!(parse_aside(".swept.64003.00000000000000ff.12"), Some((64_003, 255)));
        for other in [".swept", ".swept.1.2", ".swept.1.x.3", ".swept.1.2.3.4", "swept.1.2.3"] {
            assert_eq!(parse_aside(other), None, "{other}");
        }
    }
}
