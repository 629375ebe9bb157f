//! Segments as files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcot_store::DiskFile;

use super::{Place, layout, parent};
use crate::fault::{self, Fault};
use crate::{SegmentKey, SegmentSet, Segments};

/// Sizes of the reserve that are tried one after the other, as right shifts: the whole, a quarter, a
/// sixteenth. The last one is still enough for heads.
const RESERVE_SHIFTS: [u32; 3] = [0, 2, 4];

pub(super) struct LocalSegments(pub Arc<Place>);

impl LocalSegments {
    fn path(&self, key: SegmentKey) -> PathBuf {
        layout::segment(&self.0.directory, key)
    }

    fn set_path(&self, set: SegmentSet) -> PathBuf {
        layout::set(&self.0.directory, set)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        match self.0.disk.list(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names,
        }
    }

    fn grow_reserve(&self, bytes: u64) -> io::Result<()> {
        let (path, disk) = (layout::reserve(&self.0.directory), &self.0.disk);
        let file = match disk.open(&path, true) {
            Ok(file) => file,
            Err(_) => disk.create_new(&path, self.0.file_mode())?,
        };
        let kept_bytes = file.length()?;
        let wanted = RESERVE_SHIFTS.map(|shift| bytes >> shift);
        let mut grown = Ok(());
        for bytes in wanted.into_iter().take_while(|bytes| *bytes > kept_bytes) {
            grown = extend(&*file, kept_bytes, bytes);
            if grown.is_ok() {
                break;
            }
        }
        if kept_bytes > 0 { Ok(()) } else { grown }
    }
}

/// Makes the reserve longer. It is filled with zeros, because only written blocks are sure to be allocated.
fn extend(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; (to - from) as usize];
    file.write_at(from, &[&zeros]).and_then(|()| file.sync()).inspect_err(|_| {
        let _ = file.set_length(from);
    })
}

impl Segments for LocalSegments {
    fn create(&self, key: SegmentKey, start: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(key);
        let file = self.0.disk.create_new(&path, self.0.file_mode())?;
        let stored = file.write_at(0, &[start]).and_then(|()| file.sync());
        let stored = stored.and_then(|()| match fault::is(Fault::SkipNameSync) {
            true => Ok(()),
            false => self.0.disk.sync_directory(parent(&path)),
        });
        if let Err(error) = stored {
            let _ = self.0.disk.remove_file(&path);
            return Err(error);
        }
        Ok(file)
    }

    fn reuse(
        &self,
        old: SegmentKey,
        new: SegmentKey,
        start: &[u8],
    ) -> io::Result<Arc<dyn DiskFile>> {
        let (from, to) = (self.path(old), self.path(new));
        let file = self.0.disk.open(&from, true)?;
        file.write_at(0, &[start]).and_then(|()| file.sync())?;
        // An owner that was replaced may do this while its successor has a segment of that name.
        self.0.disk.rename_new(&from, &to)?;
        // From here on another process may remove the name, and use it for a file of its own. So this file is
        // not opened again by its name, and where something fails, the name stays.
        self.0.disk.sync_directory(parent(&to))?;
        Ok(file)
    }

    fn open(&self, key: SegmentKey, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.0.disk.open(&self.path(key), write)
    }

    fn settle(&self, key: SegmentKey) -> io::Result<()> {
        self.0.disk.sync_directory(parent(&self.path(key)))
    }

    fn remove(&self, key: SegmentKey) -> io::Result<u64> {
        let path = self.path(key);
        let bytes = self.0.disk.open(&path, false).and_then(|f| f.allocated_bytes()).unwrap_or(0);
        self.0.disk.remove_file(&path).map(|()| bytes)
    }

    fn list(&self, set: SegmentSet) -> io::Result<Vec<SegmentKey>> {
        let names = self.names(&self.set_path(set))?;
        let parsed = names.iter().filter_map(|name| layout::parse_segment(name));
        Ok(parsed.map(|(kind, sequence)| SegmentKey { set, kind, sequence }).collect())
    }

    fn create_set(&self, set: SegmentSet) -> io::Result<()> {
        let path = self.set_path(set);
        match self.0.disk.create_directory(&path, self.0.directory_mode()) {
            // The set of an author is created before anything names it, and again by each owner. A set
            // of copies is synced even if it exists: its maker may have been killed before its name was
            // durable, and a head that names it follows.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && set.copies == 0 => {
                return Ok(());
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.0.disk.sync_directory(parent(&path))
    }

    fn remove_set(&self, set: SegmentSet) -> io::Result<()> {
        self.0.disk.remove_directory(&self.set_path(set))
    }

    fn sets(&self) -> io::Result<Vec<SegmentSet>> {
        let names = self.0.disk.list(&layout::segments(&self.0.directory))?;
        Ok(names.iter().filter_map(|name| layout::parse_set(name)).collect())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.disk.free_bytes(&self.0.directory)
    }

    fn keep_reserve(&self, bytes: u64) {
        if let Err(error) = self.grow_reserve(bytes) {
            tracing::debug!(pool = %self.0.directory.display(), %error, "no room for the reserve");
            self.give_up_reserve();
        }
    }

    fn has_reserve(&self) -> bool {
        let file = self.0.disk.open(&layout::reserve(&self.0.directory), false);
        file.and_then(|file| file.length()).is_ok_and(|bytes| bytes > 0)
    }

    fn give_up_reserve(&self) -> bool {
        let (path, disk) = (layout::reserve(&self.0.directory), &self.0.disk);
        let Ok(file) = disk.open(&path, true) else { return false };
        let held = file.length().is_ok_and(|bytes| bytes > 0);
        // Cut the file first: the space of a removed file may become free only later.
        let cut = file.set_length(0).and_then(|()| file.sync());
        cut.and_then(|()| disk.remove_file(&path)).is_ok() && held
    }

    fn show(&self, key: SegmentKey) -> String {
        self.path(key).display().to_string()
    }
}
