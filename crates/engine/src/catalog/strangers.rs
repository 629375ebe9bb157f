//! What other users have left in a pool's directory `children`, which is open to all of them.
//!
//! A marker of a clone is a small file whose name is made of numbers. Whatever else lies there, and
//! whoever leaves more markers than a pool may, takes room from the pool's owner.

use std::collections::BTreeMap;

use marcot_store::FileInfo;

use super::children::{CHILD_RECORD_BYTES_MAX, MARKERS_MAX, is_of_another_name, parse_file_name};
use super::pool::Pool;
use super::store::sweep;
use crate::error::{IoContext, Result};

/// Most bytes that a marker takes on the medium: file systems give room in pieces.
const MARKER_ROOM_MAX: u64 = 64 << 10;

/// Most strangers' files that are told of one by one.
const TOLD_MAX: usize = 20;

/// Files of other users that do not belong into the directory of children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Strangers {
    /// What is no marker.
    pub junk: Vec<Junk>,
    /// Junk beyond those that are listed.
    pub junk_more: u64,
    /// How many of those are still there.
    pub junk_more_left: u64,
    /// Users with more markers than a pool may leave, and how many.
    pub over_limit: Vec<(u32, u64)>,
}

/// A file that is no marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Junk {
    /// Its name.
    pub name: String,
    /// The user who left it.
    pub user: u32,
    /// Bytes that it takes on the medium.
    pub bytes: u64,
    /// It was removed.
    pub removed: bool,
}

/// A marker has a name of numbers; while it is being written, with a point before and a suffix.
fn is_name_of_marker(name: &str) -> bool {
    let temporary = || {
        let name = name.strip_prefix('.')?.strip_suffix(".tmp")?;
        parse_file_name(name.rsplit_once('.')?.0)
    };
    parse_file_name(name).or_else(temporary).is_some()
}

/// Also room that was taken and is not part of the file's length takes room.
fn is_small(info: &FileInfo) -> bool {
    info.plain && info.length <= CHILD_RECORD_BYTES_MAX && info.allocated_bytes <= MARKER_ROOM_MAX
}

impl Pool {
    /// Looks for them; with `remove`, removes what is no marker, as far as that can be done.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn strangers(&self, remove: bool) -> Result<Strangers> {
        let directory = self.children_directory();
        let mut found = Strangers::default();
        let mut markers: BTreeMap<u32, u64> = BTreeMap::new();
        let mut look = |name: &str| {
            let path = directory.join(name);
            let Ok(info) = self.disk().file_info(&path) else { return };
            if info.owner_id == self.owner_id() {
                let planted = |key| is_of_another_name(&self.recorded_child(name), key);
                if !parse_file_name(name).is_some_and(planted) {
                    return;
                }
            } else if is_name_of_marker(name) && is_small(&info) {
                *markers.entry(info.owner_id).or_default() += 1;
                return;
            }
            if remove && self.disk().remove_file(&path).is_err() {
                sweep(self.disk(), &path);
            }
            let removed = remove && self.disk().file_info(&path).is_err();
            if found.junk.len() < TOLD_MAX {
                let (user, bytes) = (info.owner_id, info.allocated_bytes);
                found.junk.push(Junk { name: name.to_owned(), user, bytes, removed });
            } else {
                found.junk_more += 1;
                found.junk_more_left += u64::from(!removed);
            }
        };
        let visited = self.disk().visit(&directory, &mut |name| {
            look(name);
            true
        });
        match visited {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            visited => visited.at(|| format!("cannot list {}", directory.display()))?,
        }
        found.over_limit = markers.into_iter().filter(|(_, n)| *n > MARKERS_MAX as u64).collect();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_told_from_other_files_by_name() {
        for marker in ["1.2.3.4.5", ".1.2.3.4.5.00000000000000ff.tmp"] {
            assert!(is_name_of_marker(marker), "{marker}");
        }
        for other in ["junk", ".1.2.3.4.5", "1.2.3.4", ".junk.00ff.tmp", "1.2.3.4.5.tmp", ""] {
            assert!(!is_name_of_marker(other), "{other}");
        }
    }
}
